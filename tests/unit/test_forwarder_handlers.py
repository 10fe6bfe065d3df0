"""Handlers on rings in memory: every packet gets its verdict, and no frame is lost whatever a handler does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE, Bench, forwarding, numbered

from afxdp_pool import (
    DROP,
    FORWARD,
    KEEP,
    TX,
    Batch,
    DoubleFreeError,
    Forwarder,
    VerdictError,
    per_packet,
)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


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
