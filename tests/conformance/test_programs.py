"""XDP programs of others before the socket: what they drop, put before packets, and cut off."""

from __future__ import annotations

import time

import numpy as np
import pytest
from cables import Cable, End, carry, until

import afxdp_pool as ap
from afxdp_pool.netdev import RxMetadata, xdp_features

#: Over a veth a socket's packet has the room behind it that its length leaves to the next multiple of 64. The kernel's
#: own case grows packets of 128 bytes, fails now and then, and is left out of its CI.
LENGTH = 100


def received(sender: End, receiver: End, count: int) -> ap.Batch:
    """So many packets, as they are; the caller puts them."""
    got: list[np.void] = []

    def enough() -> bool:
        sender.port.recycle()
        got.extend(receiver.port.receive().descs)
        return len(got) >= count

    until(enough)
    assert len(got) == count
    return ap.Batch(np.array(got, ap.DESC), receiver.umem.data, receiver.port, umem=receiver.umem)


def test_xdp_drop_half(cable: Cable) -> None:
    cable.own("drop_half")
    sender, receiver = cable.sender(), cable.receiver()
    cable.settled()
    came: list[int] = []
    for start in range(0, 1024, 128):
        assert sender.send(range(start, start + 128)) == 128

        def half_came(goal: int = start // 2 + 64) -> bool:
            sender.port.recycle()
            came.extend(packet.seq for packet in receiver.take())
            return len(came) == goal

        until(half_came)
    assert came == list(range(0, 1024, 2))


def test_xdp_metadata_copy(cable: Cable) -> None:
    """Each packet has its number in the eight bytes before it."""
    cable.own("count_before")
    sender, receiver = cable.sender(), cable.receiver(headroom=64)
    cable.settled()
    for start in range(0, 256, 64):
        assert sender.send(range(start, start + 64)) == 64
        batch = received(sender, receiver, 64)
        before = [receiver.umem.data[addr - 8 : addr].tobytes() for addr in batch.addr.tolist()]
        assert [int.from_bytes(count, "little") for count in before] == list(range(start, start + 64))
        receiver.pool.put(batch)
        receiver.port.recycle()


def move_tail(cable: Cable, by: int) -> None:
    cable.own("move_tail", by)
    sender, receiver = cable.sender(), cable.receiver()
    cable.settled()
    whole = [sender.packet(number, LENGTH) for number in range(64)]
    assert sender.send(range(64), LENGTH) == 64
    batch = received(sender, receiver, 64)
    assert (batch.len == LENGTH + by).all()
    assert [bytes(packet)[:LENGTH] for packet in batch] == [packet[: LENGTH + by] for packet in whole]
    receiver.pool.put(batch)


def test_xdp_adjust_tail_shrink(cable: Cable) -> None:
    move_tail(cable, -4)


def test_xdp_adjust_tail_grow(cable: Cable) -> None:
    move_tail(cable, 4)


def test_check_xdp_bind(cable: Cable) -> None:
    """The program goes and comes under a bound socket with nothing left in FILL; then it goes on with the new one."""
    sender, receiver = cable.sender(), cable.receiver(fill_level=16)
    cable.settled()
    assert sender.send(range(16)) == 16
    until(lambda: sender.port.recycle() >= 0 and receiver.port.ring_levels()["rx"] == 16)
    receiver.port.pause()
    for _ in range(3):
        program = cable.another_program(cable.near)
    program.add_socket(0, receiver.port.fileno())
    assert len(receiver.take()) == 16
    carry(sender, receiver, 64, burst=8)


def test_xdp_metadata(cable: Cable) -> None:
    """The hash is its flow's, and the time is that of its arrival."""
    features = xdp_features(cable.near.name, cable.near.netns)
    assert features is not None
    if cable.world.xdp == "generic":
        pytest.skip("in generic mode there is no driver that a program could ask")
    if RxMetadata.HASH not in features.rx_metadata:
        pytest.skip("the driver tells programs no hash")
    sender, receiver = cable.sender(), cable.receiver(rx_metadata=("hash", "arrival"))
    cable.settled()
    hashes = []
    before = time.clock_gettime_ns(time.CLOCK_TAI)
    for flow in range(2):
        assert sender.send(range(16), flow=flow) == 16
        batch = received(sender, receiver, 16)
        told = batch.rx_metadata()
        if not told.has_hash.any():
            receiver.pool.put(batch)
            pytest.skip("the driver has no hash of these packets")
        assert told.has_hash.all()
        assert len(set(told.hash.tolist())) == 1
        hashes.append(int(told.hash[0]))
        assert (np.diff(told.arrival.astype(np.int64)) >= 0).all()
        assert before <= int(told.arrival[0])
        assert int(told.arrival[-1]) <= time.clock_gettime_ns(time.CLOCK_TAI)
        receiver.pool.put(batch)
        receiver.port.recycle()
    assert 0 not in hashes  # over a veth both flows have that of the socket they come from
