"""Which measurements to make: the whole, or the figures that matter within two minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.suite.engines import BASELINE, CEILING, ENGINES, JOBS, SLEEPER
from benchmarks.suite.latency import FIRST, HALF, RATES
from benchmarks.suite.throughput import Cell

SIZES = (64, 256, 1500)
FLOWS = (1, 64)
EXTRAS = ("losses", "latency", "cost", "idle")
QUICK_ENGINES = ("ours_auto", "ours_live", "ours_socket", BASELINE, SLEEPER, "dpdk", CEILING)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        cells: jobs by size and flows, for the throughput.
        extras: of losses, latency, cost, idle.
        engines: their names.
        rounds: how often each is measured; the order of the engines alternates.
        seconds: of traffic a measurement.
        latency_rates: packets a second, or `HALF` of the engine's highest, or `FIRST` after a pause.
    """

    cells: Sequence[Cell]
    extras: Sequence[str]
    engines: Sequence[str]
    rounds: int
    seconds: float
    latency_rates: Sequence[int | str]


def whole(
    *,
    jobs: Sequence[str] = JOBS,
    extras: Sequence[str] = EXTRAS,
    sizes: Sequence[int] = SIZES,
    flows: Sequence[int] = FLOWS,
    engines: Sequence[str] = (),
    rounds: int = 3,
    seconds: float = 1.0,
) -> Plan:
    """Everything: every size with the first number of flows, and the other numbers of flows with the first size."""
    cells = [Cell(job, size, flows[0]) for job in jobs for size in sizes]
    cells += [Cell(job, sizes[0], number) for job in jobs if job != "tx" for number in flows[1:]]
    names = engines or [engine.name for engine in ENGINES]
    return Plan(cells, extras, names, rounds, seconds, [FIRST, *RATES, HALF])


def quick(*, engines: Sequence[str] = (), rounds: int = 2, seconds: float = 0.3) -> Plan:
    """Drop, forward and tx, and latency at 1000 packets a second."""
    cells = [Cell("drop", 64), Cell("forward", 64), Cell("forward", 1500), Cell("tx", 64), Cell("tx", 1500)]
    return Plan(cells, ["latency"], engines or QUICK_ENGINES, rounds, seconds, [RATES[0]])
