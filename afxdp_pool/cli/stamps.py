"""When packets were sent that `tx` asked about: the timestamps of its port, taken in time, and what they come to.

A packet's number is when it was handed over, so each stamp is a wait. Invariant: what is kept is every packet that was
asked, or evenly every second, fourth and so on, however long it runs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.cli.output import duration

#: Waits that are kept.
MOST = 1 << 18
#: As many as a port keeps.
_AT_ONCE = 8192


@dataclass(frozen=True)
class SendTimes:
    """What the timestamps of a run come to.

    Attributes:
        taken: packets that were asked and answered.
        lost: answers that nobody took in time.
        clock: whose the timestamps are: ``"kernel"`` in copy mode, CLOCK_TAI; or ``"device"``.
        p50_us, p99_us, longest_us: from when a packet was handed over to when it was sent, in microseconds. None: by
            the device's clock, which cannot be compared; or there are none.
    """

    taken: int
    lost: int
    clock: Literal["kernel", "device"]
    p50_us: float | None = None
    p99_us: float | None = None
    longest_us: float | None = None

    def __str__(self) -> str:
        lost = f", {self.lost:,} more were not taken in time" if self.lost else ""
        told = f"{self.taken:,} packets told when they were sent, by the {self.clock}'s clock{lost}"
        if self.p50_us is None or self.p99_us is None or self.longest_us is None:
            return told
        waits = [duration(1000 * wait) for wait in (self.p50_us, self.p99_us, self.longest_us)]
        return f"{told}; after {waits[0]} (p50), {waits[1]} (p99), {waits[2]} at most"


class Stamps:
    """The timestamps of a port that is under way. Concurrency: one thread at a time."""

    def __init__(self, port: ap.Port) -> None:
        self._port = port
        self._kernel = port.mode == "copy"
        self._taken = self._lost = 0
        self._longest = 0
        self._kept: list[npt.NDArray[np.int64]] = []
        self._every = 1  # one of so many is kept

    @classmethod
    def of(cls, args: argparse.Namespace, runner: ap.Runner) -> Stamps | None:
        """Those of the command, if it asks for some."""
        return cls(runner.ports[0]) if args.command == "tx" and "timestamp" in args.tx_metadata else None

    def take(self, _: object = None) -> None:
        """Take what has come. To be called ten times a second."""
        stamps = self._port.take_timestamps(_AT_ONCE)
        waits = stamps.timestamp.astype(np.int64) - stamps.number.astype(np.int64)
        self._longest = max(self._longest, int(waits.max(initial=0)))
        self._kept.append(waits[-self._taken % self._every :: self._every])
        self._taken += len(waits)
        self._lost = stamps.lost
        if sum(map(len, self._kept)) > MOST:
            self._kept = [np.concatenate(self._kept)[::2]]
            self._every *= 2

    def times(self) -> SendTimes:
        """What came so far."""
        waits = np.concatenate([*self._kept, np.empty(0)])
        if not self._kernel or not len(waits):
            return SendTimes(self._taken, self._lost, "kernel" if self._kernel else "device")
        half, most = (float(wait) / 1000 for wait in np.quantile(waits, (0.5, 0.99)))
        return SendTimes(self._taken, self._lost, "kernel", half, most, self._longest / 1000)
