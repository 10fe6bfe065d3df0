"""Frames that are no power of two: numbered, kept, sent and audited as any; none crosses the end of a 2 MB block."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from support import SMALL, conserved, elsewhere

import afxdp_pool.forwarder as forwarder_module
from afxdp_pool import (
    FORWARD,
    Batch,
    DoubleFreeError,
    ForeignFrameError,
    Forwarder,
    FramePool,
    FrameSizeError,
    InvalidDescriptorError,
    Port,
    Route,
    Umem,
    UmemConfig,
)
from afxdp_pool.config import BLOCK
from afxdp_pool.testing.rings import FakeKernel

SIZES = [2049, 3000, 3072, 4001]


@pytest.fixture(params=SIZES)
def umem(request: pytest.FixtureRequest) -> Iterator[Umem]:
    with conserved(frames=2048, frame_size=request.param, unaligned=True) as made:
        yield made


@pytest.mark.parametrize("size", [2048, *SIZES, 4096])
def test_no_frame_crosses_a_huge_page_and_none_overlap(size: int) -> None:
    config = UmemConfig(3000, size, unaligned=True)
    starts = config.start_of(np.arange(3000))
    assert (np.diff(starts) >= size).all()
    assert (starts // BLOCK == (starts + size - 1) // BLOCK).all()
    assert int(starts[-1]) + size == config.size
    assert (config.frame_at(starts) == np.arange(3000)).all()
    assert (config.frame_at(starts + size - 1) == np.arange(3000)).all()
    assert [config.offset_in_frame(int(start) + 77) for start in starts[:9]] == [77] * 9


@pytest.mark.parametrize("size", [0, 2047, 4097, 8192])
def test_sizes_the_kernel_does_not_take(size: int) -> None:
    with pytest.raises(FrameSizeError):
        UmemConfig(64, size, unaligned=True)
    with pytest.raises(FrameSizeError, match="unaligned=True"):
        UmemConfig(64, 3000)


def test_every_frame_once_and_each_back(umem: Umem) -> None:
    with FramePool(umem) as pool:
        batch = pool.alloc(4000)
        assert len(batch) == 2048
        assert sorted(batch.frames(umem.frame_size)) == list(range(2048))
        assert sorted(batch.addr.tolist()) == umem.config.start_of(np.arange(2048)).tolist()
        assert umem.audit().check().app == 2048
        frame = batch.keep(2000)
        assert frame.number == umem.config.frame_at(frame.addr)
        frame.close()
        elsewhere(lambda: pool.put(batch[:1000]))
        assert pool.put(batch[1000:]) == 1048
        assert pool.collect() == 1000
        for spoiled in (batch, batch[5:6]):
            with pytest.raises(DoubleFreeError):
                pool.put(spoiled)


def test_what_lies_in_no_frame_is_foreign(umem: Umem) -> None:
    last = (BLOCK // umem.frame_size) * umem.frame_size  # between the last frame of a block and the next block
    with FramePool(umem) as pool:
        batch = pool.alloc(1)
        for addr in (umem.config.size, 1 << 60, *([last] if last < BLOCK else [])):
            descs = batch.descs.copy()
            descs["addr"] = addr
            with pytest.raises(ForeignFrameError):
                pool.put(Batch(descs, umem.data, umem=umem))
        pool.put(batch)


def test_a_packet_ends_with_its_frame(umem: Umem) -> None:
    with FramePool(umem) as pool, closing(Port.in_memory(pool, SMALL)) as port:
        batch = pool.write([b"x" * umem.frame_size] * 3)
        with pytest.raises(InvalidDescriptorError):
            batch.write(0, b"y" * (umem.frame_size + 1))
        batch.addr[1] += 1
        with pytest.raises(InvalidDescriptorError) as caught:
            port.transmit(batch)
        assert caught.value.done == 1
        batch.addr[1] -= 1
        assert port.transmit(batch[1:]) == 2
        assert FakeKernel(port).send() == [b"x" * umem.frame_size] * 3
        assert port.complete() == 3


def test_a_completion_without_bit_0_of_its_address_is_of_the_frame_that_begins_there(umem: Umem) -> None:
    """As Linux 6.18 completes in copy mode: of 4001 bytes, every second frame's start is told as the end of another."""
    with FramePool(umem) as pool, closing(Port.in_memory(pool, SMALL)) as port:
        kernel = FakeKernel(port)
        assert port.transmit(pool.write([b"x" * 64] * 16)) == 16
        assert kernel.complete(sent.addr & ~1 for sent in kernel.take_tx()) == 16
        assert port.complete() == 16
        assert port.stats().completion_bad == 0


@pytest.mark.parametrize("headroom", [0, 100])
def test_forwarded_between_two_ports(headroom: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "DRAIN_WITHIN", 0.0)
    with conserved(frames=1024, frame_size=3000, headroom=headroom, unaligned=True) as umem, FramePool(umem) as pool:
        ports = [Port.in_memory(pool, replace(SMALL, multi_buffer=multi), "p") for multi in (False, True)]
        kernels = [FakeKernel(port, first_index=2**32 - 40) for port in ports]
        for route in ({0: Route(FORWARD(1))}, {1: Route(FORWARD(0))}):
            (source,) = route
            room = 3000 - 256 - headroom
            packets = [bytes([i]) * (60 + 13 * i % (room - 60)) for i in range(256)]
            if source:
                packets[7] = b"z" * room
            out: list[bytes] = []
            with closing(Forwarder(ports, route)) as forwarder:
                for at in range(0, 256, 16):
                    ports[source].fill()
                    assert kernels[source].deliver(packets[at : at + 16]) == 16
                    forwarder.run(20.0, packets=16)
                    out += kernels[1 - source].send()
                    forwarder.run(0.0)
            assert out == packets


def test_fragments_and_callbacks(umem: Umem) -> None:
    entered: list[int] = []

    def init(batch: Batch) -> None:
        entered.extend(batch.addr.tolist())

    with FramePool(umem, init_callback=init) as pool:
        fragments = pool.alloc_fragments(40, 600)
        assert set(map(umem.config.frame_at, fragments.addr.tolist())) <= set(map(umem.config.frame_at, entered))
        assert all(umem.config.start_of(umem.config.frame_at(addr)) == addr for addr in entered)
        with pytest.raises(DoubleFreeError):
            pool.put(Batch(np.repeat(fragments.descs[:1], 2), umem.data, umem=umem))
        pool.put(fragments[1:])
        pool.flush()


def test_many_threads_give_back_at_once(umem: Umem) -> None:
    with FramePool(umem) as pool:
        for _ in range(20):
            batch = pool.alloc(800)
            threads = [threading.Thread(target=pool.put, args=(batch[i::4],)) for i in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert pool.collect() == 800
