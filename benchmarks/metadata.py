"""Measures what metadata costs: in the XDP program, in the port, and where it becomes columns; ns a packet.

    sudo .venv/bin/python -m benchmarks.metadata --output benchmarks/results/metadata.json

Packets are sent by an AF_XDP socket at the far end of a veth, so that the kernel has a socket buffer of each, of which
veth knows the hash; it computes it then, which a NIC would have done. In a round every variant runs once, in
alternating order; a ratio is to the plain program of that round. The time is the kernel's own count, which adds the
same to every figure (kernel.bpf_stats_enabled). What the port and the columns take is measured over rings in memory,
the least of many; what the port's call into C takes, divided by its 64 packets, is part of both figures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import afxdp_pool as ap
from afxdp_pool.config import RX_METADATA
from afxdp_pool.loaded import program_by_id
from afxdp_pool.testing import FakeKernel, packets
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.source import addresses_of
from benchmarks.suite.beds import ENGINE_CPU, SOURCE_CPU
from benchmarks.suite.machine import machine

VARIANTS: dict[str, tuple[ap.config.RxMetadataName, ...]] = {
    "plain": (),
    "arrival": ("arrival",),
    "hash": ("hash",),
    "all": RX_METADATA,
}
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
BATCH = 64


@contextmanager
def counted_programs() -> Iterator[None]:
    """The kernel times BPF programs."""
    before = _STATS.read_text()
    _STATS.write_text("1")
    try:
        yield
    finally:
        _STATS.write_text(before)


def measure(pair: VethPair, netns: str, wanted: tuple[ap.config.RxMetadataName, ...], count: int) -> float:
    """ns a packet of the XDP program of one drop path."""
    options = ap.Options(netns=netns, cpus=(ENGINE_CPU,), port=ap.PortConfig(rx_metadata=wanted))
    sends = ap.Options(netns=pair.far.netns, cpus=(SOURCE_CPU,), port=ap.PortConfig(transmit="socket"))
    content = [packets.build(flow=flow, addresses=addresses_of(pair.far, None, None)) for flow in range(16)]
    with ap.drop(pair.near.name, options=options) as runner:
        runner.start()
        program = runner.ports[0].program
        assert program is not None
        with ap.transmit(pair.far.name, content, count=count, rate=300_000, options=sends) as sender:
            sender.run(30)
        deadline = time.monotonic() + 5
        while runner.snapshot().received < count * 0.99 and time.monotonic() < deadline:
            time.sleep(0.01)
        seen = program_by_id(program.id)
        runner.stop()
        runner.join()
        runner.audit().check()
    assert seen is not None
    return seen.run_time_ns / seen.run_cnt


def in_memory(wanted: tuple[ap.config.RxMetadataName, ...]) -> dict[str, float]:
    """ns a packet of `Port.receive`, in batches of 64, and of the columns of what it received."""
    config = ap.PortConfig(fill_size=256, fill_level=256, rx_size=256, comp_size=256, tx_size=256, rx_metadata=wanted)
    facts = {"hash": 1, "arrival": 2} if wanted else None
    with ap.Umem(1024) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, config)
        kernel = FakeKernel(port)
        least = 1 << 60
        for _ in range(300):
            port.fill()
            assert kernel.deliver(2 * BATCH, metadata=facts) == 2 * BATCH
            for _ in range(2):
                begin = time.perf_counter_ns()
                batch = port.receive(BATCH)
                least = min(least, time.perf_counter_ns() - begin)
                pool.put(batch)
                del batch  # not within the next one's time
        took = {"receive": least / BATCH}
        if wanted:
            port.fill()
            kernel.deliver(BATCH, metadata=facts)
            batch = port.receive(BATCH)
            for call in (batch.rx_metadata, batch.five_tuple):
                took[call.__name__] = min(timeit.repeat(call, number=2000, repeat=9)) / 2000 / BATCH * 1e9
            pool.put(batch)
    return {name: round(ns, 1) for name, ns in took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=60_000, help="packets a variant and round")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rounds: list[dict[str, float]] = []
    with counted_programs(), Lab() as lab:
        pair = lab.veth("a")
        for number in range(arguments.rounds):
            names = list(VARIANTS) if number % 2 else list(reversed(VARIANTS))
            once = {name: measure(pair, lab.engine_netns, VARIANTS[name], arguments.count) for name in names}
            rounds.append({name: once[name] for name in VARIANTS})
    results: dict[str, Any] = {}
    for name in VARIANTS:
        ratios = [one[name] / one["plain"] for one in rounds]
        results[name] = {
            "median_ns": round(statistics.median(one[name] for one in rounds), 1),
            "ratio": round(statistics.median(ratios), 2),
            "ratios": [round(ratio, 2) for ratio in ratios],
        }
    document = {
        "command": " ".join(["python", "-m", "benchmarks.metadata", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "program": results,
        "in_memory_ns": {name: in_memory(VARIANTS[name]) for name in ("plain", "all")},
    }
    for name, one in results.items():
        print(f"{name}: the program takes {one['median_ns']} ns a packet, {one['ratio']} times the plain one's")
    print(document["in_memory_ns"])
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
