"""`FramePool`: an owner of frames, with the semantics of the kernel's page_pool (net/core/page_pool.c).

It owns its frames from the moment they leave the Umem until they return there, wherever they are meanwhile. One thread
owns the pool: only it allocates, and what it puts goes straight into its cache. What other threads put is posted to it,
one atomic operation a batch. ``hold_cnt - release_cnt`` is always the number of frames it owns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import DESC, Batch
from afxdp_pool.errors import (
    ConfigError,
    DoubleFreeError,
    ForeignFrameError,
    InvalidDescriptorError,
    MemoryLimitError,
    PoolClosedError,
    PoolError,
    WrongThreadError,
)
from afxdp_pool.stats import PoolStats, pool_stats
from afxdp_pool.umem import Umem

_REASONS: dict[int, tuple[type[PoolError], str]] = {
    1: (ForeignFrameError, "lies in no frame of this Umem"),
    2: (DoubleFreeError, "is not held by its caller: it is free, in a ring, or already sent"),
    3: (DoubleFreeError, "has gone round since: this descriptor is of an earlier life of its frame"),
    4: (InvalidDescriptorError, "would be refused by the kernel: no length, or not inside one frame"),
    5: (PoolError, "has as many references as can be counted"),
    6: (PoolError, "could not be handed over, for want of memory"),
}
_LIFE = ("closed", "open", "detached")


def raise_refused(refused: Any, done: int, doing: str) -> None:
    """Raise the error for a C ``struct afp_refusals`` that is not empty."""
    items = list(refused.item)[: min(refused.n, lib.AFP_REFUSALS)]
    kind, text = _REASONS[items[0].reason]
    described = tuple((item.index, item.addr, _REASONS[item.reason][1]) for item in items)
    others = f" (and {refused.n - 1} more refused)" if refused.n > 1 else ""
    raise kind(
        f"{doing}: frame {items[0].index} of the batch, address {items[0].addr:#x}, {text}{others}",
        refused=described,
        done=done,
    )


def descriptors(batch: Batch, umem: Umem) -> npt.NDArray[Any]:
    """The batch's descriptors as C reads them: contiguous, of dtype `DESC`, of frames of `umem`."""
    if batch.data is not umem.data:
        raise ForeignFrameError("the batch is of another Umem")
    if batch.descs.dtype != DESC:
        raise InvalidDescriptorError(f"descriptors of dtype {batch.descs.dtype}, not {DESC}")
    return np.ascontiguousarray(batch.descs)


def frames_call(call: Callable[..., int], umem: Umem, batch: Batch, doing: str) -> int:
    """Run one of C's calls over a batch's descriptors; raise for those it refused."""
    refused = ffi.new("struct afp_refusals *")
    descs = descriptors(batch, umem)
    done = call(umem.table, ffi.from_buffer("struct afp_desc[]", descs), len(descs), refused)
    if refused.n:
        raise_refused(refused, done, doing)
    return done


