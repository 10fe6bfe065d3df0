"""What went wrong with page_pool or its users in the kernel, tried here: the pitfalls of docs/page-pool.md.

Those about rings and closing are in test_pitfalls_ports.py, those about many threads, creation and counters in
test_pitfalls_pools.py, those that need a real kernel in tests/veth/test_kernel_facts.py.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
from support import elsewhere, identities, small_port

from afxdp_pool import (
    Batch,
    DoubleFreeError,
    FramePool,
    Port,
    Umem,
)
from afxdp_pool.testing.rings import FakeKernel


class Worker:
    """A thread that does what it is sent, in order."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                order()
                self._done.put(None)
            except BaseException as error:
                self._done.put(error)

    def __call__(self, order: Callable[[], object]) -> None:
        self._orders.put(order)

    def wait(self) -> None:
        """Until the oldest order not waited for is done."""
        failure = self._done.get(timeout=20)
        if failure is not None:
            raise failure

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._orders.put(None)
        self._thread.join()


def packets(pool: FramePool, n: int) -> Batch:
    batch = pool.alloc(n)
    batch.len[:] = 64
    return batch


def each_frame_once(pool: FramePool) -> None:
    """Drained, the Umem's frames come out of the pool each exactly once."""
    pool.collect()
    batch = pool.alloc(pool.umem.frames + 1)
    assert len(batch) == len(set(batch.addr.tolist())) == pool.umem.frames
    pool.put(batch)


# Giving back --------------------------------------------------------------------------------------------------------


def closing_the_port(pool: FramePool, port: Port, kernel: FakeKernel, batch: Batch) -> None:
    with small_port(pool) as other:
        other.transmit(batch)


def sent_and_completed(port: Port, kernel: FakeKernel, batch: Batch) -> None:
    port.transmit(batch)
    kernel.send()
    port.complete()


GIVEN: dict[str, Callable[[FramePool, Port, FakeKernel, Batch], object]] = {
    "put": lambda pool, port, kernel, batch: pool.put(batch),
    "put elsewhere": lambda pool, port, kernel, batch: elsewhere(lambda: pool.put(batch)),
    "put elsewhere, collected": lambda pool, port, kernel, batch: (elsewhere(lambda: pool.put(batch)), pool.collect()),
    "sent": lambda pool, port, kernel, batch: port.transmit(batch),
    "completed": lambda pool, port, kernel, batch: sent_and_completed(port, kernel, batch),
    "completed elsewhere": lambda pool, port, kernel, batch: elsewhere(lambda: sent_and_completed(port, kernel, batch)),
    "reclaimed": closing_the_port,
}
AGAIN: dict[str, Callable[[FramePool, Port, Batch], object]] = {
    "put": lambda pool, port, batch: pool.put(batch),
    "put elsewhere": lambda pool, port, batch: elsewhere(lambda: pool.put(batch)),
    "send": lambda pool, port, batch: port.transmit(batch),
    "ref": lambda pool, port, batch: pool.ref(batch),
}


@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("given", GIVEN)
def test_pitfall_00_a_second_put_is_refused_on_every_path(umem: Umem, pool: FramePool, given: str, again: str) -> None:
    """Pitfall 0: page_pool cannot see a double put; the page is twice in cache or ring."""
    port = small_port(pool)
    kernel = FakeKernel(port)
    batch = packets(pool, 3)
    GIVEN[given](pool, port, kernel, batch)
    before = (pool.stats(), umem.states().tolist())
    with pytest.raises(DoubleFreeError) as caught:
        AGAIN[again](pool, port, batch)
    assert caught.value.done == 0
    assert (pool.stats(), umem.states().tolist()) == before
    umem.audit().check()
    kernel.send()
    port.complete()
    each_frame_once(pool)


def test_pitfall_01_the_last_return_may_come_while_the_pool_is_destroyed(umem: Umem) -> None:
    """Pitfall 1: the last return freed the pool while another CPU was still in its ring (271683bb2cf3)."""
    with Worker() as first, Worker() as second:
        for _ in range(2000):
            pool = FramePool(umem)
            batch = pool.alloc(64)
            for worker, half in ((first, batch[:32]), (second, batch[32:])):
                worker(partial(umem.put, half))
            pool.close()
            first.wait()
            second.wait()
            assert (pool.state, pool.inflight, umem.free_frames) == ("closed", 0, umem.frames)


