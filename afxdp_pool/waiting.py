"""`Waiting`: what a port offers a loop that is not the forwarder's: a turn of its rings, and waiting for packets.

A socket tells of packets that have arrived, and of nothing else: not of completions, not of a FILL ring that ran dry,
not that its device is gone (xsk_poll() in net/xdp/xsk.c). So a loop that sleeps must look again by itself. `recycle()`
does all that the rings need and says for how long it may sleep. Invariant: a loop that calls it before each sleep, and
sleeps no longer, misses nothing.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self, cast

from afxdp_pool._native import ffi, lib
from afxdp_pool.binding import link_gone
from afxdp_pool.errors import ConfigError

if TYPE_CHECKING:
    from afxdp_pool.aio import Packets
    from afxdp_pool.batch import Batch
    from afxdp_pool.frame import Frame
    from afxdp_pool.frames import Frames
    from afxdp_pool.port import Port

#: Seconds between looks while something is under way that no event tells of.
LOOK_AGAIN = 0.001
#: The longest sleep: a driver may ask to be woken just after it was looked, a device may go away.
HEARTBEAT = 0.1


class Waiting:
    """A port's side of a loop of the application's own."""

    _turn: Any = None  # what C writes to
    _lent: Frames | None = None  # the batch of `async for`
    _waiter: Any = None  # what ends the wait of the task that waits for packets, and its event loop
    _reaper: Any = None  # takes completions while tasks do other things
    _since: float = 0.0  # when a task that uses this port slept last

    def recycle(self) -> float:
        """Do all that the rings need besides receiving and sending; for how many seconds the loop may sleep then.

        Frames that were sent come home, FILL is topped up, the kernel is told of what is still in TX, the driver is
        woken where it asks for it, or polled if the port busy-polls. Once a turn of the loop is enough. When there is
        nothing to receive it calls `Umem.reap` too, if a closed pool waits for frames.

        Returns 0.0 when packets wait to be received; 0.001 while frames are under way of which no event will tell, or
        while FILL lacks frames, as the pool has none; else 0.1. An arriving packet ends the sleep earlier, if the loop
        waits for `fileno()` to become readable.

        Raises:
            LinkGoneError: the network device went away, or was taken down while there is something to send.
            WrongThreadError: another thread owns the pool. PoolClosedError: the port or its pool is closed.

        Concurrency: the pool's owner thread.
        """
        port = cast("Port", self)
        native = port.native
        port.pool.umem.not_in_callback()
        turn = self._turn
        if turn is None:
            turn = self._turn = ffi.new("struct afp_turn *")
        result = lib.afp_port_recycle(native, turn)
        if turn.error:
            raise link_gone(port.name, turn.error)
        if result < 0:
            raise port.pool._refusal(result, f"{port.name}: recycle")
        port.look_for_trouble()
        if turn.waiting:
            return 0.0
        umem = port.pool.umem
        if umem._detached or umem._late:
            umem.reap()
        if turn.in_tx or turn.missing or native.fd < 0 or port.config.busy_poll_us:
            return LOOK_AGAIN
        return HEARTBEAT

    def poll(self, timeout: float | None = None) -> bool:
        """Wait until packets can be received, `recycle()` the rings meanwhile; whether there are any.

        Args:
            timeout: seconds; 0 looks once, None waits for ever.

        Raises:
            LinkGoneError, WrongThreadError, PoolClosedError: as `recycle`; the last also when another thread closes the
                port meanwhile. ConfigError: a wait for ever, of a port that only sends.

        Concurrency: the pool's owner thread.
        """
        return bool(wait((cast("Port", self),), timeout))

    # asyncio: see afxdp_pool.aio ------------------------------------------------------------------------------------

    def __aiter__(self) -> Packets:
        """``async for batch in port``: each time what has arrived, up to 64 packets, as `Frames`.

        What the body did not send, put or keep of a batch is given back when the next one is asked for, or when the
        port is closed. The iteration ends when the port is closed.
        """
        return self.packets()

    def packets(self, n: int = 64) -> Packets:
        """The same with up to `n` packets a batch: ``async for batch in port.packets(256)``."""
        from afxdp_pool.aio import Packets

        return Packets(cast("Port", self), n)

    async def areceive(self, n: int = 64) -> Frames:
        """Wait until packets arrive; up to `n` of them.

        Raises:
            LinkGoneError, WrongThreadError, PoolClosedError: as `recycle`.
            ConfigError: another task waits for this port's packets; or it is a port that only sends.

        Ownership: the caller's: sent, put, or closed; what is forgotten gives itself back.
        """
        from afxdp_pool import aio

        return await aio.receive(cast("Port", self), n)

    async def atransmit(self, batch: Batch | Frame) -> int:
        """Send all of `batch`, in order, waiting for room in the TX ring as often as need be; how many packets.

        Their completions are taken while the loop does other things.

        Raises:
            LinkGoneError and the errors for bad descriptors: as `transmit`. FrameGoneError: a frame is not the
            caller's. PoolClosedError: the port is closed. ConfigError: it does not send.

        Ownership: the frames are taken over. When the task is cancelled, or the call fails, those that did not get into
        the ring are given back; of `Frames` or a `Frame` they stay with it.
        """
        from afxdp_pool import aio

        return await aio.transmit(cast("Port", self), batch)

    async def adrain(self) -> None:
        """Wait until all that was sent is completed: until the device is done with it.

        Raises:
            LinkGoneError, PoolClosedError: as `recycle`.
        """
        from afxdp_pool import aio

        await aio.drain(cast("Port", self))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: Any, *_: object) -> None:
        """Give what is under way a second to be sent, unless an error ends the block; then close the port."""
        from afxdp_pool import aio

        try:
            if kind is None:
                await aio.drain(cast("Port", self), within=1.0)
        finally:
            cast("Port", self).close()

    def _take_back(self) -> None:
        """What ``async for`` lent last and was not given away is given back."""
        lent, self._lent = self._lent, None
        if lent is not None:
            lent.close()


def wait(ports: Iterable[Port], timeout: float | None = None) -> list[Port]:
    """Wait until one of several ports has packets, `recycle()` them all meanwhile; those that have.

    As multiprocessing.connection.wait() does for connections. Ports that only send may be among them.

    Args:
        ports: of this thread.
        timeout: seconds, after which the list is empty; 0 looks once, None waits for ever.

    Raises:
        LinkGoneError, WrongThreadError, PoolClosedError: as `Port.recycle`; the last also when another thread closes
            one of them meanwhile. ConfigError: a wait for ever, of ports that only send, or of none.

    Concurrency: the thread that owns the ports' pools.
    """
    ports = list(ports)
    if timeout is None and not any(port.config.receive for port in ports):
        raise ConfigError("none of the ports receives, so nothing would end the wait", hint="give a timeout")
    end = None if timeout is None else time.monotonic() + timeout
    here, waiting, users = threading.get_ident(), threading.Lock(), [port._user for port in ports]

    def leave(_: Port) -> None:
        if threading.get_ident() != here:  # this thread finds the port closing when it looks next
            with waiting:
                pass

    with waiting:
        try:
            for port in ports:
                port._user = leave
            return _wait(ports, end)
        finally:
            for port, user in zip(ports, users, strict=True):
                port._user = user


def _wait(ports: list[Port], end: float | None) -> list[Port]:
    poller = None
    while True:
        pauses = [port.recycle() for port in ports]
        ready = [port for port, pause in zip(ports, pauses, strict=True) if not pause]
        left = HEARTBEAT if end is None else end - time.monotonic()
        if ready or left <= 0:
            return ready
        if poller is None:
            poller = select.poll()
            for port in ports:
                if port.config.receive and port.fileno() >= 0:
                    poller.register(port.fileno(), select.POLLIN)
        poller.poll(min(left, *pauses, HEARTBEAT) * 1000)
