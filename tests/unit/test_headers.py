"""Headers by name: found where they are, read and written nowhere else; checksums and hashes as others compute them."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import conserved
from test_fields import ETHER, FLOWS, PORTS, batch_of, v4, v6

import afxdp_pool as ap
from afxdp_pool import headers
from afxdp_pool.testing import packets as test_packets

dpkt = pytest.importorskip("dpkt")

KINDS = {
    "eth": headers.ETH,
    "vlan": headers.VLAN,
    "arp": headers.ARP,
    "ipv4": headers.IPV4,
    "ipv6": headers.IPV6,
    "tcp": headers.TCP,
    "udp": headers.UDP,
    "icmp": headers.ICMP,
    "icmpv6": headers.ICMP,
}
ARP_REQUEST = b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + bytes(range(20))
SHAPES = {name: ETHER + rest for name, (rest, _) in FLOWS.items()} | {
    "ARP for IPv4": ETHER + ARP_REQUEST,
    "ARP in a VLAN": ETHER + b"\x81\0\0\x05" + ARP_REQUEST,
    "ICMPv6": ETHER + v6(58, bytes(range(12))),
    "ICMP number over IPv6": ETHER + v6(1, bytes(12)),
}


def places(packet: bytes) -> dict[str, int]:
    """Where each header starts, read off plainly, with the flow's own test as its witness for the transport."""
    found: dict[str, int] = {}
    if len(packet) < 14:
        return found
    found["eth"] = 0
    at = 12
    tags = (b"\x81\0", b"\x88\xa8", b"\x91\0")
    if packet[at : at + 2] in tags and len(packet) >= 16:
        found["vlan"] = at
    for _ in range(2):
        if packet[at : at + 2] in tags:
            at += 4
    at += 2
    type_ = packet[at - 2 : at]
    if type_ == b"\x08\x06" and packet[at + 4 : at + 6] == b"\x06\x04" and len(packet) >= at + 28:
        found["arp"] = at
    flow = batch_of([packet]).five_tuple()
    version, proto, l4 = (int(column[0]) for column in (flow.version, flow.proto, flow.l4))
    if version == 4:
        found["ipv4"] = at
        end = at + int.from_bytes(packet[at + 2 : at + 4], "big")
    elif version == 6:
        found["ipv6"] = at
        end = at + 40 + int.from_bytes(packet[at + 4 : at + 6], "big")
    else:
        return found
    room = min(end, len(packet)) - l4
    names = {(4, 6): "tcp", (6, 6): "tcp", (4, 17): "udp", (6, 17): "udp", (4, 1): "icmp", (6, 58): "icmpv6"}
    name = names.get((version, proto))
    if l4 and name is not None and room >= KINDS[name].itemsize:
        found[name] = l4
    return found


def as_column(value: Any) -> Any:
    """What a column says of a field that numpy read from the wire."""
    value = np.asarray(value)
    if value.shape == (6,):
        return int.from_bytes(value.tobytes(), "big")
    return value.tolist()


def check_columns(batch: ap.Batch, packets: list[bytes]) -> None:
    where = [places(packet) for packet in packets]
    for kind, dtype in KINDS.items():
        header = getattr(batch, kind)
        assert header.dtype is dtype
        assert header.valid.tolist() == [kind in place for place in where], kind
        assert header.at.tolist() == [place.get(kind, 0) for place in where], kind
        assert dtype.names is not None
        for name in dtype.names:
            column = getattr(header, name).tolist()
            for i, packet in enumerate(packets):
                if kind in where[i]:
                    wanted = np.frombuffer(packet, dtype, 1, where[i][kind])[0]
                    assert column[i] == as_column(wanted[name]), (kind, name)
                    assert header[i] == wanted
                else:
                    assert not np.any(column[i]), (kind, name)
                    with pytest.raises(ap.NoHeaderError, match=f"packet {i} has no .* header; batch.{kind}.valid"):
                        header[i]


