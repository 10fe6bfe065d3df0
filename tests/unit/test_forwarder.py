"""The worker's loop on rings in memory: exact counts, order, content, and no frame lost whatever a handler does."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support import SMALL, conserved, elsewhere, small_port, until

import afxdp_pool.forwarder as forwarder_module
from afxdp_pool import (
    DROP,
    FORWARD,
    KEEP,
    TX,
    Batch,
    ConfigError,
    DoubleFreeError,
    Forwarder,
    FramePool,
    PoolClosedError,
    Rewrite,
    Route,
    Template,
    Umem,
    VerdictError,
    WrongThreadError,
    per_packet,
)
from afxdp_pool.forwarder import mac
from afxdp_pool.handlers import Handler
from afxdp_pool.testing import packets as test_packets
from afxdp_pool.testing.rings import FakeKernel

START = (1 << 32) - 100  # indices wrap within the test
DEADLINE = 20.0  # nothing takes that long; a loop that hangs ends there


@pytest.fixture(autouse=True)
def _short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwarder_module, "SLICE", 0.001)
    monkeypatch.setattr(forwarder_module, "DRAIN_WITHIN", 0.0)


class Bench:
    """Two ports, their kernels, and what each was asked to send."""

    def __init__(self, umem: Umem) -> None:
        self.umem = umem
        self.pool = FramePool(umem)
        self.ports = [small_port(self.pool), small_port(self.pool)]
        self.kernels = [FakeKernel(port, first_index=START) for port in self.ports]
        self.sent: list[list[bytes]] = [[], []]

    def forwarder(
        self, routes: Mapping[int, Route] | None = None, *, handler: Handler | None = None, batch: int = 16
    ) -> Forwarder:
        return Forwarder(self.ports, routes, handler=handler, batch=batch, spin=0)

    def turn(self, forwarder: Forwarder, packets: list[bytes], source: int = 0) -> None:
        """Bring packets to a port a few at a time, run until all are received, send what is to be sent."""
        at = 0
        while at < len(packets):
            self.ports[source].fill()
            n = self.kernels[source].deliver(packets[at : at + 25])
            assert n
            forwarder.run(DEADLINE, packets=n)
            at += n
            self.finish(forwarder)

    def finish(self, forwarder: Forwarder) -> None:
        for sent, kernel in zip(self.sent, self.kernels, strict=True):
            sent.extend(kernel.send())
        forwarder.run(0.0)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with conserved() as umem:
        made = Bench(umem)
        yield made
        made.pool.collect()


def numbered(n: int) -> list[bytes]:
    return [test_packets.build(64 + i % 100, seq=i) for i in range(n)]


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


# Handlers -----------------------------------------------------------------------------------------------------------


def test_a_batch_handler_decides_packet_by_packet(bench: Bench) -> None:
    content = numbered(300)
    kept: list[Batch] = []

    def handle(batch: Batch) -> Any:
        assert batch.port is bench.ports[0]
        which = batch.addr // np.uint64(4096) % np.uint64(4)
        verdicts = np.select([which == 0, which == 1, which == 2], [DROP, TX, KEEP], FORWARD(1)).astype(np.uint8)
        seen.extend(zip(verdicts.tolist(), [bytes(packet) for packet in batch], strict=True))
        kept.append(batch[verdicts == KEEP].copy())
        if sum(map(len, kept)) > 100:
            for old in kept:
                bench.pool.put(old)
            kept.clear()
        return verdicts

    seen: list[tuple[int, bytes]] = []
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, content)
        engine = forwarder.snapshot().engine
    assert [packet for _, packet in seen] == content
    assert bench.sent == [[p for v, p in seen if v == verdict] for verdict in (TX, FORWARD(1))]
    counts = [sum(v == verdict for v, _ in seen) for verdict in (DROP, TX, FORWARD(1), KEEP)]
    assert [engine.dropped, engine.reflected, engine.forwarded, engine.kept] == counts
    assert all(counts)
    assert engine.refused == 0
    for batch in kept:
        bench.pool.put(batch)


def test_per_packet_handlers_may_rewrite(bench: Bench) -> None:
    def one(packet: Any) -> int:
        packet[0] ^= 0xFF
        return FORWARD(1)

    content = numbered(60)
    with closing(bench.forwarder(handler=per_packet(one))) as forwarder:
        bench.turn(forwarder, content)
    assert bench.sent[1] == [bytes([packet[0] ^ 0xFF]) + packet[1:] for packet in content]


def test_a_handler_may_cut_and_move_packets_within_their_frames(bench: Bench) -> None:
    def strip(batch: Batch) -> int:
        batch.addr[:] += np.uint64(14)
        batch.len[:] -= np.uint32(14)
        return FORWARD(1)

    content = numbered(40)
    with closing(bench.forwarder(handler=strip)) as forwarder:
        bench.turn(forwarder, content)
    assert bench.sent[1] == [packet[14:] for packet in content]


def test_packets_of_all_ports_come_in_turn(bench: Bench) -> None:
    seen: list[int] = []

    def handle(batch: Batch) -> int:
        assert batch.port is not None
        seen.append(bench.ports.index(batch.port))
        return DROP

    for port, kernel in zip(bench.ports, bench.kernels, strict=True):
        port.fill(64)
        kernel.deliver(48)
    with closing(bench.forwarder(handler=handle, batch=16)) as forwarder:
        forwarder.run(DEADLINE, packets=96)
    assert seen == [0, 1, 0, 1, 0, 1], "a busy port does not starve the other"


Spoil = Callable[[Batch], object]
SPOILS: dict[str, Spoil] = {
    "foreign address": lambda batch: batch.addr.__setitem__(1, 1 << 50),
    "another frame's address": lambda batch: batch.addr.__setitem__(1, batch.addr[2]),
    "two exchanged": lambda batch: batch.descs.__setitem__(slice(None), batch.descs[::-1].copy()),
    "too long": lambda batch: batch.len.__setitem__(1, 5000),
    "no length": lambda batch: batch.len.__setitem__(slice(None), 0),
    "generation": lambda batch: batch.descs["gen"].__iadd__(1),
    "all zero": lambda batch: batch.descs.__setitem__(slice(None), 0),
    "all ones": lambda batch: batch.descs.view(np.uint8).__setitem__(slice(None), 0xFF),
}


@pytest.mark.parametrize("name", SPOILS)
@pytest.mark.parametrize("verdict", [DROP, TX, FORWARD(1)])
def test_descriptors_a_handler_spoils_never_lose_a_frame(bench: Bench, name: str, verdict: int) -> None:
    batches = 0

    def handle(batch: Batch) -> int:
        nonlocal batches
        batches += 1
        SPOILS[name](batch)
        return verdict

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, numbered(100))
        engine = forwarder.snapshot().engine
    audit = bench.umem.audit().check()
    assert (audit.app, audit.tx) == (0, 0)
    sent = sum(map(len, bench.sent))
    assert engine.dropped + engine.reflected + engine.forwarded + engine.refused == 100
    assert engine.reflected + engine.forwarded == sent
    assert (engine.refused > 0) == (verdict != DROP)


@pytest.mark.parametrize("verdict", [DROP, TX, FORWARD(1), KEEP])
def test_a_handler_that_puts_the_frames_itself_gives_them_back_once(bench: Bench, verdict: int) -> None:
    def handle(batch: Batch) -> int:
        bench.pool.put(batch)
        return verdict

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, numbered(50))
    assert bench.sent == [[], []]
    assert bench.umem.audit().check().app == 0


def test_a_handler_may_keep_what_it_also_sends(bench: Bench) -> None:
    kept: list[Batch] = []

    def mirror(batch: Batch) -> int:
        bench.pool.ref(batch)
        assert bench.ports[0].transmit(batch) == len(batch)
        bench.pool.ref(batch)
        kept.append(batch.copy())
        return FORWARD(1)

    content = numbered(50)
    with closing(bench.forwarder(handler=mirror)) as forwarder:
        bench.turn(forwarder, content)
    assert bench.sent == [content, content]
    assert [bytes(packet) for batch in kept for packet in batch] == content
    for batch in kept:
        bench.pool.put(batch)
        with pytest.raises(DoubleFreeError):
            bench.pool.put(batch)


@pytest.mark.parametrize("wrong", [None, -1, 1.5, [0], "drop"])
def test_a_handler_without_verdicts_is_an_error_and_its_packets_are_dropped(bench: Bench, wrong: Any) -> None:
    with closing(bench.forwarder(handler=lambda _: wrong)) as forwarder:
        bench.ports[0].fill()
        bench.kernels[0].deliver(10)
        with pytest.raises(VerdictError):
            forwarder.run(DEADLINE)
        assert forwarder.snapshot().engine.dropped == 10
        assert bench.umem.audit().check().app == 0
        assert bench.pool.owner_tid == threading.get_native_id(), "this thread had bound it before"


@pytest.mark.parametrize("verdict", [3, 0x7F, FORWARD(2), FORWARD(63), 0xFF])
def test_verdicts_that_lead_nowhere_are_an_error_and_their_packets_are_dropped(bench: Bench, verdict: int) -> None:
    def handle(batch: Batch) -> Any:
        verdicts = np.full(len(batch), FORWARD(1), np.uint8)
        verdicts[3:5] = verdict
        return verdicts

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.ports[0].fill()
        bench.kernels[0].deliver(10)
        with pytest.raises(VerdictError, match="2 verdicts"):
            forwarder.run(DEADLINE)
        bench.finish(forwarder)
        assert forwarder.snapshot().engine.refused == 2
    assert len(bench.sent[1]) == 8


def test_what_a_handler_raises_comes_out_with_nothing_lost(bench: Bench) -> None:
    def handle(batch: Batch) -> int:
        raise KeyError("mine")

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.ports[0].fill()
        bench.kernels[0].deliver(20)
        with pytest.raises(KeyError, match="mine"):
            forwarder.run(DEADLINE)
        assert bench.umem.audit().check().app == 0


class _Endless:
    """A handler whose every batch brings the next: load that never pauses."""

    def __init__(self, bench: Bench, limit: int) -> None:
        self.bench = bench
        self.limit = limit
        self.calls = 0

    def __call__(self, batch: Batch) -> int:
        self.calls += 1
        assert self.calls < self.limit, "the run did not end"
        self.bench.ports[0].fill(1)
        assert self.bench.kernels[0].deliver(1)
        return DROP


def test_stop_ends_a_handler_under_load_that_never_pauses(bench: Bench) -> None:
    endless = _Endless(bench, 5000)

    def handle(batch: Batch) -> int:
        if endless.calls == 9:
            forwarder.stop()
        return endless(batch)

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.ports[0].fill(4)
        bench.kernels[0].deliver(4)
        forwarder.run(DEADLINE)
    assert endless.calls == 10


def test_the_deadline_ends_a_handler_under_load_that_never_pauses(bench: Bench) -> None:
    endless = _Endless(bench, 500_000)
    ticks: list[Forwarder] = []
    with closing(bench.forwarder(handler=endless)) as forwarder:
        bench.ports[0].fill(4)
        bench.kernels[0].deliver(4)
        forwarder.run(0.05, on_tick=ticks.append)
    assert endless.calls > 10
    assert ticks


# The tx path --------------------------------------------------------------------------------------------------------


def transmitted(bench: Bench, template: Template, count: int, **options: Any) -> tuple[list[bytes], Forwarder]:
    """Everything a forwarder sends from `template`, and the forwarder."""
    port = small_port(bench.pool, replace(SMALL, receive=False))
    kernel = FakeKernel(port, first_index=START)
    forwarder = Forwarder([port], batch=16, spin=0)
    forwarder._generate(template, count, options.pop("rate", 0.0))
    sent: list[bytes] = []
    with closing(forwarder):
        while len(sent) < count:
            forwarder.run(0.002)
            sent += kernel.send()
        forwarder.run(0.002)
        report = forwarder.snapshot()
    assert kernel.send() == []
    assert (report.sent, report.completed) == (count, count)
    return sent, forwarder


def test_the_tx_path_numbers_packets_and_keeps_their_checksums_right(bench: Bench) -> None:
    sent, _ = transmitted(bench, Template((test_packets.build(90),), sequence_at=50, checksum_at=40), 1000)
    parsed = [test_packets.parse(packet) for packet in sent]
    assert parsed == [test_packets.TestPacket(flow=0, seq=i, size=90) for i in range(1000)]


def test_several_templates_are_sent_in_turn_each_with_its_own_numbers(bench: Bench) -> None:
    flows = tuple(test_packets.build(70 + 11 * flow, flow=flow) for flow in range(3))
    sent, _ = transmitted(bench, Template(flows, sequence_at=50, checksum_at=40), 100)
    parsed = [test_packets.parse(packet) for packet in sent]
    assert parsed == [test_packets.TestPacket(flow=i % 3, seq=i // 3, size=70 + 11 * (i % 3)) for i in range(100)]


def test_a_template_without_number_is_sent_as_it_is(bench: Bench) -> None:
    sent, _ = transmitted(bench, Template((b"x" * 60, b"y" * 1514)), 65)
    assert sent == [b"x" * 60 if i % 2 == 0 else b"y" * 1514 for i in range(65)]


def test_a_number_alone_leaves_the_rest_alone(bench: Bench) -> None:
    sent, _ = transmitted(bench, Template((bytes(64),), sequence_at=7), 300)
    assert sent == [bytes(7) + i.to_bytes(8, "big") + bytes(49) for i in range(300)]


@pytest.mark.parametrize("seed", range(4))
def test_checksums_stay_right_for_any_content(bench: Bench, seed: int) -> None:
    """Sequence numbers start at 0, so big ones are had from a generator that has sent many."""
    random = np.random.default_rng(seed)
    port = small_port(bench.pool, replace(SMALL, receive=False))
    kernel = FakeKernel(port)
    with closing(Forwarder([port], batch=16)) as forwarder:
        forwarder._generate(Template((test_packets.build(64),), sequence_at=50, checksum_at=40), 0, 0.0)
        for _ in range(50):
            first = int(random.integers(0, 1 << 63)) * 2 + int(random.integers(0, 2))
            first = min(first | (0xFFFF << int(random.integers(0, 48))), (1 << 64) - 100)
            forwarder.native.generator.sent = first
            forwarder.run(0.0)
            seqs = [packet.seq for packet in map(test_packets.parse, kernel.send()) if packet is not None]
            assert seqs[:16] == list(range(first, first + len(seqs)))[:16]
            assert len(seqs) >= 16
            port.complete(64)


def test_a_rate_is_kept_on_average(bench: Bench) -> None:
    port = small_port(bench.pool, replace(SMALL, receive=False))
    kernel = FakeKernel(port)
    with closing(Forwarder([port], batch=16, spin=0)) as forwarder:
        forwarder._generate(Template((b"x" * 60,)), 0, 1.0)
        report = forwarder.run(0.02)
        assert report.sent == 1, "at one a second only the first is due"
        kernel.send()


def test_no_more_than_count_is_sent(bench: Bench) -> None:
    sent, _ = transmitted(bench, Template((b"x" * 60,)), 1)
    assert sent == [b"x" * 60]


def test_tx_goes_on_when_frames_come_back() -> None:
    """Fewer frames than the TX ring holds: the generator waits for completions, and loses nothing."""
    with conserved(128) as umem, FramePool(umem) as pool:
        port = small_port(pool, replace(SMALL, receive=False))
        kernel = FakeKernel(port)
        held = pool.alloc(90)
        with closing(Forwarder([port], batch=16)) as forwarder:
            forwarder._generate(Template((b"x" * 60,)), 100, 0.0)
            total = 0
            while total < 100:
                forwarder.run(0.001)
                got = kernel.send()
                assert 0 < len(got) <= 38
                total += len(got)
            forwarder.run(0.001)
        pool.put(held)


@pytest.mark.parametrize(
    ("packets", "options"),
    [
        ((), {}),
        ((b"",), {}),
        ((b"x" * 60, b""), {}),
        ((b"x" * 60,), {"sequence_at": 53}),
        ((b"x" * 60,), {"checksum_at": 59}),
        ((b"x" * 60,), {"sequence_at": -8}),
        ((b"x" * 60,), {"checksum_at": -2}),
        ((b"x" * 60,), {"sequence_at": 43, "checksum_at": 40}),
    ],
)
def test_templates_that_cannot_be_sent_are_refused(packets: tuple[bytes, ...], options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        Template(packets, **options)


def test_templates_at_the_limit_are_taken() -> None:
    assert Template((b"x",)).packets == (b"x",)
    assert Template((b"x" * 60,), sequence_at=52, checksum_at=50).sequence_at == 52


def test_a_template_that_fits_no_frame_is_refused() -> None:
    with conserved(frame_size=2048, headroom=64) as umem, FramePool(umem) as pool:
        port = small_port(pool)
        with closing(Forwarder([port])) as forwarder:
            forwarder._generate(Template((b"x" * 1984,)), 1, 0.0)
            for wrong, count, rate in ((b"x" * 1985, 1, 0.0), (b"x" * 60, -1, 0.0), (b"x" * 60, 0, -1.0)):
                with pytest.raises(ConfigError):
                    forwarder._generate(Template((wrong,)), count, rate)


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
                elsewhere(lambda one=forwarder: one.run(DEADLINE))
    with closing(bench.forwarder(handler=lambda _: DROP)) as forwarder, pytest.raises(WrongThreadError):
        elsewhere(lambda: forwarder.run(DEADLINE))


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
