"""What a pool refuses that page_pool cannot see; threads that share it; frames with several references."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from support import conserved, elsewhere, identities, join, small_port

from afxdp_pool import (
    Batch,
    DoubleFreeError,
    ForeignFrameError,
    FramePool,
    PoolError,
    Umem,
    WrongThreadError,
)
from afxdp_pool.testing.rings import FakeKernel


def delta(pool: FramePool, act: Callable[[], object]) -> dict[str, int]:
    """The counters that `act` moves, and by how much."""
    before = pool.stats().as_dict()
    act()
    return {name: value - before[name] for name, value in pool.stats().as_dict().items() if value != before[name]}


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
