"""`FramePool`: an owner of frames, with the semantics of the kernel's page_pool (net/core/page_pool.c).

It owns its frames from the moment they leave the Umem until they return there, wherever they are meanwhile. One thread
owns the pool: only it allocates, and what it puts goes straight into its cache. What other threads put is posted to it,
one atomic operation a batch. ``hold_cnt - release_cnt`` is always the number of frames it owns.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import calls, ffi, lib
from afxdp_pool.batch import DESC, Batch, need_batch
from afxdp_pool.callbacks import Callbacks
from afxdp_pool.chain import spread
from afxdp_pool.config import MAX_COUNT, check_count, need
from afxdp_pool.errors import (
    ConfigError,
    FrameSizeError,
    InvalidDescriptorError,
    MemoryLimitError,
    PoolClosedError,
    PoolError,
    WrongThreadError,
)
from afxdp_pool.refusals import frames_call, raise_refused
from afxdp_pool.stats import PoolStats, pool_stats
from afxdp_pool.umem import Umem

_DETACHED = 2  # enum afp_life


class FramePool(calls.Pool):
    """An owner of frames on one Umem.

    Args:
        umem: where the frames are.
        ring_size: frames kept beyond the cache of 128 before they go back to the Umem; at most 16384, as in the kernel.
        quota: most frames to own at once; 0 for no limit. An allocation beyond gets fewer frames. (The kernel's
            page_pool has no such limit.)
        init_callback: called with a batch of the frames that have just entered the pool, whole and each once, before
            any of them is handed out; a place to write headers that stay. In the owner thread.
        on_event: called as ``on_event("hold" or "release", frames)`` when frames (uint32 numbers) enter or leave the
            pool, which happens in bulk and rarely. In whichever thread moves them.

    A callback is called half way through a call: what moves frames, or closes something, raises PoolError in it. An
    exception raised in a callback is raised by the next `alloc`, `alloc_fragments` or `close`.

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

    def __init__(
        self,
        umem: Umem,
        *,
        ring_size: int = 1024,
        quota: int = 0,
        init_callback: Callable[[Batch], object] | None = None,
        on_event: Callable[[str, npt.NDArray[np.uint32]], object] | None = None,
    ) -> None:
        if ring_size < 1 or not 0 <= quota <= MAX_COUNT:
            raise ConfigError(f"ring_size must be at least 1, and quota 0 to {MAX_COUNT}")
        need(umem, Umem)
        self.umem = umem
        umem.not_in_callback()
        self._pool = lib.afp_pool_create(umem.table, min(ring_size, lib.AFP_RING_MAX), quota)
        if self._pool == ffi.NULL:
            if ffi.errno == 24:
                raise PoolError("a Umem can have 255 pools, and this one has", hint="close some")
            raise MemoryLimitError("no memory for a pool")
        self._data, self._frame_size = umem.data, umem.frame_size
        # Who must look at each allocation has no quick way to it.
        self._watched = bool(init_callback or on_event or umem.tracer)
        self._aim()
        self._id = int(self._pool.id)
        self._serial = int(self._pool.serial)
        self._closed_native: Any = None
        self.detached_at: float | None = None
        self.warned = 0
        self._last_stats: PoolStats | None = None
        self._callbacks = Callbacks(umem, init_callback, on_event)
        self._handle = ffi.new_handle(self._callbacks)  # not theirs: they would keep each other, and the frames
        if init_callback or on_event:
            lib.afp_pool_set_hook(self._pool, lib.afp_python_hook, self._handle)
            umem._callbacks[self._id] = self._handle  # C may call them after this object was forgotten
        umem._pools.add(self)
        self._made = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.umem.failing(error)
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_made", False) or self._pool is None or not self.umem._open:
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        with contextlib.suppress(PoolError):  # another thread's: its idle frames are free when the Umem closes
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
    def _movable(self) -> Any:
        """The same, for who moves frames."""
        self.umem.not_in_callback()
        return self.native

    @property
    def id(self) -> int:
        """The pool's number in its Umem's frame table, from 1."""
        return self._id

    @property
    def state(self) -> str:
        """``"open"``; ``"detached"``: closed, and waiting for frames that are still out; or ``"closed"``."""
        if self._pool is not None:
            return "open"
        native = self._closed_native
        waiting = native is not None and native.serial == self._serial and lib.afp_pool_life(native) == _DETACHED
        return "detached" if waiting else "closed"

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
        native = self._closed_native
        if native is not None and native.serial == self._serial:
            return pool_stats(native)  # no other pool has taken its place, so what comes home is still counted there
        if self._pool is None and self._last_stats is not None:
            return self._last_stats
        return pool_stats(self.native)

    def as_page_pool(self) -> dict[str, int]:
        """What the kernel's netlink ``page-pool-get`` tells of a page_pool, under its keys (netdev.yaml).

        `inflight-mem` in bytes; `detach-time` in seconds since boot, absent while the pool is open.
        """
        inflight = self.inflight
        out = {"id": self.id, "inflight": inflight, "inflight-mem": inflight * self.umem.frame_size}
        if self.detached_at is not None:
            out["detach-time"] = int(self.detached_at)
        return out

    def alloc(self, n: int, *, out: Batch | None = None) -> Batch:
        """Up to `n` frames, empty, each with one reference; fewer when the pool and the Umem have no more.

        Args:
            n: how many.
            out: a batch of `n` descriptors of this Umem, or more, to write into instead of making a new one: faster in
                a loop. Its frames must have been given away; what is returned is `out` itself, or its first part.

        Raises:
            WrongThreadError: another thread owns the pool. ConfigError: `out` is too short, read-only
            or not contiguous.

        Concurrency: owner thread only. Ownership: the caller holds the frames until put, sent or filled.
        """
        if out is None:
            out = self._new_batch(n)
        got = self._alloc(n, out)  # the common case, whole
        if got == n:
            return out
        if got is None:
            got = self._alloc_checked(n, out)
        return self._allocated(out, got, "alloc")

    def _alloc_checked(self, n: int, out: Batch) -> int:
        need_batch(out)
        if not 0 <= n <= out._count or out.data is not self._data:
            raise ConfigError(f"out holds {len(out)} descriptors, or of another Umem, not {n}")
        if out._pointer is None and not (out.descs.flags.c_contiguous and out.descs.flags.writeable):
            raise ConfigError("out is read-only, or not contiguous", hint="use a whole batch, or one cut as out[:n]")
        if out._owner is not None or not out._direct:
            raise ConfigError("out are frames that are held", hint="use a batch of alloc() or receive()")
        return int(lib.afp_pool_alloc(self._movable, out.pointer, n))

    def alloc_fragments(self, n: int, size: int) -> Batch:
        """Up to `n` fragments of frames, several in one frame, each with room for `size` bytes or more: its `len`.

        As page_pool_alloc(): fragments are aligned to 64 bytes; a size above half a frame gets a whole one; a tail too
        short for another fragment goes to the one before. A fragment has one reference, which cannot be multiplied.
        The frame being cut counts as the application's until the pool is done with it, at the latest at `flush()`.

        Raises:
            FrameSizeError: no frame has room for `size` bytes. WrongThreadError: another thread owns the pool.

        Concurrency: owner thread only. Ownership: the caller holds the fragments; each is put or sent by itself.
        """
        out = self._new_batch(n)
        room = self.umem.frame_size - self.umem.config.headroom
        got = lib.afp_pool_alloc_fragments(self._movable, out.pointer, n, size if 0 <= size <= room else 0)
        if got == lib.AFP_TOO_LARGE:
            raise FrameSizeError(f"a fragment of {size} bytes is not possible", hint=f"choose 1 to {room}")
        return self._allocated(out, got, "alloc_fragments")

    def write(self, packets: Sequence[bytes | bytearray | memoryview], *, multi_buffer: bool = False) -> Batch:
        """Frames with these packets in them, in order; of fewer packets when the pool and the Umem have no more.

        Args:
            packets: none of them empty, if it is to be sent.
            multi_buffer: a packet that does not fit a frame lies in several (docs/large-packets.md).

        Raises:
            InvalidDescriptorError: a packet does not fit a frame. TypeError: it is not bytes, nor a buffer of them.
                Nothing is allocated then.
            WrongThreadError: another thread owns the pool.

        Concurrency: owner thread only. Ownership: the caller holds the frames until put or sent.
        """
        contents = [memoryview(packet).cast("B") for packet in packets]
        lengths = [len(content) for content in contents]
        room = self.umem.frame_size - self.umem.config.headroom
        if max(lengths, default=0) > room:
            if multi_buffer:
                return self._write_parts(contents, lengths, room)
            raise InvalidDescriptorError(
                f"a packet of {max(lengths)} bytes does not fit a frame", hint=f"frames here take {room} bytes"
            )
        batch = self.alloc(len(packets))
        memory: Any = memoryview(self._data)  # type: ignore[arg-type]
        for start, length, content in zip(batch.addr.tolist(), lengths, contents, strict=False):
            memory[start : start + length] = content
        batch.len[:] = lengths[: len(batch)]
        return batch

    def _write_parts(self, contents: list[memoryview], lengths: list[int], room: int) -> Batch:
        """`write`, of packets in several frames."""
        sizes, options = spread(lengths, room)
        frames = self.alloc(len(sizes))
        ends = [i + 1 for i, option in enumerate(options[: len(frames)]) if not option]
        whole = ends[-1] if ends else 0
        if whole < len(frames):
            self.put(frames[whole:])
        descs = frames.descs[:whole]
        descs["len"], descs["options"] = sizes[:whole], options[:whole]
        memory: Any = memoryview(self._data)  # type: ignore[arg-type]
        starts = iter(descs["addr"].tolist())
        for content in contents[: len(ends)]:
            for at in range(0, max(len(content), 1), room):
                start, part = next(starts), content[at : at + room]
                memory[start : start + len(part)] = part
        return Batch.of_frames(descs, self._data, umem=self.umem)

    def _new_batch(self, n: int) -> Batch:
        batch = Batch(np.empty(check_count(n), DESC), self._data, frame_size=self._frame_size, umem=self.umem)
        batch._hold(batch._descs)
        return batch

    def _allocated(self, out: Batch, got: int, doing: str) -> Batch:
        if got < 0:
            raise self._refusal(got, doing)
        batch = out if got == out._count else out[:got]
        if self.umem.tracer is not None:
            self.umem.tracer.note(batch)
        if self._callbacks.failed is not None:
            self.umem.put(batch)
            self._callbacks.raise_failure()
        return batch

    def put(self, batch: Batch) -> int:
        """Give back one reference to each frame, each to the pool that owns it; see `Umem.put`.

        Concurrency: any thread.
        """
        done = self._put(batch)
        if done >= 0:
            return done
        if done == -1:
            self.umem.not_in_callback()
            return frames_call(lib.afp_put_all, self.umem.table, self._data, batch, "put")
        raise_refused(lib.afp_last_refusals(), len(batch) + 1 + done, "put")

    def ref(self, batch: Batch) -> int:
        """Take one more reference to each frame of `batch`: it must be put, or sent, once more for it to come home.

        Raises:
            DoubleFreeError, ForeignFrameError: as `put`; PoolError: 4095 references are the limit.

        Concurrency: any thread that holds a reference.
        """
        return frames_call(lib.afp_ref_all, self.umem.table, self._data, batch, "ref")

    def collect(self) -> int:
        """Take in what other threads gave back; returns how many frames came home.

        Raises:
            WrongThreadError: another thread owns the pool.

        Concurrency: owner thread only.
        """
        got = lib.afp_pool_collect(self._movable)
        if got < 0:
            raise self._refusal(got, "collect")
        return int(got)

    def flush(self) -> None:
        """Give every idle frame back to the Umem.

        Raises:
            WrongThreadError: another thread owns the pool.

        Concurrency: owner thread only.
        """
        got = lib.afp_pool_flush(self._movable)
        if got < 0:
            raise self._refusal(got, "flush")

    def bind(self) -> None:
        """Make this thread the owner.

        Raises:
            WrongThreadError: another thread is, and has not called `unbind()`.
        """
        got = lib.afp_pool_bind(self._movable)
        if got < 0:
            raise self._refusal(got, "bind")

    def unbind(self) -> None:
        """Stop being the owner, so that another thread can be; no effect when unbound.

        Raises:
            WrongThreadError: another thread owns the pool.

        Concurrency: owner thread only.
        """
        if self.owner_tid and lib.afp_pool_unbind(self._movable) < 0:
            raise self._refusal(lib.AFP_WRONG_THREAD, "unbind")

    def close(self) -> None:
        """Give all idle frames back to the Umem and close the pool. Idempotent.

        Frames still out (with the application or the kernel) come home to the Umem when put or completed; until
        then the pool's state is ``"detached"``, and `Umem.reap` warns about it from time to time, as the kernel does.

        Raises:
            WrongThreadError: another thread owns the pool.

        Concurrency: owner thread, or any when unbound.
        """
        if self._pool is None:
            return
        self.umem.not_in_callback()
        got = lib.afp_pool_destroy(self._pool)
        if got < 0:
            raise self._refusal(got, "close")
        self._last_stats = pool_stats(self._pool)
        self._closed_native, self._pool = self._pool, None
        self._aim()
        if self.state == "detached":
            self.detached_at = time.clock_gettime(time.CLOCK_BOOTTIME)
            self.umem._detached.append(self)
        self._callbacks.raise_failure()

    def _forget(self) -> None:
        """The Umem closes: the C pool goes with its table."""
        if self._pool is not None:
            self._last_stats = pool_stats(self._pool)
        self._pool = self._closed_native = None
        self._point(0, 0, None)

    def _aim(self) -> None:
        """Tell the quick ways of `alloc` and `put` where they go, if they may."""
        pool = self._pool if self._pool is not None and not self._watched else ffi.NULL
        at, table = (int(ffi.cast("uintptr_t", one)) for one in (pool, self.umem.table))
        self._point(at, table, self._data)

    def _refusal(self, code: int, doing: str) -> PoolError:
        if code == lib.AFP_CLOSED:
            return PoolClosedError(f"{doing}: the pool is closed")
        return WrongThreadError(
            f"{doing}: pool {self.id} belongs to thread {self.owner_tid}",
            hint="call it there, or let that thread call pool.unbind() first",
        )
