"""Pitfalls of docs/page-pool.md, by number: pools of many threads, their creation, their counters."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support import SMALL, elsewhere, identities, join, small_port

import afxdp_pool.pool as pools
import afxdp_pool.port as ports
import afxdp_pool.umem as umems
from afxdp_pool import AfXdpError, Batch, FramePool, Port, Umem, WrongThreadError
from afxdp_pool._native import ffi
from afxdp_pool.memory import AnonymousMemory
from afxdp_pool.testing.rings import FakeKernel


def test_pitfall_19_a_call_for_none_moves_nothing(umem: Umem, pool: FramePool) -> None:
    """Pitfall 19: a batch allocation of none returned one (a95a4d9b39b0)."""
    port = small_port(pool)
    kernel = FakeKernel(port)
    port.fill(2)
    kernel.deliver(1)
    one = pool.alloc(1)
    one.len[:] = 64
    port.transmit(one)
    kernel.send()
    before = (pool.stats(), port.stats(), umem.states().tolist(), port.ring_levels())
    none = pool.alloc(0)
    assert len(none) == len(pool.alloc_fragments(0, 64)) == len(port.receive(0)) == 0
    assert pool.put(none) == pool.ref(none) == port.fill(0) == port.transmit(none) == port.complete(0) == 0
    assert (pool.stats(), port.stats(), umem.states().tolist(), port.ring_levels()) == before
    assert port.complete() == 1


def test_pitfall_20_pools_of_many_threads_share_the_free_list(umem: Umem) -> None:
    """Pitfall 20: several threads used one list of free frames without a lock (dnsdist, b81c7e42fcde)."""
    failures: list[str] = []

    def work(mark: int) -> None:
        with FramePool(umem, ring_size=8) as pool:
            for _ in range(300):
                batch = pool.alloc(100)
                umem.data[batch.addr] = mark
                if (umem.data[batch.addr] != mark).any():
                    failures.append("a frame was given to two threads")
                pool.put(batch)
                pool.flush()

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with FramePool(umem) as pool:
        pool.bind()
        with pytest.raises(WrongThreadError):
            elsewhere(lambda: pool.alloc(1))


@pytest.mark.parametrize("returners", [1, 2, 4, 8])
def test_pitfall_23_a_remote_return_is_one_post_a_batch_and_never_finds_it_full(umem: Umem, returners: int) -> None:
    """Pitfall 23: the ring's one lock costs 650 ns a page with four CPUs, and a full ring frees the page.

    What a return costs is measured in benchmarks/pool.
    """
    with FramePool(umem, ring_size=1) as pool:
        batch = pool.alloc(512)
        parts = [batch[i::returners] for i in range(returners)]
        threads = [threading.Thread(target=pool.put, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()  # the owner has not looked once
        assert umem.audit().check().inbox == 512
        assert pool.stats().release_cnt == 0
        assert pool.collect() == 512
        stats = pool.stats()
        assert (stats.remote_batches, stats.remote_frames, stats.late_refused) == (returners, 512, 0)


class Failing:
    """The C library, of which one function fails."""

    def __init__(self, lib: Any, name: str, fail: Callable[..., object]) -> None:
        self._lib, self._name, self._fail = lib, name, fail

    def __getattr__(self, name: str) -> Any:
        return self._fail if name == self._name else getattr(self._lib, name)


def test_pitfall_24_creation_that_fails_leaves_nothing(umem: Umem, pool: FramePool) -> None:
    """Pitfall 24: drivers did not check what page_pool_create() returned, and used or leaked it."""

    def null(code: int) -> object:
        ffi.errno = code
        return ffi.NULL

    def failing(module: Any, name: str, fail: Callable[..., object], create: Callable[[], object]) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "lib", Failing(module.lib, name, fail))
            patch.setattr(ports, "check_place", lambda *_: SimpleNamespace(driver="veth"))
            with pytest.raises(AfXdpError):
                create()

    def open_port() -> Port:
        return Port(pool, "nic", config=replace(SMALL, receive=False, bind_timeout=0.0))

    failing(pools, "afp_pool_create", lambda *_: null(errno.ENOMEM), lambda: FramePool(umem))
    failing(pools, "afp_pool_create", lambda *_: null(errno.EMFILE), lambda: FramePool(umem))
    failing(ports, "afp_port_new", lambda *_: null(errno.EMFILE), lambda: small_port(pool))
    failing(ports, "afp_port_mock", lambda *_: -errno.ENOMEM, lambda: small_port(pool))
    for code in (errno.EPERM, errno.ENOBUFS, errno.EBUSY, errno.ENODEV, errno.EINVAL):
        failing(ports, "afp_port_open", lambda *_, code=code: -code, open_port)
    memory = AnonymousMemory(64 * 4096)
    failing(umems, "afp_table_init", lambda *_: -errno.ENOMEM, lambda: Umem(64, memory=memory))
    memory.close()
    umem.audit().check(idle=True)
    assert len(umem._ports) == 0
    with small_port(pool) as port, FramePool(umem) as next_pool:
        assert (port.native.id, next_pool.id) == (1, pool.id + 1)


def test_pitfall_26_the_counters_conserve_over_a_random_run_in_bulk(umem: Umem) -> None:
    """Pitfall 26: page_pool counts a bulk's overflow, and a slow allocation, once for many pages."""
    random_numbers = np.random.default_rng(26)
    three = [FramePool(umem, ring_size=size) for size in (1, 8, 64)]
    held: list[Batch] = []
    taken, given = [0] * 3, 0
    for _ in range(1500):
        which = int(random_numbers.integers(3))
        batch = three[which].alloc(int(random_numbers.integers(0, 120)))
        taken[which] += len(batch)
        held.append(batch)
        if random_numbers.random() < 0.6:
            mixed = join(*held)
            mixed = mixed[random_numbers.permutation(len(mixed))]
            remote = random_numbers.random() < 0.2
            given += elsewhere(partial(umem.put, mixed)) if remote else umem.put(mixed)
            held = []
    given += umem.put(join(*held)) if held else 0
    for pool in three:
        pool.collect()
    assert given == sum(taken)
    for pool, count in zip(three, taken, strict=True):
        identities(pool, count, count)
        stats = pool.stats()
        assert stats.recycle_ring_full > 64, "the ring overflowed"
        assert stats.hold_cnt <= 64 * stats.alloc_slow
        assert stats.recycle_cache_full <= stats.recycle_ring + stats.recycle_ring_full
        pool.close()
