"""Packets of several frames, on rings in memory: whole or not at all, on every path, whatever the kernel says."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE
from hypothesis import given, settings
from hypothesis import strategies as st
from support import SMALL, conserved

import afxdp_pool.forwarder as forwarder_module
from afxdp_pool import (
    DROP,
    FORWARD,
    KEEP,
    TX,
    Batch,
    ConfigError,
    DoubleFreeError,
    ForeignFrameError,
    Forwarder,
    Frame,
    FrameGoneError,
    FramePool,
    Frames,
    InvalidDescriptorError,
    Port,
    PortConfig,
    Rewrite,
    RingSizeError,
    Route,
    Umem,
    compiled,
    per_packet,
)
from afxdp_pool.binding import max_frames
from afxdp_pool.chain import CONTD
from afxdp_pool.handlers import Handler
from afxdp_pool.netdev import Netdev
from afxdp_pool.testing.rings import FakeKernel

MULTI = replace(SMALL, multi_buffer=True)
ROOM = 2048 - 256  # of a received frame, of those below


def content(length: int, seed: int = 0) -> bytes:
    return random.Random(length * 1000 + seed).randbytes(length)


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_a_kernel_that_is_this_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwarder_module, "DRAIN_WITHIN", 0.0)
        yield


@pytest.fixture
def umem() -> Iterator[Umem]:
    with conserved(frame_size=2048) as made:
        yield made


@pytest.fixture
def pool(umem: Umem) -> Iterator[FramePool]:
    with FramePool(umem) as made:
        yield made


@pytest.fixture
def port(pool: FramePool) -> Port:
    port = Port.in_memory(pool, MULTI)
    port.fill()
    return port


@pytest.fixture
def kernel(port: Port) -> FakeKernel:
    return FakeKernel(port)


# Receiving ----------------------------------------------------------------------------------------------------------


def test_a_batch_counts_packets_and_shows_the_first_frame_of_each(port: Port, kernel: FakeKernel) -> None:
    packets = [content(100), content(ROOM), content(ROOM + 1), content(4 * ROOM), content(5000)]
    assert kernel.deliver(packets) == 5
    batch = port.receive()
    assert len(batch) == 5
    assert batch.len.tolist() == [100, ROOM, ROOM, ROOM, ROOM]
    assert batch.lengths.tolist() == [len(packet) for packet in packets]
    assert batch.starts.tolist() == [0, 1, 2, 4, 8, 11]
    assert [batch.whole(i) for i in range(-5, 5)] == packets * 2
    assert bytes(batch[3]) == packets[3][:ROOM]
    assert batch.load(0, "<u4").tolist() == [int.from_bytes(packet[:4], "little") for packet in packets]
    parts = batch.parts
    assert b"".join(map(bytes, parts[batch.starts[4] : batch.starts[5]])) == packets[4]
    assert port.pool.put(batch) == 5
    stats = port.stats()
    assert (stats.rx_packets, stats.rx_parts, stats.rx_bytes) == (5, 6, sum(map(len, packets)))
    with pytest.raises(IndexError):
        batch.whole(5)


def test_a_batch_of_short_packets_is_as_any_other(port: Port, kernel: FakeKernel) -> None:
    kernel.deliver(3)
    batch = port.receive()
    assert batch.starts.tolist() == [0, 1, 2, 3]
    assert batch.lengths.tolist() == batch.len.tolist() == [64] * 3
    assert batch.whole(1) == bytes(batch[1])
    assert len(batch.parts) == 3
    port.pool.put(batch)


def test_what_is_incomplete_waits_for_its_end(port: Port, kernel: FakeKernel) -> None:
    first, second, third = kernel.take_fill(3)
    kernel.push_rx(first + 256, ROOM, CONTD)
    assert len(port.receive()) == 0
    kernel.push_rx(second + 256, ROOM, CONTD)
    assert len(port.receive()) == 0
    assert port.ring_levels()["rx"] == 2
    kernel.push_rx(third + 256, 7)
    batch = port.receive()
    assert batch.lengths.tolist() == [2 * ROOM + 7]
    port.pool.put(batch)


def test_receive_counts_packets_and_never_splits_one(port: Port, kernel: FakeKernel) -> None:
    packets = [content(n) for n in (3 * ROOM, 10, 2 * ROOM, 2 * ROOM)]
    kernel.deliver(packets)
    got = []
    while len(batch := port.receive(1)):
        assert len(batch) == 1
        got.append(batch.whole(0))
        port.pool.put(batch)
    assert got == packets
    assert len(port.receive(0)) == 0


def test_one_frame_left_in_fill_is_too_few_for_two(port: Port, kernel: FakeKernel) -> None:
    kernel.take_fill(kernel.filled() - 1)
    assert kernel.deliver([content(ROOM + 1), content(ROOM)]) == 1
    assert kernel.rx_dropped == 1
    port.pool.put(port.receive())


@pytest.mark.parametrize("frames", [62, 63, 64, 200, 1000])
def test_a_packet_without_end_is_refused_and_costs_no_frame(port: Port, kernel: FakeKernel, frames: int) -> None:
    pushed = 0
    while pushed < frames:
        assert len(port.receive()) == 0
        port.fill(1)
        pushed += kernel.push_rx(kernel.take_fill(1)[0] + 256, 100, CONTD)
    if frames > 63:
        assert len(port.receive()) == 0
    for length in (100, 60):
        port.fill(1)
        if not kernel.push_rx(kernel.take_fill(1)[0] + 256, length):
            assert frames == 63  # its end has filled RX
            continue
    batch = port.receive()
    # What fills RX has no end for us; when that comes later it belongs to what was refused.
    assert batch.lengths.tolist() == {62: [6300, 60], 63: [6400]}.get(frames, [60])
    assert bool(port.stats().rx_bad) == (frames > 63)
    port.pool.put(batch)


@pytest.mark.parametrize("bad", ["foreign", "never filled", "twice", "too long"])
def test_one_bad_descriptor_refuses_the_packet_and_no_other(port: Port, kernel: FakeKernel, bad: str) -> None:
    kernel.deliver([content(50)])
    a, b, c = kernel.take_fill(3)
    wrong = {"foreign": 1 << 40, "never filled": 300 * 2048, "twice": a + 256, "too long": b + 256}[bad]
    kernel.push_rx(a + 256, ROOM, CONTD)
    kernel.push_rx(wrong, ROOM + (bad == "too long"), CONTD)
    kernel.push_rx(c + 256, 10)
    kernel.deliver([content(2 * ROOM)])
    batch = port.receive()
    assert [batch.whole(0), batch.whole(1)] == [content(50), content(2 * ROOM)]
    stats = port.stats()
    assert (stats.rx_packets, stats.rx_bad) == (2, 1)
    assert stats.in_fill == kernel.filled() + 1  # and b, which the kernel has still
    port.pool.put(batch)


# Parts of a batch, and what is held ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [slice(1, 3), slice(None, None, -2), [3, 0], np.array([1, 0, 1, 0], bool), slice(0, 0)])
def test_a_part_of_a_batch_has_whole_packets(port: Port, kernel: FakeKernel, key: Any) -> None:
    packets = [content(n) for n in (3 * ROOM, 10, 2 * ROOM, ROOM + 9)]
    kernel.deliver(packets)
    batch = port.receive()
    part = batch[key]
    which = np.arange(4)[key].tolist()
    assert [part.whole(i) for i in range(len(part))] == [packets[i] for i in which]
    again = part[:1]
    assert [again.whole(i) for i in range(len(again))] == [packets[i] for i in which[:1]]
    rest = batch[np.setdiff1d(np.arange(4), which)]
    assert port.pool.put(part) + port.pool.put(rest) == 4


def test_a_changed_start_is_the_packets_own(port: Port, kernel: FakeKernel) -> None:
    kernel.deliver([content(2 * ROOM), content(ROOM + 1)])
    batch = port.receive()
    batch.addr[:] += 14
    batch.len[:] -= 14
    assert batch.whole(1) == content(ROOM + 1)[14:]
    assert batch[1:].whole(0) == content(ROOM + 1)[14:]
    assert batch.lengths.tolist() == [2 * ROOM - 14, ROOM - 13]
    assert port.transmit(batch) == 2
    assert kernel.send() == [content(2 * ROOM)[14:], content(ROOM + 1)[14:]]
    assert port.complete() == 4


def test_a_frame_holds_the_whole_packet(port: Port, kernel: FakeKernel) -> None:
    kernel.deliver([content(64), content(3 * ROOM)])
    batch = port.receive()
    frame = batch.keep(1)
    assert isinstance(frame, Frame)
    assert port.pool.put(batch) == 2
    assert (len(frame), frame.parts, bytes(frame)) == (3 * ROOM, 3, content(3 * ROOM))
    assert np.array(frame).tobytes() == content(3 * ROOM)
    assert len(frame.view) == ROOM
    twin = frame.clone()
    frame.close()
    assert bytes(twin) == content(3 * ROOM)
    assert port.transmit(twin) == 1
    assert twin.closed
    assert kernel.send() == [content(3 * ROOM)]
    assert port.complete() == 3
    with pytest.raises(FrameGoneError):
        bytes(twin)


def test_frames_are_joined_given_away_and_given_back_by_the_packet(port: Port, kernel: FakeKernel) -> None:
    packets = [content(n) for n in (3 * ROOM, 10, 2 * ROOM, ROOM + 9)]
    kernel.deliver(packets)
    batch = port.receive()
    one, others = batch.keep(0), batch.keep(slice(1, 4))
    port.pool.put(batch)
    with Frames.join([others, one]) as joined:
        assert [joined.whole(i) for i in range(4)] == [*packets[1:], packets[0]]
        assert port.transmit(joined[1:3]) == 2
        assert joined.left == 2
        with pytest.raises(FrameGoneError):
            port.transmit(joined)
    assert kernel.send() == packets[2:]
    assert port.complete() == 4


def test_one_packet_out_of_two_ports(pool: FramePool, port: Port, kernel: FakeKernel) -> None:
    other = Port.in_memory(pool, MULTI, "other")
    kernel.deliver([content(3 * ROOM)])
    batch = port.receive()
    pool.ref(batch)
    assert port.transmit(batch) + other.transmit(batch) == 2
    assert kernel.send() == FakeKernel(other).send() == [content(3 * ROOM)]
    assert port.complete() + other.complete() == 6
    assert pool.outstanding == port.stats().in_fill


# Sending ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_completed_packets_are_counted_in_whatever_order_their_frames_come_back(
    pool: FramePool, port: Port, kernel: FakeKernel, seed: int
) -> None:
    batch = pool.write([content(length) for length in (100, 5000, ROOM, 3000, 60)], multi_buffer=True)
    pool.ref(batch)
    assert port.transmit(batch) + port.transmit(batch) == 10, "each frame is out twice"
    sent = kernel.take_tx()
    random.Random(seed).shuffle(sent)
    for half in (sent[:9], sent[9:]):
        kernel.complete(half)
        assert port.complete(64) == len(half)
        stats = port.stats()
        assert stats.tx_completed + stats.tx_completed_parts == 16 - stats.in_tx
    assert (stats.tx_completed, stats.tx_completed_parts, stats.in_tx) == (10, 6, 0)
    # What was more of a packet is a packet of its own in its next life.
    assert port.transmit(pool.write([content(64)] * 60)) == 60
    assert len(kernel.send()) == port.complete(64) == 60
    assert (port.stats().tx_completed, port.stats().tx_completed_parts) == (70, 6)


def test_of_a_packet_all_frames_find_room_or_none(pool: FramePool, port: Port, kernel: FakeKernel) -> None:
    batch = pool.write([content(5000, i) for i in range(30)], multi_buffer=True)
    assert batch.starts[-1] == 90
    assert port.transmit(batch) == 21  # 63 of 64 places
    assert port.ring_levels()["tx"] == 63
    rest = batch[21:]
    assert port.transmit(rest) == 0
    assert kernel.send(1) == [content(5000, 0)]
    assert port.transmit(rest) == 1
    sent = kernel.send()
    while port.complete():
        sent += kernel.send()
    assert sent == [content(5000, i) for i in range(1, 22)]
    pool.put(rest[1:])
    stats = port.stats()
    assert (stats.tx_packets, stats.tx_parts) == (stats.tx_completed, stats.tx_completed_parts) == (22, 44)
    assert stats.in_tx == 0


@pytest.mark.parametrize("frames", [1, 2, 17, 18, 19])
def test_no_more_frames_than_the_device_takes(pool: FramePool, port: Port, kernel: FakeKernel, frames: int) -> None:
    most = port.info.max_frames
    assert most == 18
    batch = pool.write([content(64), content(frames * 2048), content(65)], multi_buffer=True)
    if frames <= most:
        assert port.transmit(batch) == 3
        assert kernel.send() == [content(64), content(frames * 2048), content(65)]
        assert port.complete() == frames + 2
        return
    with pytest.raises(InvalidDescriptorError, match="more frames than the device sends") as caught:
        port.transmit(batch)
    assert caught.value.done == 1
    assert kernel.send() == [content(64)]
    port.complete()
    pool.put(batch[1:])


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda pool, batch: pool.put(batch.parts[2:3]), DoubleFreeError),
        (lambda pool, batch: pool.put(batch.parts[:1]), DoubleFreeError),
    ],
)
def test_a_packet_that_lost_a_frame_is_not_sent_and_keeps_the_others(
    pool: FramePool, port: Port, kernel: FakeKernel, spoil: Any, error: type[Exception]
) -> None:
    batch = pool.write([content(5000)], multi_buffer=True)
    spoil(pool, batch)
    with pytest.raises(error):
        port.transmit(batch)
    assert port.ring_levels()["tx"] == port.stats().in_tx == 0
    with pytest.raises(DoubleFreeError):
        pool.put(batch)  # the two that are left, all the same
    assert pool.umem.audit().check().app == 0


@pytest.mark.parametrize("what", ["no end", "no length", "foreign", "option"])
def test_descriptors_that_are_no_packet_are_refused_before_one_is_lent(pool: FramePool, port: Port, what: str) -> None:
    frames = pool.alloc(3)
    frames.len[:] = 100
    frames.descs["options"] = [CONTD, CONTD, 0]
    descs = frames.descs.copy()
    if what == "no end":
        descs["options"] = CONTD
    elif what == "no length":
        descs["len"][1] = 0
    elif what == "foreign":
        descs["addr"][1] = 1 << 50
    else:
        descs["options"][1] = 0x8001
    with pytest.raises((InvalidDescriptorError, ForeignFrameError)):
        port.transmit(Batch(descs, pool.umem.data, umem=pool.umem))
    assert port.stats().in_tx == 0
    pool.put(frames)


def test_a_port_without_multi_buffer_refuses_a_packet_of_several_frames(pool: FramePool) -> None:
    plain = Port.in_memory(pool, SMALL, "plain")
    assert plain.info.max_frames == 1
    batch = pool.write([content(64), content(5000)], multi_buffer=True)
    with pytest.raises(InvalidDescriptorError, match="multi_buffer") as caught:
        plain.transmit(batch)
    assert caught.value.done == 0
    pool.put(batch)
    with pytest.raises(InvalidDescriptorError):
        pool.write([content(5000)])


def test_fewer_frames_than_packets_need_leave_none_half_written(umem: Umem) -> None:
    with FramePool(umem, quota=64) as pool:
        batch = pool.write([content(5000, i) for i in range(40)], multi_buffer=True)
        assert len(batch) == 21
        assert batch.whole(20) == content(5000, 20)
        assert pool.outstanding == 63
        pool.put(batch)


# The loop -----------------------------------------------------------------------------------------------------------

LENGTHS = [64, ROOM, ROOM + 1, 2 * ROOM, 3 * ROOM + 5, 60, 4 * ROOM, 900]


class Two:
    """Two ports and the kernel's side of each."""

    def __init__(self, pool: FramePool, second: PortConfig = MULTI) -> None:
        self.ports = [Port.in_memory(pool, MULTI, "in"), Port.in_memory(pool, second, "out")]
        self.kernels = [FakeKernel(port) for port in self.ports]

    def run(self, forwarder: Forwarder, packets: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        sent: tuple[list[bytes], list[bytes]] = [], []
        at = 0
        while at < len(packets):
            n = 0
            self.ports[0].fill()
            while at + n < len(packets) and self.kernels[0].deliver([packets[at + n]]):
                n += 1
            assert n
            forwarder.run(DEADLINE, packets=n)
            at += n
            for kernel, out in zip(self.kernels, sent, strict=True):
                out += kernel.send()
            forwarder.run(0)
        return sent


def verdicts_of(batch: Batch) -> Any:
    return np.where(batch.load(0, "u1") < 128, FORWARD(1), DROP)


@compiled
def compiled_verdict(packet: Any, length: int, port: int, user: Any) -> int:
    return 0x81 if packet[0] < 128 else 0


HANDLERS: dict[str, Handler] = {
    "numpy": verdicts_of,
    "packet": per_packet(lambda packet: FORWARD(1) if packet[0] < 128 else DROP),
    "compiled": compiled_verdict,
}


@pytest.mark.parametrize("kind", HANDLERS)
def test_a_verdict_is_that_of_all_the_packets_frames(pool: FramePool, kind: str) -> None:
    two = Two(pool)
    packets = [content(LENGTHS[i % 8], i) for i in range(200)]
    with closing(Forwarder(two.ports, handler=HANDLERS[kind], batch=5)) as forwarder:
        back, out = two.run(forwarder, packets)
        engine = forwarder.engine_stats()
    assert back == []
    assert out == [packet for packet in packets if packet[0] < 128]
    assert (engine.forwarded, engine.dropped) == (len(out), 200 - len(out))


@pytest.mark.parametrize("verdict", [DROP, TX, FORWARD(1)])
def test_the_loop_without_a_handler(pool: FramePool, verdict: int) -> None:
    two = Two(pool)
    packets = [content(LENGTHS[i % 8], i) for i in range(200)]
    route = Route(verdict, Rewrite(swap=verdict != DROP))
    with closing(Forwarder(two.ports, {0: route})) as forwarder:
        sent = two.run(forwarder, packets)
        assert forwarder.snapshot().received == 200
    swapped = [packet[6:12] + packet[:6] + packet[12:] for packet in packets]
    assert sent == {DROP: ([], []), TX: (swapped, []), FORWARD(1): ([], swapped)}[verdict]


def test_a_handler_sees_every_frame_and_keeps_all_of_them(pool: FramePool) -> None:
    two, kept = Two(pool), []

    def handle(batch: Batch) -> int:
        assert [batch.whole(i) for i in range(len(batch))] == [
            b"".join(map(bytes, batch.parts[batch.starts[i] : batch.starts[i + 1]])) for i in range(len(batch))
        ]
        kept.append(batch.copy())
        return KEEP

    packets = [content(LENGTHS[i % 8], i) for i in range(8)]
    with closing(Forwarder(two.ports, handler=handle)) as forwarder:
        two.run(forwarder, packets)
        assert forwarder.engine_stats().kept == 8
    assert [batch.whole(i) for batch in kept for i in range(len(batch))] == packets
    for batch in kept:
        pool.put(batch)


def test_keep_in_a_handler_takes_references_to_all_frames(pool: FramePool) -> None:
    two, kept = Two(pool), []

    def handle(batch: Batch) -> int:
        kept.append(batch.keep(batch.lengths > ROOM))
        return FORWARD(1)

    packets = [content(LENGTHS[i % 8], i) for i in range(8)]
    with closing(Forwarder(two.ports, handler=handle)) as forwarder:
        assert two.run(forwarder, packets)[1] == packets
    whole = [frames.whole(i) for frames in kept for i in range(len(frames))]
    assert whole == [packet for packet in packets if len(packet) > ROOM]
    for frames in kept:
        frames.close()


def test_a_spoiled_first_frame_drops_the_packet_with_all_its_frames(pool: FramePool) -> None:
    two = Two(pool)

    def handle(batch: Batch) -> int:
        batch.addr[::2] = 1 << 60
        batch.descs["options"][:] = 0xFFFF  # where packets end is not the handler's to say
        batch.descs["options"][:] = 0
        return FORWARD(1)

    packets = [content(LENGTHS[i % 8], i) for i in range(8)]
    with closing(Forwarder(two.ports, handler=handle)) as forwarder:
        assert two.run(forwarder, packets)[1] == packets[1::2]
        assert forwarder.engine_stats().refused == 4


def test_what_the_way_out_cannot_send_is_dropped_and_counted(pool: FramePool) -> None:
    two = Two(pool, SMALL)
    packets = [content(LENGTHS[i % 8], i) for i in range(8)]
    with closing(Forwarder(two.ports, {0: Route(FORWARD(1))})) as forwarder:
        assert two.run(forwarder, packets)[1] == [packet for packet in packets if len(packet) <= ROOM]
        assert forwarder.engine_stats().refused == 4


def test_a_packet_longer_than_any_ring_does_not_stop_the_loop(pool: FramePool) -> None:
    config = replace(MULTI, tx_size=32, comp_size=32)
    ports = [Port.in_memory(pool, MULTI, "in"), Port.in_memory(pool, config, "out")]
    kernel = FakeKernel(ports[0])
    for route, handler in (({0: Route(FORWARD(1))}, None), ({}, lambda batch: FORWARD(1))):
        with closing(Forwarder(ports, route, handler=handler)) as forwarder:
            ports[0].fill(64)
            forwarder.run(0)
            ports[0].fill(64)
            addrs = kernel.take_fill(40)
            for i, addr in enumerate(addrs):
                kernel.push_rx(addr + 256, 100, CONTD if i < 39 else 0)
            kernel.push_rx(kernel.take_fill(1)[0] + 256, 77)
            forwarder.run(0)
            assert FakeKernel(ports[1]).send()[0] is not None
            forwarder.run(0)
            stats = forwarder.engine_stats()
            assert (stats.refused, stats.forwarded) == (1, 1)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5 * ROOM), st.sampled_from([DROP, TX, KEEP, FORWARD(0), FORWARD(1)])), max_size=60
    ),
    st.integers(1, 20),
    st.integers(0, 2**32 - 1),
)
def test_any_packets_and_verdicts_come_out_whole_and_in_order(
    plan: list[tuple[int, int]], batch_size: int, first_index: int
) -> None:
    with conserved(frame_size=2048) as umem, FramePool(umem) as pool:
        two = Two(pool)
        two.kernels = [FakeKernel(port, first_index=first_index) for port in two.ports]
        kept: list[Batch] = []
        packets = [content(length, i) for i, (length, _) in enumerate(plan)]
        seen = 0

        def handle(batch: Batch) -> list[int]:
            nonlocal seen
            verdicts = [verdict for _, verdict in plan[seen : seen + len(batch)]]
            seen += len(batch)
            kept.append(batch.copy()[np.array(verdicts) == KEEP])
            return verdicts

        with closing(Forwarder(two.ports, handler=handle, batch=batch_size)) as forwarder:
            sent = two.run(forwarder, packets)

        def with_verdict(*wanted: int) -> list[bytes]:
            return [packet for packet, (_, verdict) in zip(packets, plan, strict=True) if verdict in wanted]

        assert sent == (with_verdict(TX, FORWARD(0)), with_verdict(FORWARD(1)))
        assert [batch.whole(i) for batch in kept for i in range(len(batch))] == with_verdict(KEEP)
        for batch in kept:
            pool.put(batch)


