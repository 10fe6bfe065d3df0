"""`Umem`: the memory packets live in, cut into frames, and the frame table that knows each of them.

It owns the mapping and the table. Pools own frames on it, ports register it with the kernel. Invariant: every frame is
in exactly one state and has exactly one owner; `audit()` proves it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from afxdp_pool import numa
from afxdp_pool._native import ffi, lib
from afxdp_pool.audit import STATES, Audit, audit_table
from afxdp_pool.batch import Batch
from afxdp_pool.config import UmemConfig
from afxdp_pool.errors import ConfigError, ForeignFrameError, MemoryLimitError, PoolClosedError, PoolError
from afxdp_pool.holders import Holder, Tracer, find_holders, wanted
from afxdp_pool.memory import Memory, best_memory
from afxdp_pool.refusals import frames_call
from afxdp_pool.single import Single

if TYPE_CHECKING:
    from afxdp_pool.pool import FramePool
    from afxdp_pool.port import Port

log = logging.getLogger("afxdp_pool")
#: Seconds between two warnings about a closed pool whose frames are still out.
WARN_EVERY = 60.0
#: Called with a Umem and the exception that ends a ``with`` on it, or on a pool, port or runner of it, before anything
#: is closed: for tools that show what a failure looked like. The pytest plugin is one.
failure_watchers: list[Callable[[Umem, BaseException], object]] = []
_known: weakref.WeakSet[Umem] = weakref.WeakSet()


def open_umems() -> list[Umem]:
    """Every Umem of this process that is open, in no order. Concurrency: any thread."""
    return [umem for umem in list(_known) if umem._open]


def _in_child() -> None:
    for umem in open_umems():
        umem._abandon()


os.register_at_fork(after_in_child=_in_child)


@dataclass(frozen=True)
class DmaDevice:
    """A device that reads and writes a Umem's frames by itself: it is mapped for it as long as a port is zero-copy.

    Attributes:
        netdev, netns: the network device; None: the caller's namespace.
        driver: its driver's name.
        bus: the address of the hardware; empty where it is a broker's to know.
        numa_node: the node of the hardware; None: it has none, or it is not known.
        queues: those with a port of this Umem.
    """

    netdev: str
    netns: str | None
    driver: str
    bus: str
    numa_node: int | None
    queues: tuple[int, ...]


class Umem(Single):
    """Frames for ports and pools.

    Args:
        frames: number of frames.
        frame_size: bytes a frame, 2048 or 4096; unaligned, any number from 2048 to 4096.
        headroom: bytes kept free at the start of each frame.
        huge_pages: back it with 2 MB pages if there are enough; a warning says when not.
        prefault: touch all the memory now.
        unaligned: frames that are no power of two, for packets between: see docs/large-packets.md.
        memory: other memory to use, at least `UmemConfig.size` bytes: ``frames * frame_size``, if aligned; see
            `afxdp_pool.memory`. The Umem owns it.
        trace: note who takes frames, for `holders()`; None: as the environment's ``AFXDP_POOL_TRACE`` says.

    A forked child does not inherit it: the NIC writes to the memory (madvise DONTFORK), and the rings are its parent's.
    There the Umem, its pools and its ports are closed, and the sockets are not held open.

    Raises:
        FrameSizeError, ConfigError: see `UmemConfig`; or `memory` is too short.
        MemoryLimitError: the memory could not be had.

    Ownership: owns the memory. numpy views of it stay valid after `close()`; only then the memory goes.
    Concurrency: any thread; `close()` when no other thread uses its ports or pools.

    >>> with Umem(frames=256) as umem:
    ...     print(umem.audit())
    256 frames: umem 256, pool 0, fill 0, app 0, tx 0; all accounted for
    """

    def __init__(
        self,
        frames: int = 8192,
        *,
        frame_size: int = 4096,
        headroom: int = 0,
        huge_pages: bool = False,
        prefault: bool = False,
        unaligned: bool = False,
        memory: Memory | None = None,
        trace: bool | None = None,
    ) -> None:
        self.config = UmemConfig(frames, frame_size, headroom, huge_pages, prefault, unaligned)
        size = self.config.size
        self._memory = best_memory(size, huge_pages=huge_pages, prefault=prefault) if memory is None else memory
        self.pages = self._memory.description
        self.tracer = Tracer() if wanted(trace) else None
        if memoryview(self._memory.buffer).nbytes < size:
            raise ConfigError(f"memory of {memoryview(self._memory.buffer).nbytes} bytes is too short for {size}")
        self._data = np.frombuffer(self._memory.buffer, np.uint8, count=size)
        if self._data.ctypes.data % 4096:
            raise ConfigError("the memory does not begin at a page", hint="use whole pages, as mmap gives them")
        if not self._data.flags.writeable:
            raise ConfigError("the memory cannot be written to")
        self._area = ffi.from_buffer(self._data)
        self._table = ffi.new("struct afp_table *")
        make = lib.afp_table_init_unaligned if unaligned else lib.afp_table_init
        if make(self._table, self._area, frames, frame_size, headroom) != 0:
            raise MemoryLimitError(f"no memory for a table of {frames} frames")
        self._open = True
        self._detached: list[FramePool] = []
        self._pools: weakref.WeakSet[FramePool] = weakref.WeakSet()
        self._callbacks: dict[int, object] = {}  # by pool id: as long as C may call them
        self._closer = threading.RLock()
        self._in_callback: set[int] = set()  # threads that C calls a pool's callback from, under its locks
        self._late: deque[Batch] = deque()  # frames forgotten there, to be put as soon as may be
        self._ports: set[Port] = set()  # not weak: a port that nobody closed is closed with the Umem
        _known.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.failing(error)
        self.close()

    def __repr__(self) -> str:
        state = "" if self._open else ", closed"
        return f"<Umem of {self.frames} frames of {self.frame_size} bytes, {self.pages}{state}>"

    @property
    def frames(self) -> int:
        """Number of frames."""
        return self.config.frames

    @property
    def frame_size(self) -> int:
        """Bytes a frame."""
        return self.config.frame_size

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        """The memory itself: uint8, shape ``(config.size,)``, writable."""
        return self._data

    @property
    def memory(self) -> Memory:
        """The provider of the memory."""
        return self._memory

    @property
    def table(self) -> Any:
        """The C frame table, for the modules that call C.

        Raises:
            PoolClosedError: the Umem is closed.
        """
        if not self._open:
            raise PoolClosedError("the Umem is closed")
        return self._table

    @property
    def free_frames(self) -> int:
        """Frames no pool owns."""
        return int(self.table.nfree)

    @property
    def foreign_puts(self) -> int:
        """Addresses refused so far because they lie in no frame."""
        return int(self.table.foreign_puts)

    @property
    def devices(self) -> tuple[DmaDevice, ...]:
        """The devices that the memory is mapped for: those with a zero-copy port. In copy mode the kernel copies.

        Concurrency: any thread.
        """
        found: dict[tuple[str, str | None], list[Port]] = {}
        for port in list(self._ports):
            with contextlib.suppress(PoolClosedError):  # just now
                if port.mode == "zero-copy":
                    found.setdefault((port.netdev, port._netns), []).append(port)
        made = []
        for (netdev, netns), ports in sorted(found.items(), key=str):
            where = ports[0].place
            bus, node = (where.bus, where.numa_node) if where else ("", None)
            made.append(DmaDevice(netdev, netns, ports[0]._driver, bus, node, tuple(sorted(p.queue for p in ports))))
        return tuple(made)

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """The NUMA nodes its frames lie on, the one with most of them first; a sample of them is asked for.

        Empty where the kernel does not tell. Frames that nothing has touched yet are on none; opening a port touches
        all. Concurrency: any thread.
        """
        return numa.nodes_of_memory(self._data.ctypes.data, self._data.nbytes) if self._open else ()

    def audit(self) -> Audit:
        """Prove the conservation law, or name every frame that breaks it.

        Concurrency: at a quiet moment, when no other thread moves frames.
        """
        self.reap()
        return audit_table(self.table)

    def states(self) -> npt.NDArray[np.uint8]:
        """The state of each frame, an index into `STATES`; shape ``(frames,)``, uint8. Concurrency: any thread."""
        out = np.empty(self.frames, np.uint8)
        lib.afp_frame_states(self.table, ffi.from_buffer(out))
        return out

    def count_states(self) -> dict[str, int]:
        """Frames in each state, counted while they move. Concurrency: any thread."""
        out = ffi.new("uint32_t[5]")
        lib.afp_count_states(self.table, out)
        return dict(zip(STATES, out, strict=True))

    def reap(self, now: float | None = None) -> list[FramePool]:
        """Let closed pools take in what has come home; the pools that still wait for frames.

        Called by every running forwarder, about ten times a second. A pool that waits is warned about a minute after it
        was closed, and every minute from then (as page_pool_release_retry() in net/core/page_pool.c).

        Args:
            now: the time, in seconds since boot; for tests.

        Concurrency: any thread; not in a callback of a pool.
        """
        self.not_in_callback()
        lib.afp_table_reap(self.table)
        with contextlib.suppress(IndexError):
            while True:
                with contextlib.suppress(PoolError):
                    self.put(self._late.popleft())
        for pool in list(self._detached):
            if pool.state != "detached":
                with contextlib.suppress(ValueError):  # another thread that reaps was faster
                    self._detached.remove(pool)
        now = time.clock_gettime(time.CLOCK_BOOTTIME) if now is None else now
        for pool in list(self._detached):
            assert pool.detached_at is not None
            minutes = int((now - pool.detached_at) / WARN_EVERY)
            if minutes > pool.warned:
                pool.warned = minutes
                who = "; ".join(str(holder) for holder in self.holders() if holder.pool == pool.id)
                log.warning(
                    "pool %d was closed %.0f s ago and still waits for %d frames: %s%s",
                    pool.id,
                    now - pool.detached_at,
                    pool.inflight,
                    who,
                    "" if self.tracer else " (AFXDP_POOL_TRACE=1 shows who took them)",
                )
        return list(self._detached)

    def holders(self) -> list[Holder]:
        """Who has which frames: the application, and the kernel by port and ring; the most frames first.

        With tracing on also since when, and the call stack that took them. Concurrency: any thread.
        """
        natives = [(port._port, port.name) for port in list(self._ports)]
        ports = {int(native.id): name for native, name in natives if native is not None}  # not one closed just now
        words = np.empty(self.frames, np.uint64)
        lib.afp_frame_words(self.table, ffi.from_buffer("uint64_t[]", words))
        return find_holders(words, ports, self.tracer)

    def owner_of(self, frame: int) -> FramePool | None:
        """The pool that owns frame number `frame`; None if it is free, or nobody has that pool object any more.

        Raises:
            ForeignFrameError: there is no such frame.

        Concurrency: any thread.
        """
        if not 0 <= frame < self.frames:
            raise ForeignFrameError(f"there is no frame {frame}: they are 0 to {self.frames - 1}")
        owner = int(lib.afp_frame_word(self.table, frame)) >> 24 & 0xFFF
        pools = [*self._pools, *self._detached]
        return next((pool for pool in pools if pool.id == owner and pool.state != "closed"), None)

    def put(self, batch: Batch) -> int:
        """Give back one reference to each frame of `batch`, each to the pool that owns it.

        Returns how many; always all of them, else it raises.

        Raises:
            DoubleFreeError: a frame its caller does not hold: it is free, sent, or has gone round since.
            ForeignFrameError: an address in no frame of this Umem. Good frames of the batch are put all the same;
                ``error.refused`` names the bad ones.

        Concurrency: any thread. Ownership: the frames are no longer the caller's.
        """
        self.not_in_callback()
        return frames_call(lib.afp_put_all, self.table, self.data, batch, "put")

    def not_in_callback(self) -> None:
        """For what moves frames, or waits for who does: C calls callbacks half way through that, under its locks.

        Raises:
            PoolError: this thread is in a callback of a pool of this Umem.
        """
        if self._in_callback and threading.get_ident() in self._in_callback:
            raise PoolError(
                "a pool's callback moves frames, or closes something",
                hint="note what is to be done, and do it after the call that it is a part of",
            )

    def failing(self, error: BaseException | None) -> None:
        """Tell `failure_watchers` that an exception is about to close this Umem or something on it; None: no effect."""
        if error is not None and self._open:
            for watch in list(failure_watchers):
                watch(self, error)

    def close(self) -> None:
        """Close the ports and pools on it, then let go of the memory. Idempotent; in any order with theirs."""
        if not self._open:
            return
        self.not_in_callback()
        with self._closer:
            for port in list(self._ports):
                port.close()
            for pool in list(self._pools):
                pool._forget()
            if self._open:
                self._open = False
                lib.afp_table_fini(self._table)
            self._memory.close()

    def _abandon(self) -> None:
        """In a forked child: nothing of it is the child's, and any lock may be held by a thread that is not there."""
        for port in list(self._ports):
            port._abandon()
        for pool in list(self._pools):
            pool._forget()
        self._open = False
