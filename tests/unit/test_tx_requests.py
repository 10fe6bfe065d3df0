"""Requests on rings in memory: what a device would find before each packet, and what it answers."""

from __future__ import annotations

import struct
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import SMALL, conserved
from test_headers import SHAPES, datagram

import afxdp_pool as ap
from afxdp_pool import wire
from afxdp_pool.config import TX_METADATA, TX_ROOM, TxMetadataName
from afxdp_pool.testing import FakeKernel
from afxdp_pool.testing.packets import ones_sum

ASKS = ap.PortConfig(
    fill_size=64,
    comp_size=64,
    rx_size=64,
    tx_size=64,
    fill_level=32,
    tx_metadata=("checksum", "timestamp", "launch_time"),
)
OPTION = 2
UDP = datagram(4, 17, b"a datagram")
NOT_TAKEN = ((8, 0, 0, 2), (2, 60, 6, 2), (2, 0xFFFF, 0xFFFF, 2), (0, 0, 0, 1), (0, 0, 0, 3))  # the last: options
_REQUEST = struct.Struct("<QHHIQQ")  # flags, start, offset, -, launch time; the number


def request_of(umem: ap.Umem, addr: int) -> tuple[int, ...]:
    """flags, start, offset, launch time, number: as a driver reads it."""
    flags, start, offset, _, launch, number = _REQUEST.unpack(umem.data[addr - TX_ROOM : addr].tobytes())
    return flags, start, offset, launch, number


def as_device(umem: ap.Umem, sent: Any) -> bytes:
    """The packet with its checksum filled in."""
    _, start, offset, _, _ = request_of(umem, sent.addr)
    packet = bytearray(sent.data)
    packet[start + offset : start + offset + 2] = struct.pack(
        "!H", (~ones_sum(bytes(packet[start:])) & 0xFFFF) or 0xFFFF
    )
    return bytes(packet)


@pytest.mark.parametrize(
    "packet",
    [datagram(version, proto, bytes(range(size))) for version in (4, 6) for proto in (6, 17) for size in (0, 7, 100)]
    + [datagram(4, 17, b"12", options=8), datagram(6, 6, b"1234", extension=True)],
)
def test_a_device_fills_in_what_the_library_would(packet: bytes) -> None:
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, ASKS)
        kernel = FakeKernel(port)
        batch = pool.write([packet, packet + b"!"])
        batch.udp.checksum = batch.tcp.checksum = 0xBAD
        assert batch.offload_checksums().tolist() == [True, False], "behind the second one's datagram is more"
        assert port.transmit(batch) == 2
        sent, other = kernel.take_tx()
        assert (sent.options, other.options) == (OPTION, 0)
        assert as_device(umem, sent) == packet
        kernel.complete([sent, other])
        assert port.complete() == 2


@pytest.mark.parametrize("shape", sorted(shape for shape in SHAPES if "TCP" not in shape))
def test_what_no_device_could_fill_in_is_left_alone(shape: str) -> None:
    """None of these has a length that is true, or a checksum a device knows."""
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        batch = pool.write([SHAPES[shape]])
        assert not batch.offload_checksums().any()
        assert (bytes(batch[0]), batch.descs["options"].tolist()) == (SHAPES[shape], [0])
        pool.put(batch)


@given(data=st.binary(max_size=100), shape=st.sampled_from(sorted(SHAPES)), cut=st.integers(0, 100))
def test_any_bytes_are_asked_for_only_within_them(data: bytes, shape: str, cut: int) -> None:
    packet = (SHAPES[shape][:cut] + data) or b"\0"
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        batch = pool.write([packet])
        if batch.offload_checksums()[0]:
            flags, start, offset, _, _ = request_of(umem, int(batch.addr[0]))
            assert (flags, start + offset + 2 <= len(packet)) == (2, True)
        else:
            assert bytes(batch[0]) == packet
        pool.put(batch)


@pytest.mark.parametrize("frame_size", [2048, 2100])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("proto", [6, 17])
def test_packets_of_several_frames_ask_by_their_first(frame_size: int, version: int, proto: int) -> None:
    long = datagram(version, proto, bytes(i % 251 for i in range(5000)))
    unaligned = frame_size != 2048
    with (
        conserved(frame_size=frame_size, headroom=TX_ROOM, unaligned=unaligned) as umem,
        ap.FramePool(umem) as pool,
        closing(ap.Port.in_memory(pool, replace(ASKS, multi_buffer=True))) as port,
    ):
        kernel = FakeKernel(port)
        batch = pool.write([long, UDP, long + b"!", long[:-1]], multi_buffer=True)
        batch.udp.checksum = batch.tcp.checksum = 0xBAD
        assert batch.offload_checksums().tolist() == [True, True, False, False], (
            "the last is cut, more is behind another"
        )
        assert batch[1:].request_timestamps([7, 8, 9]).all()
        assert port.transmit(batch) == 4
        parts = kernel.take_tx()
        assert [part.options for part in parts] == [3, 1, 0, 2, *[3, 1, 0] * 2]
        assert as_device(umem, replace(parts[0], data=b"".join(part.data for part in parts[:3]))) == long
        assert as_device(umem, parts[3]) == UDP
        for part in parts:
            umem.data[part.addr - TX_ROOM + 8] += 1  # of the others nobody reads that
        kernel.complete(parts)
        assert port.complete() == 10
        assert port.take_timestamps().number.tolist() == [7, 8, 9]
        assert (port.stats().tx_completed, port.stats().in_tx) == (4, 0)


