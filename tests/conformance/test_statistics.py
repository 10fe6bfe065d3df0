"""What cannot be received or sent is counted by the kernel, where a port shows it; and no frame is lost by it."""

from __future__ import annotations

import pytest
from cables import Cable, until
from kernel_bench import Raw

from afxdp_pool.config import FRAME_RESERVE, PACKET_HEADROOM


def test_stat_rx_dropped(cable: Cable) -> None:
    """As much headroom as the kernel takes: every second packet is too long for what is left of a frame."""
    if cable.world.mode == "zero-copy":
        pytest.skip("a zero-copy driver drops it before the socket sees it; the kernel's own case is not run either")
    receiver = cable.receiver(headroom=4096 - PACKET_HEADROOM - FRAME_RESERVE)
    sender = cable.sender()
    cable.settled()
    came = 0
    for start in range(0, 256, 64):
        for number in range(start, start + 64, 2):
            assert sender.send([number], size=64) == 1
            assert sender.send([number + 1], size=512) == 1

        def counted(goal: int = start + 64) -> bool:
            nonlocal came
            sender.port.recycle()
            for packet in receiver.take():
                assert (packet.seq, packet.size) == (came, 64)
                came += 2
            return came == goal and receiver.port.kernel_stats().rx_dropped == goal // 2

        until(counted)
    assert receiver.port.kernel_stats().rx_dropped == 128


def test_stat_rx_full(cable: Cable) -> None:
    """An RX ring of 64 that nobody reads, and 96 packets. A zero-copy driver may hold some back, for later."""
    receiver, sender = cable.receiver(rx_size=64, fill_level=256), cable.sender()
    cable.settled()
    assert sender.send(range(96)) == 96
    exact = cable.world.mode == "copy"
    until(lambda: sender.port.recycle() >= 0 and receiver.port.kernel_stats().rx_ring_full >= (32 if exact else 1))
    assert receiver.port.ring_levels()["rx"] == 64
    assert [packet.seq for packet in receiver.take(64)] == list(range(64))
    if exact:
        assert receiver.port.kernel_stats().rx_ring_full == 32
        assert receiver.take(64) == []


def test_stat_fill_empty(cable: Cable) -> None:
    """Frames for sixteen packets, and 64 packets."""
    receiver, sender = cable.receiver(fill_level=16), cable.sender()
    cable.settled()
    assert sender.send(range(64)) == 64
    until(lambda: sender.port.recycle() >= 0 and receiver.port.kernel_stats().rx_fill_ring_empty_descs > 0)
    until(lambda: sender.port.recycle() >= 0 and receiver.port.ring_levels()["rx"] == 16)
    assert [packet.seq for packet in receiver.take(64)] == list(range(16))
    if cable.world.mode == "copy":
        until(lambda: receiver.port.kernel_stats().rx_dropped == 48)


def test_stat_tx_invalid(cable: Cable) -> None:
    """Every second descriptor is spoiled behind all checks of ours: the kernel counts each, and sends the rest."""
    sender, receiver = cable.sender(), cable.receiver()
    cable.settled()
    sender.queue_up(sender.written(range(64)))
    Raw(sender.port, "tx").entries["len"][1:64:2] = 9001
    came: list[int] = []

    def sent_the_others() -> bool:
        sender.port.recycle()
        came.extend(packet.seq for packet in receiver.take())
        return len(came) == 32 and sender.port.kernel_stats().tx_invalid_descs == 32

    until(sent_the_others)
    assert came == list(range(0, 64, 2))
    until(lambda: sender.port.recycle() >= 0 and sender.port.stats().tx_completed >= 32)
    # Kernels differ in whether a spoiled one completes; either way `close` has all frames back.
    missing = sender.port.stats().tx_packets - sender.port.stats().tx_completed
    assert sender.umem.audit().check().tx == missing


def test_tx_queue_consumer(cable: Cable) -> None:
    """33 descriptors, one kick, with the kernel's own budget of 32: it says in the ring that it took so many."""
    if cable.world.mode == "zero-copy":
        pytest.skip("the budget is that of copy mode; the kernel's own case is not run either")
    sender, receiver = cable.sender(tx_budget=0), cable.receiver()
    cable.settled()
    sender.queue_up(sender.written(range(33)))
    ring = Raw(sender.port, "tx")
    before = ring.consumer
    sender.port.kick()
    assert (sender.port.stats().tx_kicks, ring.consumer - before) == (1, 32)
    came: list[int] = []

    def all_came() -> bool:
        sender.port.recycle()
        came.extend(packet.seq for packet in receiver.take())
        return len(came) == 33

    until(all_came)
    assert came == list(range(33))
