"""`Port`: one AF_XDP socket on (netdev, queue) and its four rings, FILL, RX, TX and COMPLETION.

It owns the socket and the rings, never the frames: those belong to pools. What it hands to the kernel comes back
through RX or COMPLETION, or, when the port closes, by force. Invariant: frames the kernel has from this port are
submitted minus returned; `audit()` holds the frame table against that.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import DESC, Batch, need_batch
from afxdp_pool.binding import check_place, link_gone, max_frames, return_program
from afxdp_pool.chain import packets_of
from afxdp_pool.config import MAX_COUNT, PortConfig, check_count
from afxdp_pool.errors import (
    AfXdpError,
    BrokerError,
    ConfigError,
    ForeignFrameError,
    InvalidDescriptorError,
    LinkGoneError,
    MemoryLimitError,
    NotEnoughFramesError,
    PoolClosedError,
)
from afxdp_pool.frame import Frame
from afxdp_pool.lease import Lease, MapLease
from afxdp_pool.live import LiveTransmit, describe
from afxdp_pool.netdev import Netdev
from afxdp_pool.opening import open_here, open_via
from afxdp_pool.pool import FramePool
from afxdp_pool.program import XdpProgram
from afxdp_pool.refusals import raise_refused
from afxdp_pool.requests import TxStamps, check_room, take_stamps
from afxdp_pool.stats import KernelStats, LiveStats, PortStats, kernel_stats, port_stats
from afxdp_pool.waiting import Waiting
from afxdp_pool.xsk import device_gone

log = logging.getLogger("afxdp_pool")


@dataclass(frozen=True)
class PortInfo:
    """What a port was granted, as the kernel tells it.

    Attributes:
        netdev: name of the network device, or ``"memory"``.
        queue: its queue.
        driver: the network device's driver.
        mode: ``"zero-copy"`` or ``"copy"``, read back from the socket.
        xdp_mode: ``"native"`` or ``"generic"``, or None for a port without an XDP program: it only sends, and not by
            zero-copy, for which drivers want a program all the same.
        pages: what the Umem is made of.
        transmit: ``"live"``: by live frames, and by the socket where those do not pay or not go; ``"socket"``; or
            ``"none"``.
        transmit_reason: why not by live frames; empty when it is.
        netns: the network namespace it was asked for; None: the caller's.
        fill_size, comp_size, rx_size, tx_size: entries of its rings; 0: it has no such ring.
        fill_level: frames kept in FILL.
        busy_poll_us: how long a call of the socket polls the driver; 0: not at all.
        program_id: the XDP program it receives through, None without one.
        bus: the address of the hardware behind it; empty without, or when it is a broker's to know.
        numa_node: the NUMA node of the hardware; None: it has none, or it is not known.
        rx_metadata: what it learns of received packets beside their bytes.
        max_frames: most frames of a packet that it sends; 1 without multi-buffer.
        tx_metadata: what can be asked of it for packets to be sent.
    """

    netdev: str
    queue: int
    driver: str
    mode: str
    xdp_mode: str | None
    pages: str
    transmit: str = "socket"
    transmit_reason: str = ""
    netns: str | None = None
    fill_size: int = 0
    comp_size: int = 0
    rx_size: int = 0
    tx_size: int = 0
    fill_level: int = 0
    busy_poll_us: int = 0
    program_id: int | None = None
    bus: str = ""
    numa_node: int | None = None
    rx_metadata: tuple[str, ...] = ()
    max_frames: int = 1
    tx_metadata: tuple[str, ...] = ()


class Port(Waiting):
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
        if self._port is None:
            raise PoolClosedError(f"{self.name}: the port is closed")
        return self._port

    @property
    def closed(self) -> bool:
        """Whether it was closed. Concurrency: any thread."""
        return self._port is None

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
        c = self.config
        return PortInfo(
            self.netdev,
            self.queue,
            self._driver,
            self.mode,
            self.xdp_mode,
            self.pool.umem.pages,
            ("live" if self._live else "socket") if c.transmit else "none",
            self._no_live,
            self._netns,
            c.fill_size,
            c.comp_size,
            c.rx_size if c.receive else 0,
            c.tx_size if c.transmit else 0,
            c.fill_level,
            c.busy_poll_us,
            self._program.id if self._program else None,
            self._where.bus if self._where else "",
            self._where.numa_node if self._where else None,
            c.rx_metadata if c.receive else (),
            int(self.native.max_frames),
            c.tx_metadata if c.transmit else (),
        )

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

    def fill(self, n: int | None = None) -> int:
        """Hand up to `n` frames of the pool to the kernel to receive into; default: up to the fill level.

        Returns how many; less when the ring is full or the pool empty.

        Raises:
            WrongThreadError: another thread owns the pool. PoolClosedError: the pool is closed.

        Ownership: the frames are the kernel's until received.
        """
        port = self.native
        _ = self.pool.native  # or it raises: the number of a closed pool may be another's by now
        if n is None:
            n = max(0, int(port.fill_level) - port_stats(port).in_fill)
        got = lib.afp_port_fill(port, check_count(n))
        if got < 0:
            raise self.pool._refusal(got, f"{self.name}: fill")
        lib.afp_port_wake_rx(port)  # a driver that found FILL empty may have stopped looking
        return int(got)

    def receive(self, n: int = 64) -> Batch:
        """Up to `n` packets that have arrived; an empty batch when none has. Never waits.

        Ownership: the caller holds the frames until put, sent or kept.
        """
        umem = self.pool.umem
        if self.config.multi_buffer:
            return self._receive_packets(check_count(n))
        batch = Batch(np.empty(check_count(n), DESC), umem.data, self, frame_size=umem.frame_size, umem=umem)
        got = lib.afp_port_receive(self.native, batch.pointer, n)
        batch = batch[:got]
        if got and umem.tracer is not None:
            umem.tracer.note(batch)
        return batch

    def _receive_packets(self, n: int) -> Batch:
        """`receive`, of packets that may lie in several frames."""
        umem = self.pool.umem
        room = min(4 * n, MAX_COUNT // 2) + lib.AFP_PACKET_FRAMES
        frames = np.empty(min(room, umem.frames), DESC)
        got = lib.afp_receive_packets(self.native, ffi.from_buffer("struct afp_desc[]", frames), len(frames), n)
        batch = Batch.of_frames(frames[:got], umem.data, self, umem=umem)
        if got and umem.tracer is not None:
            umem.tracer.note(batch)
        return batch

    def transmit(self, batch: Batch | Frame) -> int:
        """Put the packets into the TX ring, in order, and wake the kernel. Returns how many there was room for.

        A `Frame`, and `Frames` as far as they are sent, are given away by it. ``batch[sent:]`` is the rest. Of a packet
        in several frames all go, or none.

        Raises:
            DoubleFreeError: a frame the caller does not hold; ForeignFrameError, InvalidDescriptorError: a descriptor
                that points outside the Umem, has no length, or leaves its frame; a packet in more frames than
                `PortInfo.max_frames`, or in several without `PortConfig.multi_buffer`. Those before it are sent
                (``error.done`` of them); it and those behind it are the caller's still.
            LinkGoneError: the device is down or gone; ``error.done`` frames are with the port, until it is closed.

        Ownership: one reference to each frame sent is the kernel's, until `complete()` on this port.
        """
        if isinstance(batch, Frame):
            frame, batch = batch, batch.batch
            sent = self.transmit(batch)
            if sent:
                frame._revoke()
            return sent
        need_batch(batch)
        if batch.data is not self.pool.umem.data:
            raise ForeignFrameError("the batch is of another Umem")
        return self._send(batch)

    def _send(self, batch: Batch, done: Any = None) -> int:
        """`transmit`, of a batch on this Umem; C writes to `done` how many frames were sent."""
        batch.require()
        if batch._chain is not None and not self.config.multi_buffer:
            raise InvalidDescriptorError(
                f"{self.name}: a packet of several frames",
                hint="such packets leave by ports opened with PortConfig(multi_buffer=True)",
            )
        refused = ffi.new("struct afp_refusals *")
        pointer, frames = batch._moving()
        done = batch.giving(done)
        if done is None:
            sent = int(lib.afp_port_transmit(self.native, pointer, frames, refused))
        else:
            sent = int(lib.afp_port_transmit_noted(self.native, pointer, frames, refused, done))
        sent = packets_of(batch._chain, sent)
        try:
            self.kick()
        except LinkGoneError as error:
            error.done = sent
            raise
        if refused.n:
            raise_refused(refused, sent, f"{self.name}: transmit")
        return sent

    def complete(self, n: int = 64) -> int:
        """Take up to `n` completions: each frame goes home to the pool that owns it. Returns how many.

        Frames that went live are home already, and are counted here all the same. What still waits to go is kicked.

        Raises:
            LinkGoneError: as `kick`, of a port that transmits live.
        """
        if self._live is not None and self.ring_levels()["tx"]:
            self.kick()
        return int(lib.afp_port_complete(self.native, check_count(n)))

    def take_timestamps(self, n: int = 64) -> TxStamps:
        """When packets were sent whose `Batch.request_timestamps` asked for it: up to `n`, the first completed first.

        It keeps 8192 until they are taken. Concurrency: one thread, any. None after the port is closed.
        """
        return take_stamps(self.native, check_count(n))

    def kick(self) -> None:
        """Tell the kernel that there is something to send. A full queue is no error: what is left is sent later.

        Raises:
            LinkGoneError: the network device is down or gone.
        """
        code = -lib.afp_port_kick(self.native)
        if code:
            raise link_gone(self.name, code)
        if self._live is not None and self._live.native.trouble:
            self.look_for_trouble()

    def ring_levels(self) -> dict[str, int]:
        """Entries in each ring now: `fill` and `tx` wait for the kernel, `comp` and `rx` for us."""
        out = ffi.new("uint32_t[4]")
        lib.afp_port_ring_levels(self.native, out)
        return dict(zip(("fill", "comp", "rx", "tx"), out, strict=True))

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

        Frames of a pool whose owner is another thread are posted to it.
        """
        if self._port is None:
            return
        if self._waiter is not None:
            self._waiter[0]()  # before the descriptor goes that it waits for
        try:
            self.pause()
        except AfXdpError as error:
            log.warning("%s: %s", self.name, error)  # closing the socket does it as well
        if self._program is not None and self._borrowed:
            return_program(self._program)
        self._last_kernel = self.kernel_stats()
        lib.afp_port_set_tap(self._port, ffi.NULL)
        lib.afp_port_end(self._port)
        if self._lease is not None:
            self._lease.close()
        self._last = port_stats(self._port)
        self._port = None
        if self._live is not None:
            self._last_live = self._live.stats()
            self._live.close()
            self._live = None
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
