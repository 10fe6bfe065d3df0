"""The tx path on rings in memory: templates in turn, numbers, checksums, counts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench import START, Bench, forwarding
from support import SMALL, conserved, small_port
from test_tx_requests import as_device

from afxdp_pool import (
    ConfigError,
    Forwarder,
    FramePool,
    PortConfig,
    Template,
)
from afxdp_pool.config import TX_ROOM
from afxdp_pool.routes import STAMP_EVERY_NS
from afxdp_pool.testing import packets as test_packets
from afxdp_pool.testing.rings import FakeKernel, Sent


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


SENDS = replace(SMALL, receive=False)
MULTI = replace(SENDS, multi_buffer=True)
LONG = (test_packets.build(9000), test_packets.build(64, flow=1), test_packets.build(5000, flow=2))


# The tx path --------------------------------------------------------------------------------------------------------


def transmitted(
    bench: Bench, template: Template, count: int, *, config: PortConfig = SENDS, **options: Any
) -> tuple[list[bytes], Forwarder]:
    """Everything a forwarder sends from `template`, and the forwarder."""
    port = small_port(bench.pool, config)
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


def test_packets_longer_than_a_frame_go_in_several(bench: Bench) -> None:
    """Frames come back with other parts than they had: each has what is behind its head from its own part."""
    sent, forwarder = transmitted(bench, Template(LONG, sequence_at=50, checksum_at=40), 300, config=MULTI)
    parsed = [test_packets.parse(packet) for packet in sent]
    assert parsed == [test_packets.TestPacket(flow=i % 3, seq=i // 3, size=len(LONG[i % 3])) for i in range(300)]
    stats = forwarder.ports[0].stats()
    assert (stats.tx_packets, stats.tx_parts, stats.tx_completed_parts) == (300, 300, 300)


@pytest.mark.parametrize("frames", [2, 3, 5])
def test_a_ring_that_is_nearly_full_takes_whole_packets(bench: Bench, frames: int) -> None:
    with FramePool(bench.umem, quota=96) as pool:
        port = small_port(pool, MULTI)
        kernel = FakeKernel(port, first_index=START)
        assert port.fill() == 32
        held = pool.alloc(64 - frames)
        with closing(Forwarder([port], batch=16, spin=0)) as forwarder:
            forwarder._generate(Template((test_packets.build(9000),), sequence_at=50, checksum_at=40), 20, 0.0)
            sent: list[bytes] = []
            for _ in range(40):
                forwarder.run(0.0)
                sent += kernel.send()
                assert port.stats().in_tx <= frames
        assert [packet and packet.seq for packet in map(test_packets.parse, sent)] == list(range(20 * (frames > 2)))
        pool.put(held)


def whole(parts: list[Sent]) -> list[list[Sent]]:
    """The frames of each packet."""
    ends = [at + 1 for at, part in enumerate(parts) if not part.options & 1]
    return [parts[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("config", [SENDS, MULTI])
def test_checksums_are_left_to_who_sends_them(config: PortConfig) -> None:
    flows = LONG if config.multi_buffer else (test_packets.build(64), test_packets.build(800, flow=1))
    with conserved(headroom=TX_ROOM) as umem, FramePool(umem) as pool:
        port = small_port(pool, replace(config, tx_metadata=("checksum",)))
        kernel = FakeKernel(port)
        with closing(Forwarder([port], batch=16)) as forwarder:
            forwarder._generate(Template(flows, sequence_at=50, checksum_at=40), 200, 0.0)
            sent: list[bytes] = []
            while len(sent) < 200:
                forwarder.run(0.001)
                parts = kernel.take_tx()
                for packet in whole(parts):
                    data = b"".join(part.data for part in packet)
                    assert test_packets.parse(data) is None, "it is not filled in yet"
                    sent.append(as_device(umem, replace(packet[0], data=data)))
                kernel.complete(parts)
                port.complete(64)
        each = len(flows)
        assert [test_packets.parse(packet) for packet in sent] == [
            test_packets.TestPacket(i % each, i // each, len(flows[i % each])) for i in range(200)
        ]
        assert len(port.take_timestamps().number) == 0


@pytest.mark.usefixtures("bench")
def test_what_has_no_checksum_asks_for_none() -> None:
    with conserved(headroom=TX_ROOM) as umem, FramePool(umem) as pool:
        port = small_port(pool, replace(SENDS, tx_metadata=("checksum",)))
        kernel = FakeKernel(port)
        with closing(Forwarder([port], batch=2)) as forwarder:
            forwarder._generate(Template((LONG[1], b"no datagram")), 2, 0.0)
            forwarder.run(0.0)
            assert [part.options for part in kernel.take_tx(2)] == [2, 0]


@pytest.mark.usefixtures("bench")
@pytest.mark.parametrize("config", [SENDS, MULTI])
def test_a_packet_now_and_then_is_asked_when_it_is_sent(config: PortConfig) -> None:
    with conserved(headroom=TX_ROOM) as umem, FramePool(umem) as pool:
        port = small_port(pool, replace(config, tx_metadata=("timestamp",)))
        kernel = FakeKernel(port)
        with closing(Forwarder([port], batch=16)) as forwarder:
            forwarder._generate(Template((test_packets.build(9000 if config.multi_buffer else 64),)), 10**6, 0.0)
            before = time.clock_gettime_ns(time.CLOCK_TAI)
            asked = 0
            while asked < 20:
                forwarder.run(0.0)
                parts = kernel.take_tx()
                asked += sum(part.options >> 1 for part in parts)
                kernel.complete(parts)
                port.complete(64)
            stamps = port.take_timestamps(1000)
            after = time.clock_gettime_ns(time.CLOCK_TAI)
        assert len(stamps.number) == asked
        assert (np.diff(stamps.number.astype(np.int64)) >= STAMP_EVERY_NS).all()
        assert before <= stamps.number[0] <= stamps.number[-1] <= after


def test_what_cannot_go_in_several_frames_is_refused(bench: Bench) -> None:
    for config, template, says in (
        (SENDS, Template((bytes(9000),)), "multi_buffer"),
        (MULTI, Template((bytes(60_000),)), "18 together"),
        (MULTI, Template((bytes(9000),), sequence_at=4090), "beyond the first frame"),
        (replace(MULTI, tx_metadata=("launch_time",)), Template((bytes(60),)), "pace them by rate"),
    ):
        with (
            conserved(frame_size=2048 if len(template.packets[0]) > 9000 else 4096, headroom=TX_ROOM) as umem,
            FramePool(umem) as pool,
            closing(small_port(pool, config)) as port,
            closing(Forwarder([port])) as forwarder,
            pytest.raises(ConfigError, match=says),
        ):
            forwarder._generate(template, 1, 0.0)


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


@pytest.mark.usefixtures("bench")
def test_a_frame_that_somebody_else_wrote_to_is_written_anew() -> None:
    """Frames keep what is behind their heads from one packet to the next, but only as long as nobody had them."""
    packet = bytes(range(200))
    with conserved(128) as umem, FramePool(umem) as pool:
        port = small_port(pool, replace(SMALL, receive=False))
        kernel = FakeKernel(port)
        with closing(Forwarder([port], batch=16)) as forwarder:
            forwarder._generate(Template((packet,)), 400, 0.0)
            sent: list[bytes] = []
            while len(sent) < 400:
                forwarder.run(0.001)
                sent += kernel.send()
                mine = pool.alloc(5)
                for index in range(len(mine)):
                    mine.write(index, b"?" * 300)
                pool.put(mine)
                pool.unbind()
            forwarder.run(0.001)
            sent += kernel.send()
    assert set(sent) == {packet}


@pytest.mark.usefixtures("bench")
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
