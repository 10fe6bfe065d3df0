"""What the engine is to reach, against its rivals, and whether a result shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.suite import figures
from benchmarks.suite.engines import BASELINE, SLEEPER
from benchmarks.suite.figures import Spread

MEGABYTES = 1e6


@dataclass(frozen=True)
class Ratio:
    """An engine's packets a second over another's, at least `least`."""

    what: str
    kind: str
    job: str
    engine: str
    other: str
    least: float
    size: int = 64

    def found(self, document: Mapping[str, Any]) -> Spread | None:
        """The ratio, or None when one of them was not measured."""
        rounds = figures.entry(document, self.kind, self.job, self.size)
        return figures.ratio(rounds, self.engine, self.other, figures.pps)


RATIOS = (
    Ratio("drop over the C peer", "throughput", "drop", "ours_auto", "c_peer", 1.0),
    Ratio("drop over DPDK", "throughput", "drop", "ours_auto", "dpdk", 1.0),
    Ratio("forward, live, over the C peer", "throughput", "forward", "ours_live", "c_peer", 5.0),
    Ratio("forward, live, over DPDK", "throughput", "forward", "ours_live", "dpdk", 5.0),
    Ratio("forward, live, over the kernel's redirect", "throughput", "forward", "ours_live", "kernel", 1.0),
    Ratio("forward, live, 1500 B, over the C peer", "throughput", "forward", "ours_live", "c_peer", 2.7, 1500),
    Ratio("forward, socket, over the C peer", "throughput", "forward", "ours_socket", "c_peer", 1.05),
    Ratio("tx, live, over the C peer", "throughput", "tx", "ours_live", "c_peer", 6.0),
    Ratio("tx, live, 1500 B, over the C peer", "throughput", "tx", "ours_live", "c_peer", 4.2, 1500),
    Ratio("loss-free forward, auto, over the C peer", "losses", "forward", "ours_auto", "c_peer", 4.0),
    Ratio("numba over built-in, socket", "throughput", "forward", "ours_numba", "ours_socket", 0.9),
    Ratio("numpy MAC swap over built-in, socket", "throughput", "forward", "ours_swap", "ours_socket", 0.6),
    Ratio("numpy 5-tuple filter over built-in, socket", "throughput", "forward", "ours_filter", "ours_socket", 0.6),
    Ratio("numba over built-in, live", "throughput", "forward", "ours_numba_live", "ours_live", 0.0),
    Ratio("numpy MAC swap over built-in, live", "throughput", "forward", "ours_swap_live", "ours_live", 0.0),
    Ratio("numpy 5-tuple filter over built-in, live", "throughput", "forward", "ours_filter_live", "ours_live", 0.0),
    Ratio("Python a packet over AF_PACKET in Python", "throughput", "forward", "ours_python", "packet_python", 10.0),
)


def rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What, at least, measured, met: a row for each target that was measured."""
    out = []
    for target in RATIOS:
        spread = target.found(document)
        if spread is None:
            continue
        measured = f"{spread.median:.2f} ({spread.least:.2f} to {spread.most:.2f})"
        least = f"{target.least:g} x" if target.least else ""
        out.append((target.what, least, measured, _met(spread.median >= target.least) if target.least else ""))
    return out + _latency_rows(document) + _idle_rows(document)


def _met(yes: bool) -> str:
    return "yes" if yes else "no"


def _latency_rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rounds = figures.entry(document, "latency", "forward")
    out = []
    for rate, name in (("1000", "1 k"), ("50000", "50 k")):
        for percent in (50, 99):
            ours = figures.microseconds(rounds, "ours_auto", rate, percent)
            other = figures.microseconds(rounds, "dpdk", rate, percent)
            if ours is None or other is None:
                continue
            wake_up = _wake_up(rounds, rate, percent) if rate == "1000" else 0.0
            if wake_up is None:
                continue
            allowed = other + wake_up
            what = f"latency p{percent} at {name}/s; DPDK, which never sleeps, has {other:.1f} us"
            out.append((what, f"<= {allowed:.1f} us", f"{ours:.1f} us", _met(ours <= allowed)))
    return out


def _wake_up(rounds: list[dict[str, Any]], rate: str, percent: float) -> float | None:
    """What a wake-up costs, in microseconds: the C peer that sleeps less the one that spins; None: not measured."""
    asleep = figures.microseconds(rounds, SLEEPER, rate, percent)
    awake = figures.microseconds(rounds, BASELINE, rate, percent)
    return max(asleep - awake, 0.0) if asleep is not None and awake is not None else None


def _idle_rows(document: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rounds = figures.entry(document, "idle", "forward")
    out = []
    used = figures.value(rounds, "ours_auto", lambda found: found["engine"])
    if used is not None:
        out.append(("idle, of one core", "< 1 %", f"{used.median:.2%}", _met(used.median < 0.01)))
    resident = figures.value(rounds, "ours_auto", lambda found: found["memory"]["VmRSS"] - found["frame_bytes"])
    if resident is not None:
        measured = resident.median / MEGABYTES
        out.append(("resident when idle, without the frames", "< 60 MB", f"{measured:.1f} MB", _met(measured < 60)))
    if "frames" in document:
        each = document["frames"]["bytes_a_frame"]
        out.append(("memory a frame, beyond the frame", "< 64 bytes", f"{each:.1f} bytes", _met(each < 64)))
    return out
