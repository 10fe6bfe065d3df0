"""Fragments, hooks, holders, detached pools and memory providers: what a pool can do beyond alloc and put."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from afxdp_pool import (
    Batch,
    ConfigError,
    DoubleFreeError,
    FramePool,
    FrameSizeError,
    PoolError,
    Port,
    PortConfig,
    Umem,
)
from afxdp_pool.memory import AnonymousMemory, BpfMemory
from afxdp_pool.testing.rings import FakeKernel

SMALL = PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32)


@pytest.fixture
def umem() -> Iterator[Umem]:
    with Umem(256) as made:
        yield made
        assert made.audit().check(idle=True).umem == 256


def test_fragments_share_frames_and_are_aligned(umem: Umem) -> None:
    with FramePool(umem) as pool:
        batch = pool.alloc_fragments(10, 1000)
        assert len(batch) == 10
        assert (batch.addr % 64 == 0).all()
        assert batch.frames(4096) == [batch.frames(4096)[4 * (i // 4)] for i in range(10)]
        assert len(set(batch.frames(4096))) == 3
        ranges = sorted((int(addr), int(addr + length)) for addr, length in zip(batch.addr, batch.len, strict=True))
        assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
        umem.audit().check()
        assert pool.put(batch) == 10


@pytest.mark.parametrize(
    ("size", "lengths"),
    [
        (2049, [4096] * 3),  # above half a frame: a whole one
        (2048, [2048, 2048, 2048]),
        (1500, [1536, 2560, 1536]),  # the tail goes to the last
        (1, [64, 64, 64]),
        (4096, [4096] * 3),
    ],
)
def test_the_size_rule_of_page_pool_alloc(umem: Umem, size: int, lengths: list[int]) -> None:
    with FramePool(umem) as pool:
        batch = pool.alloc_fragments(3, size)
        assert batch.len.tolist() == lengths
        pool.put(batch)


@pytest.mark.parametrize("size", [0, 4097])
def test_a_fragment_no_frame_has_room_for(umem: Umem, size: int) -> None:
    with FramePool(umem) as pool, pytest.raises(FrameSizeError, match="choose 1 to 4096"):
        pool.alloc_fragments(1, size)


def test_one_fragment_cannot_be_put_twice_at_anothers_cost(umem: Umem) -> None:
    with FramePool(umem) as pool:
        batch = pool.alloc_fragments(2, 2048)
        pool.put(batch[:1])
        with pytest.raises(DoubleFreeError):
            pool.put(batch[:1])
        umem.audit().check()
        assert umem.count_states()["app"] == 1
        pool.put(batch[1:])
        with pytest.raises(DoubleFreeError):
            pool.put(batch)


def test_a_fragment_has_one_reference(umem: Umem) -> None:
    with FramePool(umem) as pool:
        batch = pool.alloc_fragments(2, 100)
        with pytest.raises(PoolError, match="fragment"):
            pool.ref(batch)
        pool.put(batch)


def test_fragments_put_in_any_order_while_more_are_cut(umem: Umem) -> None:
    chance = random.Random(4)
    with FramePool(umem) as pool:
        held: list[tuple[int, int]] = []
        batches: dict[int, Batch] = {}
        for step in range(2000):
            if chance.random() < 0.5 and len(batches) < 200:
                batches[step] = pool.alloc_fragments(1, chance.choice([64, 300, 700, 1300, 3000]))
            elif batches:
                pool.put(batches.pop(chance.choice(list(batches))))
            if step % 50 == 0:
                umem.audit().check()
        for batch in batches.values():
            pool.put(batch)
        assert not held


def test_fragments_are_sent_and_come_home_one_by_one(umem: Umem) -> None:
    with FramePool(umem) as pool, Port.in_memory(pool, SMALL) as port:
        kernel = FakeKernel(port)
        batch = pool.alloc_fragments(4, 1024)
        for index in range(4):
            batch.write(index, bytes([index]) * 100)
        assert port.transmit(batch) == 4
        with pytest.raises(DoubleFreeError):
            port.transmit(batch[:1])
        with pytest.raises(DoubleFreeError):
            pool.put(batch[:1])
        sent = kernel.take_tx(4)
        umem.audit().check()
        for packet in reversed(sent):
            kernel.complete([packet.addr])
            assert port.complete() == 1
            umem.audit().check()
        pool.flush()
        assert umem.audit().check().app == 0


def test_init_callback_sees_each_entering_frame_once_before_it_is_used(umem: Umem) -> None:
    entered: list[int] = []

    def init(batch) -> None:  # type: ignore[no-untyped-def]
        entered.extend(batch.frames(4096))
        batch.data[batch.addr] = 0xAB

    with FramePool(umem, init_callback=init) as pool:
        for _ in range(5):
            batch = pool.alloc(100)
            assert set(batch.frames(4096)) <= set(entered)
            assert (batch.data[batch.addr] == 0xAB).all()
            pool.put(batch)
        assert len(entered) == len(set(entered)) == pool.stats().hold_cnt


def test_events_tell_of_every_frame_that_enters_and_leaves(umem: Umem) -> None:
    inside: set[int] = set()

    def event(kind: str, frames: np.ndarray) -> None:
        numbers = set(frames.tolist())
        assert len(numbers) == len(frames)
        if kind == "hold":
            assert not inside & numbers
            inside.update(numbers)
        else:
            assert numbers <= inside
            inside.difference_update(numbers)

    with FramePool(umem, ring_size=16, on_event=event) as pool:
        for count in (10, 200, 256, 1):
            batch = pool.alloc(count)
            assert len(inside) == pool.inflight
            pool.put(batch)
            assert len(inside) == pool.inflight
        pool.flush()
        assert inside == set()


def test_an_exception_in_a_callback_reaches_the_caller_and_loses_no_frame(umem: Umem) -> None:
    def init(_: object) -> None:
        raise ValueError("no")

    with FramePool(umem, init_callback=init) as pool:
        with pytest.raises(ValueError, match="no"):
            pool.alloc(3)
        assert umem.audit().check().app == 0


def test_holders_names_who_has_what(umem: Umem) -> None:
    with FramePool(umem) as pool, Port.in_memory(pool, SMALL, name="eth7") as port:
        port.fill(20)
        batch = pool.alloc(5)
        batch.len[:] = 60
        port.transmit(batch[:2])
        holders = {holder.who: holder for holder in umem.holders()}
        assert {who: len(holder.frames) for who, holder in holders.items()} == {"fill": 20, "application": 3, "tx": 2}
        assert holders["fill"].port == holders["tx"].port == port.name
        assert holders["application"].frames == tuple(sorted(batch[2:].frames(4096)))
        assert holders["application"].traceback is None
        pool.put(batch[2:])


def test_holders_shows_the_traceback_when_tracing() -> None:
    with Umem(64, trace=True) as umem, FramePool(umem) as pool:
        batch = pool.alloc(3)
        (holder,) = umem.holders()
        assert holder.thread == "MainThread"
        assert holder.traceback is not None
        assert "batch = pool.alloc(3)" in holder.traceback
        assert holder.age is not None
        assert 0 <= holder.age < 60
        assert "application has 3 frames of pool 1" in str(holder)
        pool.put(batch)
        assert umem.holders() == []
        pool.close()
        umem.audit().check(idle=True)


def test_tracing_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFXDP_POOL_TRACE", "1")
    with Umem(64) as umem:
        assert umem.tracer is not None
    monkeypatch.setenv("AFXDP_POOL_TRACE", "0")
    with Umem(64) as umem:
        assert umem.tracer is None


def test_a_detached_pool_is_warned_about_each_minute_and_gone_with_the_last_frame(
    umem: Umem, caplog: pytest.LogCaptureFixture
) -> None:
    pool = FramePool(umem)
    batch = pool.alloc(4)
    pool.close()
    start = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert pool.as_page_pool()["detach-time"] == pytest.approx(start, abs=2)
    with caplog.at_level(logging.WARNING, "afxdp_pool"):
        for second in range(0, 200):
            assert umem.reap(start + second) == [pool]
    assert len(caplog.records) == 3
    assert "waits for 4 frames: application has 4 frames of pool 1" in caplog.text
    umem.put(batch)
    assert umem.reap() == []
    assert (pool.state, pool.inflight) == ("closed", 0)


def test_page_pool_get_keys(umem: Umem) -> None:
    with FramePool(umem) as pool:
        batch = pool.alloc(1)
        assert pool.as_page_pool() == {"id": 1, "inflight": 64, "inflight-mem": 64 * 4096}
        pool.put(batch)


def test_a_memory_of_ones_own(umem: Umem) -> None:
    memory = AnonymousMemory(64 * 4096)
    with Umem(64, memory=memory) as other, FramePool(other) as pool:
        batch = pool.alloc(1)
        batch.write(0, b"here")
        assert memory.buffer[int(batch.addr[0]) : int(batch.addr[0]) + 4] == b"here"
        pool.put(batch)
    with pytest.raises(ConfigError, match="too short"):
        Umem(65, memory=AnonymousMemory(64 * 4096))


@pytest.mark.usefixtures("veth_machine")
def test_memory_that_bpf_programs_see() -> None:
    memory = BpfMemory(64 * 4096)
    with Umem(64, memory=memory) as other, FramePool(other) as pool:
        assert other.pages == "a BPF array map"
        batch = pool.alloc(1)
        batch.write(0, b"seen by the kernel")
        value = memory.map.lookup(0)
        assert value is not None
        start = int(batch.addr[0])
        assert value[start : start + 18] == b"seen by the kernel"
        pool.put(batch)


def test_a_forgotten_pool_is_closed_with_a_warning() -> None:
    with Umem(256) as umem:
        for _ in range(300):
            pool = FramePool(umem)
            pool.put(pool.alloc(1))
            with pytest.warns(ResourceWarning, match="unclosed <FramePool"):
                del pool
        assert umem.audit().check(idle=True).umem == 256
