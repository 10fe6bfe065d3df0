"""A port against a kernel played by the test: what goes out comes back, and what never went out is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import SMALL, conserved, elsewhere, small_port

from afxdp_pool import (
    Batch,
    ConfigError,
    DoubleFreeError,
    FramePool,
    NotEnoughFramesError,
    PoolClosedError,
    Port,
    PortConfig,
    Umem,
)
from afxdp_pool._native import lib
from afxdp_pool.testing.rings import FakeKernel

#: Ring indices from the start, and about to wrap.
STARTS = [0, (1 << 32) - 40]


@pytest.fixture(params=STARTS, ids=["indices from 0", "indices wrap"])
def pair(pool: FramePool, request: pytest.FixtureRequest) -> tuple[Port, FakeKernel]:
    port = small_port(pool)
    return port, FakeKernel(port, first_index=request.param)


def packets(n: int, size: int = 64) -> list[bytes]:
    return [n_.to_bytes(4, "big") * (size // 4) for n_ in range(n)]


# The rings ----------------------------------------------------------------------------------------------------------


def test_a_packet_goes_round_through_all_four_rings(pair: tuple[Port, FakeKernel], pool: FramePool) -> None:
    port, kernel = pair
    content = packets(20)
    for _ in range(10):
        port.fill()
        assert kernel.filled() == 32
        assert kernel.deliver(content) == 20
        batch = port.receive(64)
        assert [bytes(packet) for packet in batch] == content
        assert (batch.addr % 4096 == 256).all()
        assert batch.port is port
        assert port.transmit(batch) == 20
        sent = kernel.take_tx()
        assert [packet.data for packet in sent] == content
        assert port.complete() == 0
        assert kernel.complete(reversed(sent)) == 20
        assert port.complete(7) == 7
        assert port.complete(64) == 13
    stats = port.stats()
    assert (stats.rx_packets, stats.tx_packets, stats.tx_completed) == (200, 200, 200)
    assert stats.rx_bytes == stats.tx_bytes == 200 * 64
    assert (stats.rx_bad, stats.completion_bad) == (0, 0)
    assert pool.outstanding == kernel.filled() == 12


@pytest.mark.parametrize(("frame_size", "headroom"), [(2048, 0), (4096, 0), (2048, 192), (4096, 3392)])
def test_headroom_is_kept_and_the_low_bits_of_an_address_find_the_frame(frame_size: int, headroom: int) -> None:
    with (
        conserved(frame_size=frame_size, headroom=headroom) as umem,
        FramePool(umem) as pool,
        small_port(pool) as port,
    ):
        kernel = FakeKernel(port)
        port.fill()
        longest = frame_size - headroom - 256
        assert kernel.deliver([b"x" * longest, b"y" * (longest + 1)]) == 1
        assert kernel.rx_dropped == 1
        batch = port.receive()
        assert (int(batch.addr[0]) % frame_size, len(batch[0])) == (headroom + 256, longest)
        batch.addr[0] += np.uint64(14)  # strip a header
        batch.len[0] -= np.uint32(14)
        assert port.transmit(batch) == 1
        assert kernel.send() == [b"x" * (longest - 14)]
        assert port.complete() == 1


def test_a_full_ring_is_a_count(pair: tuple[Port, FakeKernel], pool: FramePool) -> None:
    port, kernel = pair
    assert port.fill(1000) == 64
    assert port.fill(1) == 0
    assert kernel.deliver(70) == 64
    assert kernel.rx_dropped == 6
    assert port.fill(10) == 10
    assert kernel.deliver(3) == 0
    assert kernel.rx_ring_full == 3
    batch = pool.alloc(70)
    batch.len[:] = 60
    assert port.transmit(batch) == 64
    assert port.transmit(batch[64:]) == 0
    assert kernel.complete(kernel.take_tx()) == 64
    assert port.transmit(batch[64:]) == 6
    late = kernel.take_tx()
    assert kernel.complete(late) == 0, "COMPLETION is full"
    assert port.complete(1000) == 64
    assert kernel.complete(late) == 6
    assert port.complete(1000) == 6
    received = port.receive(1000)
    assert len(received) == 64
    pool.put(received)


def test_empty_rings_give_empty_batches(pair: tuple[Port, FakeKernel], pool: FramePool) -> None:
    port, kernel = pair
    assert len(port.receive()) == 0
    assert port.complete() == 0
    assert port.transmit(pool.alloc(0)) == 0
    assert port.fill(0) == 0
    assert not kernel.take_fill() + kernel.take_tx() + kernel.send()
    assert port.ring_levels() == {"fill": 0, "comp": 0, "rx": 0, "tx": 0}


def test_ring_levels_are_what_waits(pair: tuple[Port, FakeKernel], pool: FramePool) -> None:
    port, kernel = pair
    port.fill(9)
    kernel.deliver(4)
    batch = port.receive(1)
    port.transmit(batch)
    assert port.ring_levels() == {"fill": 5, "comp": 0, "rx": 3, "tx": 1}
    kernel.send()
    assert port.ring_levels() == {"fill": 5, "comp": 1, "rx": 3, "tx": 0}


def test_fill_stops_when_pool_and_umem_are_empty() -> None:
    with conserved(96) as umem, FramePool(umem) as pool, small_port(pool) as port:
        batch = pool.alloc(90)
        assert port.fill() == 6
        pool.put(batch)
        assert port.fill() == 26
        assert port.fill() == 0


def test_fill_counts_what_was_reclaimed_when_a_bind_is_tried_again(pool: FramePool) -> None:
    port = small_port(pool)
    for _ in range(3):  # the bind fails, the rings go, and come again
        assert port.fill() == 32
        lib.afp_port_close(port.native)
        lib.afp_port_mock(port.native, 64, 64, 64, 64)
    assert port.fill() == 32
    assert FakeKernel(port).filled() == 32


def test_parked_frames_are_the_kernels_until_returned_in_any_order(
    pair: tuple[Port, FakeKernel], pool: FramePool, umem: Umem
) -> None:
    port, kernel = pair
    port.fill()
    parked = kernel.take_fill(10)
    kernel.deliver(22)
    assert umem.audit().check().fill == 32
    pool.put(port.receive())
    assert port.fill() == 22
    for addr in reversed(parked):
        kernel.push_rx(addr + 256, 60)
    batch = port.receive()
    assert batch.addr.tolist() == [addr + 256 for addr in reversed(parked)]
    pool.put(batch)


# Life ---------------------------------------------------------------------------------------------------------------


def test_closing_takes_back_what_the_kernel_has(pair: tuple[Port, FakeKernel], pool: FramePool, umem: Umem) -> None:
    port, kernel = pair
    port.fill()
    kernel.deliver(10)
    received = port.receive(8)
    assert port.transmit(received) == 8
    kernel.send(2)  # completed, not yet taken
    kernel.take_tx(2)  # under way
    port.close()
    stats = port.stats()
    assert (stats.tx_completed, stats.tx_reclaimed) == (2, 6)
    assert (stats.rx_packets, stats.fill_reclaimed) == (8, 24)
    umem.audit().check(idle=True)
    assert pool.outstanding == 0
    with pytest.raises(PoolClosedError):
        kernel.deliver(1)
    with pytest.raises(DoubleFreeError):
        pool.put(received)


def test_closing_takes_back_clones_and_leaves_the_applications_references(umem: Umem) -> None:
    with FramePool(umem) as pool:
        first, second = small_port(pool), small_port(pool)
        batch = pool.alloc(4)
        batch.len[:] = 60
        pool.ref(batch)
        pool.ref(batch[:2])
        pool.ref(batch[:1])
        # frame 0: twice in `first`, once in `second`, once kept; 1: both, kept; 2, 3: both.
        assert first.transmit(batch) == second.transmit(batch) == 4
        assert first.transmit(batch[:1]) == 1
        kernel = FakeKernel(first)
        kernel.take_tx()
        first.close()
        assert first.stats().tx_reclaimed == 5
        umem.audit().check()
        assert pool.outstanding == 4
        second.close()
        assert second.stats().tx_reclaimed == 4
        assert pool.outstanding == 2
        assert pool.put(batch[:2]) == 2


def test_closing_from_another_thread_posts_the_frames_to_their_owner(pool: FramePool, umem: Umem) -> None:
    port = small_port(pool)
    port.fill(64)
    batch = pool.alloc(40)
    batch.len[:] = 60
    port.transmit(batch)
    elsewhere(port.close)
    audit = umem.audit().check(idle=True)
    assert audit.inbox == 104
    assert pool.collect() == 104


def test_a_port_that_only_sends_keeps_fill_stocked(pool: FramePool) -> None:
    port = small_port(pool, replace(SMALL, receive=False, fill_level=48))
    kernel = FakeKernel(port)
    assert port.fill() == 48
    assert kernel.filled() == 48
    assert kernel.deliver(1) == 0
    assert len(port.receive()) == 0
    batch = pool.alloc(3)
    batch.len[:] = 60
    assert port.transmit(batch) == 3
    kernel.send()
    assert port.complete() == 3


def test_a_port_that_only_receives_sends_nothing(pool: FramePool) -> None:
    port = small_port(pool, replace(SMALL, transmit=False))
    kernel = FakeKernel(port)
    port.fill()
    kernel.deliver(2)
    batch = port.receive()
    assert port.transmit(batch) == 0
    assert pool.put(batch) == 2


def test_a_port_refuses_a_umem_too_small_for_its_rings() -> None:
    with conserved(200) as umem, FramePool(umem) as pool:
        small_port(pool)  # 32 + 64
        with pytest.raises(NotEnoughFramesError, match="need 224 frames, and the Umem has 200"):
            small_port(pool, replace(SMALL, fill_level=64))


def test_a_umem_has_room_for_254_ports(umem: Umem) -> None:
    tiny = PortConfig(fill_size=2, comp_size=2, rx_size=2, tx_size=2, fill_level=1)
    with conserved(1 << 15, frame_size=2048) as big, FramePool(big) as pool:
        ports = [small_port(pool, tiny) for _ in range(254)]
        with pytest.raises(Exception, match="254 ports"):
            small_port(pool, tiny)
        ports[3].close()
        small_port(pool, tiny)


def test_the_last_port_number_is_no_clone_marker() -> None:
    """Number 254 is a port, 255 says "several": a frame of the one is not one of the other."""
    tiny = PortConfig(fill_size=2, comp_size=2, rx_size=2, tx_size=2, fill_level=1)
    with conserved(1 << 15, frame_size=2048) as big, FramePool(big) as pool:
        last = [small_port(pool, tiny) for _ in range(254)][-1]
        assert last.native.id == 254
        kernel = FakeKernel(last)
        last.fill(2)
        kernel.deliver(2)
        batch = last.receive()
        pool.ref(batch[:1])
        assert last.transmit(batch) == 2
        big.audit().check()
        kernel.send()
        assert last.complete() == 2
        pool.put(batch[:1])


def test_a_closed_port_says_so(pool: FramePool) -> None:
    port = small_port(pool)
    port.close()
    for call in (port.fill, port.receive, port.complete, port.kick, port.ring_levels, port.fileno):
        with pytest.raises(PoolClosedError, match="memory queue 0: the port is closed"):
            call()
    assert repr(port) == "<Port memory queue 0, closed>"


def test_a_fake_kernel_wants_a_new_port_in_memory(pool: FramePool) -> None:
    port = small_port(pool)
    port.fill()
    FakeKernel(port)
    with pytest.raises(ConfigError, match="moved frames already"):
        FakeKernel(port, first_index=5)


def test_a_batch_received_can_be_cut_and_only_its_parts_given_back(
    pair: tuple[Port, FakeKernel], pool: FramePool
) -> None:
    port, kernel = pair
    port.fill()
    kernel.deliver(10)
    batch: Batch = port.receive()
    odd = batch[batch.descs["addr"] // 4096 % 2 == 1]
    even = batch[batch.descs["addr"] // 4096 % 2 == 0]
    assert port.transmit(odd) + pool.put(even) == 10
    kernel.send()
    assert port.complete() == len(odd)