def test_every_field_of_every_header_of_every_shape() -> None:
    packets = list(SHAPES.values())
    seen = {kind for packet in packets for kind in places(packet)}
    assert seen == set(KINDS), "the table has each kind"
    check_columns(batch_of(packets), packets)


def test_more_packets_than_are_looked_at_at_once() -> None:
    packets = (list(SHAPES.values()) * 8)[:201]
    check_columns(batch_of(packets), packets)
    batch = batch_of(packets)
    new = np.arange(201)
    batch.udp.dport = new
    assert batch.udp.dport.tolist() == np.where(batch.udp.valid, new, 0).tolist()


SHAPE = st.tuples(
    st.sampled_from(sorted(SHAPES)),
    st.integers(0, 120),
    st.lists(st.tuples(st.integers(12, 60), st.integers(0, 255)), max_size=4),
)


def bent(name: str, cut: int, changes: list[tuple[int, int]]) -> bytes:
    packet = bytearray(SHAPES[name][:cut])
    for at, value in changes:
        if at < len(packet):
            packet[at] = value
    return bytes(packet)


@settings(max_examples=60)
@given(st.lists(SHAPE, min_size=1, max_size=4))
def test_headers_of_packets_bent_and_cut(shapes: list[Any]) -> None:
    packets = [bent(*shape) for shape in shapes]
    check_columns(batch_of(packets), packets)


@settings(max_examples=60)
@given(st.lists(SHAPE, min_size=1, max_size=4), st.data())
def test_assigning_writes_that_field_of_those_packets_and_nothing_else(shapes: list[Any], data: st.DataObject) -> None:
    packets = [bent(*shape) for shape in shapes]
    n = len(packets)
    kind = data.draw(st.sampled_from(sorted(KINDS)))
    names = KINDS[kind].names
    assert names is not None
    name = data.draw(st.sampled_from(names))
    fields = KINDS[kind].fields
    assert fields is not None
    wire, offset = fields[name][:2]
    whole = [data.draw(st.integers(0, (1 << 8 * wire.itemsize) - 1)) for _ in range(n)]
    values: Any = [(v >> 64, v & (1 << 64) - 1) for v in whole] if wire.itemsize == 16 else whole
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=n, max_size=n).map(np.array))
    batch = batch_of(packets)
    wanted = batch.data.copy()
    for i, packet in enumerate(packets):
        place = places(packet)
        if kind in place and (mask is None or mask[i]):
            at = int(batch.addr[i]) + place[kind] + offset
            wanted[at : at + wire.itemsize] = np.frombuffer(whole[i].to_bytes(wire.itemsize, "big"), np.uint8)
    header = getattr(batch, kind)
    setattr(header if mask is None else header.where(mask), name, np.array(values, np.uint64))
    assert np.array_equal(batch.data, wanted)


def test_one_header_is_a_view_of_the_frame() -> None:
    with conserved(frames=64) as umem, ap.FramePool(umem) as pool:
        batch = pool.alloc(4)
        for i in range(4):
            batch.write(i, test_packets.build(64, flow=i))
        batch.ipv4[2]["ttl"] -= 1
        batch.ipv4[-1]["src"] = 0x0A000001
        batch.eth[0]["dst"][:] = [2, 0, 0, 0, 0, 9]
        assert [packet[22] for packet in batch] == [64, 64, 63, 64]
        assert bytes(batch[3][26:30]) == b"\x0a\0\0\1"
        assert bytes(batch[0][:6]) == b"\2\0\0\0\0\x09"
        assert batch.eth.dst[0] == 0x020000000009
        with pytest.raises(IndexError):
            batch.ipv4[4]
        pool.put(batch)


