"""What each kind of handler costs, at batches of 64 and 256 packets of 64 bytes.

    .venv/bin/python -m benchmarks.handlers rings --output benchmarks/results/handlers.json
    sudo .venv/bin/python -m benchmarks.handlers veth --job swap --output benchmarks/results/handlers.json

``rings``: nanoseconds a packet of the loop with its handler alone. The ports' rings lie in memory; the kernel's part is
played between the runs and not timed, so a packet sent costs the engine's part of it only.

``veth``: packets a second from one veth pair to another, counted at the far end by an XDP program (what is dropped: by
the engine), flooded by a source on CPU 0; the engine runs on CPU 1. The rival is a Python loop on AF_PACKET sockets.

Kinds are interleaved in each round; ratios are medians of the rounds' ratios. A result file keeps one entry a command.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import afxdp_pool as ap
import afxdp_pool.forwarder as forwarder_module
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import FakeKernel, packets
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.traffic import Sink, Source
from benchmarks.handler_kinds import JOBS, KINDS, Flow, handler, packet_loop, packet_socket, route
from benchmarks.suite.machine import machine

BATCHES = (64, 256)
PACKET_LOOP = "AF_PACKET"
SOURCE_CPU, ENGINE_CPU = 0, 1
_FILL, _COMP, _RX, _TX = range(4)
_HEADROOM = 256


# Rings in memory -----------------------------------------------------------------------------------------------------


class Bed:
    """A port in memory whose kernel moves many packets at once. Every frame holds the same packet from the start."""

    PACKETS = 2048  # a run
    SIZE = 64

    def __init__(self) -> None:
        self.umem = ap.Umem(8192)
        self.pool = ap.FramePool(self.umem)
        config = ap.PortConfig(fill_size=4096, comp_size=4096, rx_size=4096, tx_size=4096, fill_level=self.PACKETS)
        self.port = ap.Port.in_memory(self.pool, config)
        self.kernel = FakeKernel(self.port)
        frames = self.umem.data.reshape(self.umem.frames, self.umem.frame_size)
        frames[:, _HEADROOM : _HEADROOM + self.SIZE] = np.frombuffer(packets.build(self.SIZE), np.uint8)

    def deliver(self) -> None:
        """Receive a run's packets."""
        self.port.fill(self.PACKETS - self.kernel.filled())
        source, filled = self.kernel._ring(_FILL)
        target, received = self.kernel._ring(_RX)
        at = (source.consumer + np.arange(self.PACKETS)) & (source.size - 1)
        to = (target.producer + np.arange(self.PACKETS)) & (target.size - 1)
        received["addr"][to] = filled[at] + np.uint64(_HEADROOM)
        received["len"][to] = self.SIZE
        source.consumer += self.PACKETS
        target.producer += self.PACKETS

    def complete(self) -> int:
        """Send and complete what waits in TX; how many packets."""
        source, sent = self.kernel._ring(_TX)
        target, completed = self.kernel._ring(_COMP)
        n = self.kernel.waiting()
        at = (source.consumer + np.arange(n)) & (source.size - 1)
        completed[(target.producer + np.arange(n)) & (target.size - 1)] = sent["addr"][at]
        source.consumer += n
        target.producer += n
        while self.port.complete(1024):
            pass
        return n

    def close(self) -> None:
        """Every frame is at home."""
        self.port.close()
        self.umem.audit().check(idle=True)
        self.umem.close()


def time_run(bed: Bed, forwarder: ap.Forwarder, *, sends: bool) -> float:
    """Nanoseconds a packet of one run, less what a run without packets takes."""
    bed.deliver()
    begin = time.perf_counter_ns()
    forwarder.run(packets=bed.PACKETS)
    middle = time.perf_counter_ns()
    forwarder.run(0.0)
    end = time.perf_counter_ns()
    sent = bed.complete()
    if sent != (bed.PACKETS if sends else 0):
        raise SystemExit(f"{sent} of {bed.PACKETS} packets were sent")
    return ((middle - begin) - (end - middle)) / bed.PACKETS


def rings(rounds: int, samples: int) -> dict[str, Any]:
    """Every job, kind and batch."""
    forwarder_module.DRAIN_WITHIN = 0.0  # nothing completes during a run
    bed = Bed()
    flow = Flow.of(packets.NOWHERE.source_ip, packets.NOWHERE.target_ip)
    found: dict[str, Any] = {}
    with contextlib.closing(bed):
        for job in JOBS:
            made = {
                (kind, batch): ap.Forwarder(
                    [bed.port],
                    {0: route(job, ap.TX)} if kind == "built-in" else None,
                    handler=handler(kind, job, ap.TX, flow),
                    batch=batch,
                )
                for kind in KINDS
                for batch in BATCHES
            }
            taken: dict[tuple[str, int], list[float]] = {key: [] for key in made}
            for _ in range(rounds):
                for key, forwarder in made.items():
                    once = [time_run(bed, forwarder, sends=job != "drop") for _ in range(samples)]
                    taken[key].append(statistics.median(once))
            for forwarder in made.values():
                forwarder.close()
            found[job] = summary(taken, "ns a packet")
    return found