class FramePool:
    """An owner of frames on one Umem.

    Args:
        umem: where the frames are.
        ring_size: frames kept beyond the cache of 128 before they go back to the Umem; at most 16384, as in the kernel.
        quota: most frames to own at once; 0 for no limit.

    Raises:
        ConfigError: a negative size.
        PoolError: there are 255 pools on this Umem already.

    Concurrency: `alloc`, `flush`, `collect` and `close` belong to the owner thread: the first to call one of them,
    until it calls `unbind()`. `put`, `ref` and the statistics: any thread.
    Source of the semantics: net/core/page_pool.c, include/net/page_pool/types.h.

    >>> with Umem(frames=256) as umem, FramePool(umem) as pool:
    ...     batch = pool.alloc(2)
    ...     batch.write(0, b"hello")
    ...     pool.put(batch)
    2
    """

    def __init__(self, umem: Umem, *, ring_size: int = 1024, quota: int = 0) -> None:
        if ring_size < 1 or quota < 0:
            raise ConfigError("ring_size must be at least 1, and quota not negative")
        self.umem = umem
        self._pool = lib.afp_pool_create(umem.table, min(ring_size, lib.AFP_RING_MAX), quota)
        if self._pool == ffi.NULL:
            if ffi.errno == 24:
                raise PoolError("a Umem can have 255 pools, and this one has", hint="close some")
            raise MemoryLimitError("no memory for a pool")
        self._id = int(self._pool.id)
        self._last_stats: PoolStats | None = None
        umem._pools.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FramePool {self._id}, {self.state}, {self.stats().inflight} frames>"

    @property
    def native(self) -> Any:
        """The C pool, for the modules that call C.

        Raises:
            PoolClosedError: the pool or its Umem is closed.
        """
        if self._pool is None:
            raise PoolClosedError("the pool is closed")
        return self._pool

    @property
    def id(self) -> int:
        """The pool's number in its Umem's frame table, from 1."""
        return self._id

    @property
    def state(self) -> str:
        """``"open"`` or ``"closed"``."""
        return "closed" if self._pool is None else _LIFE[lib.afp_pool_life(self._pool)]

    @property
    def owner_tid(self) -> int:
        """The owner thread's id, as ``threading.get_native_id()`` gives it; 0 while unbound."""
        return int(lib.afp_pool_owner_tid(self.native))

    @property
    def inflight(self) -> int:
        """Frames the pool owns, idle ones in its cache and ring included (as page_pool_inflight())."""
        return self.stats().inflight

    @property
    def outstanding(self) -> int:
        """Frames the pool owns that are not idle in its cache or ring. Exact in the owner thread."""
        pool = self.native
        ring = (int(pool.ring_head) - int(pool.ring_tail)) & 0xFFFFFFFF
        return self.inflight - int(pool.ncache) - ring - int(pool.nspill)

    def stats(self) -> PoolStats:
        """The pool's counters; of a closed pool, the last ones. Concurrency: any thread."""
        if self._pool is None and self._last_stats is not None:
            return self._last_stats
        return pool_stats(self.native)

    def alloc(self, n: int) -> Batch:
        """Up to `n` frames, empty, each with one reference; fewer when the pool and the Umem have no more.

        Raises:
            WrongThreadError: another thread owns the pool.

        Concurrency: owner thread only. Ownership: the caller holds the frames until put, sent or filled.
        """
        descs = np.empty(n, DESC)
        got = lib.afp_pool_alloc(self.native, ffi.from_buffer("struct afp_desc[]", descs), n)
        if got < 0:
            raise self._refusal(got, "alloc")
        return Batch(descs[:got], self.umem.data)

    def put(self, batch: Batch) -> int:
        """Give back one reference to each frame, each to the pool that owns it; see `Umem.put`.

        Concurrency: any thread.
        """
        return self.umem.put(batch)

    def ref(self, batch: Batch) -> int:
        """Take one more reference to each frame of `batch`: it must be put, or sent, once more for it to come home.

        Raises:
            DoubleFreeError, ForeignFrameError: as `put`; PoolError: 4095 references are the limit.

        Concurrency: any thread that holds a reference.
        """
        return frames_call(lib.afp_ref, self.umem, batch, "ref")

    def collect(self) -> int:
        """Take in what other threads gave back; returns how many frames came home. Concurrency: owner thread only."""
        got = lib.afp_pool_collect(self.native)
        if got < 0:
            raise self._refusal(got, "collect")
        return int(got)

    def flush(self) -> None:
        """Give every idle frame back to the Umem. Concurrency: owner thread only."""
        got = lib.afp_pool_flush(self.native)
        if got < 0:
            raise self._refusal(got, "flush")

    def bind(self) -> None:
        """Make this thread the owner.

        Raises:
            WrongThreadError: another thread is, and has not called `unbind()`.
        """
        got = lib.afp_pool_bind(self.native)
        if got < 0:
            raise self._refusal(got, "bind")

    def unbind(self) -> None:
        """Stop being the owner, so that another thread can be. Concurrency: owner thread only; unbound: no effect."""
        if self.owner_tid and lib.afp_pool_unbind(self.native) < 0:
            raise self._refusal(lib.AFP_WRONG_THREAD, "unbind")

    def close(self) -> None:
        """Give all idle frames back to the Umem and close the pool. Idempotent.

        Frames still out (with the application or the kernel) come home to the Umem when they are put or completed.

        Raises:
            WrongThreadError: another thread owns the pool.

        Concurrency: owner thread, or any when unbound.
        """
        if self._pool is None:
            return
        got = lib.afp_pool_destroy(self._pool)
        if got < 0:
            raise self._refusal(got, "close")
        self._last_stats = pool_stats(self._pool)
        self._pool = None

    def _forget(self) -> None:
        """The Umem closes: the C pool goes with its table."""
        if self._pool is not None:
            self._last_stats = pool_stats(self._pool)
            self._pool = None

    def _refusal(self, code: int, doing: str) -> PoolError:
        if code == lib.AFP_CLOSED:
            return PoolClosedError(f"{doing}: the pool is closed")
        return WrongThreadError(
            f"{doing}: pool {self.id} belongs to thread {self.owner_tid}",
            hint="call it there, or let that thread call pool.unbind() first",
        )
