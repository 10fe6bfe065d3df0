"""Several loops over one Umem: their threads, their pools, frames that go from one to the other. Rings in memory."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from bench import DEADLINE, numbered
from support import conserved, small_port, until

import afxdp_pool.forwarder as forwarder_module
from afxdp_pool import (
    DROP,
    FORWARD,
    KEEP,
    AfXdpError,
    Batch,
    ConfigError,
    ForeignFrameError,
    Forwarder,
    FramePool,
    InvalidDescriptorError,
    Options,
    Port,
    Route,
    Umem,
    Workers,
)
from afxdp_pool.errors import PoolClosedError
from afxdp_pool.handlers import Handler
from afxdp_pool.testing.rings import FakeKernel
from afxdp_pool.tuning import pinned


class Side:
    """One worker's pool, its two ports and their kernels."""

    def __init__(self, umem: Umem, handler: Handler | None = None, *, cpu: int | None = None) -> None:
        self.pool = FramePool(umem)
        self.ports = [small_port(self.pool), small_port(self.pool)]
        self.kernels = [FakeKernel(port) for port in self.ports]
        for port in self.ports:
            port.fill()
        self.pool.unbind()
        routes = None if handler else {0: Route(DROP)}
        self.forwarder = Forwarder(self.ports, routes, handler=handler, spin=0, cpu=cpu)


@contextmanager
def umem_of(frames: int = 1024) -> Iterator[Umem]:
    before = forwarder_module.DRAIN_WITHIN
    forwarder_module.DRAIN_WITHIN = 0.0
    try:
        with conserved(frames) as umem:
            yield umem
            for port in list(umem._ports):
                port.close()
            for pool in list(umem._pools):
                pool.collect()
                pool.close()
    finally:
        forwarder_module.DRAIN_WITHIN = before


def test_each_worker_runs_in_a_thread_of_its_own_and_the_report_sums_them() -> None:
    seen: dict[int, set[int]] = {0: set(), 1: set()}

    def handler(number: int) -> Handler:
        def handle(batch: Batch) -> int:
            seen[number].add(threading.get_ident())
            return DROP

        return handle

    with umem_of() as umem:
        sides = [Side(umem, handler(number)) for number in range(2)]
        workers = Workers(side.forwarder for side in sides)
        for side, n in zip(sides, (10, 20), strict=True):
            assert side.kernels[0].deliver(n) == n
        report = workers.run(DEADLINE, packets=30)
        assert (report.received, report.engine.dropped) == (30, 30)
        assert [worker.received for worker in report.workers] == [10, 20]
        assert [worker.engine.dropped for worker in report.workers] == [10, 20]
        assert len(report.ports) == 4
        assert len(report.pools) == 2
        assert report.as_dict()["workers"][1]["received"] == 20
        assert all(len(threads) == 1 for threads in seen.values())
        assert seen[0] != seen[1]
        assert threading.get_ident() not in seen[0] | seen[1]
        assert [pool.owner_tid for pool in workers.pools] == [0, 0]
        workers.audit().check()
        workers.close()
        for side in sides:
            side.forwarder.close()


def test_an_exception_in_one_handler_stops_all_and_is_raised_by_join() -> None:
    def handle(batch: Batch) -> int:
        raise ValueError("in one worker")

    with umem_of() as umem:
        sides = [Side(umem), Side(umem, handle)]
        workers = Workers(side.forwarder for side in sides)
        sides[1].kernels[0].deliver(3)
        workers.start()
        with pytest.raises(ConfigError, match="running already"):
            workers.start()
        with pytest.raises(ValueError, match="in one worker") as raised:
            workers.join()
        assert raised.value.__notes__ == ["in worker 1: memory queue 0, memory queue 0"]
        umem.audit().check()
        assert workers.run(0.0).received == 3, "it can be run again"
        for side in sides:
            side.forwarder.close()


def test_on_tick_of_started_workers_gets_all_of_them_and_may_stop_them() -> None:
    with umem_of() as umem:
        sides = [Side(umem), Side(umem)]
        workers = Workers(side.forwarder for side in sides)
        seen: set[int] = set()

        def tick(runner: Workers) -> None:
            seen.add(id(runner))
            runner.stop()

        workers.start(DEADLINE, on_tick=tick)
        assert workers.join().seconds < DEADLINE
        assert seen == {id(workers)}
        umem.audit().check()
        for side in sides:
            side.forwarder.close()