# Real packets --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def engine(
    kind: str, job: str, made: Any, left: VethPair, right: VethPair, options: ap.Options
) -> Iterator[Callable[[], int]]:
    """One kind at work in a thread of its own; gives a function that says how many packets it has received."""
    if kind == PACKET_LOOP:
        done = threading.Event()
        received = [0]
        # A native program that passes everything: without one, the device takes no packets from the source.
        with (
            ap.XdpProgram(left.near.name, netns=options.netns),
            in_netns(options.netns),
            packet_socket(left.near.name) as source,
            packet_socket(right.near.name) as target,
        ):
            worker = threading.Thread(target=packet_loop, args=(job, made, source, target, done.is_set, received))
            worker.start()
            try:
                yield lambda: received[0]
            finally:
                done.set()
                worker.join()
        return
    names = left.near.name, right.near.name
    if kind == "built-in" and job == "drop":
        forwarder = ap.drop(names[0], options=options)
    elif kind == "built-in":
        forwarder = ap.forward(*names, rewrite=ap.Rewrite(swap=job == "swap"), options=options)
    else:
        forwarder = ap.handle(names, made, options=options)
    with forwarder:
        forwarder.start()
        yield lambda: forwarder.snapshot().received
        forwarder.stop()
        forwarder.join()
        forwarder.audit().check()


def veth(job: str, transmit: Any, rounds: int, seconds: float) -> dict[str, Any]:
    """One job, every kind and batch, and the AF_PACKET loop."""
    keys: list[tuple[str, int]] = [(kind, batch) for kind in KINDS for batch in BATCHES]
    keys.append((PACKET_LOOP, 1))
    taken: dict[tuple[str, int], list[float]] = {key: [] for key in keys}
    os.sched_setaffinity(0, {ENGINE_CPU})
    with Lab() as lab:
        left, right = lab.veth("left"), lab.veth("right")
        port = ap.PortConfig(transmit=transmit)
        options = functools.partial(ap.Options, netns=lab.engine_netns, port=port)
        flow = Flow.of(left.far.ipv4, left.near.ipv4)
        # Once: compiling takes a second.
        handlers = {kind: handler(kind, job, ap.FORWARD(1), flow) for kind in KINDS} | {PACKET_LOOP: flow}
        for number in range(rounds):
            for kind, batch in keys if number % 2 else reversed(keys):
                with (
                    Sink(right.far, verify=False) as sink,
                    Source(left.far, cpu=SOURCE_CPU) as source,
                    engine(kind, job, handlers[kind], left, right, options(batch=batch)) as received,
                ):
                    source.start(seconds=seconds)
                    sent = source.wait()
                    got = received() if job == "drop" else sink.report().packets
                    taken[kind, batch].append(got / sent.seconds / 1e6)
    return summary(taken, "Mpps")


def summary(taken: dict[tuple[str, int], list[float]], unit: str) -> dict[str, Any]:
    """Medians, the ratio to the built-in loop at the same batch, and the rounds behind them."""
    found: dict[str, Any] = {}
    for (kind, batch), values in taken.items():
        own = taken["built-in", batch if ("built-in", batch) in taken else BATCHES[0]]
        better: Callable[[float, float], float] = (lambda a, b: a / b) if unit == "Mpps" else (lambda a, b: b / a)
        found[f"{kind}, batch {batch}"] = {
            unit: statistics.median(values),
            "of the built-in": statistics.median(map(better, values, own)),
            "rounds": values,
        }
        if unit != "Mpps":
            found[f"{kind}, batch {batch}"]["least"] = min(values)
        if (PACKET_LOOP, 1) in taken:
            of_loop = statistics.median(map(better, values, taken[PACKET_LOOP, 1]))
            found[f"{kind}, batch {batch}"]["of AF_PACKET"] = of_loop
    return found


def show(job: str, found: dict[str, Any]) -> None:
    """One table."""
    print(f"\n{job}")
    for name, entry in found.items():
        numbers = ", ".join(f"{key} {value:.3f}" for key, value in entry.items() if key != "rounds")
        print(f"  {name:30} {numbers}")


def write(path: Path, name: str, entry: dict[str, Any]) -> None:
    """Add one command's results to the file, or replace what it said before."""
    document = json.loads(path.read_text()) if path.exists() else {}
    document[name] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("rings", "veth"))
    parser.add_argument("--job", choices=JOBS, default="swap", help="of the veth part")
    parser.add_argument("--transmit", choices=("socket", "live", "auto"), default="socket", help="of the veth part")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=9, help="runs a round, of the rings part")
    parser.add_argument("--seconds", type=float, default=0.5, help="a kind and round, of the veth part")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    load = os.getloadavg()
    if arguments.part == "rings":
        name, results = "rings", rings(arguments.rounds, arguments.samples)
    else:
        job, transmit = arguments.job, arguments.transmit
        name = f"veth {job}" if job == "drop" else f"veth {job}, {transmit}"
        results = {job: veth(job, transmit, arguments.rounds, arguments.seconds)}
    for job, found in results.items():
        show(job, found)
    if arguments.output:
        entry = {
            "command": " ".join(["python", "-m", "benchmarks.handlers", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine() | {"load": load},
            "results": results,
        }
        write(arguments.output, name, entry)


if __name__ == "__main__":
    main()
