"""The test packet is what the standards say, and its verification misses nothing."""

from __future__ import annotations

import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afxdp_pool.errors import ConfigError
from afxdp_pool.testing import packets

sizes = st.integers(packets.MIN_SIZE, 1600)
flows = st.integers(0, packets.MAX_FLOWS - 1)
seqs = st.integers(0, 2**64 - 1)


def internet_checksum(data: bytes) -> int:
    """RFC 1071 once more, in the byte-wise form, so that the two can be held against each other."""
    total = 0
    for index, byte in enumerate(data):
        total += byte << 8 if index % 2 == 0 else byte
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


@given(size=sizes, flow=flows, seq=seqs)
def test_a_packet_is_read_as_it_was_built(size: int, flow: int, seq: int) -> None:
    frame = packets.build(size, flow=flow, seq=seq)
    assert len(frame) == size
    assert packets.parse(frame) == packets.TestPacket(flow=flow, seq=seq, size=size)


@given(size=sizes, flow=flows, seq=seqs)
def test_both_checksums_are_right(size: int, flow: int, seq: int) -> None:
    frame = packets.build(size, flow=flow, seq=seq)
    assert internet_checksum(frame[14:34]) == 0xFFFF
    length = size - 34
    pseudo = frame[26:34] + struct.pack("!HH", socket.IPPROTO_UDP, length)
    assert internet_checksum(pseudo + frame[34:]) == 0xFFFF
    assert frame[40:42] != b"\0\0"


@given(size=sizes, flow=flows, seq=seqs)
def test_the_template_sum_gives_the_checksum_of_every_packet(size: int, flow: int, seq: int) -> None:
    frame, base = packets.template(size, packets.NOWHERE)
    fields = struct.pack("!HIQ", packets.SOURCE_PORT + flow, flow, seq)
    check = (~packets.ones_sum(fields, base) & 0xFFFF) or 0xFFFF
    head = bytearray(frame)
    head[34:36] = fields[:2]
    head[40:42] = check.to_bytes(2, "big")
    head[46:58] = fields[2:]
    assert bytes(head) == packets.build(size, flow=flow, seq=seq)


@settings(max_examples=300)
@given(size=sizes, seq=seqs, data=st.data())
def test_any_changed_bit_behind_the_addresses_is_found(size: int, seq: int, data: st.DataObject) -> None:
    frame = bytearray(packets.build(size, seq=seq))
    at = data.draw(st.integers(12, size - 1))
    frame[at] ^= 1 << data.draw(st.integers(0, 7))
    assert packets.parse(bytes(frame)) is None


@pytest.mark.parametrize("cut", [1, 2, 30, 1000])
def test_a_truncated_or_padded_packet_is_corrupt(cut: int) -> None:
    frame = packets.build(1500, seq=1)
    assert packets.parse(frame[:-cut]) is None
    assert packets.parse(frame + bytes(cut)) is None


@pytest.mark.parametrize("frame", [b"", bytes(60), b"\xff" * 1500])
def test_other_packets_are_not_test_packets(frame: bytes) -> None:
    assert not packets.is_test(frame)
    assert packets.parse(frame) is None


@pytest.mark.parametrize(("size", "flow"), [(63, 0), (65550, 0), (64, 256)])
def test_what_cannot_be_sent_is_refused(size: int, flow: int) -> None:
    with pytest.raises(ConfigError, match=r"64 to|1 to"):
        packets.build(size, flow=flow)
