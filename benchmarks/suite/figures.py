"""Medians and ratios of a result. Ratios are taken within a round: what slows a round slows both sides of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from afxdp_pool.testing.latency import percentile

_BUCKETS = 1056  # of a latency histogram


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and the least and greatest of them."""

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None when there are no values."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found)) if found else None


Figure = Callable[[Mapping[str, Any]], float | None]


def value(rounds: Iterable[Mapping[str, Any]], engine: str, figure: Figure) -> Spread | None:
    """An engine's figure over the rounds it has one in."""
    found = (figure(once[engine]) for once in rounds if engine in once)
    return Spread.of(one for one in found if one is not None)


def ratio(rounds: Iterable[Mapping[str, Any]], engine: str, other: str, figure: Figure) -> Spread | None:
    """An engine's figure over another's, round by round."""
    ratios = []
    for once in rounds:
        if engine in once and other in once:
            above, below = figure(once[engine]), figure(once[other])
            if above is not None and below:
                ratios.append(above / below)
    return Spread.of(ratios)


def pps(found: Mapping[str, Any]) -> float:
    """Packets a second."""
    return float(found["pps"])


def nanoseconds(part: str) -> Figure:
    """CPU time a packet that got through: ``"user"``, ``"system"`` of the engine, ``"machine"`` of everything."""

    def figure(found: Mapping[str, Any]) -> float | None:
        return found[f"{part}_seconds"] / found["packets"] * 1e9 if found["packets"] else None

    return figure


def histogram(found: Iterable[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """The latency histograms of several measurements as one."""
    counts = np.zeros(_BUCKETS, np.uint64)
    for one in found:
        for bucket, number in one["buckets"].items():
            counts[int(bucket)] += np.uint64(number)
    return counts


def microseconds(rounds: Iterable[Mapping[str, Any]], engine: str, rate: str, percent: float) -> float | None:
    """A percentile of an engine's latency at a rate, over the packets of all rounds; None when there are none."""
    counts = histogram(once[engine][rate] for once in rounds if rate in once.get(engine, {}))
    return percentile(counts, percent) / 1e3 if counts.sum() else None


def short(number: float) -> str:
    """A number with as many digits as it is worth."""
    return f"{number:.1f}" if number < 100 else f"{number:.0f}"


def entry(document: Mapping[str, Any], kind: str, job: str, size: int = 64, flows: int = 1) -> list[dict[str, Any]]:
    """The rounds of one cell; none when it was not measured."""
    for one in document.get(kind, ()):
        if (one["job"], one["size"], one["flows"]) == (job, size, flows):
            rounds: list[dict[str, Any]] = one["rounds"]
            return rounds
    return []