def test_pitfall_02_only_the_owner_recycles_into_the_cache(pool: FramePool) -> None:
    """Pitfall 2: direct recycling on the wrong CPU corrupted the cache (2b986b9e917b)."""
    with Worker() as other:
        for _ in range(100):
            batch = pool.alloc(100)
            before, room = pool.stats(), pool.native.ncache
            other(partial(pool.put, batch))
            other.wait()
            assert (pool.native.ncache, pool.stats().recycle_cached) == (room, before.recycle_cached)
            assert pool.collect() == 100
            assert (pool.native.ncache, pool.stats().recycle_cached) == (room, before.recycle_cached)
    identities(pool, 10_000, 10_000)


def test_pitfall_03_after_close_nothing_enters_the_cache(umem: Umem) -> None:
    """Pitfall 3: a destroyed pool was still linked to its NAPI, and pages went into a cache nobody empties."""
    pool = FramePool(umem)
    batch = pool.alloc(200)
    pool.put(batch[:20])
    native = pool.native
    pool.close()
    before = pool.stats()
    umem.put(batch[20:])  # the thread that owned it
    assert native.ncache == 0
    after = pool.stats()
    assert after.recycle_cached == before.recycle_cached
    assert after.hold_cnt == after.release_cnt
    assert (pool.state, umem.free_frames) == ("closed", umem.frames)


def test_pitfall_04_the_cache_never_overflows(umem: Umem) -> None:
    """Pitfall 4: a refill into a cache that was not empty overflowed it (304db6cb7610)."""
    chance = random.Random(4)
    with FramePool(umem, ring_size=100) as pool, small_port(pool) as port:
        held: list[Batch] = []
        for _ in range(4000):
            step = chance.randrange(12)
            if step < 5:
                held.append(pool.alloc(chance.choice([1, 2, 63, 64, 65, 127, 128, 129])))
            elif step < 9 and held:
                pool.put(held.pop(chance.randrange(len(held))))
            elif step == 9 and held:
                batch = held.pop()
                elsewhere(partial(pool.put, batch))
            elif step == 10:
                pool.collect()
            elif step == 11:
                pool.flush()
                port.fill(chance.randrange(3))
            assert 0 <= pool.native.ncache <= 128
        for batch in held:
            pool.put(batch)


# References ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["".join(order) for order in itertools.permutations("axpq")])
def test_pitfall_05_clones_dropped_in_every_order_go_home_once(umem: Umem, pool: FramePool, order: str) -> None:
    """Pitfall 5: a clone took the wrong kind of reference, and was freed twice (CVE-2022-49093).

    a, x: the application here and in another thread; p, q: completions of two ports.
    """
    ports = {name: small_port(pool) for name in "pq"}
    kernels = {name: FakeKernel(port) for name, port in ports.items()}
    batch = packets(pool, 2)
    for _ in range(3):
        pool.ref(batch)
    for port in ports.values():
        port.transmit(batch)
    for step, who in enumerate(order):
        assert umem.count_states()["pool"] == 62, step
        if who in ports:
            kernels[who].send()
            assert ports[who].complete() == 2
        elif who == "x":
            assert elsewhere(lambda: pool.put(batch)) == 2
        else:
            assert pool.put(batch) == 2
        umem.audit().check()
    assert umem.count_states()["pool"] == 64
    with pytest.raises(DoubleFreeError):
        pool.put(batch)
    each_frame_once(pool)


def test_pitfall_06_two_holders_that_drop_at_once_recycle_once(pool: FramePool) -> None:
    """Pitfall 6: clone and original recycled the same page, racing (2cc3aeb5eccc)."""
    with Worker() as first, Worker() as second:
        for _ in range(2000):
            batch = pool.alloc(64)
            pool.ref(batch)
            for worker in (first, second):
                worker(partial(pool.put, batch))
            first.wait()
            second.wait()
            assert pool.collect() == 64
    assert (pool.outstanding, pool.stats().late_refused) == (0, 0)
    each_frame_once(pool)