def test_stop_before_start_and_stop_from_a_signal() -> None:
    with umem_of() as umem:
        sides = [Side(umem), Side(umem)]
        workers = Workers(side.forwarder for side in sides)
        before = signal.signal(signal.SIGUSR1, lambda *_: workers.stop())
        try:
            report = workers.run(on_tick=lambda _: signal.raise_signal(signal.SIGUSR1))
            assert [worker.seconds > 0 for worker in report.workers] == [True, True]
        finally:
            signal.signal(signal.SIGUSR1, before)
        umem.audit().check()
        for side in sides:
            side.forwarder.close()


def test_what_on_tick_raises_ends_the_run() -> None:
    def tick(_: object) -> None:
        raise KeyboardInterrupt

    with umem_of() as umem:
        sides = [Side(umem), Side(umem)]
        workers = Workers(side.forwarder for side in sides)
        with pytest.raises(KeyboardInterrupt):
            workers.run(on_tick=tick)
        assert workers.run(0.0).received == 0
        umem.audit().check()
        for side in sides:
            side.forwarder.close()


def test_frames_kept_by_one_worker_are_sent_by_the_other_and_come_home_as_remote_returns() -> None:
    """Both ways at once: each handler keeps every batch and hands it to the other worker."""
    with umem_of() as umem:
        sides: list[Side] = []

        def hand_to(other: int) -> Handler:
            def handle(batch: Batch) -> int:
                target = sides[other]
                target.forwarder.hand_over(batch if other else batch.copy(), target.ports[1])
                return KEEP

            return handle

        sides += [Side(umem, hand_to(1)), Side(umem, hand_to(0))]
        content = numbered(400)
        sent: list[list[bytes]] = [[], []]
        workers = Workers(side.forwarder for side in sides)
        workers.start()
        for at in range(0, 400, 20):
            for side in sides:
                until(lambda side=side: side.kernels[0].filled() >= 20)  # type: ignore[misc]
                assert side.kernels[0].deliver(content[at : at + 20]) == 20
            for out, side in zip(sent, sides, strict=True):
                until(lambda out=out, side=side, at=at: bool(out.extend(side.kernels[1].send()) or len(out) == at + 20))  # type: ignore[misc]
        until(lambda: workers.snapshot().completed == 800)
        workers.stop()
        report = workers.join()
        assert sent == [content, content], "in order, unchanged"
        assert report.engine.kept == 800
        for side in sides:
            stats = side.pool.stats()
            assert stats.remote_frames == 400, "every frame came home to its own pool from the other worker's thread"
            assert stats.late_refused == 0
        audit = umem.audit().check()
        assert (audit.app, audit.tx) == (0, 0)
        for side in sides:
            side.forwarder.close()


def test_frames_kept_by_workers_and_put_by_another_thread() -> None:
    kept: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()

    def handle(batch: Batch) -> int:
        kept.put(batch.copy())
        return KEEP

    with umem_of() as umem:

        def put() -> None:
            while (batch := kept.get()) is not None:
                umem.put(batch)

        sides = [Side(umem, handle), Side(umem, handle)]
        workers = Workers(side.forwarder for side in sides)
        putter = threading.Thread(target=put)
        putter.start()
        workers.start()
        for _ in range(50):
            for side in sides:
                until(lambda side=side: side.kernels[0].filled() >= 10)  # type: ignore[misc]
                assert side.kernels[0].deliver(10) == 10
        until(lambda: workers.snapshot().engine.kept == 1000)  # then the handlers have queued them all
        kept.put(None)
        putter.join()
        workers.stop()
        workers.join()
        assert [side.pool.stats().remote_frames for side in sides] == [500, 500]
        assert umem.audit().check().app == 0
        for side in sides:
            side.forwarder.close()


def test_what_has_no_room_waits_for_it_and_what_is_never_sent_is_put_at_the_end() -> None:
    with umem_of() as umem:
        side = Side(umem)
        other = FramePool(umem)
        batch = other.alloc(100)
        batch.len[:] = 60
        with pytest.raises(ConfigError, match="no port of this forwarder"):
            side.forwarder.hand_over(batch, small_port(other))
        with conserved(64) as strange, FramePool(strange) as pool:
            foreign = pool.alloc(1)
            with pytest.raises(ForeignFrameError):
                side.forwarder.hand_over(foreign, side.ports[1])
            pool.put(foreign)
        side.forwarder.start()
        side.forwarder.hand_over(batch, side.ports[1])
        until(lambda: side.ports[1].stats().tx_packets == 64)
        assert len(side.kernels[1].send()) == 64
        until(lambda: side.ports[1].stats().tx_packets == 100)
        side.kernels[1].send()
        until(lambda: side.ports[1].stats().tx_completed == 100)
        side.forwarder.stop()
        side.forwarder.join()
        last = other.alloc(10)
        last.len[:] = 60
        side.forwarder.hand_over(last, side.ports[1])
        assert umem.count_states()["app"] == 10
        side.forwarder.close()
        assert umem.count_states()["app"] == 0
        with pytest.raises(PoolClosedError):
            side.forwarder.hand_over(last, side.ports[1])