@pytest.mark.parametrize("frame_size", [2048, 2049, 2100])
@pytest.mark.parametrize(("version", "proto"), [(4, 1), (4, 6), (4, 17), (6, 6), (6, 17), (6, 58)])
def test_checksums_of_packets_in_several_frames_are_of_all_of_them(frame_size: int, version: int, proto: int) -> None:
    unaligned = frame_size != 2048
    with conserved(frame_size=frame_size, unaligned=unaligned) as umem, ap.FramePool(umem) as pool:
        packets = [
            datagram(version, proto, bytes(i % 251 for i in range(n))) for n in (5000, 10, 2001, 6001, 4999, 1500)
        ]
        spoiled = [packet[:-1] + bytes([packet[-1] ^ 1]) for packet in packets]
        batch = pool.write([*packets, *spoiled, packets[0][:-1]], multi_buffer=True)
        assert batch.verify_checksums().tolist() == [True] * 6 + [False] * 7
        four = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}[proto]
        assert getattr(batch, four).verify_checksum().tolist() == [True] * 6 + [False] * 7
        getattr(batch, four).checksum = 0xBAD
        batch.ipv4.checksum = 0xBAD
        where = np.arange(13) % 2 == 0
        assert batch.fill_checksums(where) == (7 if version == 4 else 6)
        assert batch[:12].verify_checksums().tolist() == [True, False] * 6
        assert [batch.whole(i) for i in (0, 2, 4)] == packets[:6:2]
        # In a part of it, and in a copy, of other packets in the same places.
        part = batch[np.array([3, 1])]
        assert part.fill_checksums() == 2
        assert [part.whole(0), part.whole(1)] == [packets[3], packets[1]]
        assert batch.copy().verify_checksums()[[1, 3]].all()
        pool.put(batch)


def test_one_frame_of_a_packet_that_the_kernel_would_not_take_refuses_it() -> None:
    with (
        conserved(frame_size=2048, headroom=TX_ROOM) as umem,
        ap.FramePool(umem) as pool,
        closing(ap.Port.in_memory(pool, replace(ASKS, multi_buffer=True))) as port,
    ):
        for spoil in ("request of another frame", "no room", "checksum beyond the first frame"):
            batch = pool.write([bytes(5000)], multi_buffer=True)
            batch.request_timestamps()
            frames = batch.parts.descs
            frames["options"] = [3, 1, 0]
            if spoil == "request of another frame":
                frames["options"][1] = 3
            elif spoil == "no room":
                frames["addr"][2] -= 1
            else:
                at = int(batch.addr[0]) - TX_ROOM
                umem.data[at : at + _REQUEST.size] = np.frombuffer(_REQUEST.pack(2, 2010, 6, 0, 0, 0), np.uint8)
            with pytest.raises(ap.InvalidDescriptorError):
                port.transmit(ap.Batch.of_frames(frames, umem.data, umem=umem))
            assert port.stats().in_tx == 0
            pool.put(batch)


def test_requests_add_up_and_go_with_their_descriptors() -> None:
    with conserved(headroom=TX_ROOM + 3) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, ASKS)
        kernel = FakeKernel(port)
        batch = pool.write([UDP] * 4)
        second = np.array([False, True, False, True])
        assert batch.launch_at(np.array([5, 6, 7, 8]), where=second).tolist() == second.tolist()
        assert batch.request_timestamps([10, 11, 12, 13]).all()
        assert batch.offload_checksums(second).tolist() == second.tolist()
        assert batch.descs["options"].tolist() == [OPTION] * 4
        flags = [request_of(umem, addr)[0] for addr in batch.addr.tolist()]
        assert flags == [1, 7, 1, 7]
        assert [request_of(umem, addr)[3:] for addr in batch.addr.tolist()] == [(0, 10), (6, 11), (0, 12), (8, 13)]
        assert port.transmit(batch) == 4
        sent = kernel.take_tx()
        for at, one in enumerate(sent):
            umem.data[one.addr - TX_ROOM + 8 : one.addr - TX_ROOM + 16] = np.frombuffer(struct.pack("<Q", at), np.uint8)
        kernel.complete(reversed(sent))
        assert port.complete() == 4
        stamps = port.take_timestamps(3)
        assert (stamps.number.tolist(), stamps.timestamp.tolist(), stamps.lost) == ([13, 12, 11], [3, 2, 1], 0)
        assert port.take_timestamps().number.tolist() == [10]


