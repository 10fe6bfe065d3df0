"""Several queues, several workers, on real packets: counted at the far end, conserved over all pools.

A source pinned to CPU c sends into its peer's queue c modulo queues, so that a source a CPU loads a queue each.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from live_lab import audited, wait_for
from test_forwarding import SMALL, options

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing.lab import Lab, LabLink
from afxdp_pool.testing.traffic import Sink, Source

QUEUES = 2


@pytest.fixture(autouse=True)
def two_cpus() -> None:
    if len(os.sched_getaffinity(0)) < QUEUES or not {0, 1} <= os.sched_getaffinity(0):
        pytest.skip("needs CPUs 0 and 1: a source sends into queue CPU modulo queues")


@contextlib.contextmanager
def sources(link: LabLink) -> Iterator[list[Source]]:
    """A source for each queue."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Source(link, cpu=cpu)) for cpu in range(QUEUES)]


def send(runner: ap.Runner, made: list[Source], rounds: int, each: int, count: Callable[[ap.Report], int]) -> int:
    """Send a little through every queue, wait until it is counted, and again."""
    total = 0
    for _ in range(rounds):
        for source in made:
            report = source.send(each)
            assert report.dropped == 0
            total += report.sent
        assert wait_for(lambda goal=total: count(runner.snapshot()) >= goal), runner.snapshot()  # type: ignore[misc]
    return total


@pytest.mark.parametrize(("queues", "workers"), [(2, 1), (2, "queues"), (4, 2), (3, 3)])
def test_drop_on_several_queues(lab: Lab, queues: int, workers: int) -> None:
    pair = lab.veth("a", queues=queues)
    runner = ap.drop(pair.near.name, options=options(lab, queues=tuple(range(queues)), workers=workers))
    assert isinstance(runner, ap.Forwarder if workers == 1 else ap.Workers)
    with sources(pair.far) as made:
        runner.start()
        total = send(runner, made, 20, 500, lambda report: report.received)
        runner.stop()
        result = runner.join()
    assert result.received == result.engine.dropped == total == 20_000
    by_queue = {port.name.split(" in ")[0]: port.stats.rx_packets for port in result.ports}
    assert by_queue == {f"{pair.near.name} queue {n}": 10_000 if n < QUEUES else 0 for n in range(queues)}
    assert len(result.workers) == (0 if workers == 1 else len(result.pools))
    audited(runner)


def test_forward_by_a_worker_a_queue(lab: Lab) -> None:
    left, right = lab.veth("left", queues=QUEUES), lab.veth("right", queues=QUEUES)
    opened = options(lab, queues=(0, 1), workers="queues", cpus=(0, 1))
    runner = ap.forward(left.near.name, right.near.name, both_ways=True, options=opened)
    with Sink(right.far, verify=False) as sink, Sink(left.far, verify=False) as back, sources(left.far) as made:
        runner.start()
        total = send(runner, made, 20, 250, lambda report: report.completed)
        seen = sink.wait(total)
        with sources(right.far) as more:
            send(runner, more, 10, 250, lambda report: report.completed - total)
        seen_back = back.wait(5000)
        runner.stop()
        result = runner.join()
    assert (seen.packets, seen_back.packets) == (10_000, 5000)
    assert [worker.received for worker in result.workers] == [7500, 7500]
    assert [worker.cpu for worker in result.workers] == [0, 1]
    assert (result.received, result.sent, result.completed) == (15_000,) * 3
    assert sum(pool.remote_frames for pool in result.pools) == 0, "nothing crossed from worker to worker"
    audited(runner)


def test_reflect_and_a_handler_called_from_two_threads(lab: Lab) -> None:
    pair = lab.veth("a", queues=QUEUES)
    threads: dict[int, set[int]] = {0: set(), 1: set()}

    def handle(batch: ap.Batch) -> int:
        assert batch.port is not None
        threads[batch.port.queue].add(threading.get_ident())
        return ap.TX

    opened = options(lab, queues=(0, 1), workers="queues")
    paths: list[Callable[[], ap.Runner]] = [
        lambda: ap.handle([pair.near.name], handle, options=opened),
        lambda: ap.reflect(pair.near.name, swap_mac=False, options=opened),
    ]
    for opens in paths:
        runner = opens()
        with Sink(pair.far, verify=False) as sink, sources(pair.far) as made:
            runner.start()
            total = send(runner, made, 10, 200, lambda report: report.completed)
            assert sink.wait(total).packets == total == 4000
            runner.stop()
            assert runner.join().engine.reflected == 4000
        audited(runner)
    assert [len(seen) for seen in threads.values()] == [1, 1]
    assert threads[0] != threads[1]


