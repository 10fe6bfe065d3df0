"""How a port comes to its socket: made by this process, or by a broker that may do what this process may not.

It owns nothing: what is opened belongs to the port, which closes it whatever fails here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from afxdp_pool import knobs, wire
from afxdp_pool import netdev as netdevs
from afxdp_pool._native import ffi, lib
from afxdp_pool.binding import (
    borrow_program,
    check_place,
    check_program,
    max_frames,
    native_config,
    open_error,
)
from afxdp_pool.config import PortConfig
from afxdp_pool.errors import (
    AfXdpError,
    BrokerError,
    ConfigError,
    MemoryLimitError,
    MetadataUnsupportedError,
    ModeUnsupportedError,
    ProgramBusyError,
    QueueBusyError,
    WrongThreadError,
)
from afxdp_pool.lease import Connection, Lease, MapLease, connect
from afxdp_pool.live import LiveTransmit, Refused, unfit
from afxdp_pool.memory import HugePageMemory, SharedMemory
from afxdp_pool.program import XdpProgram
from afxdp_pool.requests import for_requests

if TYPE_CHECKING:
    from afxdp_pool.port import Port

log = logging.getLogger("afxdp_pool")
_RETRY_STEP = 0.01


def open_here(port: Port, where: netdevs.Netdev, program: XdpProgram | None) -> None:
    """Make and bind the socket; receive through `program`, or the one this process's ports share."""
    knobs.restore(port.netdev, port._netns)
    bind(port, for_requests(where, _fit(port)))
    port.native.max_frames = _most_frames(port, where)
    if port.config.transmit in ("auto", "live"):
        set_live(port, where)
    if port.config.receive:
        wanted = port.config.rx_metadata
        if program is not None:
            check_program(port.name, program, wanted, port.config.multi_buffer)
        port._program = port._inlet = program or borrow_program(
            port.netdev, port._netns, rx_metadata=wanted, frags=port.config.multi_buffer
        )
        port._borrowed = program is None
    elif lib.afp_port_zero_copy(port.native) == 1:
        _let_driver_send(port)


def _fit(port: Port) -> PortConfig:
    """The port's configuration, in a mode that its memory allows.

    A zero-copy driver gets no frame that crosses into a page which does not lie right behind for the device: the kernel
    takes such a frame out of FILL and says nothing (xp_check_unaligned(), net/xdp/xsk_buff_pool.c).
    """
    config, umem = port.config, port.pool.umem
    if not umem.config.unaligned or config.mode == "copy" or isinstance(umem.memory, HugePageMemory):
        return config
    if config.mode == "zero-copy":
        raise ModeUnsupportedError(
            "unaligned frames are no use to a zero-copy driver on 4 KB pages",
            subject=port.name,
            hint='make the Umem with huge_pages=True (sysctl vm.nr_hugepages), or use mode "copy"',
        )
    return replace(config, mode="copy")


def _most_frames(port: Port, where: netdevs.Netdev) -> int:
    zero_copy = lib.afp_port_zero_copy(port.native) == 1
    return max_frames(port.config, where, zero_copy=zero_copy, unaligned=port.pool.umem.config.unaligned)


def _let_driver_send(port: Port) -> None:
    """Attach a program for its presence alone.

    A driver may run the rings that zero-copy sends by only while an XDP program is attached; without, it says EINVAL to
    every kick (igb_xsk_wakeup(), ice_xsk_wakeup(), ixgbe_xsk_wakeup()).
    """
    with contextlib.suppress(ProgramBusyError):  # somebody's is there
        port._program = borrow_program(port.netdev, port._netns)
        port._borrowed = True


def open_via(port: Port, path: str | os.PathLike[str]) -> None:
    """Get the socket, or the map for one, from who listens at `path`."""
    connection = connect(path)
    if connection.makes_sockets:
        _lease(port, connection)
        return
    where = check_place(port.netdev, port.queue, None)
    config = port.config
    if config.receive and config.rx_metadata:
        raise MetadataUnsupportedError(
            "the XDP program is a device plugin's, which tells nothing of packets", subject=port.name
        )
    lease = MapLease(connection, port.netdev) if config.receive or config.busy_poll_us else None
    # Busy polling is set by the other side: it needs CAP_NET_ADMIN.
    bind(port, replace(for_requests(where, _fit(port)), busy_poll_us=0))
    if lease is not None and config.busy_poll_us:
        lease.busy_poll(port.native.fd, config.busy_poll_us, config.busy_poll_budget)
        port.native.busy_poll = True
    if config.transmit in ("auto", "live"):
        set_live(port, where)
    port.native.max_frames = _most_frames(port, where)
    if config.receive:
        port._inlet = lease