def test_values_may_be_numbers_columns_or_bytes_of_the_wire() -> None:
    batch = batch_of([SHAPES["UDP"], SHAPES["IPv6 UDP"], SHAPES["ARP"]])
    batch.udp.dport += 1
    assert batch.udp.dport.tolist() == [81, 81, 0]
    batch.eth.dst, batch.eth.src = batch.eth.src.copy(), batch.eth.dst
    assert bytes(batch[0][:12]) == ETHER[6:] + ETHER[:6]
    batch.eth.src = b"\2\0\0\0\0\7"
    batch.ipv4.src = ipaddress.IPv4Address("10.1.2.3").packed
    batch.ipv6.dst = ipaddress.IPv6Address("2001:db8::1").packed
    assert batch.eth.src.tolist() == [0x020000000007] * 3
    assert batch.ipv4.src.tolist() == [0x0A010203, 0, 0]
    assert batch.ipv6.dst.tolist() == [[0, 0], [0x20010DB800000000, 1], [0, 0]]
    assert batch.ipv6.src.dtype.isnative


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda batch: setattr(batch.eth, "dst", b"\0" * 5), ap.ConfigError),
        (lambda batch: setattr(batch.udp, "dport", [1, 2, 3]), ValueError),
        (lambda batch: setattr(batch.udp.where([True, False]), "dport", 1), ap.ConfigError),
        (lambda batch: setattr(batch.udp, "dprot", 1), AttributeError),
        (lambda batch: setattr(batch.udp, "valid", 1), AttributeError),
        (lambda batch: batch.decrement_ttl(where=[1, 0]), ap.ConfigError),
        (lambda batch: batch.rss_hash(b"\0" * 39), ap.ConfigError),
        (lambda batch: batch.flow_hash(seed=-1), OverflowError),
    ],
)
def test_what_is_no_value_of_a_field_is_refused_and_nothing_written(wrong: Any, error: type[Exception]) -> None:
    batch = batch_of([SHAPES["UDP"]] * 2)
    before = batch.data.copy()
    with pytest.raises(error):
        wrong(batch)
    assert np.array_equal(batch.data, before)


@pytest.mark.parametrize("addr", [0, 255, 256, 1 << 40, (1 << 64) - 1])
@pytest.mark.parametrize("length", [0, 64, 257, (1 << 32) - 1])
def test_a_descriptor_that_leaves_the_memory_has_no_headers(addr: int, length: int) -> None:
    if addr + length <= 256:
        return
    data = np.full(256, 0x08, np.uint8)
    batch = ap.Batch(np.array([(addr, length, 0, 0)] * 2, ap.DESC), data)
    for kind in KINDS:
        assert not getattr(batch, kind).valid.any()
    batch.eth.type = 7
    batch.udp.dport = 7
    assert not batch.decrement_ttl().any()
    assert batch.fill_checksums() == 0
    assert not batch.verify_checksums().any()
    assert not batch.flow_hash().any()
    assert not batch.rss_hash().any()
    assert (data == 0x08).all()


# Checksums and hops --------------------------------------------------------------------------------------------------


