"""Packets longer than a frame, over veth pairs with an MTU of 9000: each is sent and read by a plain packet socket."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_lab import audited, brokered, perfect, protocol_socket, wait_for
from test_forwarding import options

import afxdp_pool as ap
from afxdp_pool.capture import Capture
from afxdp_pool.memory import HugePageMemory
from afxdp_pool.testing import Traffic
from afxdp_pool.testing.lab import Lab, LabLink, VethPair

ETHERTYPE = 0x88B5  # for experiments (IEEE 802)
MULTI = ap.PortConfig(multi_buffer=True)
HEADER = b"\x02\0\0\0\0\2\x02\0\0\0\0\1" + ETHERTYPE.to_bytes(2, "big")
#: Sent ahead of what has arrived: all of it fits the rings and socket buffers on the way.
AHEAD = 64


def packet(size: int, number: int = 0) -> bytes:
    """Of `size` bytes with the header, no two alike, and no part like another."""
    words = np.arange(size // 4, dtype=">u4") + np.uint32(size * 65536 + number * 4096)
    return (HEADER + words.astype(">u4").tobytes())[:size]


def packet_socket(link: LabLink, *, receives: bool) -> AbstractContextManager[socket.socket]:
    return protocol_socket(link, ETHERTYPE if receives else 0)


def jumbo(lab: Lab, name: str) -> VethPair:
    return lab.veth(name, mtu=9000, addresses=False)


def through(left: VethPair, right: VethPair, packets: Iterable[bytes]) -> int:
    """Send packets into one pair, and see each come out of the other, whole and in order; how many."""
    waiting: list[bytes] = []
    count = 0
    with packet_socket(left.far, receives=False) as tx, packet_socket(right.far, receives=True) as rx:
        for one in packets:
            tx.send(one)
            waiting.append(one)
            count += 1
            if len(waiting) == AHEAD:
                assert rx.recv(1 << 16) == waiting.pop(0)
        for one in waiting:
            assert rx.recv(1 << 16) == one
        rx.setblocking(False)
        with pytest.raises(BlockingIOError):
            rx.recv(1 << 16)
    return count


def finish(forwarder: ap.Runner, count: int, size: int) -> ap.Report:
    assert wait_for(lambda: forwarder.snapshot().ports[1].stats.in_tx == 0)
    forwarder.stop()
    report = forwarder.join()
    first, second = (port.stats for port in report.ports)
    assert (first.rx_packets, second.tx_packets, report.engine.forwarded) == (count, count, count)
    assert first.rx_bytes == second.tx_bytes == size
    assert first.rx_parts == second.tx_parts
    assert (report.completed, second.tx_completed_parts) == (count, second.tx_parts)
    assert (report.ports[0].kernel.rx_dropped, report.ports[1].kernel.tx_invalid_descs) == (0, 0)
    audited(forwarder)
    return report


def forward(lab: Lab, sizes: Iterable[int], handler: Any = None, **changes: Any) -> ap.Report:
    sizes = list(sizes)
    left, right = jumbo(lab, "left"), jumbo(lab, "right")
    chosen = options(lab, **{"port": MULTI} | changes)
    if handler is None:
        forwarder: ap.Runner = ap.forward(left.near.name, right.near.name, options=chosen)
    else:
        forwarder = ap.handle([left.near.name, right.near.name], handler, options=chosen)
    forwarder.start()
    through(left, right, map(packet, sizes))
    return finish(forwarder, len(sizes), sum(sizes))


def test_every_size_is_forwarded_whole_and_in_order(lab: Lab) -> None:
    report = forward(lab, range(60, 9001))
    assert report.ports[0].stats.rx_parts == sum((size - 1) // 3840 for size in range(60, 9001))


@pytest.mark.parametrize("frame_size", [2048, 4096])
def test_whole_frames_and_a_byte_more_or_less(lab: Lab, frame_size: int) -> None:
    edges = {n * (frame_size - 256) + off for n in range(1, 6) for off in (-1, 0, 1)}
    forward(lab, sorted(size for size in edges | {9014} if size <= 9014), frame_size=frame_size)


@ap.compiled
def compiled_forward(packet: Any, length: int, port: int, user: Any) -> int:
    return 0x81 if packet[0] == 2 else 0


def numpy_forward(batch: ap.Batch) -> Any:
    assert (batch.eth.type == ETHERTYPE).all()
    assert (batch.lengths == batch.load(14, ">u4") // 65536).all()  # the packet says its own length
    return ap.FORWARD(1)


@pytest.mark.parametrize("handler", [numpy_forward, compiled_forward, ap.per_packet(lambda p: ap.FORWARD(1))])
def test_every_kind_of_handler_decides_about_whole_packets(lab: Lab, handler: Any) -> None:
    forward(lab, range(60, 9001, 11), handler)


@pytest.mark.parametrize(("xdp_mode", "attach"), [("generic", "link"), ("native", "libxdp")])
def test_by_other_ways_of_attaching(lab: Lab, xdp_mode: str, attach: str) -> None:
    forward(lab, range(60, 9001, 101), xdp_mode=xdp_mode, attach=attach)


def test_small_frames_forward_small_packets_as_well(lab: Lab, traffic: Traffic) -> None:
    left, right = lab.veth("a"), lab.veth("b")
    forwarder = ap.forward(left.near.name, right.near.name, options=options(lab, frame_size=2048))
    forwarder.start()
    for size in (64, 500, 1514):
        done = traffic.send(
            3000, into=left, out_of=right, size=size,
            until=lambda n: forwarder.snapshot().completed >= n, window=200,
        ).seen  # fmt: skip
        perfect(done, 3000)
    forwarder.stop()
    forwarder.join()
    audited(forwarder)


def test_a_capture_has_the_whole_packet(lab: Lab, tmp_path: Any) -> None:
    left, right = jumbo(lab, "left"), jumbo(lab, "right")
    forwarder = ap.forward(left.near.name, right.near.name, options=options(lab, port=MULTI))
    sizes = range(60, 9001, 90)
    with Capture(tmp_path / "all.pcapng", forwarder) as capture:
        forwarder.start()
        through(left, right, map(packet, sizes))
        assert wait_for(lambda: capture.stats().written == 2 * len(sizes))
    content = (tmp_path / "all.pcapng").read_bytes()
    for size in sizes:
        assert content.count(packet(size)) == 2
    finish(forwarder, len(sizes), sum(sizes))


# Ports by hand ------------------------------------------------------------------------------------------------------


@contextmanager
def ports(lab: Lab, config: ap.PortConfig = MULTI, **umem: Any) -> Iterator[tuple[VethPair, ap.Port]]:
    pair = jumbo(lab, "one")
    with ap.Umem(**{"frames": 4096} | umem) as memory:
        with ap.FramePool(memory) as pool, ap.Port(pool, pair.near.name, config=config, netns=lab.engine_netns) as port:
            port.fill()
            yield pair, port
        memory.audit().check(idle=True)


SMALL = replace(MULTI, fill_size=64, fill_level=64, rx_size=64, tx_size=32, comp_size=32)


def test_a_full_ring_takes_whole_packets_only(lab: Lab) -> None:
    with ports(lab, SMALL) as (pair, port), packet_socket(pair.far, receives=True) as rx:
        packets = [packet(9000, i) for i in range(100)]
        batch = port.pool.write(packets, multi_buffer=True)  # 3 frames each
        while len(batch):
            sent = port.transmit(batch)
            assert sent <= 10
            batch = batch[sent:]
            port.complete()
        assert [rx.recv(1 << 16) for _ in packets] == packets
        assert wait_for(lambda: port.complete() >= 0 and not port.stats().in_tx)
        assert (port.stats().tx_packets, port.stats().tx_parts) == (100, 200)


def test_the_most_frames_the_kernel_takes_and_one_more(lab: Lab) -> None:
    with ports(lab) as (pair, port), packet_socket(pair.far, receives=True) as rx:
        most = port.info.max_frames
        assert most >= 18
        whole = packet(most * 450)
        for frames in (most, most + 1):
            batch = port.pool.alloc(frames)
            for i in range(frames):
                batch.write(i, whole[i * 450 : (i + 1) * 450] or b"more")
            batch.descs["options"] = [1] * (frames - 1) + [0]
            chained = ap.Batch.of_frames(batch.descs, batch.data, umem=port.pool.umem)
            if frames > most:
                with pytest.raises(ap.InvalidDescriptorError, match="more frames"):
                    port.transmit(chained)
                port.pool.put(chained)
                continue
            assert port.transmit(chained) == 1
            assert rx.recv(1 << 16) == whole
            assert wait_for(lambda: port.complete() >= 0 and not port.stats().in_tx)
        assert port.kernel_stats().tx_invalid_descs == 0


def test_too_few_frames_in_fill_drop_whole_packets_and_the_kernel_counts(lab: Lab) -> None:
    with ports(lab, replace(SMALL, fill_level=32)) as (pair, port), packet_socket(pair.far, receives=False) as tx:
        for i in range(100):
            tx.send(packet(9000, i))  # 3 frames each; nobody receives
        assert wait_for(lambda: port.kernel_stats().rx_dropped == 90)
        batch = port.receive()
        assert [batch.whole(i) for i in range(len(batch))] == [packet(9000, i) for i in range(10)]
        assert port.stats().in_fill == 2
        port.pool.put(batch)
        port.fill()
        tx.send(packet(9000, 7))
        assert wait_for(lambda: port.ring_levels()["rx"] == 3)
        with ap.Frames(port.receive()) as frames:
            assert frames.whole(0) == packet(9000, 7)


def test_without_it_a_long_packet_is_dropped_and_counted(lab: Lab) -> None:
    plain = replace(MULTI, multi_buffer=False)
    with ports(lab, plain) as (pair, port), packet_socket(pair.far, receives=False) as tx:
        tx.send(packet(9000))
        tx.send(packet(3000))
        assert wait_for(lambda: port.ring_levels()["rx"] == 1)
        assert port.kernel_stats().rx_dropped == 1
        assert port.info.max_frames == 1
        batch = port.receive()
        assert bytes(batch[0]) == packet(3000)
        port.pool.put(batch)


def test_a_second_port_of_the_device_cannot_be_had_without(lab: Lab) -> None:
    pair = lab.veth("two", queues=2)
    with ap.Umem(1024) as umem, ap.FramePool(umem) as pool:
        small, large = (ap.PortConfig(fill_level=64, multi_buffer=multi) for multi in (False, True))
        with (
            ap.Port(pool, pair.near.name, 0, config=small, netns=lab.engine_netns),
            pytest.raises(ap.ConfigError, match="multi_buffer"),
        ):
            ap.Port(pool, pair.near.name, 1, config=large, netns=lab.engine_netns)
        with (
            ap.XdpProgram(pair.near.name, netns=lab.engine_netns) as program,
            pytest.raises(ap.ConfigError, match="serve"),
        ):
            ap.Port(pool, pair.near.name, config=large, netns=lab.engine_netns, program=program)
        umem.audit().check(idle=True)


@pytest.mark.parametrize("frags", [True, False])
def test_by_a_broker(lab: Lab, tmp_path: Path, frags: bool) -> None:
    pair = jumbo(lab, "one")
    config = replace(MULTI, fill_level=256)
    with (
        brokered(pair.near, tmp_path / "s", frags=frags) as path,
        ap.Umem(1024, memory=ap.SharedMemory(1024 * 4096)) as umem,
        ap.FramePool(umem) as pool,
    ):
        if not frags:
            with pytest.raises(ap.AfXdpError, match="multi_buffer"):
                ap.Port(pool, pair.near.name, config=config, via=path)
            return
        with (
            ap.Port(pool, pair.near.name, config=config, via=path) as port,
            packet_socket(pair.far, receives=False) as tx,
            packet_socket(pair.far, receives=True) as rx,
        ):
            assert port.info.max_frames >= 18
            tx.send(packet(9000))
            assert wait_for(lambda: port.ring_levels()["rx"] == 3)
            batch = port.receive()
            assert batch.whole(0) == packet(9000)
            assert port.transmit(batch) == 1
            assert rx.recv(1 << 16) == packet(9000)
            assert wait_for(lambda: port.complete() >= 0 and not port.stats().in_tx)
        umem.audit().check()


# Frames that are no power of two ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame_size", [2049, 3000, 4001])
@pytest.mark.parametrize("multi", [False, True])
def test_unaligned_frames_forward_every_size_that_fits(lab: Lab, frame_size: int, multi: bool) -> None:
    room = frame_size - 256
    most = 9014 if multi else min(room, 3500)
    edges = {n * room + off for n in range(1, 4) for off in (-1, 0, 1)}
    sizes = sorted(size for size in {*range(60, most, 23), *edges, most} if size <= most)
    report = forward(lab, sizes, unaligned=True, frame_size=frame_size, port=replace(MULTI, multi_buffer=multi))
    assert {port.stats.rx_bad + port.stats.completion_bad for port in report.ports} == {0}


def test_unaligned_frames_on_small_pages_are_copied(lab: Lab) -> None:
    with (
        pytest.raises(ap.ModeUnsupportedError, match="unaligned"),
        ports(lab, replace(MULTI, mode="zero-copy"), unaligned=True, frame_size=3000),
    ):
        pass


def test_unaligned_frames_on_huge_pages(lab: Lab) -> None:
    try:
        HugePageMemory(ap.UmemConfig(16384, 3000, unaligned=True).size).close()
    except ap.MemoryLimitError as error:
        pytest.skip(f"needs 2 MB pages: {error}")
    forward(lab, range(60, 2744, 97), unaligned=True, frame_size=3000, huge_pages=True)
