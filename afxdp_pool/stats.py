"""What happened, in counters that only grow: the pool's, the ports', the kernel's and the engine's.

Each class reads one C struct; the names are the field's: the pool's are those of the kernel's ``struct
page_pool_stats`` (include/net/page_pool/types.h), the socket's those of ``struct xdp_statistics``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from afxdp_pool._native import ffi, lib


class _Counters:
    """A frozen dataclass of counters, filled from a C struct with the same field names."""

    @classmethod
    def _from_c(cls, struct: Any) -> Self:
        return cls(**{field.name: getattr(struct, field.name) for field in fields(cls)})  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, int]:
        """The counters by name."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class PoolStats(_Counters):
    """A pool's counters: the kernel's eleven, counted per frame, and ours.

    `alloc_fast` from the cache, `alloc_refill` served by a refill from the ring, `alloc_slow` by a bulk from the Umem;
    `alloc_empty` refills that found the ring empty. `recycle_cached` into the cache, `recycle_cache_full` not, for it
    was full, and so `recycle_ring` into the ring or `recycle_ring_full` back to the Umem. `alloc_slow_high_order`,
    `alloc_waive` and `recycle_released_refcnt` have no cause in a Umem and stay 0.

    Identities: frames allocated = fast + refill + slow;  last references put = cached + ring + ring_full, once the
    inbox is collected.
    """

    alloc_fast: int
    alloc_slow: int
    alloc_slow_high_order: int
    alloc_empty: int
    alloc_refill: int
    alloc_waive: int
    recycle_cached: int
    recycle_cache_full: int
    recycle_ring: int
    recycle_ring_full: int
    recycle_released_refcnt: int
    alloc_failed: int
    alloc_quota: int
    remote_batches: int
    remote_frames: int
    late_refused: int
    hold_cnt: int
    release_cnt: int

    @property
    def inflight(self) -> int:
        """Frames the pool owns, wherever they are: hold - release in 32-bit serial arithmetic."""
        distance = (self.hold_cnt - self.release_cnt) & 0xFFFFFFFF
        return distance - (1 << 32) if distance >> 31 else distance

    def as_page_pool_stats(self) -> dict[str, int]:
        """The kernel's eleven under the keys of its netlink ``page-pool-stats-get`` (netdev.yaml)."""
        names = [field.name for field in fields(self)][:11]
        return {name.replace("_", "-"): getattr(self, name) for name in names}


@dataclass(frozen=True)
class PortStats(_Counters):
    """What one port moved, as the engine counted it. Packets, bytes, frames, system calls.

    A packet of several frames is one packet, and its other frames are `rx_parts`, `tx_parts` and `tx_completed_parts`;
    so are, in `rx_parts`, the frames of packets that were refused for one bad descriptor. `fill_submitted` and what was
    reclaimed are frames.
    """

    fill_submitted: int
    rx_packets: int
    rx_bytes: int
    rx_bad: int
    tx_packets: int
    tx_bytes: int
    tx_completed: int
    completion_bad: int
    tx_kicks: int
    tx_again: int
    tx_busy: int
    tx_errors: int
    rx_kicks: int
    fill_reclaimed: int
    tx_reclaimed: int
    rx_parts: int = 0
    tx_parts: int = 0
    tx_completed_parts: int = 0

    @property
    def in_fill(self) -> int:
        """Frames the kernel has to receive into."""
        return self.fill_submitted - self.rx_packets - self.rx_parts - self.fill_reclaimed

    @property
    def in_tx(self) -> int:
        """Frames given to the kernel to be sent, and not completed."""
        return self.tx_packets + self.tx_parts - self.tx_completed - self.tx_completed_parts - self.tx_reclaimed