def datagram(version: int, proto: int, payload: bytes, options: int = 0, extension: bool = False) -> bytes:
    """A packet with right checksums, made by dpkt."""
    if proto == 17:
        inner: Any = dpkt.udp.UDP(sport=5, dport=6, ulen=8 + len(payload), data=payload)
    elif proto == 6:
        inner = dpkt.tcp.TCP(sport=5, dport=6, seq=7, opts=bytes(options), off=5 + options // 4, data=payload)
    elif proto == 1:
        inner = dpkt.icmp.ICMP(type=8, data=dpkt.icmp.ICMP.Echo(id=3, seq=4, data=payload))
    else:
        inner = dpkt.icmp6.ICMP6(type=128, data=dpkt.icmp6.ICMP6.Echo(id=3, seq=4, data=payload))
    if version == 4:
        ip: Any = dpkt.ip.IP(
            src=b"\x0a\0\0\1", dst=b"\xc0\xa8\xff\xfe", p=proto, ttl=9, data=inner, opts=bytes(options)
        )
        ip.hl = 5 + options // 4
        ip.len = len(ip)
        kind = dpkt.ethernet.ETH_TYPE_IP
    else:
        ip = dpkt.ip6.IP6(src=bytes(range(16)), dst=bytes(range(16, 32)), nxt=proto, hlim=9, data=inner)
        ip.plen = len(inner)
        kind = dpkt.ethernet.ETH_TYPE_IP6
    made = bytearray(bytes(dpkt.ethernet.Ethernet(type=kind, data=ip)))
    if extension:  # of padding: the pseudo-header does not know it
        made[18:20] = (len(made) - 54 + 8).to_bytes(2, "big")
        made[20], made[54:54] = 60, bytes([proto, 0, 1, 4, 0, 0, 0, 0])
    return bytes(made)


def transport_at(packet: bytes) -> int:
    return int(batch_of([packet]).five_tuple().l4[0])


@settings(max_examples=120)
@given(
    st.sampled_from([(4, 17), (4, 6), (4, 1), (6, 17), (6, 6), (6, 58)]),
    st.binary(max_size=130),
    st.sampled_from([0, 4, 20]),
    st.booleans(),
    st.binary(max_size=9),
    st.data(),
)
def test_checksums_agree_with_dpkt(
    what: tuple[int, int], payload: bytes, options: int, extension: bool, padding: bytes, data: st.DataObject
) -> None:
    version, proto = what
    packet = datagram(version, proto, payload, options if version == 4 else 0, extension and version == 6)
    name = {17: "udp", 6: "tcp", 1: "icmp", 58: "icmpv6"}[proto]
    batch = batch_of([packet + padding])
    assert batch.verify_checksums().tolist() == [True]
    assert getattr(batch, name).verify_checksum().tolist() == [True]
    assert batch.ipv4.verify_checksum().tolist() == [version == 4]

    getattr(batch, name).checksum = 0x1234
    batch.ipv4.checksum = 0x1234
    assert getattr(batch, name).fill_checksum() == 1
    assert batch.ipv4.fill_checksum() == (version == 4)
    assert bytes(batch[0]) == packet + padding
    batch.ipv4.checksum = 0
    assert batch.fill_checksums() == 1
    assert bytes(batch[0]) == packet + padding

    # Any one bit of what is covered, and padding of it is not.
    at = data.draw(st.integers(transport_at(packet), len(packet) - 1))
    lengths = {transport_at(packet) + 4, transport_at(packet) + 5} if proto == 17 else set()
    batch[0][at] ^= 1 << data.draw(st.integers(0, 7))
    zero = proto == 17 and version == 4 and not batch.udp.checksum[0]
    if at not in lengths and not zero:
        assert batch.verify_checksums().tolist() == [False]
        assert getattr(batch, name).verify_checksum().tolist() == [False]


def test_what_has_no_checksum_that_could_be_known() -> None:
    whole = datagram(4, 17, b"x" * 40)
    first = batch_of([whole])
    first.ipv4.frag = 0x2000
    first.ipv4.fill_checksum()
    later = batch_of([whole])
    later.ipv4.frag = 5
    later.ipv4.fill_checksum()
    for batch in (first, later):
        before = bytes(batch[0])
        assert batch.udp.fill_checksum() == 0
        assert batch.udp.verify_checksum().tolist() == [False]
        assert batch.verify_checksums().tolist() == [True], "its header's is right, and all it has"
        assert bytes(batch[0]) == before
    routed = bytearray(datagram(6, 17, b"x", extension=True))
    routed[20], routed[57] = 43, 1  # a routing header with a segment left
    cut = batch_of([whole[:-1]])
    none = batch_of([whole])
    none.udp.checksum = 0
    short = batch_of([whole])
    short.udp.len = 7
    long = batch_of([whole])
    long.udp.len = 49
    v6_none = batch_of([datagram(6, 17, b"x")])
    v6_none.udp.checksum = 0
    for batch in (batch_of([bytes(routed)]), cut, short, long, v6_none, batch_of([ETHER + ARP_REQUEST])):
        assert batch.udp.verify_checksum().tolist() == [False]
        assert batch.verify_checksums().tolist() == [False]
    for batch in (batch_of([bytes(routed)]), cut, short, long):
        assert batch.udp.fill_checksum() == 0
    assert none.udp.verify_checksum().tolist() == [True]


def test_a_udp_checksum_that_comes_out_as_zero_is_written_as_ones() -> None:
    batch = batch_of([datagram(4, 17, b"\0\0")])
    before = int(batch.udp.checksum[0])
    batch.store(42, ">u2", before)  # what was missing to zero
    assert batch.udp.fill_checksum() == 1
    assert batch.udp.checksum.tolist() == [0xFFFF]
    assert batch.udp.verify_checksum().tolist() == [True]


@pytest.mark.parametrize("proto", [0, 17, 255])
def test_a_hop_less_is_what_a_whole_checksum_says(proto: int) -> None:
    """Every TTL, with a header whose sum is near every edge."""
    packets = []
    for ttl in range(256):
        for tail in (0, 1, 0x7FFF, 0xFFFE, 0xFFFF):
            header = bytearray(v4(proto, b""))
            header[2 + 8] = ttl
            header[2 + 4 : 2 + 6] = tail.to_bytes(2, "big")
            packets.append(ETHER + bytes(header))
    batch = batch_of(packets)
    batch.ipv4.fill_checksum()
    wrong = batch_of([bytes(packet) for packet in batch])
    wrong.ipv4.checksum += np.uint16(7)
    wanted = batch_of([bytes(packet) for packet in batch])
    left = batch.ipv4.ttl > 1
    wanted.ipv4.where(left).ttl -= 1
    wanted.ipv4.fill_checksum()
    assert batch.decrement_ttl().tolist() == (~left).tolist()
    assert np.array_equal(batch.data, wanted.data)
    wrong.decrement_ttl()
    assert not wrong.ipv4.verify_checksum().any(), "what was wrong is not made right"


def test_hops_of_chosen_packets_and_ipv6() -> None:
    batch = batch_of([ETHER + v4(17, PORTS), ETHER + v6(17, PORTS), ETHER + v6(17, PORTS), ETHER + ARP_REQUEST])
    batch.ipv6.hop_limit = [0, 1, 2, 0]
    mask = np.array([False, True, True, True])
    assert batch.decrement_ttl(where=mask).tolist() == [False, True, False, False]
    assert batch.ipv4.ttl.tolist() == [64, 0, 0, 0]
    assert batch.ipv6.hop_limit.tolist() == [0, 1, 1, 0]


# Hashes --------------------------------------------------------------------------------------------------------------

# learn.microsoft.com, "Verifying the RSS Hash Calculation": destination, source, of the addresses, with TCP's ports.
RSS = [
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    ("209.142.163.6", 2217, "38.27.205.30", 48228, 0x82989176, 0xAFC7327F),
    ("202.188.127.2", 1303, "153.39.163.191", 44251, 0x5D1809C5, 0x10E828A2),
    ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
    ("fe80::200:f8ff:fe21:67cf", 38024, "3ffe:1900:4545:3:200:f8ff:fe21:67cf", 44251, 0x4B61E985, 0x02D1FEEF),
]


def tcp(dst: str, dport: int, src: str, sport: int, *_: int) -> bytes:
    ports = struct.pack("!HH", sport, dport) + bytes(16)
    addresses = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    if len(addresses) == 8:
        return ETHER + v4(6, ports)[:14] + addresses + ports
    return ETHER + v6(6, ports)[:10] + addresses + ports


def back(packet: bytes) -> bytes:
    """The same flow in the other direction, of `tcp`."""
    n = 4 if packet[12:14] == b"\x08\0" else 16
    at = 26 if n == 4 else 22
    ends = packet[at : at + n], packet[at + n : at + 2 * n], packet[at + 2 * n :][:2], packet[at + 2 * n + 2 :][:2]
    return packet[:at] + ends[1] + ends[0] + ends[3] + ends[2] + packet[at + 2 * n + 4 :]


def test_rss_hashes_are_those_of_the_specification() -> None:
    batch = batch_of([tcp(*row) for row in RSS])
    assert batch.rss_hash().tolist() == [row[5] for row in RSS]
    assert batch.rss_hash(ports=False).tolist() == [row[4] for row in RSS]
    assert batch.rss_hash(ap.RSS_KEY + b"more").tolist() == [row[5] for row in RSS]


def test_symmetric_hashes_are_the_same_in_both_directions() -> None:
    there, again = batch_of([tcp(*row) for row in RSS]), batch_of([back(tcp(*row)) for row in RSS])
    assert there.five_tuple().src.tolist() == again.five_tuple().dst.tolist()
    assert there.five_tuple().sport.tolist() == again.five_tuple().dport.tolist()
    ways: list[tuple[Callable[[ap.Batch], Any], bool]] = [
        (lambda batch: batch.rss_hash(ap.RSS_KEY_SYMMETRIC), True),
        (lambda batch: batch.flow_hash(symmetric=True), True),
        (lambda batch: batch.flow_hash(symmetric=True, seed=99), True),
        (lambda batch: batch.rss_hash(), False),
        (lambda batch: batch.flow_hash(), False),
    ]
    for hashed, alike in ways:
        assert (hashed(there) == hashed(again)).tolist() == [alike] * len(RSS)


def test_every_part_of_a_flow_matters_to_its_hash_and_nothing_else_does() -> None:
    for row in (RSS[0], RSS[5]):
        packet = tcp(*row)
        at = 26 if len(packet) < 70 else 22
        last = at + (12 if at == 26 else 36)
        for symmetric in (False, True):
            changed = [packet]
            for i in range(12, len(packet)):
                changed.append(packet[:i] + bytes([packet[i] ^ 0x10]) + packet[i + 1 :])
            hashes = batch_of(changed).flow_hash(symmetric=symmetric).tolist()
            own = range(1 + at - 12, 1 + last - 12)
            assert all(hashes[i] != hashes[0] for i in own)
            assert all(hashes[i] == hashes[0] for i in range(1 + last - 12, len(changed)))
            assert len({hashes[i] for i in own}) == len(own)
    batch = batch_of([tcp(*RSS[0])])
    assert len({int(batch.flow_hash(seed=seed)[0]) for seed in range(100)}) == 100


def test_fragments_of_a_datagram_have_one_hash() -> None:
    shapes = [SHAPES["first fragment"], SHAPES["later fragment"]]
    for batch in (batch_of(shapes), batch_of([SHAPES["IPv6 first fragment"], SHAPES["IPv6 later fragment"]])):
        if batch.ipv6.valid.any():
            batch.store(14 + 40 + 3, "u1", [1, 8])
        for hashed in (batch.flow_hash(), batch.rss_hash()):
            assert hashed[0] == hashed[1] != 0


def test_hashes_of_neighbouring_flows_spread() -> None:
    """A thousand flows that differ little fill the buckets as chance would: chi-squared within its 0.1 % tails."""
    packets = [tcp(f"10.0.{i // 50}.1", 80, "10.0.0.2", 1000 + i % 50) for i in range(1000)]
    for hashed in (batch_of(packets).flow_hash(), batch_of(packets).flow_hash(symmetric=True)):
        for shift in (0, 32, 58):
            counts = np.bincount(((hashed >> np.uint64(shift)) & np.uint64(63)).astype(int), minlength=64)
            assert 32 < float(((counts - 1000 / 64) ** 2 / (1000 / 64)).sum()) < 104
