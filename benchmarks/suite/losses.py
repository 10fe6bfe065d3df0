"""The highest rate at which an engine forwards and loses fewer than ten packets in a million (RFC 2544, 26.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from afxdp_pool.testing import Sink, Source
from benchmarks.suite.beds import Bed
from benchmarks.suite.children import Child
from benchmarks.suite.engines import Engine

ALLOWED = 10e-6  # of the packets sent
TRIES = 2  # trials a rate has to pass one of: a machine with other guests pauses now and then, whoever forwards
TOLERANCE = 0.05  # of the rate: the search ends when it knows it so well
STEPS = 8
START = 1e6  # packets a second
REACHED = 0.97  # of the rate asked for; below it, the source is at its end
QUIET = 0.1  # seconds packets may take to arrive


@dataclass(frozen=True)
class Trial:
    """One rate: what was truly offered, and whether so few were lost."""

    rate: float
    offered: float
    lost: int
    sent: int

    @property
    def passed(self) -> bool:
        """Fewer lost than are allowed."""
        return self.sent > 0 and self.lost < max(1, ALLOWED * self.sent)


def search(attempt: Callable[[float], Trial], start: float, tries: int = TRIES) -> tuple[float, bool, list[Trial]]:
    """The highest rate offered of which a trial passed, whether the source was the limit, and all trials.

    Doubles or halves until one rate passes and one does not, then halves the gap.
    """
    trials: list[Trial] = []
    best, low, high, rate = 0.0, 0.0, float("inf"), start
    for _ in range(STEPS):
        passed = False
        for _ in range(tries):
            trial = attempt(rate)
            trials.append(trial)
            if trial.passed:
                passed = True
                best = max(best, trial.offered)
                break
        if passed:
            if trials[-1].offered < REACHED * rate:
                return best, True, trials
            low = rate
        else:
            high = rate
        if low and high <= low * (1 + TOLERANCE):
            break
        rate = 2 * low if high == float("inf") else (low + high) / 2 if low else high / 2
    return best, False, trials


def measure(bed: Bed, engine: Engine, seconds: float, size: int = 64, start: float = START) -> dict[str, Any]:
    """The search for one engine, which runs all the while.

    Raises:
        EngineError: it failed.
    """
    with (
        Sink(bed.right.far, verify=False) as sink,
        Source(bed.left.far, size=size, cpu=bed.source_cpu) as source,
        Child(engine.command(bed, "forward", size), bed.engine_cpu) as child,
    ):

        def attempt(rate: float) -> Trial:
            before = sink.report().packets
            sent = source.send(rate=rate, seconds=seconds, spin=True)
            arrived = sink.wait(before + sent.sent, QUIET).packets - before
            return Trial(rate, sent.rate, sent.sent - arrived, sent.sent)

        source.send(1000, rate=100_000)
        sink.wait(1000, QUIET)
        best, source_limited, trials = search(attempt, start)
        child.stop()
    return {
        "pps": best,
        "source_limited": source_limited,
        "trials": [{"offered": trial.offered, "lost": trial.lost, "sent": trial.sent} for trial in trials],
    }