def test_frames_kept_by_two_workers_leave_by_a_third_thread_and_come_home(lab: Lab) -> None:
    """Two workers receive; an application's thread sends what they kept out of another device, by a port of its own."""
    left, right = lab.veth("left", queues=QUEUES), lab.veth("right")
    kept: queue.SimpleQueue[ap.Batch] = queue.SimpleQueue()

    def handle(batch: ap.Batch) -> int:
        kept.put(batch.copy())
        return ap.KEEP

    runner = ap.handle([left.near.name], handle, options=options(lab, queues=(0, 1), workers="queues", frames=16384))
    out = ap.FramePool(runner.umem)
    with (
        ap.Port(out, right.near.name, netns=lab.engine_netns, config=replace(SMALL, receive=False)) as port,
        Sink(right.far, verify=False) as sink,
        sources(left.far) as made,
    ):
        runner.start()
        for _ in range(20):
            sent = sum(source.send(100).sent for source in made)
            moved = 0
            while moved < sent:
                batch = kept.get(timeout=20)
                moved += len(batch)
                while len(batch):
                    batch = batch[port.transmit(batch) :]
                    port.complete()
        assert wait_for(lambda: port.complete() >= 0 and port.stats().tx_completed == 4000)
        assert sink.wait(4000).packets == 4000
        runner.stop()
        result = runner.join()
        assert result.engine.kept == 4000
        # In bulks: what a run's end finds posted is collected, and nothing is still out.
        assert [pool.remote_frames for pool in result.pools] == [2000, 2000]
        assert runner.audit().check().app == 0
    out.close()
    audited(runner)


def test_packets_change_worker_by_hand_over(lab: Lab) -> None:
    """What queue 0 receives leaves by queue 1, sent by the other worker; its frames go home to the first one's pool."""
    pair = lab.veth("a", queues=QUEUES)
    crossing: list[ap.Forwarder] = []

    def handle(batch: ap.Batch) -> int:
        other = crossing[1 - batch.port.queue]  # type: ignore[union-attr]
        other.hand_over(batch.copy(), other.ports[0])
        return ap.KEEP

    runner = ap.handle([pair.near.name], handle, options=options(lab, queues=(0, 1), workers="queues"))
    assert isinstance(runner, ap.Workers)
    crossing += runner.forwarders
    with Sink(pair.far, verify=False) as sink, sources(pair.far) as made:
        runner.start()
        for source, other in zip(made, (1, 0), strict=True):
            for total in range(200, 2001, 200):
                source.send(200)
                assert wait_for(lambda n=other, goal=total: runner.ports[n].stats().tx_completed >= goal)  # type: ignore[misc]
        assert sink.wait(4000).packets == 4000
        runner.stop()
        result = runner.join()
    assert [pool.remote_frames for pool in result.pools] == [2000, 2000]
    audited(runner)


def test_a_deleted_link_ends_all_workers_and_join_says_which(lab: Lab) -> None:
    from pyroute2 import IPRoute

    left, right = lab.veth("left", queues=QUEUES), lab.veth("right", queues=QUEUES)
    opened = options(lab, queues=(0, 1), workers="queues", port=ap.PortConfig(transmit="socket"))
    runner = ap.forward(left.near.name, right.near.name, options=opened)
    with Sink(right.far, verify=False), Source(left.far, cpu=1) as source:
        runner.start()
        source.send(500)
        assert wait_for(lambda: runner.snapshot().completed == 500)
        with in_netns(lab.engine_netns), IPRoute() as ip:
            ip.link("del", index=right.near.ifindex)
        source.send(64)
        with pytest.raises(ap.LinkGoneError, match=right.near.name) as raised:
            runner.join()
    assert re.match(r"in worker [01]: ", raised.value.__notes__[0])  # who sent, or who looked first
    audited(runner)


def test_a_signal_stops_all_workers(lab: Lab) -> None:
    pair = lab.veth("a", queues=QUEUES)
    runner = ap.drop(pair.near.name, options=options(lab, queues=(0, 1), workers="queues"))

    def kill_when_done(me: ap.Runner) -> None:
        if me.snapshot().received == 200:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: runner.stop())
    try:
        with sources(pair.far) as made:
            for source in made:
                source.send(100)
            result = runner.run(on_tick=kill_when_done)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [worker.received for worker in result.workers] == [100, 100]
    audited(runner)


def test_overload_on_two_queues_loses_only_where_the_kernel_counts(lab: Lab) -> None:
    pair = lab.veth("a", queues=QUEUES)
    runner = ap.drop(pair.near.name, options=options(lab, queues=(0, 1), workers="queues", port=SMALL))
    with sources(pair.far) as made:
        runner.start()
        for source in made:
            source.start(seconds=0.5)
        sent = sum(source.wait(20).sent for source in made)
        total = pair.far.counters()["tx_xdp_xmit"]

        def counted() -> int:
            ports = runner.snapshot().ports
            lost = sum(port.kernel.rx_dropped + port.kernel.rx_ring_full for port in ports)
            return sum(port.stats.rx_packets for port in ports) + lost

        assert wait_for(lambda: counted() == total), (counted(), total)
        assert 10_000 < total <= sent
        runner.stop()
        runner.join()
    audited(runner)
