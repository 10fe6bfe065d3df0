"""A `LatencyProbe` measures how long packets take from one link to another, one way, through whatever lies between.

It owns an XDP program that stamps packets and sends them as live frames, another that reads the stamps where they
arrive (bpf/latency_probe.bpf.c), and both attachments. Times are taken in the kernel, and counted there in a histogram.

Invariant: `received` of a report are packets of that measurement alone, and its histogram holds each stamped one once.

    >>> with Lab() as lab:                                              # doctest: +SKIP
    ...     left, right = lab.veth("left"), lab.veth("right")
    ...     with LatencyProbe(left.far, right.far) as probe:  # and a forwarder from left.near to right.near
    ...         print(probe.run(10_000, seconds=1.0).percentile(99) / 1e3, "us")
"""

from __future__ import annotations

import errno
import os
import struct
import time
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from afxdp_pool.bpf import BpfObject
from afxdp_pool.errors import AfXdpError, ConfigError
from afxdp_pool.loaded import run
from afxdp_pool.netdev import in_netns
from afxdp_pool.resident import Resident
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import LabLink
from afxdp_pool.testing.sink import attach
from afxdp_pool.testing.source import addresses_of, redirected
from afxdp_pool.tuning import pinned

_CONFIG = struct.Struct(f"={packets.HEAD}sQIIIIII")  # struct probe_config
_STATE = struct.Struct("=QQQII")  # struct probe_state
_SEEN = 5  # words of struct probe_seen before its buckets
_SUB_BUCKETS = 32  # a power of two
MAX_BURST = 64  # packets: a veth ring has 256
WAIT_IN_KERNEL = 200_000  # ns that the program may wait for a packet to be due; user space sleeps through the rest
RUN = 0.02  # seconds a run of the program takes at most, about
SETTLE = 0.5  # seconds that packets may take to arrive after the last was sent


@dataclass(frozen=True)
class LatencyReport:
    """One measurement. Packets and bursts are counts, times nanoseconds, `seconds` that of the sending.

    `sent` left the source, of which the first link took `delivered` and `received` arrived; `stamped` of these carried
    a time. `late` bursts left more than an interval after they were due: the machine was busy elsewhere. `counts` has
    how many packets took how long: `counts[i]` from `bucket_edges()[i]` to below `bucket_edges()[i + 1]`.
    """

    sent: int
    delivered: int
    received: int
    stamped: int
    late: int
    seconds: float
    mean_ns: float
    min_ns: int
    max_ns: int
    counts: npt.NDArray[np.uint64]

    @property
    def rate(self) -> float:
        """Packets sent a second."""
        return self.sent / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """The time in ns that so many percent of the packets did not exceed, to the width of a bucket (3 %); 0 if none.

        Raises:
            ConfigError: not 0 to 100.
        """
        return min(percentile(self.counts, percent), float(self.max_ns))


