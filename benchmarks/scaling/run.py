"""Measures how workers scale: 1 loop over 2 queues against 2 workers, a queue each; and instructions beyond the cores.

    sudo .venv/bin/python -m benchmarks.scaling.run --output benchmarks/results/scaling.json

Two sources, on CPUs 0 and 1, send 64-byte packets into queue 0 and queue 1 of a veth pair. `flood`: as fast as they
can; what got through is counted at the far end, or, dropped, by the engine, and must not exceed what the XDP program
sent to the sockets. `paced`: at a fixed rate, and the CPU time of the workers' threads by the packets moved.
On 2 cores the sources, the kernel's receive work and the workers share what there is, so a flood says how the cores are
shared, not what a second core is worth; the paced figures and the instructions say what a packet costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source
from benchmarks.pool.callgrind import available
from benchmarks.scaling import loops
from benchmarks.suite.beds import Bed
from benchmarks.suite.machine import machine

QUEUES = (0, 1)
RATE = 100_000  # packets a second and queue when paced
WARM_UP = 0.1
SETUPS: dict[str, ap.Options] = {
    "1 worker": ap.Options(queues=QUEUES, workers=1),
    "2 workers": ap.Options(queues=QUEUES, workers=2),
    "2 workers, pinned": ap.Options(queues=QUEUES, workers=2, cpus=QUEUES),
}


def threads_ns(runner: ap.Runner) -> int:
    """CPU time of the threads that run loops."""
    threads = runner._threads if isinstance(runner, ap.Workers) else [runner._thread]  # type: ignore[attr-defined]
    return sum(int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) for thread in threads)


def measure(bed: Bed, job: str, options: ap.Options, sink: Sink, seconds: float) -> dict[str, float]:
    """One path, once, while the sources send."""
    if job == "drop":
        opened = ap.drop(bed.left.near.name, options=options)
    else:
        opened = ap.forward(bed.left.near.name, bed.right.near.name, options=options)
    with opened as runner:
        runner.start()
        time.sleep(WARM_UP)
        before, far, used, started = runner.snapshot(), sink.report().packets, threads_ns(runner), time.monotonic()
        time.sleep(seconds)
        after, far_after, used = runner.snapshot(), sink.report().packets, threads_ns(runner) - used
        took = time.monotonic() - started
        runner.stop()
        done = runner.join()
        runner.audit().check()
        if done.received > done.ports[0].program["redirected"]:
            raise SystemExit(f"{job}: more was received than redirected to the sockets")
    moved = after.received - before.received if job == "drop" else far_after - far
    queues = [
        b.stats.rx_packets - a.stats.rx_packets
        for a, b in zip(before.ports, after.ports, strict=True)
        if a.info is not None and a.info.xdp_mode
    ]
    return {
        "pps": moved / took,
        "ns_a_packet": used / moved if moved else 0.0,
        "cpu": used / took / 1e9,
        "least_queue_share": min(queues) / max(1, sum(queues)),
    }


def compare(bed: Bed, job: str, load: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Every setup in every round."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in SETUPS}
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(Sink(bed.right.far, verify=False))
        sources = [stack.enter_context(Source(bed.left.far, cpu=cpu)) for cpu in QUEUES]
        for source in sources:
            source.start(rate=RATE if load == "paced" else None)
        for number in range(rounds):
            for name in list(SETUPS) if number % 2 else reversed(SETUPS):
                options = replace(SETUPS[name], netns=bed.netns)
                seen[name].append(measure(bed, job, options, sink, seconds))
        for source in sources:
            source.stop()
    base = seen["1 worker"]
    result = {
        name: {key: statistics.median(one[key] for one in all_) for key in all_[0]}
        | {
            "pps_ratio": statistics.median(one["pps"] / b["pps"] for one, b in zip(all_, base, strict=True)),
            "ns_ratio": statistics.median(
                one["ns_a_packet"] / b["ns_a_packet"] for one, b in zip(all_, base, strict=True)
            ),
        }
        for name, all_ in seen.items()
    }
    for name, one in result.items():
        print(
            f"{job}, {load}, {name}: {one['pps'] / 1e6:.3f} Mpps ({one['pps_ratio']:.2f}), "
            f"{one['ns_a_packet']:.0f} ns a packet ({one['ns_ratio']:.2f})",
            flush=True,
        )
    return {"job": job, "load": load, "setups": result, "rounds": seen}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    document: dict[str, Any] = {
        "command": " ".join(["python", "-m", "benchmarks.scaling.run", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "results": [],
    }
    with Lab() as lab:
        bed = Bed(lab.veth("left", queues=2), lab.veth("right", queues=2), lab.engine_netns)
        for job in ("drop", "forward"):
            for load in ("flood", "paced"):
                one = compare(bed, job, load, arguments.rounds, arguments.seconds)
                document["results"].append(one)
    if available():
        loops.build()
        counts = {case: {str(n): round(loops.instructions(case, n), 1) for n in loops.WORKERS} for case in loops.CASES}
        print("instructions a packet:", counts)
        document["instructions_a_packet"] = counts
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
