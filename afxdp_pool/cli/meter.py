"""`Meter`: packets and bits a second, from reports taken one after the other. It owns the last second of them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from afxdp_pool import KernelStats, PortReport, Report

#: Seconds over which a rate is the mean.
WINDOW = 1.0
#: Seconds between two points of the history, and how many points it keeps.
STEP, POINTS = 0.5, 240

#: What the kernel counts of a socket as lost, and in which words.
CAUSES = {
    "rx_ring_full": "RX ring full",
    "rx_dropped": "no frame or too long",
    "rx_invalid_descs": "bad FILL entry",
    "tx_invalid_descs": "bad TX entry",
}
FILL_EMPTY = "FILL ring empty"


@dataclass(frozen=True)
class Rate:
    """One port's packets and bits (without preamble and FCS) a second."""

    rx_pps: float = 0.0
    rx_bps: float = 0.0
    tx_pps: float = 0.0
    tx_bps: float = 0.0
    completed_pps: float = 0.0
    lost_pps: float = 0.0


def losses(kernel: KernelStats) -> dict[str, int]:
    """Packets the kernel dropped, by cause in plain words; causes without any are left out."""
    lost = {words: count for name, words in CAUSES.items() if (count := getattr(kernel, name))}
    if kernel.rx_fill_ring_empty_descs >= kernel.rx_dropped > 0:  # then it was never the length
        lost[FILL_EMPTY] = lost.pop(CAUSES["rx_dropped"])
    return lost


class Meter:
    """Rates of every port, and the history of each port's RX and TX rate."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Report]] = deque()
        self._stepped = 0.0
        self.rates: list[Rate] = []
        self.history: list[tuple[deque[float], deque[float]]] = []

    def add(self, now: float, report: Report) -> list[Rate]:
        """Take in a report of the time `now`, in seconds; returns a rate for each port."""
        self._seen.append((now, report))
        while len(self._seen) > 2 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        self.rates = [_rate(a, b, now - then) for a, b in zip(before.ports, report.ports, strict=True)]
        if not self.history:
            self.history = [(deque(maxlen=POINTS), deque(maxlen=POINTS)) for _ in report.ports]
            self._stepped = now
        elif now - self._stepped >= STEP:
            self._stepped = now
            for (rx, tx), rate in zip(self.history, self.rates, strict=True):
                rx.append(rate.rx_pps)
                tx.append(rate.tx_pps)
        return self.rates


def _rate(before: PortReport, after: PortReport, seconds: float) -> Rate:
    if seconds <= 0:
        return Rate()
    a, b = before.stats, after.stats
    lost = sum(losses(after.kernel).values()) - sum(losses(before.kernel).values())
    return Rate(
        rx_pps=(b.rx_packets - a.rx_packets) / seconds,
        rx_bps=(b.rx_bytes - a.rx_bytes) * 8 / seconds,
        tx_pps=(b.tx_packets - a.tx_packets) / seconds,
        tx_bps=(b.tx_bytes - a.tx_bytes) * 8 / seconds,
        completed_pps=(b.tx_completed - a.tx_completed) / seconds,
        lost_pps=lost / seconds,
    )
