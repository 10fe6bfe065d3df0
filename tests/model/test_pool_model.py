"""The C pool and ports against the model: random lives of three pools and two ports, checked after every step."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_pool import Model, Pool

from afxdp_pool import Batch, DoubleFreeError, FramePool, PoolError, Port, PortConfig, Umem
from afxdp_pool.testing.rings import FakeKernel

FRAMES = 256
POOLS, PORTS = 3, 2
CONFIG = PortConfig(fill_size=32, comp_size=32, rx_size=32, tx_size=32, fill_level=16)

which_pool = st.integers(0, POOLS - 1)
which_port = st.integers(0, PORTS - 1)
sizes = st.integers(0, 40) | st.sampled_from([64, 65, 128, 200, 300])
remotely = st.booleans()


class PoolMachine(RuleBasedStateMachine):
    """Every step is done in C and in the model; `descs` is one descriptor for each reference the application holds."""

    def __init__(self) -> None:
        super().__init__()
        self.umem = Umem(FRAMES)
        self.model = Model(FRAMES)
        self.pools: list[FramePool] = []
        self.keys: list[int] = []  # the model's number of each pool that is open now
        self.ports: list[Port] = []
        self.port_keys: list[int] = []
        self.kernels: list[FakeKernel] = []
        self.under_way: list[list[int]] = [[] for _ in range(PORTS)]
        self.descs: list[Any] = []
        self.stale: list[Any] = []
        self.serial = 0

    @initialize(quotas=st.lists(st.sampled_from([0, 40, 150]), min_size=POOLS, max_size=POOLS), wrap=st.booleans())
    def open_all(self, quotas: list[int], wrap: bool) -> None:
        self.wrap = wrap
        for quota in quotas:
            self.pools.append(self.new_pool(quota))
        for index in range(PORTS):
            self.new_port(index)

    def teardown(self) -> None:
        for port in self.ports:
            port.close()
        for pool in self.pools:
            pool.collect()
        while self.descs:
            self.umem.put(self.batch([self.descs.pop()]))
        self.umem.audit().check(idle=True)
        for pool in self.pools:
            pool.close()
        assert self.umem.free_frames == FRAMES
        self.umem.close()

    # Helpers --------------------------------------------------------------------------------------------------------

    def new_pool(self, quota: int) -> FramePool:
        pool = FramePool(self.umem, ring_size=8, quota=quota)
        pool.bind()
        self.serial += 1
        self.keys.append(self.serial)
        self.model.pools[self.serial] = Pool(quota)
        return pool

    def new_port(self, index: int) -> None:
        port = Port.in_memory(self.pools[index % POOLS], CONFIG)
        kernel = FakeKernel(port, first_index=(1 << 32) - 20 if self.wrap else 0)
        self.serial += 1
        if index == len(self.ports):
            self.ports.append(port)
            self.kernels.append(kernel)
            self.port_keys.append(self.serial)
        else:
            self.ports[index], self.kernels[index], self.port_keys[index] = port, kernel, self.serial
        self.under_way[index] = []

    def batch(self, descs: list[Any]) -> Batch:
        from afxdp_pool import DESC

        return Batch(np.array(descs, DESC) if descs else np.empty(0, DESC), self.umem.data)

    @staticmethod
    def frame(desc: Any) -> int:
        return int(desc["addr"]) // 4096

    def references(self) -> list[Any]:
        """The application's: a descriptor each."""
        return self.descs

    def run(self, remote: bool, call: Callable[[], Any]) -> Any:
        """Call here, where every pool is bound, or in another thread that is joined at once."""
        if not remote:
            return call()
        result: list[Any] = []

        def work() -> None:
            try:
                result.append(call())
            except PoolError as error:
                result.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if isinstance(result[0], PoolError):
            raise result[0]
        return result[0]

    def pick(self, data: st.DataObject, most: int) -> list[Any]:
        """Take up to `most` of the application's references."""
        n = data.draw(st.integers(0, min(most, len(self.descs))))
        start = data.draw(st.integers(0, len(self.descs) - n))
        picked = self.descs[start : start + n]
        del self.descs[start : start + n]
        return picked

    def key_of_port_pool(self, index: int) -> int | None:
        """The model's number of the pool a port fills from; None when that one is closed."""
        pool = self.ports[index].pool
        return self.keys[self.pools.index(pool)] if pool in self.pools else None

    # The application ------------------------------------------------------------------------------------------------

    @rule(which=which_pool, n=sizes)
    def alloc(self, which: int, n: int) -> None:
        pool, key = self.pools[which], self.keys[which]
        before = pool.stats()
        batch = pool.alloc(n)
        got = [self.frame(desc) for desc in batch.descs]
        self.collected(which, before)
        self.model.take(key, got)
        self.descs.extend(desc.copy() for desc in batch.descs)
        if len(got) < n:
            quota = self.model.pools[key].quota
            assert pool.outstanding == pool.inflight, "it gives all it has before it gives up"
            assert self.umem.free_frames == 0 or pool.inflight == quota

    def collected(self, which: int, before: Any) -> None:
        """An allocation may have taken the inbox in: all of it or nothing."""
        home = self.pools[which].stats().remote_frames - before.remote_frames
        if home:
            assert home == self.model.collect(self.keys[which])

    @rule(data=st.data(), remote=remotely)
    def put(self, data: st.DataObject, remote: bool) -> None:
        picked = self.pick(data, 80)
        assert self.run(remote, lambda: self.umem.put(self.batch(picked))) == len(picked)
        for desc in picked:
            self.model.put(self.frame(desc), remote=remote)
        self.stale.extend(picked)

    @rule(data=st.data())
    def ref(self, data: st.DataObject) -> None:
        picked = self.pick(data, 10)
        assert self.pools[0].ref(self.batch(picked)) == len(picked)
        for desc in picked:
            self.model.ref(self.frame(desc))
        self.descs.extend(picked + picked)

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), remote=remotely, how=st.sampled_from(["put", "ref", "transmit"]))
    def use_what_was_given_away(self, data: st.DataObject, remote: bool, how: str) -> None:
        """A descriptor of which no reference is left is refused on every path, and nothing changes."""
        desc = self.stale[data.draw(st.integers(0, len(self.stale) - 1))]
        if any(self.frame(d) == self.frame(desc) and d["gen"] == desc["gen"] for d in self.references()):
            return  # another reference to the same life: it would be used up, as nobody can tell them apart
        desc = desc.copy()
        desc["len"] = 60
        calls = {"put": self.umem.put, "ref": self.pools[0].ref, "transmit": self.ports[0].transmit}
        if how == "transmit" and self.ports[0].ring_levels()["tx"] == 32:
            assert self.ports[0].transmit(self.batch([desc])) == 0
            return
        with pytest.raises(DoubleFreeError):
            self.run(remote and how != "transmit", lambda: calls[how](self.batch([desc])))

    # The ports ------------------------------------------------------------------------------------------------------

    @rule(which=which_port, n=st.integers(0, 40))
    def fill(self, which: int, n: int) -> None:
        key = self.key_of_port_pool(which)
        if key is None:
            with pytest.raises(PoolError):
                self.ports[which].fill(1)
            return
        pool = self.ports[which].pool
        before, states = pool.stats(), self.umem.states()
        got = self.ports[which].fill(n)
        self.collected(self.pools.index(pool), before)
        frames = np.flatnonzero((self.umem.states() == 2) & (states != 2)).tolist()
        assert len(frames) == got <= n
        self.model.take(key, frames, fill=self.port_keys[which])

    @rule(which=which_port, n=st.integers(0, 40))
    def deliver_and_receive(self, which: int, n: int) -> None:
        port, kernel = self.ports[which], self.kernels[which]
        delivered = kernel.deliver([bytes([i]) * 60 for i in range(min(n, 32))])
        batch = port.receive(64)
        batch = batch if len(batch) == delivered else self.join(batch, port.receive(64))
        assert [int(packet[0]) for packet in batch] == list(range(delivered))
        for desc in batch.descs:
            self.model.receive(self.frame(desc))
            self.descs.append(desc.copy())

    def join(self, first: Batch, second: Batch) -> Batch:
        return Batch(np.concatenate([first.descs, second.descs]), first.data, first.port)

    @rule(which=which_port, data=st.data())
    def transmit(self, which: int, data: st.DataObject) -> None:
        picked = self.pick(data, 40)
        batch = self.batch(picked)
        batch.len[:] = 60
        sent = self.ports[which].transmit(batch)
        for desc in picked[:sent]:
            self.model.send(self.frame(desc), self.port_keys[which])
        self.stale.extend(picked[:sent])
        self.descs.extend(picked[sent:])
        assert sent == len(picked) or self.ports[which].ring_levels()["tx"] == 32

    @rule(which=which_port, data=st.data(), remote=remotely)
    def complete(self, which: int, data: st.DataObject, remote: bool) -> None:
        port, kernel = self.ports[which], self.kernels[which]
        waiting = self.under_way[which]
        waiting.extend(packet.addr for packet in kernel.take_tx())
        n = data.draw(st.integers(0, min(len(waiting), 32)))
        data.draw(st.randoms(use_true_random=False)).shuffle(waiting)
        done = [waiting.pop() for _ in range(n)]
        assert kernel.complete(done) == n
        assert self.run(remote, lambda: port.complete(32)) == n
        for addr in done:
            self.model.complete(addr // 4096, self.port_keys[which], remote=remote)

    @rule(which=which_port, addr=st.integers(0, FRAMES * 4096 + 9999) | st.integers(0, (1 << 64) - 1))
    def a_kernel_that_lies(self, which: int, addr: int) -> None:
        """Entries for frames the port did not hand over, or too long ones, are counted and change nothing."""
        port, kernel = self.ports[which], self.kernels[which]
        held = self.model.out.get(addr // 4096)
        key = self.port_keys[which]
        stats = port.stats()
        kernel.push_rx(addr, 5000 if held is not None and held.fill == key else 60)
        assert len(port.receive(64)) == 0
        assert port.stats().rx_bad == stats.rx_bad + 1
        if held is None or held.posted or not held.sent[key]:
            kernel.push_comp(addr)
            assert port.complete(64) == 0
            assert port.stats().completion_bad == stats.completion_bad + 1

    @rule(which=which_port, remote=remotely)
    def close_a_port(self, which: int, remote: bool) -> None:
        port = self.ports[which]
        self.run(remote, port.close)
        filled, sent = self.model.reclaim(self.port_keys[which], remote=remote)
        stats = port.stats()
        assert (stats.fill_reclaimed, stats.tx_reclaimed) == (filled, sent)
        self.new_port(which)

    # The pools ------------------------------------------------------------------------------------------------------

    @rule(which=which_pool)
    def collect(self, which: int) -> None:
        assert self.pools[which].collect() == self.model.collect(self.keys[which])

    @rule(which=which_pool)
    def flush(self, which: int) -> None:
        self.pools[which].flush()
        self.model.finish(self.keys[which])
        self.model.collect(self.keys[which])
        assert self.pools[which].inflight == self.model.outstanding(self.keys[which])

    @rule(which=which_pool, quota=st.sampled_from([0, 60]))
    def close_a_pool(self, which: int, quota: int) -> None:
        self.pools[which].close()
        self.model.finish(self.keys[which])
        self.model.collect(self.keys[which])
        self.model.pools[self.keys[which]].open = False
        key = self.keys[which]
        self.pools[which] = self.new_pool(quota)
        self.keys[which] = self.keys.pop()
        assert self.keys[which] != key

    @rule(which=which_pool)
    def hand_over_and_back(self, which: int) -> None:
        pool = self.pools[which]
        pool.unbind()
        before = pool.stats()

        def other() -> None:
            batch = pool.alloc(5)
            pool.put(batch)
            pool.unbind()

        taken = pool.stats()
        self.run(True, other)
        pool.bind()
        self.collected(which, before)
        after = pool.stats()
        n = sum(getattr(after, name) - getattr(taken, name) for name in ("alloc_fast", "alloc_refill", "alloc_slow"))
        self.model.pools[self.keys[which]].taken += n
        self.model.pools[self.keys[which]].returned += n

    # What must always hold ------------------------------------------------------------------------------------------

    @invariant()
    def the_audit_agrees_with_the_model(self) -> None:
        audit = self.umem.audit().check()
        model = self.model
        assert (audit.fill, audit.app, audit.tx) == (model.count("fill"), model.count("app"), model.count("tx"))
        assert audit.inbox == model.count("home")
        assert audit.umem + audit.pool == FRAMES - audit.fill - audit.app - audit.tx

    @invariant()
    def the_counters_agree_with_the_model(self) -> None:
        for pool, key in zip(self.pools, self.keys, strict=True):
            stats, expected = pool.stats(), self.model.pools[key]
            assert stats.alloc_fast + stats.alloc_refill + stats.alloc_slow == expected.taken
            assert stats.recycle_cached + stats.recycle_ring + stats.recycle_ring_full == expected.returned
            assert stats.late_refused == 0
            assert pool.outstanding == self.model.outstanding(key)
            assert not expected.quota or stats.inflight <= expected.quota


PoolMachine.TestCase.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestPoolModel = PoolMachine.TestCase