def _again(port: Port, attempt: Callable[[], bool]) -> None:
    """Try again while the queue is busy: the kernel releases a closed socket's queue asynchronously."""
    deadline = time.monotonic() + port.config.bind_timeout
    while attempt() and time.monotonic() < deadline:
        time.sleep(_RETRY_STEP)


def bind(port: Port, config: PortConfig) -> None:
    """Make the socket and bind it."""
    native, stage, result = native_config(port.netdev, port.queue, config), ffi.new("int *"), 0

    def attempt() -> bool:
        nonlocal result
        result = lib.afp_port_open(port._port, native, stage)
        return bool(result == -errno.EBUSY)

    unbound = not port.pool.owner_tid
    with netdevs.in_netns(port._netns):
        _again(port, attempt)
    _give_pool_back(port, unbound)
    if result == lib.AFP_WRONG_THREAD and stage[0] == lib.AFP_STAGE_TABLE:
        raise _wrong_thread(port)
    if result:
        raise open_error(port.name, port._driver, config, -result, stage[0])


def _lease(port: Port, connection: Connection) -> None:
    """Have a broker make the socket over this process's memory, and map its rings."""
    config, umem = port.config, port.pool.umem
    lease: Lease | None = None
    busy: QueueBusyError | None = None
    try:
        if config.transmit == "live":
            raise ModeUnsupportedError("live transmit needs privileges of this process's own", subject=port.name)
        if umem.config.unaligned:
            raise ConfigError("a broker registers aligned frames only", subject=port.name, hint="leave unaligned off")
        if not isinstance(umem.memory, SharedMemory):
            raise ConfigError(
                "the broker cannot register this Umem's memory",
                subject=port.name,
                hint="make it of memory that can be passed on: "
                f"Umem({umem.frames}, memory=SharedMemory({umem.frames} * {umem.frame_size}))",
            )
        request = wire.SocketRequest(port.netdev, port.queue, umem.config, config, _stock(port))
        memory = umem.memory.fd

        def attempt() -> bool:
            nonlocal lease, busy
            try:
                lease = Lease(connection, request, memory)
            except QueueBusyError as error:
                busy = error
            return lease is None

        _again(port, attempt)
        if lease is None:
            assert busy is not None
            raise busy
    except BaseException:
        connection.close()
        raise
    port._lease, port._driver, port._no_live = lease, lease.driver, "a broker made the socket"
    failed = lib.afp_lease_take(port._port, lease.take_fd(), native_config(port.netdev, port.queue, config))
    if failed:
        raise BrokerError("the broker's socket has other rings", subject=port.name, errno=-failed)
    port.native.max_frames = max_frames(config, None, zero_copy=False)
    if config.receive:
        port._inlet = lease


def _stock(port: Port) -> bytes:
    """Choose the frames that FILL is to hold when the socket is bound; their addresses."""
    unbound = not port.pool.owner_tid
    n = lib.afp_lease_stock(port._port, port.config.fill_size, wire.STOCK_MAX)
    _give_pool_back(port, unbound)
    if n == lib.AFP_WRONG_THREAD:
        raise _wrong_thread(port)
    if n < 0:
        raise MemoryLimitError("no memory for rings", subject=port.name)
    return bytes(ffi.buffer(port._port.mock[0].entries, 8 * n))


def _give_pool_back(port: Port, unbound: bool) -> None:
    if unbound and port.pool.owner_tid:
        port.pool.unbind()  # opening filled the ring from here; the thread that runs the port comes later


def _wrong_thread(port: Port) -> WrongThreadError:
    return WrongThreadError(
        f"{port.name}: pool {port.pool.id} belongs to thread {port.pool.owner_tid}",
        hint="open the port there, or let that thread call pool.unbind() first",
    )


def set_live(port: Port, where: netdevs.Netdev) -> None:
    """Transmit live if that is possible and better, or note why not."""
    demanded = port.config.transmit == "live"
    refused = unfit(port.pool.umem)
    if port.config.multi_buffer:
        refused = Refused("packets of several frames go by the socket", chosen=True)
    if port.config.tx_metadata:
        refused = Refused("what devices are asked to do goes by the socket", chosen=True)
    if not demanded and lib.afp_port_zero_copy(port._port) == 1:
        refused = Refused("the socket's zero-copy is better", chosen=True)
    if refused is None:
        try:
            port._live = LiveTransmit(port.pool.umem, where, port._netns, only=demanded)
        except AfXdpError as error:
            if demanded:
                raise
            log.debug("%s: no live transmit: %s", port.name, error)
            refused = Refused(str(error).partition("\n")[0])  # what the verifier said is in the lines below
        else:
            lib.afp_port_set_live(port._port, port._live.native)
            return
    if demanded:
        raise ModeUnsupportedError(f"live transmit is not possible: {refused.reason}", subject=port.name)
    port._no_live = refused.reason
    if not refused.chosen:
        log.warning("%s: sending by the socket: %s", port.name, refused.reason)
