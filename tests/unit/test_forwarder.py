"""The worker's loop on rings in memory: exact counts, order and content; threads; what can never work."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
from bench import DEADLINE, Bench, forwarding, numbered
from support import SMALL, conserved, elsewhere, small_port, until

import afxdp_pool.forwarder as forwarder_module
from afxdp_pool import (
    DROP,
    FORWARD,
    KEEP,
    TX,
    Batch,
    ConfigError,
    Forwarder,
    FramePool,
    PoolClosedError,
    Port,
    Rewrite,
    Route,
    Template,
    WrongThreadError,
)
from afxdp_pool.routes import mac
from afxdp_pool.testing.rings import FakeKernel


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


# The built-in loop --------------------------------------------------------------------------------------------------


def test_drop_recycles_every_frame_directly(bench: Bench) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        bench.turn(forwarder, numbered(500))
        report = forwarder.snapshot()
    assert (report.received, report.sent, report.engine.dropped) == (500, 0, 500)
    stats = bench.pool.stats()
    assert stats.recycle_cached == 500
    assert stats.alloc_slow <= 2, "after the first bulks the Umem is not asked again"
    assert bench.kernels[0].rx_dropped == 0


def test_forward_sends_every_packet_unchanged_and_in_order(bench: Bench) -> None:
    content = numbered(500)
    with closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder:
        bench.turn(forwarder, content)
        report = forwarder.snapshot()
    assert bench.sent == [[], content]
    assert (report.received, report.sent, report.completed) == (500, 500, 500)
    assert (report.engine.forwarded, report.engine.dropped, report.engine.refused) == (500, 0, 0)
    assert report.ports[0].stats.tx_packets == 0


def test_both_ways_at_once(bench: Bench) -> None:
    content = numbered(200)
    with closing(bench.forwarder({0: Route(FORWARD(1)), 1: Route(FORWARD(0))})) as forwarder:
        for i in range(0, 200, 20):
            for port, kernel in zip(bench.ports, bench.kernels, strict=True):
                port.fill()
                assert kernel.deliver(content[i : i + 20]) == 20
            forwarder.run(DEADLINE, packets=40)
            bench.finish(forwarder)
    assert bench.sent == [content, content]


def test_reflect_swaps_addresses_and_sends_back(bench: Bench) -> None:
    content = numbered(100)
    with closing(bench.forwarder({1: Route(TX, Rewrite(swap=True))})) as forwarder:
        bench.turn(forwarder, content, source=1)
        assert forwarder.snapshot().engine.reflected == 100
    assert bench.sent == [[], [packet[6:12] + packet[:6] + packet[12:] for packet in content]]


@pytest.mark.parametrize(
    ("rewrite", "header"),
    [
        (Rewrite(), b"ddddddssssss"),
        (Rewrite(swap=True), b"ssssssdddddd"),
        (Rewrite(dst=b"AAAAAA"), b"AAAAAAssssss"),
        (Rewrite(src="42:42:42:42:42:42"), b"ddddddBBBBBB"),
        (Rewrite(dst=b"AAAAAA", src=b"BBBBBB"), b"AAAAAABBBBBB"),
        (Rewrite(swap=True, dst=b"AAAAAA"), b"AAAAAAdddddd"),
    ],
)
def test_rewrites_touch_the_addresses_only(bench: Bench, rewrite: Rewrite, header: bytes) -> None:
    long, short = b"ddddddssssss" + bytes(range(50)), b"ddddddsssssst"
    with closing(bench.forwarder({0: Route(FORWARD(1), rewrite)})) as forwarder:
        bench.turn(forwarder, [long, short])
    assert bench.sent[1] == [header + long[12:], short], "what has no whole Ethernet header stays as it is"


def test_a_port_without_a_route_receives_nothing(bench: Bench) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        for port in bench.ports:
            port.fill()
        bench.kernels[1].deliver(5)
        forwarder.run(0.005)
        assert forwarder.snapshot().received == 0
        assert bench.ports[1].ring_levels()["rx"] == 5


def test_packets_are_received_only_when_there_is_room_to_send_them(bench: Bench) -> None:
    """Overload: the kernel of port 1 sends nothing. What does not fit waits in RX, and nothing is dropped in here."""
    content = numbered(120)
    with closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder:
        received = 0
        for start in range(0, 120, 20):
            bench.ports[0].fill(20)
            received += bench.kernels[0].deliver(content[start : start + 20])
            forwarder.run(0.003)
        assert received == 120
        report = forwarder.snapshot()
        assert (report.received, report.sent) == (64, 64), "the TX ring holds 64"
        assert bench.ports[0].ring_levels()["rx"] == 56
        while bench.ports[0].ring_levels()["rx"] or bench.kernels[1].waiting():
            bench.finish(forwarder)
            forwarder.run(0.003)
        report = forwarder.snapshot()
        assert (report.engine.refused, report.engine.dropped) == (0, 0)
    assert bench.sent[1] == content


def test_a_port_that_only_sends_keeps_fill_stocked_while_it_runs(bench: Bench) -> None:
    port = small_port(bench.pool, replace(SMALL, receive=False, fill_level=16))
    with closing(Forwarder([port])) as forwarder:
        forwarder.run(0.001)
        assert FakeKernel(port).filled() == 16


@pytest.mark.parametrize("level", [1, 2, 3, 32])
def test_fill_never_runs_dry_at_any_level(bench: Bench, level: int) -> None:
    port = small_port(bench.pool, replace(SMALL, fill_level=level))
    kernel = FakeKernel(port)
    with closing(Forwarder([port], {0: Route(DROP)})) as forwarder:
        for i in range(20):
            forwarder.run(0.0)
            assert kernel.deliver(1) == 1, i
            forwarder.run(DEADLINE, packets=1)
    assert kernel.rx_dropped == 0


def test_packets_under_way_are_completed_at_the_end_of_a_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "DRAIN_WITHIN", DEADLINE)
    bench.ports[0].fill()
    bench.kernels[0].deliver(10)
    done = threading.Event()

    def kernel() -> None:
        while not done.is_set():
            bench.kernels[1].send()

    helper = threading.Thread(target=kernel)
    helper.start()
    try:
        with closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder:
            report = forwarder.run(DEADLINE, packets=10)
    finally:
        done.set()
        helper.join()
    assert report.completed == 10
    assert report.frames["tx"] == 0


# Threads and life ---------------------------------------------------------------------------------------------------


def test_a_pool_owned_by_another_thread_is_an_error_even_if_fill_is_stocked(bench: Bench) -> None:
    for port in bench.ports:
        port.fill()
    sender = small_port(bench.pool, replace(SMALL, receive=False))
    sender.fill()
    for routes, ports in (({0: Route(DROP)}, bench.ports), ({}, [sender])):
        with closing(Forwarder(ports, routes)) as forwarder:
            if not routes:
                forwarder._generate(Template((b"x" * 60,)), 5, 0.0)
            with pytest.raises(WrongThreadError, match="another thread owns"):
                elsewhere(partial(forwarder.run, DEADLINE))
    with closing(bench.forwarder(handler=lambda _: DROP)) as forwarder, pytest.raises(WrongThreadError):
        elsewhere(partial(forwarder.run, DEADLINE))


def test_a_run_in_its_own_thread_owns_the_pools_and_lets_go_of_them(bench: Bench) -> None:
    bench.ports[0].fill()
    bench.pool.unbind()
    bench.kernels[0].deliver(20)
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        forwarder.start()
        with pytest.raises(ConfigError, match="running already"):
            forwarder.start()
        until(lambda: forwarder.snapshot().received == 20)
        forwarder.stop()
        report = forwarder.join()
        assert report.engine.dropped == 20
        assert bench.pool.owner_tid == 0
        assert forwarder.run(0.0).received == 20, "the stop was obeyed, and is forgotten"


def test_join_raises_what_the_run_raised(bench: Bench) -> None:
    def handle(batch: Batch) -> int:
        raise ValueError("in the thread")

    bench.ports[0].fill()
    bench.pool.unbind()
    bench.kernels[0].deliver(1)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        forwarder.start(DEADLINE)
        with pytest.raises(ValueError, match="in the thread"):
            forwarder.join()


def test_an_idle_worker_sleeps_and_stop_wakes_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "SLICE", 1000.0)
    bench.pool.unbind()
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        forwarder.start()
        until(lambda: forwarder.snapshot().engine.sleeps > 0)
        forwarder.stop()
        assert forwarder.join().engine.idle_rounds > 0


def test_on_tick_is_called_and_what_it_raises_ends_the_run(bench: Bench) -> None:
    ticks = 0

    def tick(forwarder: Forwarder) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 3:
            raise KeyboardInterrupt

    with closing(bench.forwarder({0: Route(DROP)})) as forwarder, pytest.raises(KeyboardInterrupt):
        forwarder.run(on_tick=tick)
    assert ticks == 3


def test_a_handler_sees_its_forwarders_ports_in_the_batch_and_in_parts_of_it(bench: Bench) -> None:
    def handle(batch: Batch) -> int:
        seen.append(batch.ports)
        seen.extend(part.ports for part in (batch[:1], batch.copy()))
        assert batch.port is not None
        return FORWARD(1 - batch.ports.index(batch.port))

    seen: list[tuple[Port, ...]] = []
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, numbered(20))
        assert set(seen) == {tuple(bench.ports)}
    assert bench.pool.alloc(0).ports == ()
    assert bench.sent[1] == numbered(20)


def test_on_tick_is_called_in_the_thread_that_start_makes(bench: Bench) -> None:
    def tick(forwarder: Forwarder) -> None:
        threads.add(threading.current_thread())
        forwarder.stop()

    threads: set[threading.Thread] = set()
    bench.pool.unbind()
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        forwarder.start(DEADLINE, on_tick=tick)
        assert forwarder.join().seconds < DEADLINE
    assert len(threads) == 1
    assert threading.current_thread() not in threads


@pytest.mark.parametrize("verdict", [KEEP, 3, 0x7F, 256, -1, FORWARD(2), FORWARD(63)])
def test_routes_that_lead_nowhere_are_refused(bench: Bench, verdict: int) -> None:
    with pytest.raises(ConfigError, match="route of port 0"):
        bench.forwarder({0: Route(verdict)})


@pytest.mark.parametrize(("source", "verdict"), [(0, FORWARD(1)), (1, TX)])
def test_a_route_to_a_port_that_cannot_send_is_refused(bench: Bench, source: int, verdict: int) -> None:
    deaf = small_port(bench.pool, replace(SMALL, transmit=False))
    with pytest.raises(ConfigError, match="which cannot send"):
        Forwarder([bench.ports[0], deaf], {source: Route(verdict)})


def test_a_route_for_a_port_that_is_not_there_is_refused(bench: Bench) -> None:
    with pytest.raises(ConfigError, match="ports 0 to 1"):
        bench.forwarder({2: Route(DROP)})


def test_a_forwarder_that_cannot_be_made_leaves_nothing_behind(bench: Bench) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(ConfigError):
            bench.forwarder({0: Route(FORWARD(5))})
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forwarder_needs_ports_of_one_umem_and_a_possible_batch(bench: Bench) -> None:
    with conserved() as strange, FramePool(strange) as pool:
        other = small_port(pool)
        with pytest.raises(ConfigError, match="share one Umem"):
            Forwarder([bench.ports[0], other])
    with pytest.raises(ConfigError, match="needs a port"):
        Forwarder([])
    with pytest.raises(ConfigError, match="1 to 1024"):
        Forwarder(bench.ports, batch=0)


@pytest.mark.parametrize("wrong", ["", "02:00:00:00:00", "zz:00:00:00:00:00", b"12345", b"1234567"])
def test_what_is_no_mac_is_refused(bench: Bench, wrong: str | bytes) -> None:
    with pytest.raises(ConfigError, match="not a MAC"):
        mac(wrong)
    with pytest.raises(ConfigError):
        bench.forwarder({0: Route(TX, Rewrite(dst=wrong))})


def test_mac_addresses_are_read_as_people_write_them() -> None:
    assert mac("02:00:00:00:00:0a") == mac("02-00-00-00-00-0A") == mac(b"\2\0\0\0\0\n") == b"\2\0\0\0\0\n"


def test_closing_is_idempotent_and_final(bench: Bench) -> None:
    forwarder = bench.forwarder({0: Route(DROP)})
    with forwarder:
        pass
    forwarder.close()
    forwarder.stop()
    for call in (forwarder.run, forwarder.snapshot):
        with pytest.raises(PoolClosedError):
            call()
    assert all(port.fileno() == -1 for port in bench.ports), "what was given to it stays open"


def test_closing_ends_a_run_in_its_own_thread(bench: Bench) -> None:
    bench.pool.unbind()
    forwarder = bench.forwarder({0: Route(DROP)})
    forwarder.start()
    forwarder.close()
    assert bench.pool.owner_tid == 0