def test_parts_of_a_batch_ask_for_themselves() -> None:
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        batch = pool.write([UDP] * 6)
        batch[::2].request_timestamps(1)
        assert batch.descs["options"].tolist() == [OPTION, 0] * 3
        picked = batch[np.array([1, 5])]
        picked.request_timestamps(2)
        assert picked.descs["options"].tolist() == [OPTION] * 2
        with batch.keep(3) as frame:
            assert frame.batch.request_timestamps().all()
        pool.put(batch)
        again = pool.alloc(6)
        assert not again.descs["options"].any()
        pool.put(again)


def test_what_a_kernel_would_not_take_is_refused() -> None:
    """It would stay in the TX ring, and all that follows behind it."""
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, ASKS)
        good = pool.write([UDP])
        for flags, start, offset, options in (
            (8, 0, 0, 2),
            (2, 60, 6, 2),
            (2, 0xFFFF, 0xFFFF, 2),
            (0, 0, 0, 1),
            (0, 0, 0, 3),
        ):
            at = int(good.addr[0]) - TX_ROOM
            request = _REQUEST.pack(flags, start, offset, 0, 0, 0)
            umem.data[at : at + len(request)] = np.frombuffer(request, np.uint8)
            good.descs["options"] = options
            with pytest.raises(ap.InvalidDescriptorError):
                port.transmit(good)
        good.descs["options"] = 0
        good.descs["addr"] -= 1
        with pytest.raises(ap.InvalidDescriptorError):
            port.transmit(good)
        pool.put(good)


def test_ports_that_were_not_opened_for_it_refuse_requests() -> None:
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, SMALL)
        batch = pool.write([UDP])
        batch.request_timestamps()
        with pytest.raises(ap.InvalidDescriptorError, match="options set"):
            port.transmit(batch)
        pool.put(batch)
        assert [len(column) for column in port.take_timestamps()[:2]] == [0, 0]
        with pytest.raises(ap.InvalidDescriptorError, match="of no Umem"):
            ap.Batch(batch.descs, umem.data).launch_at(1)


def test_fragments_and_frames_given_back_are_not_asked_for() -> None:
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        fragments = pool.alloc_fragments(2, 512)
        assert not fragments.request_timestamps().any()
        gone = pool.alloc(1)
        pool.put(gone)
        assert not gone.request_timestamps().any()
        pool.put(fragments)


def test_stamps_that_nobody_takes_are_counted() -> None:
    with conserved(headroom=TX_ROOM) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, ASKS)
        kernel = FakeKernel(port)
        rounds = 8192 // 32 + 2
        for number in range(rounds):
            batch = pool.write([UDP] * 32)
            batch.request_timestamps(number)
            assert port.transmit(batch) == 32
            kernel.send()
            assert port.complete() == 32
        stamps = port.take_timestamps(100_000)
        assert (len(stamps.number), stamps.lost) == (8192, 64)
        assert stamps.number[[0, -1]].tolist() == [0, rounds - 3]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tx_metadata": "checksum"}, "name some of checksum, timestamp, launch_time, software_checksum"),
        ({"tx_metadata": ("crc",)}, "name some of"),
        ({"tx_metadata": ("checksum",), "transmit": "live"}, "live frames carry no tx_metadata"),
        ({"tx_metadata": ("checksum", "software_checksum")}, "in copy mode only"),
        ({"tx_metadata": ("software_checksum",), "mode": "zero-copy"}, "in copy mode only"),
        ({"tx_metadata": ("software_checksum",), "multi_buffer": True}, "of a packet's first frame alone"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ap.ConfigError, match=says):
        ap.PortConfig(**wrong)


def test_a_broker_is_asked_for_room_only_when_it_is_wanted() -> None:
    chosen: tuple[TxMetadataName, ...] = ("timestamp", "software_checksum")
    wanting = ap.PortConfig(fill_size=64, fill_level=1, tx_metadata=chosen)
    for config, wanted in ((SMALL, ()), (wanting, chosen)):
        request = wire.SocketRequest("eth1", 0, ap.UmemConfig(64), config, bytes(8))
        assert ("tx_metadata" in request.text()) == bool(wanted)
        read = wire.SocketRequest.read(wire.Message.parse(request.text().encode() + bytes(1) + request.stock))
        assert read.port.tx_metadata == wanted
    assert set(chosen) < set(TX_METADATA)