def test_a_bad_descriptor_that_was_handed_over_ends_the_run_and_loses_no_other() -> None:
    with umem_of() as umem:
        side = Side(umem)
        other = FramePool(umem)
        batch = other.alloc(3)
        batch.len[:] = (60, 0, 60)
        side.forwarder.start()
        side.forwarder.hand_over(batch, side.ports[1])
        with pytest.raises(InvalidDescriptorError):
            side.forwarder.join()
        assert side.ports[1].stats().tx_packets == 1
        side.forwarder.close()
        assert umem.count_states()["app"] == 1, "the bad one is its maker's still"
        umem.put(batch[1:2])


def test_workers_that_cannot_be_are_refused() -> None:
    with umem_of() as umem, conserved(128) as strange:
        side, elsewhere = Side(umem), FramePool(strange)
        foreign = Forwarder([Port.in_memory(elsewhere, side.ports[0].config)])
        shared = Forwarder([small_port(side.pool)])
        with pytest.raises(ConfigError, match="no workers"):
            Workers([])
        with pytest.raises(ConfigError, match="share one Umem"):
            Workers([side.forwarder, foreign])
        with pytest.raises(ConfigError, match="a port is used by one worker"):
            Workers([side.forwarder, side.forwarder])
        with pytest.raises(ConfigError, match="a pool belongs to one worker"):
            Workers([side.forwarder, shared])
        for forwarder in (side.forwarder, foreign, shared):
            forwarder.close()


def test_workers_are_not_closed_by_their_own_handler() -> None:
    errors: list[BaseException] = []

    def handle(batch: Batch) -> int:
        try:
            workers.close()
        except ConfigError as error:
            errors.append(error)
        workers.stop()
        return DROP

    with umem_of() as umem:
        side, other = Side(umem, handle), Side(umem)
        workers = Workers([side.forwarder, other.forwarder])
        side.kernels[0].deliver(1)
        workers.run(DEADLINE)
        assert len(errors) == 1
        for one in (side, other):
            one.forwarder.close()
        with pytest.raises(PoolClosedError):
            workers.start()


def test_a_worker_is_pinned_while_it_runs_and_free_again_after_it() -> None:
    import os

    allowed = os.sched_getaffinity(0)
    cpu = min(allowed)
    where: list[set[int]] = []

    def handle(batch: Batch) -> int:
        where.append(os.sched_getaffinity(0))
        return DROP

    with umem_of() as umem:
        side = Side(umem, handle, cpu=cpu)
        side.kernels[0].deliver(1)
        side.forwarder.run(DEADLINE, packets=1)
        assert where == [{cpu}]
        assert os.sched_getaffinity(0) == allowed
        nowhere = Side(umem, cpu=100_000)
        workers = Workers([side.forwarder, nowhere.forwarder])
        with pytest.raises(ConfigError, match="CPU 100000: pinning memory"):
            workers.run(DEADLINE)
        for one in (side, nowhere):
            one.forwarder.close()
    with pytest.raises(AfXdpError, match="may run on CPUs"), pinned(-1, "a test"):
        pass


@pytest.mark.parametrize(
    ("queues", "workers", "groups"),
    [
        ((0, 1, 2, 3), 1, [(0, 1, 2, 3)]),
        ((0, 1, 2, 3), 2, [(0, 2), (1, 3)]),
        ((5, 3, 4), "queues", [(5,), (3,), (4,)]),
    ],
)
def test_queues_are_dealt_out_to_the_workers(
    queues: tuple[int, ...], workers: int, groups: list[tuple[int, ...]]
) -> None:
    assert Options(queues=queues, workers=workers).queue_groups == groups


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"workers": 3},
        {"workers": "all"},
        {"cpus": (0, 1)},
        {"workers": 2, "cpus": (0,)},
        {"gro_flush_timeout": -1},
        {"napi_defer_hard_irqs": 1 << 31},
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Options(queues=(0, 1), **wrong)  # type: ignore[arg-type]


def test_a_verdict_leads_to_the_worker_s_own_ports() -> None:
    with umem_of() as umem:
        sides = [Side(umem, lambda _: FORWARD(1)), Side(umem, lambda _: FORWARD(1))]
        workers = Workers(side.forwarder for side in sides)
        for side in sides:
            side.kernels[0].deliver(5)
        workers.run(DEADLINE, packets=10)
        assert [len(side.kernels[1].send()) for side in sides] == [5, 5]
        workers.run(0.0)
        umem.audit().check()
        for side in sides:
            side.forwarder.close()