# What can never work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fill_size", "comp_size", "rx_size", "tx_size", "fill_level"])
def test_a_ring_too_small_for_one_packet_is_refused(name: str) -> None:
    sizes = {"fill_level": 32} | {name: 16} | ({"fill_level": 16} if name == "fill_size" else {})
    with pytest.raises(RingSizeError, match="one packet"):
        PortConfig(multi_buffer=True, **sizes)  # type: ignore[arg-type]


def test_several_frames_cannot_go_live() -> None:
    with pytest.raises(ConfigError, match="live"):
        PortConfig(multi_buffer=True, transmit="live")


def test_what_is_known_of_a_packet_is_that_of_all_its_frames(pool: FramePool) -> None:
    port = Port.in_memory(pool, replace(MULTI, rx_metadata=("hash",)))
    kernel = FakeKernel(port)
    for number in (7, 8):  # the second time frames come that were told of before
        port.fill()
        kernel.deliver([content(3 * ROOM), content(64)], metadata={"hash": number})
        kernel.deliver([content(2 * ROOM)])
        batch = port.receive()
        assert batch.rx_metadata().hash.tolist() == [number, number, 0]
        assert [batch.whole(i) for i in range(3)] == [content(3 * ROOM), content(64), content(2 * ROOM)]
        pool.put(batch)


def test_a_socket_that_copies_sends_one_frame_less_where_none_is_the_head() -> None:
    """virtio_net has all frames as fragments; the kernel drops a packet of one more, and keeps its frames."""
    config = PortConfig(multi_buffer=True)
    plain, virtio = (Netdev("eth1", 1, bytes(6), 9000, True, driver, 1, 1) for driver in ("veth", "virtio_net"))
    assert max_frames(config, virtio, zero_copy=False) == max_frames(config, plain, zero_copy=False) - 1
    assert max_frames(PortConfig(), virtio, zero_copy=False) == 1
