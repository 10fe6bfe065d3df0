"""Header fields as columns: what is read and written, and that nothing outside of a packet ever is."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import conserved

from afxdp_pool import DESC, Batch, ConfigError, FramePool, Umem
from afxdp_pool.testing import packets as test_packets

SIZE = 256  # bytes a packet may have here


def batch_of(packets: list[bytes]) -> Batch:
    """A batch over plain memory, a packet every `SIZE` bytes; the last one ends where the memory ends."""
    data = np.full(SIZE * len(packets), 0xEE, np.uint8)
    descs = np.zeros(len(packets), DESC)
    for i, packet in enumerate(packets):
        at = SIZE * (i + 1) - len(packet)
        data[at : at + len(packet)] = np.frombuffer(packet, np.uint8)
        descs[i] = (at, len(packet), 0, 0)
    return Batch(descs, data)


@pytest.fixture
def umem() -> Iterator[Umem]:
    with conserved(frames=64) as made:
        yield made


# Reading and writing -------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.integers(0, 44), st.sampled_from("BHIQbhiq"))
def test_load_reads_what_struct_reads_and_zero_beyond_the_packet(packets: list[bytes], at: int, kind: str) -> None:
    batch = batch_of(packets)
    for order in "<>":
        one = struct.Struct(order + kind)
        wanted = [one.unpack_from(p, at)[0] if at + one.size <= len(p) else 0 for p in packets]
        code = f"{order}{'u' if kind.isupper() else 'i'}{one.size}"
        got = batch.load(at, code)
        assert got.tolist() == wanted
        assert got.dtype.isnative
        base = np.full(len(packets), at, np.uint32)
        assert batch.load(0, code, base=base).tolist() == wanted
        out = np.zeros(len(packets), got.dtype)
        assert batch.load(at, np.dtype(code), out=out) is out
        assert out.tolist() == wanted


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.integers(0, 44), st.data())
def test_store_writes_what_load_reads_and_nothing_else(packets: list[bytes], at: int, data: st.DataObject) -> None:
    code = data.draw(st.sampled_from(["u1", ">u2", "<u2", ">u4", ">u8", ">i4"]))
    dtype = np.dtype(code)
    info = np.iinfo(dtype)
    values = data.draw(
        st.lists(st.integers(int(info.min), int(info.max)), min_size=len(packets), max_size=len(packets))
    )
    where = np.array(data.draw(st.lists(st.booleans(), min_size=len(packets), max_size=len(packets))))
    batch = batch_of(packets)
    wanted = batch.data.copy()
    written = 0
    for i, (packet, value) in enumerate(zip(packets, values, strict=True)):
        if where[i] and at + dtype.itemsize <= len(packet):
            start = int(batch.addr[i]) + at
            wanted[start : start + dtype.itemsize] = np.frombuffer(np.array(value, dtype).tobytes(), np.uint8)
            written += 1
    assert batch.store(at, code, values, where=where) == written
    assert np.array_equal(batch.data, wanted)


@pytest.mark.parametrize("addr", [0, 255, 256, 1 << 40, (1 << 64) - 1, (1 << 64) - 8])
@pytest.mark.parametrize("length", [0, 16, 257, (1 << 32) - 1])
def test_a_descriptor_that_leaves_the_memory_reads_as_zero_and_is_not_written(addr: int, length: int) -> None:
    if addr + length <= 256:
        return
    data = np.full(256, 0xEE, np.uint8)
    batch = Batch(np.array([(addr, length, 0, 0)] * 4, DESC), data)
    for offset in (0, 8, 65535):
        base = np.full(4, 0xFFFFFFFF, np.uint32)
        assert batch.load(offset, ">u8").tolist() == [0] * 4
        assert batch.load(offset, ">u8", base=base).tolist() == [0] * 4
        assert batch.store(offset, ">u8", 7) == batch.store(offset, ">u8", 7, base=base) == 0
    assert batch.swap_macs() == 0
    assert batch.five_tuple().valid.tolist() == [False] * 4
    assert (data == 0xEE).all()


def test_fields_of_packets_in_frames(umem: Umem) -> None:
    with FramePool(umem) as pool:
        batch = pool.alloc(8)
        for i in range(8):
            batch.write(i, test_packets.build(64 + i, flow=i))
        assert batch.load(34, ">u2").tolist() == [40000 + i for i in range(8)]
        assert batch.store(34, ">u2", batch.load(34, ">u2") + np.uint16(1)) == 8
        assert [int.from_bytes(bytes(packet[34:36]), "big") for packet in batch] == [40001 + i for i in range(8)]
        assert batch[::2].load(34, ">u2").tolist() == [40001, 40003, 40005, 40007], "a batch cut out of another"
        before = [bytes(packet) for packet in batch]
        odd = batch.load(35) % 2 == 1
        assert batch.swap_macs(where=odd) == 4
        for i, packet in enumerate(batch):
            swapped = before[i][6:12] + before[i][:6] + before[i][12:]
            assert bytes(packet) == (swapped if odd[i] else before[i])
        pool.put(batch)


def test_an_array_of_the_batch_is_filled_anew_by_the_next_load_of_its_field() -> None:
    batch = batch_of([bytes(range(64))])
    first, other = batch.load(2, ">u2"), batch.load(4, ">u2")
    batch.store(2, ">u2", 77)
    assert batch.load(2, ">u2") is first
    assert (first.tolist(), other.tolist()) == ([77], [0x0405])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: batch.load(0, "f4"),
        lambda batch: batch.load(0, "S6"),
        lambda batch: batch.load(-1),
        lambda batch: batch.load(65536),
        lambda batch: batch.load(0, ">u2", out=np.zeros(2, ">u2")),
        lambda batch: batch.load(0, ">u2", out=np.zeros(3, "u2")),
        lambda batch: batch.load(0, ">u2", out=np.zeros(4, "u2")[::2]),
        lambda batch: batch.load(0, ">u2", out=[0, 0]),
        lambda batch: batch.store(65536, "u1", 0),
        lambda batch: batch.store(0, "u1", 0, where=np.array([0, 1])),
        lambda batch: batch.swap_macs([True, False]),
    ],
)
def test_what_is_no_field_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong(batch_of([bytes(64)] * 2))


def test_values_that_do_not_fit_are_numpys_error_and_nothing_is_written() -> None:
    batch = batch_of([bytes(64)] * 2)
    for values in (1 << 16, [1, 2, 3]):
        with pytest.raises((OverflowError, ValueError)):
            batch.store(0, ">u2", values)
    assert bytes(batch[0]) == bytes(64)


# Flows ---------------------------------------------------------------------------------------------------------------

ETHER = b"\x02\0\0\0\0\1" + b"\x02\0\0\0\0\2"
PORTS = struct.pack("!HH", 1234, 80)
V6 = bytes(range(16)) + bytes(range(16, 32))


def v4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0, total: int | None = None) -> bytes:
    header = 20 + len(options)
    length = header + len(payload) if total is None else total
    first = struct.pack(
        "!BBHHHBBH4s4s", 0x40 | header // 4, 0, length, 0, fragment, 64, protocol, 0, b"\1\2\3\4", b"\5\6\7\x08"
    )
    return b"\x08\0" + first + options + payload


def v6(protocol: int, payload: bytes) -> bytes:
    return b"\x86\xdd" + struct.pack("!IHBB", 0x60000000, len(payload), protocol, 64) + V6 + payload


IP4 = (0x01020304, 0x05060708)
# name: packet behind the MAC addresses, then sport, dport, proto, version, l4
FLOWS: dict[str, tuple[bytes, tuple[int, int, int, int, int]]] = {
    "UDP": (v4(17, PORTS + bytes(20)), (1234, 80, 17, 4, 34)),
    "TCP behind options": (v4(6, PORTS + bytes(20), options=bytes(12)), (1234, 80, 6, 4, 46)),
    "ICMP": (v4(1, bytes(20)), (0, 0, 1, 4, 34)),
    "first fragment": (v4(17, PORTS + bytes(20), fragment=0x2000), (1234, 80, 17, 4, 34)),
    "later fragment": (v4(17, PORTS + bytes(20), fragment=0x2001), (0, 0, 17, 4, 0)),
    "ports in the padding": (v4(17, PORTS + bytes(20), total=20), (0, 0, 17, 4, 0)),
    "half of them in the padding": (v4(17, PORTS + bytes(20), total=22), (0, 0, 17, 4, 34)),
    "total length too short": (v4(17, PORTS + bytes(20), total=19), (0, 0, 0, 0, 0)),
    "header length too short": (b"\x08\0\x44" + v4(17, PORTS)[3:], (0, 0, 0, 0, 0)),
    "IPv4 type, another version": (b"\x08\0\x65" + v4(17, PORTS)[3:], (0, 0, 0, 0, 0)),
    "VLAN": (b"\x81\0\0\x05" + v4(17, PORTS), (1234, 80, 17, 4, 38)),
    "QinQ": (b"\x88\xa8\0\x05\x81\0\0\x06" + v4(17, PORTS), (1234, 80, 17, 4, 42)),
    "three tags": (b"\x81\0\0\x05" * 3 + v4(17, PORTS), (0, 0, 0, 0, 0)),
    "ARP": (b"\x08\x06" + bytes(28), (0, 0, 0, 0, 0)),
    "IPv6 UDP": (v6(17, PORTS + bytes(4)), (1234, 80, 17, 6, 54)),
    "IPv6 in a VLAN": (b"\x81\0\0\x05" + v6(132, PORTS + bytes(8)), (1234, 80, 132, 6, 58)),
    "hop-by-hop, TCP": (v6(0, b"\x06\x01" + bytes(14) + PORTS + bytes(16)), (1234, 80, 6, 6, 70)),
    "authentication, UDP": (v6(51, b"\x11\x01" + bytes(10) + PORTS + bytes(4)), (1234, 80, 17, 6, 66)),
    "IPv6 first fragment": (v6(44, b"\x11\0\0\x01" + bytes(4) + PORTS + bytes(4)), (1234, 80, 17, 6, 62)),
    "IPv6 later fragment": (v6(44, b"\x11\0\0\x08" + bytes(4) + PORTS + bytes(4)), (0, 0, 17, 6, 0)),
    "no next header": (v6(59, PORTS), (0, 0, 59, 6, 54)),
    "extension cut off": (v6(60, b"\x11\x0f" + bytes(10)), (0, 0, 17, 6, 0)),
    "a chain without end": (v6(60, b"\x3c\0" + bytes(6) + (b"\x3c\0" + bytes(6)) * 15), (0, 0, 60, 6, 0)),
}


def test_flows_of_every_shape() -> None:
    batch = batch_of([ETHER + packet for packet, _ in FLOWS.values()])
    flow = batch.five_tuple()
    got = list(
        zip(*(getattr(flow, name).tolist() for name in ("sport", "dport", "proto", "version", "l4")), strict=True)
    )
    for i, (name, (_, wanted)) in enumerate(FLOWS.items()):
        assert got[i] == wanted, name
        version = wanted[3]
        assert flow.valid[i] == (version != 0), name
        assert (flow.src[i], flow.dst[i]) == (IP4 if version == 4 else (0, 0)), name
        addresses = flow.src6[i].astype(">u8").tobytes() + flow.dst6[i].astype(">u8").tobytes()
        assert addresses == (V6 if version == 6 else bytes(32)), name


def test_a_flow_is_found_only_as_far_as_the_packet_goes() -> None:
    """Every packet cut at every length: what is reported lies in what is left, and is what the whole one has."""
    for name, (rest, (sport, dport, proto, _, l4)) in FLOWS.items():
        whole = ETHER + rest
        flow = batch_of([whole[:n] for n in range(len(whole) + 1)]).five_tuple()
        for n in range(len(whole) + 1):
            if not flow.valid[n]:
                assert not any(int(column[n].any()) for column in flow), name
                continue
            if flow.l4[n]:
                assert flow.l4[n] == l4 < n, name
                assert flow.proto[n] == proto, name
            if flow.sport[n] or flow.dport[n]:
                assert (flow.sport[n], flow.dport[n]) == (sport, dport), name
                assert l4 + 4 <= n, name


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(FLOWS)),
    st.integers(0, 120),
    st.lists(st.tuples(st.integers(12, 60), st.integers(0, 255)), max_size=6),
)
def test_no_packet_reads_outside_of_itself(name: str, cut: int, changes: list[tuple[int, int]]) -> None:
    """What lies around a packet has no influence on its flow."""
    packet = bytearray((ETHER + FLOWS[name][0])[:cut])
    for at, value in changes:
        if at < len(packet):
            packet[at] = value
    seen = []
    for around in (0x00, 0xFF):
        data = np.full(3 * SIZE, around, np.uint8)
        data[SIZE : SIZE + len(packet)] = np.frombuffer(bytes(packet), np.uint8)
        flow = Batch(np.array([(SIZE, len(packet), 0, 0)], DESC), data).five_tuple()
        seen.append([column.tolist() for column in flow])
        assert flow.l4[0] < max(len(packet), 1)
    assert seen[0] == seen[1]
