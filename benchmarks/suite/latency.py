"""One way through an engine that forwards: how long packets take at several rates, and the first after a pause."""

from __future__ import annotations

from typing import Any

import numpy as np

from afxdp_pool.testing import LatencyProbe, LatencyReport
from benchmarks.suite.beds import Bed
from benchmarks.suite.children import Child
from benchmarks.suite.engines import Engine

RATES = (1_000, 50_000, 100_000)
HALF = "half"
FIRST = "first"
PAUSES = 20.0  # packets a second that each find the engine asleep
MAX_FOR = 0.3  # seconds of flooding to find the highest rate
BURST = 64  # packets that leave together when the rate is too high for single ones
SINGLES = 120_000  # packets a second that can be sent one at a time
STAMP_EVERY = 17  # at high rates; no divisor of a burst, so that packets of every place in it are timed


def measure(bed: Bed, engine: Engine, rates: list[int | str], seconds: float, size: int = 64) -> dict[str, Any]:
    """Every rate in turn, through one run of the engine.

    Raises:
        EngineError: it failed.
    """
    found: dict[str, Any] = {}
    with (
        LatencyProbe(bed.left.far, bed.right.far, size=size, cpu=bed.source_cpu) as probe,
        Child(engine.command(bed, "forward", size), bed.engine_cpu) as child,
    ):
        probe.run(10_000, seconds=0.1)
        for rate in rates:
            if rate == HALF:
                flood = probe.run(None, seconds=MAX_FOR, burst=BURST, stamp_every=STAMP_EVERY)
                half = flood.received / flood.seconds / 2
                if half:
                    found[HALF] = as_dict(_at(probe, half, seconds))
            elif rate == FIRST:
                found[FIRST] = as_dict(probe.run(PAUSES, seconds=seconds))
            else:
                found[str(rate)] = as_dict(_at(probe, float(rate), seconds))
        child.stop()
    return found


def _at(probe: LatencyProbe, rate: float, seconds: float) -> LatencyReport:
    if rate <= SINGLES:
        return probe.run(rate, seconds=seconds)
    return probe.run(rate, seconds=seconds, burst=16 if rate < 1e6 else BURST, stamp_every=STAMP_EVERY)


def as_dict(report: LatencyReport) -> dict[str, Any]:
    """The report for JSON, its histogram without the empty buckets."""
    used = np.flatnonzero(report.counts)
    return {
        "rate": report.rate,
        "sent": report.sent,
        "received": report.received,
        "stamped": report.stamped,
        "late_bursts": report.late,
        "mean_ns": report.mean_ns,
        "max_ns": report.max_ns,
        "buckets": {str(int(bucket)): int(report.counts[bucket]) for bucket in used},
    }
