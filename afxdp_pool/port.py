"""`Port`: one AF_XDP socket on (netdev, queue) and its four rings, FILL, RX, TX and COMPLETION.

It owns the socket and the rings, never the frames: those belong to pools. What it hands to the kernel comes back
through RX or COMPLETION, or, when the port closes, by force. Invariant: frames the kernel has from this port are
submitted minus returned; `audit()` holds the frame table against that.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import Any, Literal, Self

from afxdp_pool._native import ffi, lib
from afxdp_pool.binding import check_place, max_frames, return_program
from afxdp_pool.config import PortConfig, need
from afxdp_pool.errors import (
    AfXdpError,
    BrokerError,
    ConfigError,
    LinkGoneError,
    MemoryLimitError,
    NotEnoughFramesError,
    PoolClosedError,
)
from afxdp_pool.granted import PortInfo, granted
from afxdp_pool.lease import Lease, MapLease
from afxdp_pool.live import LiveTransmit, describe
from afxdp_pool.netdev import Netdev
from afxdp_pool.opening import open_here, open_via
from afxdp_pool.pool import FramePool
from afxdp_pool.program import XdpProgram
from afxdp_pool.requests import check_room
from afxdp_pool.rings import PortRings
from afxdp_pool.single import Single
from afxdp_pool.stats import KernelStats, LiveStats, PortStats, kernel_stats, port_stats
from afxdp_pool.waiting import Waiting
from afxdp_pool.xsk import device_gone

log = logging.getLogger("afxdp_pool")


class Port(PortRings, Waiting, Single):
    """A socket on one queue of a network device, over the frames of a pool's Umem.

    Args:
        pool: where FILL gets its frames; any Umem can have ports on any netdevs.
        netdev: name of the network device.
        queue: number of its queue.
        config: ring sizes, mode, directions.
        netns: name of the network namespace it is in; None for the calling thread's.
        program: the XDP program to receive through. None makes one (shared by this process's ports on the netdev).
        via: the UNIX socket of a broker (``afxdp-pool serve``), or of a device plugin for Kubernetes, that does what
            needs privileges for this process. `netdev` is then one that the broker serves, in whichever network
            namespace it runs; the Umem must be of `SharedMemory`. See docs/privileges.md.
        paused: receive nothing before `resume()`: until then the queue's packets go to the kernel's stack.

    Each port registers the Umem's memory for itself: so ports differ in mode, and close in any order.
    A port that cannot transmit live, though `config` would have it, says so once in the log; see `info`.

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError, InterfaceDownError, QueueRangeError: the place is wrong.
        QueueBusyError: another socket has the queue, and kept it for ``config.bind_timeout`` seconds.
        PrivilegeError, MemoryLimitError, ModeUnsupportedError, NotEnoughFramesError: the means are lacking; also for
            live transmit, if `config` demands it.
        MetadataUnsupportedError: the driver does not tell of packets, or do for them, what `config` asks for.
        ProgramBusyError, ProgramLoadError: see `XdpProgram`.
        BrokerError: whoever listens at `via` cannot be reached, or makes no sense.
        WrongThreadError: the pool is bound to another thread.

    Concurrency: one thread at a time, the pool's owner while it fills.
    Source of the rules: Documentation/networking/af_xdp.rst, net/xdp/xsk.c.
    """

    _inlet: XdpProgram | Lease | MapLease | None  # who brings the packets
    _lease: Lease | None
    _live: LiveTransmit | None
    _netns: str | None
    _port: Any
    _program: XdpProgram | None
    _user: Callable[[Port], None] | None  # ends what another thread does with this port, and waits for that
    _where: Netdev | None  # the network device as it was when the port was opened; None in memory

    def __init__(
        self,
        pool: FramePool,
        netdev: str,
        queue: int = 0,
        *,
        config: PortConfig | None = None,
        netns: str | None = None,
        program: XdpProgram | None = None,
        via: str | os.PathLike[str] | None = None,
        paused: bool = False,
    ) -> None:
        self._prepare(pool, netdev, queue, config or PortConfig(), netns)
        if via is not None and (netns is not None or program is not None):
            raise ConfigError(
                "namespace and XDP program are the broker's", subject=self.name, hint="leave netns and program out"
            )
        where = check_place(netdev, queue, netns) if via is None else None
        self._driver, self._where = where.driver if where else "", where
        self._require_frames()
        self._port = self._new()
        try:
            if where is not None:
                open_here(self, where, program)
            elif via is not None:
                open_via(self, via)
            if not paused:
                self.resume()
        except BaseException:
            self.close()
            raise
        pool.umem._ports.add(self)

    @classmethod
    def in_memory(cls, pool: FramePool, config: PortConfig | None = None, name: str = "memory") -> Self:
        """A port whose rings lie in plain memory, for tests: `afxdp_pool.testing.FakeKernel` plays the kernel's side.

        Raises:
            NotEnoughFramesError: the Umem has fewer frames than the rings need. MemoryLimitError: no memory for rings.
        """
        self = cls.__new__(cls)
        self._prepare(pool, name, 0, config or PortConfig())
        self._require_frames()
        self._port = self._new()
        self._port.max_frames = max_frames(self.config, None, zero_copy=False)
        c = self.config
        if lib.afp_port_mock(
            self._port,
            c.fill_size,
            c.comp_size,
            c.rx_size if c.receive else 0,
            c.tx_size if c.transmit else 0,
        ):
            self.close()
            raise MemoryLimitError("no memory for rings", subject=self.name)
        pool.umem._ports.add(self)
        return self

    def _prepare(self, pool: FramePool, netdev: str, queue: int, config: PortConfig, netns: str | None = None) -> None:
        need(pool, FramePool)
        need(config, PortConfig)
        need(netdev, str)
        self.pool = pool
        self.netdev = netdev
        self.queue = queue
        self.config = config
        self._netns = netns
        self._driver = ""
        self._where = None
        self._port = None
        self._program = None
        self._inlet = None
        self._lease = None
        self._live = None
        self._no_live = ""
        self._troubles: set[int] = set()
        self._borrowed = self._orphaned = self._gone = False
        self._user = None
        self._closing = False
        self._closer = threading.RLock()
        self._receiving = False
        self._last: PortStats | None = None
        self._last_kernel = KernelStats()
        self._last_live: LiveStats | None = None

    def _require_frames(self) -> None:
        umem = self.pool.umem
        check_room(self.name, umem, self.config)
        needed = self.config.frames_needed + sum(port.config.frames_needed for port in list(umem._ports))
        if needed > umem.frames:
            raise NotEnoughFramesError(
                f"the rings of its ports need {needed} frames, and the Umem has {umem.frames}",
                subject=self.name,
                hint=f"use {needed} frames or more, or a smaller fill_level",
            )

    def _new(self) -> Any:
        pool = self.pool.native
        level = self.config.fill_level if self.config.receive else min(self.config.fill_level, 64)
        port = lib.afp_port_new(self.pool.umem.table, pool, level)
        if port == ffi.NULL:
            raise MemoryLimitError("no memory, or more than 254 ports on one Umem", subject=self.name)
        port = ffi.gc(port, lib.afp_port_forget)  # other threads may look at its counters while it is closed
        c = self.config
        port.multi_buffer = c.multi_buffer
        port.by_packet |= c.multi_buffer
        failed = c.receive and c.rx_metadata and lib.afp_port_want_metadata(port)
        if c.transmit and c.tx_metadata:
            failed = failed or lib.afp_port_want_requests(port, "timestamp" in c.tx_metadata)
        if failed:
            lib.afp_port_end(port)
            raise MemoryLimitError("no memory for metadata", subject=self.name)
        return port

    def check(self) -> None:
        """Raise if no packet can come or go any more.

        Raises:
            LinkGoneError: the network device was deleted.
            BrokerError: the broker whose XDP program brings the packets has gone.
        """
        self._gone = self._gone or (self.native.fd >= 0 and device_gone(self.native.fd))
        if self._gone:
            raise LinkGoneError("the interface was deleted", subject=self.netdev, hint="make it again and start anew")
        if self._lease is not None and self._inlet is not None and self._lease.ended():
            raise BrokerError("the broker has gone, so no more packets come", subject=self.name, hint="start anew")

    def look_for_trouble(self) -> None:
        """Say in the log, once each, what keeps packets from going live. Called by a running forwarder now and then."""
        if self._lease is not None and self._inlet is not None and self._lease.ended() and not self._orphaned:
            self._orphaned = True
            log.warning("%s: the broker has gone: no more packets come", self.name)
        live = self._live
        if live is None or live.native.trouble in self._troubles:
            return
        trouble = describe(live.native)
        if trouble:
            self._troubles.add(live.native.trouble)
            log.warning("%s: sending by the socket, for now at least: %s", self.name, trouble)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.pool.umem.failing(error)
        self.close()

    def __repr__(self) -> str:
        return f"<Port {self.name}{', closed' if self._port is None else ''}>"

    @property
    def name(self) -> str:
        """``"netdev queue N"``, with the namespace when it is not the caller's."""
        return f"{self.netdev} queue {self.queue}" + (f" in namespace {self._netns}" if self._netns else "")

    @property
    def native(self) -> Any:
        """The C port, for the modules that call C.

        Raises:
            PoolClosedError: the port is closed.
        """
        if self.closed:
            raise PoolClosedError(f"{self.name}: the port is closed")
        return self._port

    @property
    def closed(self) -> bool:
        """Whether it was closed, or is just being. Concurrency: any thread."""
        return self._port is None or self._closing

    @property
    def program(self) -> XdpProgram | None:
        """The XDP program this port receives through; None when it is a broker's."""
        return self._program

    @property
    def mode(self) -> Literal["zero-copy", "copy"]:
        """Whether the NIC itself reads and writes the frames, as the kernel tells it of the socket.

        Raises:
            PoolClosedError: the port is closed.

        Concurrency: any thread.
        """
        return "zero-copy" if lib.afp_port_zero_copy(self.native) == 1 else "copy"

    @property
    def xdp_mode(self) -> str | None:
        """``"native"`` or ``"generic"``; None without an XDP program. Concurrency: any thread."""
        if self._program is not None:
            return self._program.mode
        return self._lease.xdp_mode if self._lease is not None and self._inlet is not None else None

    @property
    def place(self) -> Netdev | None:
        """The network device as it was when the port was opened, with what its driver offers.

        None in memory, and where a broker made the socket. Concurrency: any thread.
        """
        return self._where

    @property
    def info(self) -> PortInfo:
        """What was granted, as opposed to what was asked for."""
        return granted(self)

    def resume(self) -> None:
        """Receive the queue's packets (again). Idempotent."""
        if self._inlet is not None and not self._receiving:
            self._inlet.add_socket(self.queue, self.native.fd)
            self._receiving = True

    def pause(self) -> None:
        """Let the queue's packets go to the kernel's stack. Those in the rings stay there. Idempotent."""
        if self._inlet is not None and self._receiving:
            self._inlet.remove_socket(self.queue)
            self._receiving = False

    def fileno(self) -> int:
        """The socket, for poll and select: readable when packets wait. Owned by the port; -1 in memory."""
        return int(self.native.fd)

    def stats(self) -> PortStats:
        """What this port moved; of a closed port, in all. Concurrency: any thread."""
        port = self._port
        if port is None and self._last is not None:
            return self._last
        return port_stats(port or self.native)

    def live_stats(self) -> LiveStats | None:
        """What went live and what became of it; None for a port that only has its socket. Concurrency: any thread."""
        live = self._live
        return self._last_live if live is None else live.stats()

    def kernel_stats(self) -> KernelStats:
        """The kernel's counters for the socket; of a closed port, the last ones. Concurrency: any thread."""
        port = self._port
        if port is None:
            return self._last_kernel
        return kernel_stats(port) or KernelStats()

    def close(self) -> None:
        """Stop receiving, close the socket, take every frame back that the kernel had. Idempotent, in any order.

        Frames of a pool whose owner is another thread are posted to it. A forwarder that runs with this port in another
        thread is stopped first, and waited for: its run raises PoolClosedError. So is a `poll` or `wait` there.

        Concurrency: any thread that is not in a callback of a pool; no other may be in a call of this port but those.
        """
        if self._port is None:
            return
        self.pool.umem.not_in_callback()
        self._closing = True  # first: whoever comes now and looks finds it so
        if self._user is not None:
            self._user(self)
        with self._closer:
            if self._port is not None:
                self._close(self._port)

    def _close(self, native: Any) -> None:
        if self._waiter is not None:
            self._waiter[0]()  # before the descriptor goes that it waits for
        try:
            self.pause()
        except AfXdpError as error:
            log.warning("%s: %s", self.name, error)  # closing the socket does it as well
        if self._program is not None and self._borrowed:
            self._borrowed = False
            return_program(self._program)
        self._last_kernel = self.kernel_stats()
        lib.afp_port_set_tap(native, ffi.NULL)
        lib.afp_port_end(native)
        if self._lease is not None:
            self._lease.close()
        self._last = port_stats(native)
        self._port = None
        live, self._live = self._live, None
        if live is not None:
            self._last_live = live.stats()
            live.close()
        self.pool.umem._ports.discard(self)
        self._take_back()

    def _abandon(self) -> None:
        """In a forked child: the socket is its parent's."""
        port, self._port = self._port, None
        if port is not None:
            self._last = port_stats(port)
            lib.afp_port_abandon(port)
        if self._lease is not None:
            self._lease.abandon()
        if self._live is not None:
            self._live.close()
            self._live = None