def test_pitfall_07_every_way_to_take_a_reference_has_one_to_give_it_back(umem: Umem, pool: FramePool) -> None:
    """Pitfall 7: skb_shift() took references by one helper and gave them back by another."""
    chance = random.Random(7)
    port = small_port(pool)
    kernel = FakeKernel(port)
    for _ in range(300):
        batch = packets(pool, 1)
        held, sent = 1, 0
        while held + sent:
            assert umem.count_states()["pool"] == 63
            step = chance.randrange(5)
            if step == 0 and held and held + sent < 6:
                held += pool.ref(batch)
            elif step in (1, 2) and held:
                held -= elsewhere(partial(pool.put, batch)) if step == 1 else pool.put(batch)
            elif step == 3 and held:
                port.transmit(batch)
                held, sent = held - 1, sent + 1
            elif step == 4 and sent:
                kernel.send(1)
                sent -= port.complete(1)
        assert umem.count_states()["pool"] == 64
        pool.collect()
    identities(pool, 300, 300)


def test_pitfall_08_a_forgotten_frame_is_named_whatever_way_it_was_lost() -> None:
    """Pitfall 8: drivers that bypassed put left pools waiting for weeks, and nobody knew for which pages."""
    with Umem(512, trace=True) as umem, FramePool(umem) as pool:
        port = small_port(pool)
        kernel = FakeKernel(port)

        def careless() -> dict[str, Any]:
            lost: dict[str, Any] = {"alloc": pool.alloc(1), "fragment": pool.alloc_fragments(1, 100)}
            port.fill(8)
            kernel.deliver(1)
            lost["receive"] = port.receive()
            sent = packets(pool, 2)
            pool.ref(sent[1:])
            port.transmit(sent)
            return lost | {"sent": sent[:1], "clone": sent[1:]}

        lost = careless()
        pool.collect()
        frames = {name: batch.frames(4096)[0] for name, batch in lost.items()}
        who = {frame: holder for holder in umem.holders() for frame in holder.frames}
        assert all(holder.pool == pool.id for holder in who.values())
        for name in ("alloc", "fragment", "receive"):
            holder = who[frames[name]]
            assert (holder.who, holder.port) == ("application", None)
            assert "in careless" in str(holder.traceback)
            assert name in str(holder.traceback)
            assert holder.age is not None
            assert 0 <= holder.age < 60
        assert (who[frames["sent"]].who, who[frames["sent"]].port) == ("tx", port.name)
        assert who[frames["clone"]].who == "tx"
        assert sum(holder.who == "fill" for holder in who.values()) == 7
        umem.audit().check()
        port.close()
        for name in ("alloc", "fragment", "receive", "clone"):
            pool.put(lost[name])
        assert [holder.frames for holder in umem.holders()] == [(frames["fragment"],)], "it is cut until the flush"
        pool.flush()
        assert umem.holders() == []
        umem.audit().check(idle=True)


def test_pitfall_09_a_rebuilt_packet_belongs_to_the_pool_of_its_new_frame(umem: Umem) -> None:
    """Pitfall 9: veth rebuilt a packet in new memory, and kept the old memory's type."""
    with FramePool(umem) as received, FramePool(umem) as copies:
        port = small_port(received)
        kernel = FakeKernel(port)
        port.fill(4)
        kernel.deliver([b"short" * 12])
        old = port.receive()
        new = copies.alloc(1)
        new.write(0, bytes(old[0]) + bytes(1000))
        out = received.outstanding
        received.put(old)
        assert received.outstanding == out - 1
        port.transmit(new)
        (holder,) = [holder for holder in umem.holders() if holder.who == "tx"]
        assert holder.pool == copies.id
        kernel.send()
        port.complete()
        assert (copies.outstanding, received.outstanding) == (0, 3)
        identities(copies, 1, 1)


# The owner ------------------------------------------------------------------------------------------------------------


def test_pitfall_25_direct_recycling_follows_the_owner_not_the_caller(pool: FramePool) -> None:
    """Pitfall 25: allow_direct=true is believed. Here there is no such argument; what the check costs is measured."""
    with Worker() as other:
        for _ in range(100):
            batch = pool.alloc(40)
            pool.unbind()
            cached = pool.stats().recycle_cached
            pool.put(batch[:10])  # owned it a moment ago
            assert pool.stats().recycle_cached == cached

            def as_owner(batch: Batch = batch) -> None:
                pool.bind()
                pool.put(batch[10:30])
                pool.unbind()

            other(as_owner)
            other.wait()
            assert pool.stats().recycle_cached == cached + 20
            pool.bind()
            pool.put(batch[30:])
            assert pool.stats().recycle_cached == cached + 30
            assert pool.collect() == 10
