"""A pool behaves as page_pool does, and refuses what page_pool cannot see."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from support import conserved, elsewhere, identities, join, small_port

from afxdp_pool import (
    Batch,
    ConfigError,
    DoubleFreeError,
    ForeignFrameError,
    FramePool,
    InvalidDescriptorError,
    MemoryLimitError,
    PoolClosedError,
    PoolError,
    Port,
    Umem,
)
from afxdp_pool.testing.rings import FakeKernel


def delta(pool: FramePool, act: Callable[[], object]) -> dict[str, int]:
    """The counters that `act` moves, and by how much."""
    before = pool.stats().as_dict()
    act()
    return {name: value - before[name] for name, value in pool.stats().as_dict().items() if value != before[name]}


@pytest.mark.parametrize("what", [b"packet", [b"packet"], 4096])
def test_what_is_no_batch_is_refused_with_what_makes_one(what: Batch) -> None:
    with conserved() as umem, FramePool(umem) as pool:
        for refusing in (pool.put, pool.ref, umem.put, lambda out: pool.alloc(1, out=out)):
            with pytest.raises(ConfigError, match=r"is no batch; pool.write\(\[...\]\) makes one"):
                refusing(what)


# Levels -------------------------------------------------------------------------------------------------------------


def test_frames_come_out_empty_distinct_and_behind_the_headroom() -> None:
    with conserved(headroom=128) as umem, FramePool(umem) as pool:
        batch = pool.alloc(100)
        assert len(batch) == len(set(batch.addr.tolist())) == 100
        assert (batch.addr % 4096 == 128).all()
        assert not batch.len.any()
        assert pool.put(batch) == 100


def test_put_then_alloc_is_last_in_first_out(pool: FramePool) -> None:
    batch = pool.alloc(8)
    pool.put(batch)
    again = pool.alloc(8)
    assert again.addr.tolist() == batch.addr.tolist()[::-1]
    pool.put(again)


def test_each_level_is_used_in_order_one_at_a_time(umem: Umem) -> None:
    with FramePool(umem, ring_size=256) as pool:
        first: list[Batch] = []
        assert delta(pool, lambda: first.append(pool.alloc(1))) == {"alloc_slow": 1, "alloc_empty": 1, "hold_cnt": 64}
        assert delta(pool, lambda: first.append(pool.alloc(1))) == {"alloc_fast": 1}
        assert delta(pool, lambda: first.append(pool.alloc(62))) == {"alloc_fast": 62}
        assert delta(pool, lambda: first.append(pool.alloc(128))) == {
            "alloc_fast": 126,
            "alloc_slow": 2,
            "alloc_empty": 2,
            "hold_cnt": 128,
        }
        everything = join(*first)
        # 192 frames home: 128 into the cache, the others find it full and go into the ring.
        assert delta(pool, lambda: pool.put(everything)) == {
            "recycle_cached": 128,
            "recycle_cache_full": 64,
            "recycle_ring": 64,
        }
        taken = [pool.alloc(128)]
        assert delta(pool, lambda: taken.append(pool.alloc(1))) == {"alloc_refill": 1}
        assert delta(pool, lambda: taken.append(pool.alloc(63))) == {"alloc_fast": 63}
        pool.put(join(*taken))
        identities(pool, taken=384, given=384)


def test_a_full_ring_gives_frames_back_to_the_umem_in_bulk(umem: Umem) -> None:
    with FramePool(umem, ring_size=1) as pool:
        batch = pool.alloc(256)
        moved = delta(pool, lambda: pool.put(batch))
        assert moved == {
            "recycle_cached": 128,
            "recycle_cache_full": 128,
            "recycle_ring": 1,
            "recycle_ring_full": 127,
            "release_cnt": 64,
        }
        assert umem.free_frames == umem.frames - pool.inflight


def test_frames_on_their_way_to_the_umem_are_idle_not_outstanding(umem: Umem) -> None:
    with FramePool(umem, ring_size=1) as pool:
        pool.put(pool.alloc(128 + 1 + 10))
        assert pool.outstanding == 0


def test_all_frames_can_be_had_again_whatever_level_they_rest_in() -> None:
    with conserved(200) as umem, FramePool(umem, ring_size=1) as pool:
        for _ in range(3):
            batch = pool.alloc(200)
            assert len(batch) == 200
            pool.put(batch)


def test_a_partial_bulk_is_taken_when_the_umem_has_no_more() -> None:
    with conserved(74) as umem, FramePool(umem) as pool:
        batch = pool.alloc(64)
        assert delta(pool, lambda: pool.put(pool.alloc(64))) == {
            "alloc_fast": 9,
            "alloc_slow": 1,
            "alloc_empty": 2,
            "alloc_failed": 1,
            "recycle_cached": 10,
            "hold_cnt": 10,
        }
        pool.put(batch)


def test_alloc_of_none_moves_nothing(pool: FramePool) -> None:
    assert delta(pool, lambda: pool.alloc(0)) == {}
    assert len(pool.alloc(0)) == 0
    assert pool.put(pool.alloc(0)) == 0


def test_an_exhausted_umem_is_a_smaller_batch_not_an_error() -> None:
    with conserved(32) as umem, FramePool(umem) as pool, FramePool(umem) as other:
        batch = pool.alloc(100)
        assert len(batch) == 32
        assert len(other.alloc(1)) == 0
        assert other.stats().alloc_failed == 1
        pool.put(batch)
        assert len(other.alloc(1)) == 0, "idle frames in a pool's cache are that pool's"
        pool.flush()
        other.put(other.alloc(1))


def test_the_quota_limits_what_a_pool_owns(umem: Umem) -> None:
    with FramePool(umem, quota=100) as pool:
        batch = pool.alloc(200)
        assert len(batch) == pool.inflight == 100
        assert pool.stats().alloc_quota == 1
        assert len(pool.alloc(1)) == 0
        pool.put(batch[:1])
        pool.put(join(pool.alloc(5), batch[1:]))


def test_outstanding_leaves_out_what_is_idle(pool: FramePool) -> None:
    batch = pool.alloc(10)
    assert (pool.inflight, pool.outstanding) == (64, 10)
    pool.put(batch)
    assert (pool.inflight, pool.outstanding) == (64, 0)


def test_flush_gives_every_idle_frame_back(pool: FramePool, umem: Umem) -> None:
    kept = pool.alloc(3)
    pool.put(pool.alloc(300))
    pool.flush()
    assert umem.free_frames == umem.frames - 3
    assert pool.inflight == pool.outstanding == 3
    pool.put(kept)


def test_the_identities_hold_over_a_long_random_run(umem: Umem) -> None:
    random = np.random.default_rng(1)
    with FramePool(umem, ring_size=16) as pool:
        held: list[Batch] = []
        taken = given = 0
        for step in range(2000):
            if step % 2 or not held:
                held.append(pool.alloc(int(random.integers(0, 90))))
                taken += len(held[-1])
            else:
                given += pool.put(held.pop(int(random.integers(len(held)))))
            if step % 500 == 0:
                identities(pool, taken, given)
                assert pool.outstanding == taken - given
        for batch in held:
            given += pool.put(batch)
        identities(pool, taken, given)
        assert pool.stats().inflight == umem.audit().check().pool


@pytest.mark.parametrize(("asked", "got"), [(1, 1), (16384, 16384), (10**6, 16384)])
def test_the_ring_size_is_clamped_as_in_the_kernel(umem: Umem, asked: int, got: int) -> None:
    with FramePool(umem, ring_size=asked) as pool:
        assert pool.native.ring_size == got


@pytest.mark.parametrize("options", [{"ring_size": 0}, {"ring_size": -1}, {"quota": -1}])
def test_sizes_that_mean_nothing_are_refused(umem: Umem, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        FramePool(umem, **options)  # type: ignore[arg-type]


def test_a_umem_has_room_for_255_pools_and_says_so(umem: Umem) -> None:
    pools = [FramePool(umem) for _ in range(255)]
    with pytest.raises(PoolError, match="255 pools"):
        FramePool(umem)
    pools[7].close()
    with FramePool(umem) as again:
        assert again.id == 8
        assert again.stats().as_dict() == dict.fromkeys(again.stats().as_dict(), 0)
    for pool in pools:
        pool.close()


def test_memory_that_cannot_be_had_is_a_named_error() -> None:
    with pytest.raises(MemoryLimitError, match="mapping the memory"):
        Umem(frames=(1 << 32) - 1)


# Closing ------------------------------------------------------------------------------------------------------------


def test_frames_that_are_out_when_the_pool_closes_go_home_to_the_umem(umem: Umem) -> None:
    pool = FramePool(umem)
    batch = pool.alloc(10)
    pool.close()
    assert (pool.state, pool.inflight) == ("detached", 10)
    pool.close()
    assert umem.free_frames == umem.frames - 10
    assert umem.audit().check().app == 10
    umem.put(batch[:5])
    assert (pool.state, pool.inflight) == ("detached", 5)
    elsewhere(lambda: umem.put(batch[5:]))
    assert (pool.state, pool.inflight) == ("closed", 0)
    assert umem.free_frames == umem.frames
    with pytest.raises(DoubleFreeError):
        umem.put(batch)


def test_a_closed_pool_refuses_calls_and_keeps_its_statistics(umem: Umem) -> None:
    pool = FramePool(umem)
    pool.put(pool.alloc(5))
    pool.close()
    assert pool.stats().alloc_slow == 1
    assert pool.stats().inflight == 0
    for call in (lambda: pool.alloc(1), pool.flush, pool.collect, pool.bind, pool.unbind):
        with pytest.raises(PoolClosedError):
            call()
    assert "closed" in repr(pool)


def test_the_number_of_a_pool_with_frames_out_is_not_given_again(umem: Umem) -> None:
    pool = FramePool(umem)
    batch = pool.alloc(1)
    pool.close()
    with FramePool(umem) as second:
        assert second.id != pool.id
    umem.put(batch)
    with FramePool(umem) as third:
        assert third.id == pool.id


def test_sent_frames_of_a_closed_pool_come_home_through_completion(umem: Umem) -> None:
    owner, other = FramePool(umem), FramePool(umem)
    port = small_port(other)
    kernel = FakeKernel(port)
    batch = owner.alloc(4)
    batch.len[:] = 60
    port.transmit(batch)
    owner.close()
    kernel.send()
    assert port.complete() == 4
    assert umem.free_frames == umem.frames
    other.close()


def test_filled_frames_of_a_closed_pool_come_home_when_the_port_closes(umem: Umem) -> None:
    pool = FramePool(umem)
    port = small_port(pool)
    port.fill()
    pool.close()
    assert umem.audit().check().fill == 32
    with pytest.raises(PoolClosedError):
        port.fill(1)
    port.close()
    assert umem.free_frames == umem.frames


@pytest.mark.parametrize("order", ["umem pool port", "pool port umem", "port pool umem", "pool umem port"])
def test_closing_in_any_order_is_safe_and_idempotent(order: str) -> None:
    umem = Umem(frames=256)
    pool = FramePool(umem)
    port = small_port(pool)
    port.fill()
    held = pool.alloc(3)
    held.write(0, b"still readable")
    things: dict[str, Umem | FramePool | Port] = {"umem": umem, "pool": pool, "port": port}
    for name in order.split() * 2:
        things[name].close()
    for call in (umem.audit, lambda: pool.alloc(1), lambda: umem.put(held), lambda: port.receive(1)):
        with pytest.raises(PoolClosedError):
            call()
    assert bytes(held[0]) == b"still readable"
    assert pool.stats().hold_cnt == 64
    assert port.stats().fill_submitted == 32


def test_a_port_that_was_forgotten_is_closed_with_its_umem() -> None:
    umem = Umem(frames=256)
    pool = FramePool(umem)
    small_port(pool).fill()
    assert umem.audit().fill == 32
    (port,) = umem._ports
    umem.close()
    assert port.stats().fill_reclaimed == 32


def test_packets_are_written_into_frames_in_order(umem: Umem) -> None:
    content = [bytes([n]) * (60 + n) for n in range(5)]
    with FramePool(umem) as pool, conserved(frames=3, headroom=64) as small, FramePool(small) as few:
        batch = pool.write([content[0], bytearray(content[1]), memoryview(content[2]), *content[3:]])
        assert [bytes(packet) for packet in batch] == content
        assert len(pool.write([])) == 0
        with pytest.raises(InvalidDescriptorError, match=r"4097 bytes does not fit a frame; .* take 4096"):
            pool.write([b"", bytes(4097)])
        for wrong in (["abc"], [1], b"abc", [b"abc", None]):
            with pytest.raises(TypeError):
                pool.write(wrong)  # type: ignore[arg-type]
        assert umem.audit().app == 5
        pool.put(batch)
        some = few.write(content)
        assert [bytes(packet) for packet in some] == content[:3], "as many as there are frames"
        few.put(some)


def test_a_batch_of_another_umem_is_foreign_whatever_its_addresses(umem: Umem, pool: FramePool) -> None:
    with conserved() as other, FramePool(other) as its:
        mine, theirs = pool.alloc(4), its.alloc(4)
        assert mine.descs.tolist() == theirs.descs.tolist()
        for use in (umem.put, pool.put, pool.ref):
            with pytest.raises(ForeignFrameError, match="of another Umem"):
                use(theirs)
        assert its.put(theirs) == pool.put(mine) == 4