@dataclass(frozen=True)
class LiveStats(_Counters):
    """What left a port by live-frame transmit, and what became of it: frames = delivered + dropped.

    `frames` given to the device, which took those `delivered`; `dropped` the others, as its ring, or its peer's, was
    full. `resent` frames that no device had taken, sent by the socket instead, and not counted in `frames`. `slices`
    runs of the program; `stalls` of them over 2 ms, `longest_ns` the longest: an XDP program was attached or detached
    somewhere on the host, or the thread lost its CPU. `pools_left` runs whose pages some receiver has still, and
    `pools_left_most` at most.
    """

    frames: int = 0
    delivered: int = 0
    dropped: int = 0
    resent: int = 0
    slices: int = 0
    stalls: int = 0
    longest_ns: int = 0
    pools_left: int = 0
    pools_left_most: int = 0


@dataclass(frozen=True)
class KernelStats(_Counters):
    """XDP_STATISTICS of a socket: what the kernel dropped, and why (net/xdp/xsk.c, xsk_getsockopt()).

    `rx_dropped` no frame in FILL, or too long for one; `rx_ring_full` we were too slow; `rx_fill_ring_empty_descs`
    times FILL was found empty; `tx_invalid_descs` refused when sending; `tx_ring_empty_descs` is harmless.
    `rx_invalid_descs` is always 0 in current kernels.
    """

    rx_dropped: int = 0
    rx_invalid_descs: int = 0
    tx_invalid_descs: int = 0
    rx_ring_full: int = 0
    rx_fill_ring_empty_descs: int = 0
    tx_ring_empty_descs: int = 0


@dataclass(frozen=True)
class EngineStats(_Counters):
    """What a forwarder's loop did: rounds, rounds without work, sleeps; packets by verdict; what its handler took.

    A handler is called once a batch, `handler_calls` times. Every 16th call is timed, to cost nothing: `handler_timed`
    calls took `handler_ns` in all, `handler_longest_ns` the longest, and `handler_slow` of them more than 1 ms, while
    packets pile up. A call that raised is not timed.
    """

    rounds: int
    idle_rounds: int
    sleeps: int
    dropped: int
    reflected: int
    forwarded: int
    kept: int
    refused: int
    handler_calls: int = 0
    handler_timed: int = 0
    handler_ns: int = 0
    handler_longest_ns: int = 0
    handler_slow: int = 0

    @property
    def handler_mean_ns(self) -> float:
        """What a call of the handler takes, in ns a batch, of those timed; 0 without any."""
        return self.handler_ns / self.handler_timed if self.handler_timed else 0.0

    @classmethod
    def sum(cls, parts: Iterable[EngineStats]) -> EngineStats:
        """The sums of several loops' counters, and the longest of their calls."""
        every = [part.as_dict() for part in parts]
        total = {field.name: sum(part[field.name] for part in every) for field in fields(cls)}
        return cls(**total | {"handler_longest_ns": max((part["handler_longest_ns"] for part in every), default=0)})


def pool_stats(pool: Any) -> PoolStats:
    """Read a C pool's counters. Concurrency: any thread."""
    out = ffi.new("struct afp_pool_stats *")
    lib.afp_pool_read_stats(pool, out)
    return PoolStats._from_c(out)


def port_stats(port: Any) -> PortStats:
    """Read a C port's counters. Concurrency: any thread."""
    out = ffi.new("struct afp_port_stats *")
    lib.afp_port_read_stats(port, out)
    return PortStats._from_c(out)


def live_stats(live: Any) -> LiveStats:
    """Read a C live transmitter's counters. Concurrency: any thread."""
    out = ffi.new("struct afp_live_stats *")
    lib.afp_live_read_stats(live, out)
    return LiveStats._from_c(out)


def kernel_stats(port: Any) -> KernelStats | None:
    """Ask the kernel for a socket's counters, or None when there is no socket. Concurrency: any thread."""
    out = ffi.new("uint64_t[6]")
    if lib.afp_port_kernel_stats(port, out) != 0:
        return None
    return KernelStats(*out)


def engine_stats(engine: Any) -> EngineStats:
    """Read an engine's counters. Concurrency: any thread."""
    out = ffi.new("struct afp_engine_stats *")
    lib.afp_engine_read_stats(engine, out)
    return EngineStats._from_c(out)
