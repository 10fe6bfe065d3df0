"""A pool behaves as page_pool does, and refuses what page_pool cannot see."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from support import conserved, elsewhere, identities, join, small_port

from afxdp_pool import (
    Batch,
    ConfigError,
    DoubleFreeError,
    ForeignFrameError,
    FramePool,
    MemoryLimitError,
    PoolClosedError,
    PoolError,
    Port,
    Umem,
    WrongThreadError,
)
from afxdp_pool.testing.rings import FakeKernel


@pytest.fixture
def umem() -> Iterator[Umem]:
    with conserved() as made:
        yield made


@pytest.fixture
def pool(umem: Umem) -> Iterator[FramePool]:
    with FramePool(umem) as made:
        yield made


def delta(pool: FramePool, act: Callable[[], object]) -> dict[str, int]:
    """The counters that `act` moves, and by how much."""
    before = pool.stats().as_dict()
    act()
    return {name: value - before[name] for name, value in pool.stats().as_dict().items() if value != before[name]}


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


# What must be refused -----------------------------------------------------------------------------------------------


def refused_put(pool: FramePool, batch: Batch, error: type[PoolError] = DoubleFreeError) -> PoolError:
    """`put` refuses the whole batch, and nothing whatever changes."""
    umem = pool.umem
    before = (umem.states().tolist(), pool.stats())
    with pytest.raises(error) as caught:
        pool.put(batch)
    assert (umem.states().tolist(), pool.stats()) == before
    umem.audit().check()
    assert caught.value.done == 0
    assert len(caught.value.refused) == min(len(batch), 16)
    return caught.value


def test_a_second_put_is_refused(pool: FramePool) -> None:
    batch = pool.alloc(3)
    pool.put(batch)
    refused_put(pool, batch)
    again = pool.alloc(64)
    assert len(set(again.addr.tolist())) == 64, "no frame is in the cache twice"
    pool.put(again)


def test_a_frame_twice_in_one_batch_comes_home_once(pool: FramePool) -> None:
    batch = pool.alloc(2)
    with pytest.raises(DoubleFreeError, match="address") as caught:
        pool.put(join(batch, batch))
    assert caught.value.done == 2
    assert [index for index, _, _ in caught.value.refused] == [2, 3]


def test_a_second_put_from_another_thread_is_refused_before_and_after_collecting(pool: FramePool) -> None:
    batch = pool.alloc(5)
    assert elsewhere(lambda: pool.put(batch)) == 5
    refused_put(pool, batch)
    elsewhere(lambda: refused_put(pool, batch))
    assert pool.collect() == 5
    refused_put(pool, batch)


def test_a_descriptor_of_an_earlier_life_is_refused(pool: FramePool) -> None:
    old = pool.alloc(1).copy()
    pool.put(old)
    new = pool.alloc(1)
    assert new.addr[0] == old.addr[0]
    error = refused_put(pool, old)
    assert "earlier life" in str(error)
    with pytest.raises(DoubleFreeError, match="ref: frame 0"):
        pool.ref(old)
    pool.put(new)


def test_a_filled_frame_cannot_be_put(pool: FramePool) -> None:
    batch = pool.alloc(1).copy()
    pool.put(batch)
    port = small_port(pool)
    assert port.fill(1) == 1
    refused_put(pool, batch)
    stolen = batch.copy()
    for gen in range(8):
        stolen.descs["gen"] = gen
        refused_put(pool, stolen)


def test_a_sent_frame_cannot_be_put_sent_or_referenced_until_it_is_completed(pool: FramePool) -> None:
    port = small_port(pool)
    kernel = FakeKernel(port)
    batch = pool.alloc(1)
    batch.write(0, b"x" * 60)
    assert port.transmit(batch) == 1
    for _ in range(2):
        refused_put(pool, batch)
        with pytest.raises(DoubleFreeError):
            port.transmit(batch)
        with pytest.raises(DoubleFreeError):
            pool.ref(batch)
    kernel.send()
    refused_put(pool, batch)
    assert port.complete() == 1
    refused_put(pool, batch)


def test_a_frame_that_was_given_back_cannot_be_sent(pool: FramePool) -> None:
    port = small_port(pool)
    batch = pool.alloc(2)
    batch.len[:] = 60
    pool.put(batch[:1])
    elsewhere(lambda: pool.put(batch[1:]))
    for one in (batch[:1], batch[1:]):
        with pytest.raises(DoubleFreeError) as caught:
            port.transmit(one)
        assert caught.value.done == 0
    assert pool.collect() == 1


@pytest.mark.parametrize("addr", [512 * 4096, 1 << 40, (1 << 64) - 1])
def test_an_address_outside_the_umem_is_refused_and_counted(pool: FramePool, addr: int) -> None:
    batch = pool.alloc(1)
    wild = batch.copy()
    wild.addr[0] = addr
    before = pool.umem.foreign_puts
    error = refused_put(pool, wild, ForeignFrameError)
    assert error.refused[0][:2] == (0, addr)
    with pytest.raises(ForeignFrameError):
        pool.ref(wild)
    assert pool.umem.foreign_puts == before + 2
    pool.put(batch)


def test_a_batch_of_another_umem_is_foreign(pool: FramePool) -> None:
    with conserved() as strange, FramePool(strange) as other:
        mine, theirs = pool.alloc(1), other.alloc(1)
        theirs.len[:] = mine.len[:] = 60
        assert (mine.addr[0], mine.descs["gen"][0]) == (theirs.addr[0], theirs.descs["gen"][0])
        port = small_port(pool)
        for call in (pool.put, pool.ref, pool.umem.put, port.transmit):
            with pytest.raises(ForeignFrameError, match="another Umem"):
                call(theirs)
        pool.put(mine)
        other.put(theirs)


def test_every_good_frame_of_a_bad_batch_comes_home(pool: FramePool) -> None:
    batch = pool.alloc(40)
    spoiled = batch.copy()
    spoiled.descs["addr"][0] = 1 << 50
    spoiled.descs["addr"][10] = spoiled.descs["addr"][9]
    spoiled.descs["gen"][39] += 1
    with pytest.raises(ForeignFrameError, match="2 more refused") as caught:
        pool.put(spoiled)
    assert caught.value.done == 37
    assert [index for index, _, _ in caught.value.refused] == [0, 10, 39]
    assert pool.outstanding == 3
    assert pool.put(batch[np.array([0, 10, 39])]) == 3


def test_only_the_first_sixteen_refusals_are_described(pool: FramePool) -> None:
    batch = pool.alloc(40)
    pool.put(batch)
    with pytest.raises(DoubleFreeError, match="39 more refused") as caught:
        pool.put(batch)
    assert len(caught.value.refused) == 16


def test_descriptors_of_another_shape_are_refused(pool: FramePool) -> None:
    with pytest.raises(PoolError, match="dtype"):
        pool.put(Batch(np.zeros(3, np.uint64), pool.umem.data))


# Threads ------------------------------------------------------------------------------------------------------------


def test_owner_calls_from_another_thread_are_refused_and_change_nothing(pool: FramePool) -> None:
    batch = pool.alloc(1)
    port = small_port(pool)
    owner = threading.get_native_id()
    assert pool.owner_tid == owner
    calls: list[Callable[[], object]] = [
        lambda: pool.alloc(1),
        pool.flush,
        pool.collect,
        pool.bind,
        pool.unbind,
        pool.close,
        lambda: port.fill(1),
    ]
    before = pool.stats()
    for call in calls:
        with pytest.raises(WrongThreadError, match=f"thread {owner}"):
            elsewhere(call)
    assert pool.stats() == before
    assert pool.owner_tid == owner
    pool.put(batch)


def test_unbind_hands_the_pool_to_another_thread(pool: FramePool) -> None:
    batch = pool.alloc(4)
    pool.unbind()
    assert pool.owner_tid == 0
    pool.unbind()  # without effect

    def other() -> tuple[int, int]:
        mine = pool.alloc(60)
        fast = pool.stats().alloc_fast
        pool.put(mine)
        pool.unbind()
        return len(mine), fast

    assert elsewhere(other) == (60, 63)
    moved = delta(pool, lambda: pool.put(batch))
    assert "recycle_cached" not in moved, "nothing enters the cache of a pool this thread does not own"
    assert pool.collect() == 4


def test_remote_puts_are_one_post_a_batch_and_go_into_the_ring(pool: FramePool, umem: Umem) -> None:
    batch = pool.alloc(100)
    assert delta(pool, lambda: elsewhere(lambda: pool.put(batch[:60]) + pool.put(batch[60:]))) == {}
    audit = umem.audit().check()
    assert (audit.inbox, audit.app) == (100, 0)
    assert delta(pool, pool.collect) == {"remote_batches": 2, "remote_frames": 100, "recycle_ring": 100}
    identities(pool, 100, 100)


def test_alloc_takes_the_inbox_in_before_it_asks_the_umem() -> None:
    with conserved(64) as umem, FramePool(umem) as pool:
        batch = pool.alloc(64)
        elsewhere(lambda: pool.put(batch))
        again = pool.alloc(64)
        assert len(again) == 64
        assert pool.stats().alloc_refill == 1
        pool.put(again)


def test_each_frame_comes_home_once_from_many_threads(pool: FramePool) -> None:
    total, threads = 0, 4
    barrier = threading.Barrier(threads)

    def give(parts: list[Batch]) -> None:
        barrier.wait()
        for part in parts:
            pool.put(part)

    for _ in range(10):
        batch = pool.alloc(400)
        parts = [batch[i : i + 7] for i in range(0, 400, 7)]
        workers = [threading.Thread(target=give, args=(parts[i::threads],)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        total += pool.collect()
    assert total == 4000 - pool.stats().alloc_failed * 400
    assert pool.outstanding == 0


def test_of_racing_puts_of_the_same_frames_exactly_one_is_honoured(pool: FramePool) -> None:
    threads = 4
    barrier = threading.Barrier(threads)
    accepted = [0] * threads

    def race(who: int, batch: Batch) -> None:
        barrier.wait()
        try:
            accepted[who] += pool.put(batch)
        except DoubleFreeError as error:
            accepted[who] += error.done

    for _ in range(50):
        batch = pool.alloc(64)
        workers = [threading.Thread(target=race, args=(i, batch)) for i in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert pool.collect() == 64
    assert pool.outstanding == 0
    assert sum(accepted) == 50 * 64 + pool.stats().late_refused


def test_one_put_of_frames_of_many_pools_sends_each_to_its_own(umem: Umem) -> None:
    pools = [FramePool(umem) for _ in range(7)]  # more than a box has slots
    batches = [pool.alloc(13) for pool in pools]
    mixed = join(*batches)
    order = np.random.default_rng(2).permutation(len(mixed))
    assert elsewhere(lambda: umem.put(mixed[order])) == 7 * 13
    assert [pool.collect() for pool in pools] == [13] * 7
    again = join(*[pool.alloc(13) for pool in pools])
    assert umem.put(again[order]) == 7 * 13
    for pool in pools:
        assert pool.stats().recycle_cached == 13
        assert pool.outstanding == 0
        identities(pool, 26, 26)
        pool.close()


# References ---------------------------------------------------------------------------------------------------------


def test_only_the_last_of_several_references_sends_a_frame_home(pool: FramePool) -> None:
    batch = pool.alloc(2)
    assert pool.ref(batch) == 2
    assert pool.ref(batch[:1]) == 1
    pool.put(batch)
    assert pool.outstanding == 2
    elsewhere(lambda: pool.put(batch))
    assert pool.collect() == 1
    assert pool.outstanding == 1
    pool.put(batch[:1])
    refused_put(pool, batch)


def test_references_are_limited_and_the_limit_is_an_error(pool: FramePool) -> None:
    batch = pool.alloc(1)
    for _ in range(4094):
        pool.ref(batch)
    with pytest.raises(PoolError, match="as many references"):
        pool.ref(batch)
    for _ in range(4095):
        pool.put(batch)
    refused_put(pool, batch)


@pytest.mark.parametrize("order", ["ab", "ba", "aXb", "bXa", "Xab", "abX"])
def test_a_frame_sent_out_of_two_ports_comes_home_with_its_last_reference(umem: Umem, order: str) -> None:
    """a, b: completion of port a, b. X: the application puts its own reference."""
    with FramePool(umem) as pool:
        ports = {"a": small_port(pool), "b": small_port(pool)}
        kernels = {name: FakeKernel(port) for name, port in ports.items()}
        batch = pool.alloc(3)
        for i in range(3):
            batch.write(i, bytes([i]) * 64)
        for _ in range(len(order) - 1):
            pool.ref(batch)
        assert ports["a"].transmit(batch) == ports["b"].transmit(batch) == 3
        assert kernels["a"].take_tx() == kernels["b"].take_tx()
        for step, who in enumerate(order):
            assert pool.outstanding == 3
            umem.audit().check()
            if who == "X":
                pool.put(batch)
            else:
                for addr in reversed(batch.addr.tolist()):
                    kernels[who].push_comp(addr)
                assert ports[who].complete() == 3, step
        assert pool.outstanding == 0
        refused_put(pool, batch)


def test_a_reference_kept_while_the_frame_is_sent_can_be_used_after(pool: FramePool) -> None:
    port = small_port(pool)
    kernel = FakeKernel(port)
    batch = pool.alloc(1)
    batch.write(0, b"again" * 12)
    pool.ref(batch)
    assert port.transmit(batch) == 1
    assert kernel.send() == [b"again" * 12]
    assert port.complete() == 1
    assert port.transmit(batch) == 1, "the reference kept is the only one now"
    assert kernel.send() == [b"again" * 12]
    assert port.complete() == 1
    refused_put(pool, batch)


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
