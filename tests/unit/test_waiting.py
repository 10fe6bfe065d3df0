"""A loop of the application's own: a turn of the rings, and waits that end when there is something to do."""

from __future__ import annotations

import logging
import selectors
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from doorbell import Doorbell
from support import SMALL, conserved, elsewhere, small_port

from afxdp_pool import Frame, FramePool, PoolClosedError, Port, Umem, WrongThreadError, wait
from afxdp_pool.waiting import HEARTBEAT, LOOK_AGAIN


@pytest.fixture
def pair(pool: FramePool) -> Iterator[tuple[Port, Doorbell]]:
    port = small_port(pool)
    with Doorbell(port) as kernel:
        yield port, kernel


def test_a_turn_says_how_long_a_loop_may_sleep(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, kernel = pair
    assert port.recycle() == HEARTBEAT, "nothing is under way: a packet will wake it"
    assert kernel.filled() == 32
    kernel.deliver(20)
    assert port.recycle() == 0.0
    batch = port.receive()
    assert port.transmit(batch) == 20
    assert port.recycle() == LOOK_AGAIN, "no event tells of completions"
    assert kernel.filled() == 32, "FILL is topped up"
    kernel.send()
    assert port.recycle() == HEARTBEAT
    assert port.stats().tx_completed == 20


def test_a_port_without_frames_looks_for_some_soon(umem: Any) -> None:
    """An empty FILL ring brings no packets, so no packet will ever end the sleep."""
    with FramePool(umem, quota=32) as pool, Doorbell(small_port(pool)) as kernel:
        port = kernel.port
        port.recycle()
        kernel.deliver(32)
        batch = port.receive()
        assert port.recycle() == LOOK_AGAIN
        pool.put(batch)
        assert port.recycle() == HEARTBEAT
        assert kernel.filled() == 32


def test_a_loop_is_told_of_a_frame_kept_for_ever(
    pair: tuple[Port, Doorbell], umem: Umem, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a running forwarder: who closed a pool and has its frames still is named, once a minute."""
    port, _ = pair
    other = FramePool(umem)
    frame = Frame(other.alloc(1))
    other.close()
    assert other.detached_at is not None
    other.detached_at -= 61
    with caplog.at_level(logging.WARNING, logger="afxdp_pool"):
        port.recycle()
        port.recycle()
    assert caplog.text.count("still waits for 1 frames: application has 1 frame of pool") == 1
    assert "AFXDP_POOL_TRACE=1" in caplog.text
    frame.close()
    port.recycle()
    assert other.state == "closed"


def test_poll_waits_for_the_socket(pair: tuple[Port, Doorbell]) -> None:
    port, kernel = pair
    assert not port.poll(0)
    started = time.monotonic()
    assert not port.poll(0.02)
    assert time.monotonic() - started >= 0.02
    ringing = threading.Timer(0.02, kernel.deliver, (3,))
    ringing.start()
    assert port.poll(20)
    ringing.join()
    assert port.pool.put(port.receive()) == 3
    assert not port.poll(0)


def test_several_ports_are_waited_for_at_once(pool: FramePool) -> None:
    ports = [small_port(pool), small_port(pool), small_port(pool, replace(SMALL, receive=False))]
    with Doorbell(ports[0]), Doorbell(ports[1]) as second, Doorbell(ports[2]) as third:
        assert wait(ports, 0) == []
        batch = pool.alloc(5)
        batch.len[:] = 60
        ports[2].transmit(batch)
        ringing = threading.Timer(0.02, lambda: (third.send(), second.deliver(1)))
        ringing.start()
        assert wait(ports) == [ports[1]]
        ringing.join()
        assert ports[2].stats().tx_completed == 5, "a port that only sends has its turn too"
        pool.put(ports[1].receive())


def test_a_selector_waits_by_fileno(pair: tuple[Port, Doorbell]) -> None:
    port, kernel = pair
    got = 0
    with selectors.DefaultSelector() as selector:
        selector.register(port, selectors.EVENT_READ)
        ringing = threading.Timer(0.02, kernel.deliver, (30,))
        pause = port.recycle()
        ringing.start()
        while got < 30:
            if pause and not selector.select(20):
                break
            got += port.pool.put(port.receive(7))
            pause = port.recycle()
    ringing.join()
    assert got == 30


def test_a_turn_breaks_no_rule(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, _ = pair
    port.recycle()
    for call in (port.recycle, lambda: port.poll(1), lambda: wait([port], 1)):
        with pytest.raises(WrongThreadError, match="recycle: pool 1 belongs to thread"):
            elsewhere(call)
    pool.flush()
    pool.unbind()


def test_what_is_closed_says_so() -> None:
    with conserved() as umem:
        pool = FramePool(umem)
        port = small_port(pool)
        assert not port.closed
        pool.close()
        with pytest.raises(PoolClosedError, match="the pool is closed"):
            port.recycle()
        port.close()
        assert port.closed
        for call in (port.recycle, lambda: port.poll(0), lambda: wait([port], 0)):
            with pytest.raises(PoolClosedError, match="the port is closed"):
                call()
