"""A small made-up result of the benchmark suite, of the form it writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.suite.engines import ENGINES
from benchmarks.suite.latency import RATES

MACHINE = {"cpu": "A CPU", "cores": 2, "kernel": "6.18", "python": "3.11.0", "numpy": "2.0", "numba": "", "dpdk": ""}


def rates(cell: dict[str, Any], speed: Callable[[int], float], rounds: int = 3) -> dict[str, Any]:
    """A cell in which engine number n moves `speed(n)` packets a second, times 1, 2, 3 in the rounds."""
    each = []
    for number in range(1, rounds + 1):
        once = {}
        for index, engine in enumerate(ENGINES):
            if cell["job"] in engine.jobs and not engine.idle:
                packets = round(speed(index) * number)
                used = {"user_seconds": 0.1, "system_seconds": 0.3, "machine_seconds": 1.5}
                once[engine.name] = {"pps": packets, "packets": packets, "seconds": 1.0, "offered_pps": 1e6, **used}
        each.append(once)
    return {"flows": 1, **cell, "rounds": each}


def result() -> dict[str, Any]:
    """Every kind of measurement, over every engine."""

    def speed(index: int) -> float:
        return 1e6 / (index + 1)

    histogram = {"rate": 1000.0, "sent": 1000, "received": 1000, "stamped": 1000, "late_bursts": 0}
    latencies = {
        engine.name: {
            rate: {**histogram, "buckets": {str(100 + index): 500, str(150 + index): 495, str(250 + index): 5}}
            for rate in ("first", *map(str, RATES), "half")
        }
        for index, engine in enumerate(ENGINES)
        if not engine.brief
    }
    quiet = {"engine": 0.001, "machine": 0.002, "memory": {"VmRSS": 84_000_000}, "frame_bytes": 1 << 25}
    forward = {"job": "forward", "size": 64}
    losses = rates(forward, speed, 2)
    for once in losses["rounds"]:
        for found in once.values():
            found.update({"source_limited": False, "trials": []})
    sizes = ((job, size) for job in ("drop", "forward", "reflect", "tx") for size in (64, 256, 1500))
    return {
        "command": "python -m benchmarks.suite",
        "date": "2026-01-02",
        "machine": MACHINE,
        "engines": {engine.name: {"label": engine.label, "kind": engine.kind} for engine in ENGINES},
        "left_out": [{"engine": "dpdk", "label": "DPDK af_xdp", "why": "dpdk_af_xdp is not built"}],
        "failures": [],
        "throughput": [rates({"job": job, "size": size}, speed) for job, size in sizes],
        "cost": [{**rates({"job": job, "size": 64}, speed), "rate": 500_000.0} for job in ("drop", "forward")],
        "losses": [losses],
        "latency": [{**forward, "flows": 1, "rounds": [latencies, latencies]}],
        "idle": [
            {**forward, "flows": 1, "machine_at_rest": 0.01, "rounds": [{engine.name: quiet for engine in ENGINES}]}
        ],
        "frames": {"interpreter": 9e6, "imported": 38e6, "frames": 65536, "bytes_a_frame": 20.0},
    }
