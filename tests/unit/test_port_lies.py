"""Descriptors no port may send, and entries no kernel should return: refused, counted, harmless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from support import SMALL, elsewhere, small_port

from afxdp_pool import (
    DoubleFreeError,
    ForeignFrameError,
    FramePool,
    InvalidDescriptorError,
    PoolError,
    Port,
    Umem,
)
from afxdp_pool.testing.rings import FakeKernel

#: Ring indices from the start, and about to wrap.
STARTS = [0, (1 << 32) - 40]


@pytest.fixture(params=STARTS, ids=["indices from 0", "indices wrap"])
def pair(pool: FramePool, request: pytest.FixtureRequest) -> tuple[Port, FakeKernel]:
    port = small_port(pool)
    return port, FakeKernel(port, first_index=request.param)


def packets(n: int, size: int = 64) -> list[bytes]:
    return [n_.to_bytes(4, "big") * (size // 4) for n_ in range(n)]


# Transmitting what must not be --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length", "good"),
    [
        (0, 4096, True),
        (0, 1, True),
        (4095, 1, True),
        (256, 3840, True),
        (0, 0, False),
        (0, 4097, False),
        (1, 4096, False),
        (4095, 2, False),
        (256, 0xFFFFFFFF, False),
    ],
)
@pytest.mark.parametrize("frame", [0, 511])
def test_a_descriptor_must_lie_in_its_frame(umem: Umem, offset: int, length: int, good: bool, frame: int) -> None:
    with FramePool(umem) as pool, small_port(pool) as port:
        batch = pool.alloc(512)
        one = batch[batch.addr == frame * 4096]
        one.addr[0] += np.uint64(offset)
        one.len[0] = length
        if good:
            assert port.transmit(one) == 1
            kernel = FakeKernel(port)
            assert len(kernel.send()[0]) == length
            assert port.complete() == 1
        else:
            with pytest.raises(InvalidDescriptorError, match="not inside one frame"):
                port.transmit(one)
            pool.put(one)
        pool.put(batch[batch.addr != frame * 4096])


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda descs: descs.__setitem__("addr", 1 << 60), ForeignFrameError),
        (lambda descs: descs.__setitem__("len", 0), InvalidDescriptorError),
        (lambda descs: descs.__setitem__("gen", 0), DoubleFreeError),
    ],
)
def test_packets_before_a_bad_one_are_sent_it_and_the_rest_stay(
    pair: tuple[Port, FakeKernel], pool: FramePool, spoil: Callable[[object], None], error: type[PoolError]
) -> None:
    port, kernel = pair
    batch = pool.alloc(8)
    batch.len[:] = 60
    bad = batch.copy()
    spoil(bad.descs[5:6])
    with pytest.raises(error) as caught:
        port.transmit(bad)
    assert caught.value.done == 5
    assert caught.value.refused[0][0] == 5
    assert len(kernel.send()) == 5
    assert port.complete() == 5
    pool.put(batch[5:])


def test_a_frame_twice_in_a_batch_is_sent_once(pair: tuple[Port, FakeKernel], pool: FramePool) -> None:
    port, kernel = pair
    batch = pool.alloc(1)
    batch.len[:] = 60
    with pytest.raises(DoubleFreeError) as caught:
        port.transmit(batch[np.array([0, 0])])
    assert caught.value.done == 1
    assert len(kernel.send()) == port.complete() == 1


def test_more_clones_than_a_port_can_count_are_refused(pool: FramePool) -> None:
    port = small_port(pool, replace(SMALL, tx_size=512, comp_size=512))
    kernel = FakeKernel(port)
    batch = pool.alloc(1)
    batch.len[:] = 60
    for _ in range(299):
        pool.ref(batch)
    with pytest.raises(PoolError, match="as many references") as caught:
        port.transmit(batch[np.zeros(300, int)])
    assert caught.value.done == 255
    kernel.send()
    assert port.complete(1000) == 255
    for _ in range(45):
        pool.put(batch)
    with pytest.raises(DoubleFreeError):
        pool.put(batch)


# A kernel that lies -------------------------------------------------------------------------------------------------


def test_hostile_rx_descriptors_are_counted_and_harmless(
    pair: tuple[Port, FakeKernel], pool: FramePool, umem: Umem
) -> None:
    port, kernel = pair
    held, idle = pool.alloc(1), pool.alloc(1)
    pool.put(idle)
    port.fill(4)
    first, second, third, fourth = kernel.take_fill()
    lies = [
        (1 << 40, 60),  # foreign
        (len(umem.data), 60),
        ((1 << 64) - 1, 1),
        (int(held.addr[0]), 60),  # the application's
        (umem.frames * 4096 - 4096, 60),  # the Umem's
        (first, 4097),  # too long
        (second + 4000, 97),
        (third, 0xFFFFFFFF),
    ]
    for addr, length in lies:
        kernel.push_rx(addr, length, options=0xFFFF)
    kernel.push_rx(fourth + 256, 60)
    kernel.push_rx(fourth + 256, 60)  # twice
    batch = port.receive(64)
    assert batch.addr.tolist() == [fourth + 256]
    assert port.stats().rx_bad == len(lies) + 1
    assert umem.audit().check().fill == 3
    pool.put(batch)
    kernel.push_rx(fourth + 256, 60)  # after it went home
    assert len(port.receive()) == 0
    for addr in (first, second, third):
        kernel.push_rx(addr + 256, 60)  # the truth at last
    pool.put(port.receive())
    pool.put(held)


def test_an_address_another_port_filled_is_refused(umem: Umem, pool: FramePool) -> None:
    mine, other = small_port(pool), small_port(pool)
    kernel, strange = FakeKernel(mine), FakeKernel(other)
    mine.fill(2)
    other.fill(2)
    (addr, *_) = kernel.take_fill()
    strange.push_rx(addr + 256, 60)
    assert len(other.receive()) == 0
    assert (other.stats().rx_bad, mine.stats().rx_bad) == (1, 0)
    kernel.push_rx(addr + 256, 60)
    batch = mine.receive()
    batch.len[:] = 60
    mine.transmit(batch)
    strange.push_comp(addr)
    assert other.complete() == 0
    assert other.stats().completion_bad == 1
    kernel.send()
    assert mine.complete() == 1


@pytest.mark.parametrize("clones", [0, 2], ids=["one reference", "several references"])
def test_hostile_completions_are_counted_and_harmless(
    pair: tuple[Port, FakeKernel], pool: FramePool, umem: Umem, clones: int
) -> None:
    port, kernel = pair
    port.fill(1)
    sent, held = pool.alloc(1), pool.alloc(1)
    sent.len[:] = 60
    for _ in range(clones):
        pool.ref(sent)
    port.transmit(sent)
    (tx,) = kernel.take_tx()
    lies = [1 << 40, (1 << 64) - 1, int(held.addr[0]), kernel.take_fill()[0], 511 * 4096]
    for addr in [*lies, tx.addr + 100, tx.addr, tx.addr]:  # offsets are tolerated; twice is not
        kernel.push_comp(addr)
    assert port.complete() == 1
    assert port.stats().completion_bad == len(lies) + 2
    umem.audit().check()
    for _ in range(clones):
        pool.put(sent)
    with pytest.raises(DoubleFreeError):
        pool.put(sent)
    pool.put(held)


def test_duplicate_completions_of_frames_posted_to_another_thread_are_refused(umem: Umem) -> None:
    with FramePool(umem) as pool, FramePool(umem) as local:
        port = small_port(local)
        kernel = FakeKernel(port)
        batch = pool.alloc(3)
        batch.len[:] = 60

        def finish() -> tuple[int, int]:
            port.transmit(batch)
            for packet in kernel.take_tx() * 2:
                kernel.push_comp(packet.addr)
            return port.complete(3), port.complete(3)

        assert elsewhere(finish) == (3, 0)
        assert port.stats().completion_bad == 3
        assert umem.audit().check().inbox == 3
        assert pool.collect() == 3
        assert pool.stats().late_refused == 0
