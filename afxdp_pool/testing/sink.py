"""A `Sink` proves what arrived at a link: every byte and every number of the test packets.

It owns an XDP program (bpf/traffic_sink.bpf.c), its maps and its attachment, which end with it. What it
counts, it counts in the kernel.

Invariant: a verifying sink that sees each packet of a source once and in order reports `unique == sent`, and
0 for everything that can go wrong.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from afxdp_pool.bpf import BpfMap, BpfObject
from afxdp_pool.errors import AfXdpError, ModeUnsupportedError, PrivilegeError
from afxdp_pool.hook import attach_link
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import LabLink

_FLOW = struct.Struct("=IIQQQQQQ")  # struct sink_flow
_WINDOW_BYTES = 8192  # struct sink_window
_BPF_F_LOCK = 4
WINDOW = 65472  # sequence numbers a flow remembers
_STAMP_EVERY = 64  # packets of one CPU between two readings of the clock


@dataclass(frozen=True)
class FlowReport:
    """What a verifying sink saw of one flow: `unique` sequence numbers from `first` to `last`, and the rest.

    `lost` is how many between first and last never came. `reordered` counts packets that came after a later
    one (RFC 4737); `duplicate` those whose number had come already; `stale` those older than the window of
    65472 numbers, which might be either.
    """

    first: int
    last: int
    unique: int
    lost: int
    duplicate: int
    reordered: int
    stale: int


@dataclass(frozen=True)
class SinkReport:
    """What reached a sink since it was opened or reset, counted in the kernel.

    `packets` and `bytes` are all test packets, also duplicate and corrupt ones; `foreign` is what was none,
    and was passed on to the stack. `unique` to `stale` are sums over the flows (see `FlowReport`); a sink
    that does not verify leaves them 0. A `corrupt` packet (a length, a checksum or the magic is wrong) has no
    place in any flow, so the number it once had is missing too. Times are CLOCK_MONOTONIC in ns, 0 when
    nothing came; `last_ns` is that of the last packet whose clock was read, which is every 64th of a CPU.
    `rate` is packets a second between the two.
    """

    packets: int = 0
    bytes: int = 0
    unique: int = 0
    lost: int = 0
    duplicate: int = 0
    reordered: int = 0
    stale: int = 0
    corrupt: int = 0
    foreign: int = 0
    first_ns: int = 0
    last_ns: int = 0
    rate: float = 0.0
    verified: bool = True
    flows: Mapping[int, FlowReport] = field(default_factory=dict)

    def missing(self, sent: int) -> int:
        """How many of the `sent` packets did not arrive intact: `lost`, and what is missing at both ends."""
        return sent - (self.unique if self.verified else self.packets)


class Sink:
    """Counts and drops the test packets that arrive at a link; everything else is passed on.

    Args:
        link: where to look. Its driver must have native XDP, and no other XDP program may be attached.
        verify: prove every byte and place every packet in its flow; False only counts, which is faster.

    Raises:
        ModeUnsupportedError: the driver refused, or has a program already.
        PrivilegeError: CAP_BPF and CAP_NET_ADMIN are needed.
    Concurrency: any thread; `reset` only while nothing arrives.
    """

    def __init__(self, link: LabLink, *, verify: bool = True) -> None:
        self.link, self.verify = link, verify
        self._attached = -1
        self._object = BpfObject("traffic_sink")
        try:
            self._object.load()
            self._total: BpfMap = self._object.map("sink_total")
            self._flow: BpfMap = self._object.map("sink_flow")
            self._window: BpfMap = self._object.map("sink_window")
            program = self._object.program("sink_verify" if verify else "sink_count")
            self._attached = attach(program, link)
        except BaseException:
            self.close()
            raise

    def report(self) -> SinkReport:
        """The counts so far. While packets arrive, sums and flows are of slightly different instants."""
        flows = dict(self._flows()) if self.verify else {}
        cells = self._total.lookup_cpus(0, np.uint64)
        seen = cells[cells[:, 0] > 0]
        sums = {
            name: sum(getattr(flow, name) for flow in flows.values())
            for name in ("unique", "lost", "duplicate", "reordered", "stale")
        }
        total, octets, corrupt, foreign = (int(n) for n in cells[:, :4].sum(axis=0))
        first, last = (int(seen[:, 4].min()), int(seen[:, 5].max())) if len(seen) else (0, 0)
        stamped = int(((seen[:, 0] - 1) // _STAMP_EVERY * _STAMP_EVERY).sum())
        return SinkReport(
            packets=total,
            bytes=octets,
            corrupt=corrupt,
            foreign=foreign,
            first_ns=first,
            last_ns=last,
            rate=stamped * 1e9 / (last - first) if last > first else 0.0,
            verified=self.verify,
            flows=flows,
            **sums,
        )

    def seen(self) -> int:
        """Test packets so far: what `report` calls packets, for less work."""
        return int(self._total.lookup_cpus(0)[:, 0].sum())

    def wait(self, count: int, timeout: float = 20.0) -> SinkReport:
        """Wait until `count` test packets have come, or `timeout` seconds are over; report either way."""
        deadline = time.monotonic() + timeout
        while self.seen() < count and time.monotonic() < deadline:
            time.sleep(0.0005)
        return self.report()

    def reset(self) -> None:
        """Forget everything seen so far. Only while nothing arrives."""
        for number, _ in list(self._flows()):
            self._flow.update(number, bytes(_FLOW.size), _BPF_F_LOCK)
            self._window.update(number, bytes(_WINDOW_BYTES))
        self._total.update(0, bytes(self._total.value_size))

    def close(self) -> None:
        """Detach and unload. Idempotent."""
        if self._attached >= 0:
            os.close(self._attached)
            self._attached = -1
        self._object.close()

    def __enter__(self) -> Sink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _flows(self) -> Iterator[tuple[int, FlowReport]]:
        for number in range(packets.MAX_FLOWS):
            raw = self._flow.lookup(number)
            assert raw is not None
            _, started, base, top, unique, duplicate, reordered, stale = _FLOW.unpack(raw)
            if started:
                lost = top - base - unique
                yield number, FlowReport(base, top - 1, unique, lost, duplicate, reordered, stale)


def attach(program: int, link: LabLink) -> int:
    """Attach an XDP program to a link in native mode; returns the descriptor of the attachment, which ends with it.

    Raises:
        ModeUnsupportedError: the driver refused, or has a program already. PrivilegeError: as `Sink`.
    """
    with in_netns(link.netns):
        try:
            return attach_link(program, link.ifindex, "native")
        except PrivilegeError:
            raise
        except AfXdpError as error:
            hint = "the link may have an XDP program already, fewer queues than its peer, or too large an MTU"
            raise ModeUnsupportedError(
                subject=f"link {link.name}",
                doing="attaching the XDP program",
                errno=error.errno,
                hint=error.hint or hint,
            ) from error
