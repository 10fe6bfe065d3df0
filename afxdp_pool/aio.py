"""asyncio: packets awaited, several ports and anything else in one event loop.

It owns nothing but, for each port, the batch that ``async for`` lent last. Every wait ends by the socket or by a timer,
as `Waiting.recycle` says, so no wake-up can be lost; and whoever never has to wait lets the other tasks run once a
millisecond. Invariant: a task can be cancelled at any `await` here without a frame being lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING

from afxdp_pool.batch import Batch
from afxdp_pool.errors import AfXdpError, ConfigError, PoolClosedError
from afxdp_pool.frame import Frame
from afxdp_pool.frames import Frames
from afxdp_pool.waiting import LOOK_AGAIN

if TYPE_CHECKING:
    from afxdp_pool.port import Port

#: Seconds after which a task that never had to wait lets the others run.
TURN = 0.001
#: Completions taken in one turn, at most.
MANY = 1 << 20


class Packets:
    """What ``async for batch in port`` runs over; see `Port.__aiter__`.

    Concurrency: the event loop's thread, which owns the port's pool. One task at a time waits for a port's packets.
    """

    def __init__(self, port: Port, n: int = 64) -> None:
        self._port = port
        self._n = n

    def __aiter__(self) -> Packets:
        return self

    async def __anext__(self) -> Frames:
        port = self._port
        port._take_back()
        try:
            batch = port._lent = await receive(port, self._n, lent=True)
        except PoolClosedError:
            if port.closed:
                raise StopAsyncIteration from None
            raise
        return batch


async def receive(port: Port, n: int, *, lent: bool = False) -> Frames:
    """`Port.areceive`."""
    if not port.config.receive:
        raise ConfigError(f"{port.name}: the port only sends")
    await _let_others_run(port)
    while True:
        pause = port.recycle()
        if pause:
            await _wait(port, pause)
            continue
        batch = port.receive(n)
        if len(batch):  # else none of them was a packet of ours
            return Frames(batch, lent=lent)


async def transmit(port: Port, batch: Batch | Frame) -> int:
    """`Port.atransmit`."""
    if not port.config.transmit:
        raise ConfigError(f"{port.name}: the port does not send")
    frame = batch if isinstance(batch, Frame) else None
    whole = batch.batch if isinstance(batch, Frame) else batch
    with contextlib.ExitStack() as ours:
        if whole._owner is None and not isinstance(whole, Frames):
            whole = ours.enter_context(Frames(whole, lent=True))
        await _let_others_run(port)
        rest, patience = whole, 0.0
        while True:
            sent = port.transmit(rest)
            rest = rest[sent:]
            _reap_later(port)
            if not len(rest):
                break
            if port.complete(MANY) or sent:
                patience = 0.0
            await asyncio.sleep(patience)
            port._since = time.monotonic()
            patience = LOOK_AGAIN
    if frame is not None:
        frame._revoke()
    return len(whole)


async def drain(port: Port, within: float | None = None) -> None:
    """`Port.adrain`; for no more than `within` seconds."""
    end = None if within is None else time.monotonic() + within
    patience = 0.0
    while _in_tx(port) and (end is None or time.monotonic() < end):
        port.kick()
        if not port.complete(MANY):
            await asyncio.sleep(patience)
            patience = LOOK_AGAIN


async def _let_others_run(port: Port) -> None:
    now = time.monotonic()
    if now - port._since > TURN:
        await asyncio.sleep(0)
        port._since = time.monotonic()


async def _wait(port: Port, pause: float) -> None:
    """Until the socket is readable, the port closed, or `pause` seconds have passed."""
    if port._waiter is not None and not port._waiter[1].is_closed():
        raise ConfigError(f"{port.name}: another task waits for its packets", hint="let one task receive from a port")
    loop = asyncio.get_running_loop()
    fd = port.fileno()
    done = loop.create_future()
    here = threading.get_ident()

    def end() -> None:
        if threading.get_ident() != here and loop.is_running():  # another thread closes the port
            loop.call_soon_threadsafe(end)
            return
        mine = port._waiter is waiter  # else it was called already, and another task may wait by now
        if mine:
            port._waiter = None
        if loop.is_closed():  # under the task, which nobody will wake
            return
        if mine:
            timer.cancel()
            if fd >= 0:
                loop.remove_reader(fd)
        if not done.done():
            done.set_result(None)

    timer = loop.call_later(pause, end)
    waiter = port._waiter = end, loop
    try:
        if fd >= 0:
            loop.add_reader(fd, end)
        await done
    finally:
        end()
        port._since = time.monotonic()


# Completions, while tasks do other things -----------------------------------------------------------------------------


def _in_tx(port: Port) -> int:
    return port.stats().in_tx


def _reap_later(port: Port) -> None:
    loop = asyncio.get_running_loop()
    if port._reaper is not loop:
        port._reaper = loop
        loop.call_later(LOOK_AGAIN, _reap, port, loop)


def _reap(port: Port, loop: asyncio.AbstractEventLoop) -> None:
    if port._reaper is not loop:  # it runs in another loop by now
        return
    port._reaper = None
    if port.closed:
        return
    with contextlib.suppress(AfXdpError):  # the link is gone: the next call that is awaited says so
        port.kick()
        port.complete(MANY)
        if _in_tx(port):
            _reap_later(port)
