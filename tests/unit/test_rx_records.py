"""What is known of packets beside their bytes, on rings in memory: whose record it is, and what is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support import SMALL, conserved

import afxdp_pool as ap
from afxdp_pool import wire
from afxdp_pool.config import RX_METADATA, from_bits, to_bits
from afxdp_pool.metadata import pack_record
from afxdp_pool.testing import FakeKernel

KNOWING = ap.PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32, rx_metadata=RX_METADATA)
FACTS = {
    "hash": 0xFEDCBA98,
    "hash_type": int(ap.RxHashType.L3_IPV4 | ap.RxHashType.L4_UDP),
    "timestamp": 5 << 60,
    "arrival": 1_700_000_000_000_000_000,
    "vlan_tci": 0xE00A,
    "vlan_proto": 0x88A8,
}


def test_all_facts_come_as_columns() -> None:
    with conserved(headroom=7) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, KNOWING)
        kernel = FakeKernel(port)
        port.fill()
        assert kernel.deliver(1, metadata=FACTS) + kernel.deliver(1) + kernel.deliver(1, metadata={"hash": 0}) == 3
        batch = port.receive()
        known = batch.rx_metadata()
        for name, value in FACTS.items():
            assert getattr(known, name).tolist() == [value, 0, 0]
        assert known.has_hash.tolist() == [True, False, True]
        for column in (known.has_timestamp, known.has_arrival, known.has_vlan):
            assert column.tolist() == [True, False, False]
        assert [column.dtype.itemsize for column in known[:6]] == [4, 2, 8, 8, 2, 2]
        first = ap.rx_known(batch[0])
        assert {name: getattr(first, name) for name in FACTS} == FACTS
        assert first.has_hash
        assert first.has_timestamp
        assert first.has_arrival
        assert first.has_vlan
        assert not ap.rx_known(batch[1]).has_hash
        assert batch.rx_metadata() is known, "the batch's own arrays"
        pool.put(batch)


def test_a_record_is_of_one_life_of_its_frame() -> None:
    """Nothing of the packet before is known of the next one in the same frame, though its bytes still lie there."""
    with conserved(frames=128) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, KNOWING)
        kernel = FakeKernel(port)
        for _ in range(8):
            port.fill()
            assert kernel.deliver(32, metadata=FACTS) == 32
            batch = port.receive(32)
            assert batch.rx_metadata().has_hash.all()
            pool.put(batch)
            port.fill()
            assert kernel.deliver(32) == 32
            batch = port.receive(32)
            assert not batch.rx_metadata().has_hash.any()
            pool.put(batch)


def test_bytes_of_a_packet_are_no_record() -> None:
    """A sender cannot say what is known of its packet, not even where a handler strips a header."""
    forged = pack_record(FACTS)
    with conserved() as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, KNOWING)
        kernel = FakeKernel(port)
        port.fill()
        kernel.deliver([forged + bytes(32)], metadata={"hash": 1})
        batch = port.receive()
        batch.addr[:] += len(forged)
        batch.len[:] -= len(forged)
        known = batch.rx_metadata()
        assert (known.hash.tolist(), known.has_arrival.tolist()) == ([1], [False])
        pool.put(batch)


def test_a_packet_too_near_to_its_frames_start_has_none() -> None:
    with conserved() as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, KNOWING)
        kernel = FakeKernel(port)
        port.fill()
        assert kernel.deliver(1, headroom=8) == 1
        batch = port.receive()
        assert not batch.rx_metadata().has_hash.any()
        pool.put(batch)


def test_frames_and_parts_and_copies_have_what_their_batch_had() -> None:
    with conserved() as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, KNOWING)
        kernel = FakeKernel(port)
        port.fill()
        for number in range(6):
            kernel.deliver(1, metadata={"hash": number})
        batch = port.receive()
        assert batch[2:4].rx_metadata().hash.tolist() == [2, 3]
        assert batch.copy().rx_metadata().hash.tolist() == list(range(6))
        with batch.keep(np.array([5, 0])) as kept, batch.keep(3) as one:
            pool.put(batch)
            assert kept.rx_metadata().hash.tolist() == [5, 0]
            assert one.batch.rx_metadata().hash.tolist() == [3]
            assert one.clone().batch.rx_metadata().hash.tolist() == [3]


def test_no_port_that_learns_is_told() -> None:
    with conserved() as umem, ap.FramePool(umem) as pool:
        batch = pool.alloc(1)
        with pytest.raises(ap.ConfigError, match="no port of this Umem learns"):
            batch.rx_metadata()
        ap.Port.in_memory(pool, KNOWING)
        assert not batch.rx_metadata().has_hash.any(), "of a frame that nothing was received in"
        pool.put(batch)
        by_hand = ap.Batch(batch.descs, umem.data)
        with pytest.raises(ap.InvalidDescriptorError, match="of no Umem"):
            by_hand.rx_metadata()


def test_a_port_that_only_sends_learns_nothing() -> None:
    with conserved() as umem, ap.FramePool(umem) as pool:
        sender = ap.PortConfig(
            fill_size=64, comp_size=64, tx_size=64, fill_level=32, receive=False, rx_metadata=("hash",)
        )
        assert ap.Port.in_memory(pool, sender).config.rx_metadata == ("hash",)
        with pytest.raises(ap.ConfigError, match="no port of this Umem learns"):
            pool.alloc(0).rx_metadata()


@pytest.mark.parametrize("wrong", ["hash", ("hash", "rss"), [""], ("Hash",)])
def test_names_that_mean_nothing_are_refused(wrong: Any) -> None:
    with pytest.raises(ap.ConfigError, match="name some of hash, timestamp, vlan, arrival"):
        ap.PortConfig(rx_metadata=wrong)


def test_names_have_one_order_and_one_number() -> None:
    asked: Any = ["arrival", "hash", "hash"]
    assert ap.PortConfig(rx_metadata=asked).rx_metadata == ("hash", "arrival")
    for number in range(16):
        assert to_bits(from_bits(number, RX_METADATA), RX_METADATA) == number


def test_a_broker_is_asked_for_it_only_when_it_is_wanted() -> None:
    """So that one that never heard of it serves all others."""
    request = wire.SocketRequest("eth1", 0, ap.UmemConfig(64), SMALL, bytes(8))
    assert "rx_metadata" not in request.text()
    wanting = wire.SocketRequest("eth1", 0, ap.UmemConfig(64), KNOWING, bytes(8))
    read = wire.SocketRequest.read(wire.Message.parse(wanting.text().encode() + bytes(1) + wanting.stock))
    assert read.port.rx_metadata == RX_METADATA


def test_dates_of_arrivals() -> None:
    import time

    now = time.clock_gettime_ns(time.CLOCK_TAI)
    dates = ap.utc(np.array([now, now + 1_000_000_000], np.uint64))
    assert (str(dates.dtype), dates.shape) == ("datetime64[ns]", (2,))
    assert dates[1] - dates[0] == np.timedelta64(1, "s")
    assert abs(dates[0] - np.datetime64(time.time_ns(), "ns")) < np.timedelta64(60, "s")


def test_facts_that_do_not_fit_are_refused() -> None:
    for wrong, says in (
        ({"rss": 1}, "rss: no such fact"),
        ({"hash": 1 << 32}, "is not possible"),
        ({"hash": -1}, "is not possible"),
    ):
        with pytest.raises(ap.ConfigError, match=says):
            pack_record(wrong)
