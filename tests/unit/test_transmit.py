"""The tx path on rings in memory: templates in turn, numbers, checksums, counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench import START, Bench, forwarding
from support import SMALL, conserved, small_port

from afxdp_pool import (
    ConfigError,
    Forwarder,
    FramePool,
    Template,
)
from afxdp_pool.testing import packets as test_packets
from afxdp_pool.testing.rings import FakeKernel


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


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
