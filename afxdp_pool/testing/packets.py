"""The test packet, in Python: built, parsed and verified as the BPF source and sink do it.

Ethernet, IPv4 without options, UDP to port 9; the payload is `MAGIC`, flow and sequence number in network
order, and a fill. The UDP checksum is always filled in and right over the whole datagram, so it proves every
byte behind the IP header, as the IP header's own checksum proves that one. Flows differ in flow number and
UDP source port.

All sizes are bytes of the Ethernet frame without its FCS: a packet "of 64 bytes" is 64 bytes in a Umem frame.
Nothing here needs privileges. Concurrency: any thread.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from afxdp_pool.errors import ConfigError

MAGIC = 0xAFD9F00D
PORT = 9  # discard (RFC 863)
SOURCE_PORT = 40000  # of flow 0
MAX_FLOWS = 256
MIN_SIZE = 64
MAX_SIZE = 3400  # a live frame is one page with the kernel's own heads (net/bpf/test_run.c), rounded down
LONGEST = 14 + 65535  # what IPv4 has a length for
HEADERS = 14 + 20 + 8
TEST_HEADER = struct.Struct("!IIQ")
CHECKSUM_AT = HEADERS - 2  # of the UDP header
SEQUENCE_AT = HEADERS + 8  # behind magic and flow
HEAD = 64  # what the BPF source writes anew into every frame

_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_UDP = struct.Struct("!HHHH")
_FILL = bytes((i * 7 + 1) & 0xFF for i in range(256)) * (LONGEST // 256 + 1)


@dataclass(frozen=True)
class Addresses:
    """Who a test packet says it is from and to: MACs of 6 bytes, IPv4 addresses of 4."""

    source_mac: bytes
    target_mac: bytes
    source_ip: bytes = b"\xc6\x12\x00\x02"
    target_ip: bytes = b"\xc6\x12\x00\x01"

    def __post_init__(self) -> None:
        if (len(self.source_mac), len(self.target_mac)) != (6, 6):
            raise ConfigError("a MAC has 6 bytes")
        if (len(self.source_ip), len(self.target_ip)) != (4, 4):
            raise ConfigError("an IPv4 address has 4 bytes")


NOWHERE = Addresses(source_mac=b"\x02\0\0\0\0\x02", target_mac=b"\x02\0\0\0\0\x01")


@dataclass(frozen=True)
class TestPacket:
    """What a well-formed test packet carried. `size` is that of the frame in bytes."""

    __test__ = False  # not a pytest class

    flow: int
    seq: int
    size: int


def ones_sum(data: bytes, start: int = 0) -> int:
    """The ones' complement sum of big-endian 16-bit words, folded to 16 bits and not inverted (RFC 1071)."""
    padded = data + b"\0" if len(data) % 2 else data
    total: int = start + sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def check_size(size: int, flows: int = 1, most: int = MAX_SIZE) -> None:
    """Refuse a frame size or number of flows that are not possible; by default, that the source and sink do not do.

    Raises:
        ConfigError: with the limits in its text.
    """
    if not MIN_SIZE <= size <= most:
        raise ConfigError(f"a test packet has {MIN_SIZE} to {most} bytes, not {size}")
    if not 1 <= flows <= MAX_FLOWS:
        raise ConfigError(f"there are 1 to {MAX_FLOWS} flows, not {flows}")


def build(size: int = MIN_SIZE, *, flow: int = 0, seq: int = 0, addresses: Addresses = NOWHERE) -> bytes:
    """One test packet of `size` bytes, up to `LONGEST`.

    Raises:
        ConfigError: size or flow is out of range.
    """
    check_size(size, flow + 1, LONGEST)
    payload = TEST_HEADER.pack(MAGIC, flow, seq) + _FILL[: size - HEADERS - TEST_HEADER.size]
    header = _UDP.pack(SOURCE_PORT + flow, PORT, size - 34, 0)
    check = ~_datagram_sum(addresses, header + payload) & 0xFFFF
    # A checksum of 0 would say "none" (RFC 768).
    header = _UDP.pack(SOURCE_PORT + flow, PORT, size - 34, check or 0xFFFF)
    ethernet = _ETHERNET.pack(addresses.target_mac, addresses.source_mac, 0x0800)
    return ethernet + _ip_header(size, addresses) + header + payload


def template(size: int, addresses: Addresses) -> tuple[bytes, int]:
    """A packet with source port, UDP checksum, flow and seq 0, and the folded sum of its datagram.

    Who adds the four fields to that sum and inverts it has the checksum of any packet of that size; so the
    BPF source numbers a frame without reading it.
    """
    payload = TEST_HEADER.pack(MAGIC, 0, 0) + _FILL[: size - HEADERS - TEST_HEADER.size]
    datagram = _UDP.pack(0, PORT, size - 34, 0) + payload
    ethernet = _ETHERNET.pack(addresses.target_mac, addresses.source_mac, 0x0800)
    return ethernet + _ip_header(size, addresses) + datagram, _datagram_sum(addresses, datagram)


def is_test(frame: bytes | memoryview) -> bool:
    """Whether the headers say test packet (IPv4 without options, UDP to `PORT`), whatever the contents."""
    head = bytes(frame[: HEADERS + TEST_HEADER.size])
    if len(head) < HEADERS + TEST_HEADER.size:
        return False
    return head[12:15] == b"\x08\x00\x45" and head[23] == 17 and head[36:38] == PORT.to_bytes(2, "big")


def parse(frame: bytes | memoryview) -> TestPacket | None:
    """What a test packet carries, or None when it is corrupt or no test packet (see `is_test`)."""
    data = bytes(frame)
    if not is_test(data) or ones_sum(data[14:34]) != 0xFFFF:
        return None
    total, length = int.from_bytes(data[16:18], "big"), int.from_bytes(data[38:40], "big")
    magic, flow, seq = TEST_HEADER.unpack_from(data, HEADERS)
    if total != len(data) - 14 or length != total - 20 or magic != MAGIC or flow >= MAX_FLOWS:
        return None
    addresses = Addresses(data[6:12], data[0:6], data[26:30], data[30:34])
    if data[40:42] == b"\0\0" or _datagram_sum(addresses, data[34:]) != 0xFFFF:
        return None
    return TestPacket(flow=flow, seq=seq, size=len(data))


def _ip_header(size: int, addresses: Addresses) -> bytes:
    def pack(check: int) -> bytes:
        ends = addresses.source_ip, addresses.target_ip
        return _IPV4.pack(0x45, 0, size - 14, 0, 0x4000, 64, 17, check, *ends)

    return pack(~ones_sum(pack(0)) & 0xFFFF)


def _datagram_sum(addresses: Addresses, datagram: bytes) -> int:
    pseudo = addresses.source_ip + addresses.target_ip + struct.pack("!BBH", 0, 17, len(datagram))
    return ones_sum(datagram, ones_sum(pseudo))