class LatencyProbe:
    """Sends stamped test packets out of `source` and times them where they arrive, at `target`.

    Args:
        source: where the packets leave; the other end of its cable needs an XDP program (a port, a redirect).
        target: where they arrive, after what is measured has forwarded them; may be `source`, for what reflects.
        size: bytes of a frame, 64 to 3400.
        cpu: pins the sending thread.
        target_mac, target_ip: written into the packets; without, those of the source's other end.

    Raises:
        ConfigError: the size is out of range.
        ModeUnsupportedError: `target` has an XDP program already, or its driver has no native XDP.
        PrivilegeError: CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN are needed.
        ProgramLoadError: the kernel refused the programs (live frames need Linux 5.18).
    Concurrency: one thread at a time.
    """

    def __init__(
        self,
        source: LabLink,
        target: LabLink,
        *,
        size: int = packets.MIN_SIZE,
        cpu: int | None = None,
        target_mac: bytes | None = None,
        target_ip: str | None = None,
    ) -> None:
        packets.check_size(size)
        self.source, self.target, self.size, self.cpu = source, target, size, cpu
        self._number = 0
        self._attached = -1
        self._resident: Resident | None = None
        addresses = addresses_of(source, target_mac, target_ip)
        self._frame, self._base_sum = packets.template(size, addresses)
        self._object = BpfObject("latency_probe")
        try:
            self._object.load()
            self._config = self._object.map("probe_config")
            self._state = self._object.map("probe_state")
            self._seen = self._object.map("probe_seen")
            self._program = self._object.program("latency_source")
            self._attached = attach(self._object.program("latency_sink"), target)
            self._resident = Resident(self._program)
        except BaseException:
            self.close()
            raise

    def run(
        self,
        rate: float | None,
        *,
        count: int | None = None,
        seconds: float | None = None,
        burst: int = 1,
        stamp_every: int = 1,
    ) -> LatencyReport:
        """Send packets, evenly spaced, and wait until they have arrived; at most `SETTLE` s after the last.

        One at a time, a CPU makes about 100,000 a second; more need bursts. The sending CPU is busy above 5,000 bursts
        a second, below it sleeps in between.

        Args:
            rate: packets a second; None: as fast as it goes.
            count, seconds: when to end, whichever comes first.
            burst: packets that leave together, 1 to 64.
            stamp_every: of so many packets one carries a time. Reading the clock twice costs some 50 ns.

        Raises:
            ConfigError: nothing says when to end, or a number is out of range.
            AfXdpError: the kernel refused a run; the link may be gone.
        Concurrency: releases the interpreter lock while the kernel sends.
        """
        if count is None and seconds is None:
            raise ConfigError("say when to end: count or seconds")
        if (rate is not None and rate <= 0) or not 1 <= burst <= MAX_BURST or stamp_every < 1:
            raise ConfigError(f"rate and stamp_every are above 0, and a burst has 1 to {MAX_BURST} packets")
        interval = 0 if rate is None else round(burst * 1e9 / rate)
        self._begin(interval, burst, stamp_every)
        bursts = 1 << 62 if count is None else -(-count // burst)
        before = redirected(self.source)
        with in_netns(self.source.netns), pinned(self.cpu, "the probe"):
            start = time.monotonic_ns()
            end = start + (1 << 62 if seconds is None else int(seconds * 1e9))
            while (done := self._position()[0] // burst) < bursts and (now := time.monotonic_ns()) < end:
                ahead = self._position()[1] - now
                if interval > WAIT_IN_KERNEL and ahead > WAIT_IN_KERNEL:
                    time.sleep(min(ahead - WAIT_IN_KERNEL / 2, end - now) / 1e9)
                    continue
                fits = int(RUN * 1e9 / interval) if interval else 1 << 14
                if interval > WAIT_IN_KERNEL:
                    fits = 1
                self._run(min(max(fits, 1), bursts - done) * burst, burst)
            took = time.monotonic_ns() - start
        sent, _, late, *_ = self._position()
        delivered = redirected(self.source) - before
        cells = self._wait(delivered)
        received, stamped, total = (int(n) for n in cells[:, :3].sum(axis=0))
        some = cells[cells[:, 1] > 0]
        return LatencyReport(
            sent=sent,
            delivered=delivered,
            received=received,
            stamped=stamped,
            late=late,
            seconds=took / 1e9,
            mean_ns=total / stamped if stamped else 0.0,
            min_ns=int(some[:, 3].min()) if len(some) else 0,
            max_ns=int(some[:, 4].max()) if len(some) else 0,
            counts=cells[:, _SEEN:].sum(axis=0, dtype=np.uint64),
        )

    def close(self) -> None:
        """Detach and unload. Idempotent."""
        if self._resident is not None:
            self._resident.close()
        if self._attached >= 0:
            os.close(self._attached)
            self._attached = -1
        self._object.close()

    def __enter__(self) -> LatencyProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, interval: int, burst: int, stamp_every: int) -> None:
        """A new measurement: packets of earlier ones no longer count."""
        self._number += 1
        head = self._frame[: packets.HEAD]
        fields = (self._base_sum, self.source.ifindex, self._number, burst, stamp_every, packets.SOURCE_PORT)
        self._config.update(0, _CONFIG.pack(head, interval, *fields))
        self._state.update(0, bytes(_STATE.size))
        self._seen.update(0, bytes(self._seen.value_size))

    def _run(self, count: int, burst: int) -> None:
        try:
            run(self._program, self._frame, repeat=count, live=True, batch=burst)
        except AfXdpError as error:
            if error.errno != errno.EINTR:  # the state says how far it came
                raise

    def _position(self) -> tuple[int, int, int, int, int]:
        raw = self._state.lookup(0)
        assert raw is not None
        sent, due, late, in_burst, unstamped = _STATE.unpack(raw)
        return sent, due, late, in_burst, unstamped

    def _wait(self, count: int) -> npt.NDArray[np.uint64]:
        """What was seen, by CPU, once that is `count` packets or none has come for a while."""
        deadline = time.monotonic() + SETTLE
        while True:
            cells = self._seen.lookup_cpus(0)
            if cells[:, 0].sum() >= count or time.monotonic() > deadline:
                return cells
            time.sleep(0.001)


def bucket_edges(buckets: int) -> npt.NDArray[np.float64]:
    """Where each of the first `buckets` buckets begins, and where the last ends: ns, shape ``(buckets + 1,)``."""
    number = np.arange(buckets + 1)
    shift = np.maximum(number // _SUB_BUCKETS - 1, 0)
    edges: npt.NDArray[np.float64] = (number - shift * _SUB_BUCKETS) * np.exp2(shift)
    return edges


def percentile(counts: npt.NDArray[np.uint64], percent: float) -> float:
    """The time in ns that so many percent of what `counts` holds did not exceed: the middle of its bucket, 0 if empty.

    Raises:
        ConfigError: not 0 to 100.
    """
    if not 0 <= percent <= 100:
        raise ConfigError(f"a percentile is 0 to 100, not {percent}")
    total = int(counts.sum())
    if not total:
        return 0.0
    edges = bucket_edges(len(counts))
    wanted = max(1, int(np.ceil(total * percent / 100)))
    at = int(np.searchsorted(np.cumsum(counts), wanted))
    return float(edges[at] + edges[at + 1] - 1) / 2
