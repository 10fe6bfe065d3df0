"""Packets from end to end: sent, received, waited for."""

from __future__ import annotations

import select
import time

import pytest
from cables import Cable, carry, until

import afxdp_pool as ap
from afxdp_pool import netdev
from afxdp_pool.netdev import in_netns

FLOWS = 32


def test_send_receive(cable: Cable) -> None:
    carry(cable.sender(), cable.receiver(), cable.world.many)


def test_send_receive_2k_frame(cable: Cable) -> None:
    carry(cable.sender(frame_size=2048), cable.receiver(frame_size=2048), 1024)


def test_send_receive_single_pkt(cable: Cable) -> None:
    carry(cable.sender(), cable.receiver(), 1)


def test_umem_headroom(cable: Cable) -> None:
    """`End.take` looks at where every packet lies."""
    carry(cable.sender(headroom=128), cable.receiver(headroom=128), 512)


def test_send_receive_unaligned(cable: Cable) -> None:
    """Frames of 3000 bytes; where one has the border of a page in it, the packet that is sent lies across."""
    sender, receiver = (end(frame_size=3000, unaligned=True) for end in (cable.sender, cable.receiver))
    cable.settled()
    came: list[int] = []
    across = 0
    for start in range(0, 512, 64):
        batch = sender.pool.alloc(64)
        for index, addr in enumerate(batch.addr.tolist()):
            border = -addr % 4096 - 32
            if 0 <= border <= 3000 - 64:
                batch.addr[index] = addr + border
                across += 1
            batch.write(index, sender.packet(start + index))
        assert sender.port.transmit(batch) == 64

        def arrived(goal: int = start + 64) -> bool:
            sender.port.recycle()
            came.extend(packet.seq for packet in receiver.take())
            return len(came) == goal

        until(arrived)
    assert came == list(range(512))
    assert across > 128


def test_bidirectional(cable: Cable) -> None:
    one, other = cable.end(cable.near), cable.end(cable.far)
    carry(other, one, 512)
    carry(one, other, 512)


def test_teardown(cable: Cable) -> None:
    rounds = 3 if cable.world.emulated else 10
    for _ in range(rounds):
        sender, receiver = cable.sender(), cable.receiver()
        carry(sender, receiver, 64)
        receiver.close()
        sender.close()


def test_xdp_shared_umem(cable: Cable) -> None:
    """Two sockets on one Umem, with a pool and a queue each: every flow comes by one of them, whole and in order.

    The kernel's case has both sockets on one queue, where here a port has its queue for itself.
    """
    if cable.world.emulated:
        steering = cable.steering(cable.near)
        channels = steering.state().channels
        if channels is None or channels.most_combined < 2:
            pytest.skip("the NIC has one queue")  # virtio_net, on a host without tap devices
        steering.set_channels(2)
        steering.set_hash("udp4", "sdfn")
        steering.spread(2)
    senders = [cable.sender()]
    if not cable.world.emulated:
        # Over a veth a packet comes by the queue of the number it was sent by; for a generic program of one less, as
        # skb_get_rx_queue() reads the mapping of a sent packet.
        senders.append(cable.sender(queue=2 if cable.world.xdp == "generic" else 1, over=senders[0]))
    receivers = [cable.receiver()]
    receivers.append(cable.receiver(queue=1, over=receivers[0]))
    cable.settled()
    seen: list[list[tuple[int, int]]] = [[], []]
    for start in range(0, 512, 128):
        for number in range(start, start + 128):
            assert senders[number % len(senders)].send([number], flow=number % FLOWS) == 1

        def arrived(goal: int = start + 128) -> bool:
            for sender in senders:
                sender.port.recycle()
            for receiver, came in zip(receivers, seen, strict=True):
                came += [(packet.flow, packet.seq) for packet in receiver.take()]
            return sum(map(len, seen)) == goal

        until(arrived)
    flows = [{flow for flow, _ in came} for came in seen]
    assert all(flows)
    assert flows[0].isdisjoint(flows[1])
    for came, by in zip(seen, flows, strict=True):
        for flow in by:
            assert [number for other, number in came if other == flow] == list(range(flow, 512, FLOWS))


# Waiting ------------------------------------------------------------------------------------------------------------


def test_poll_rx(cable: Cable) -> None:
    """Nothing is received without being told by poll that it is there; so each time it must say so."""
    sender, receiver = cable.sender(), cable.receiver()
    cable.settled()
    came = 0
    for start in range(0, 1024, 64):
        assert sender.send(range(start, start + 64)) == 64
        while came < start + 64:
            sender.port.recycle()
            assert receiver.port.poll(20), "packets wait, and poll does not say so"
            came += len(receiver.take())
    assert came == 1024


def test_poll_tx(cable: Cable) -> None:
    """The TX ring is filled and the kernel is not kicked: the application's poll for writing sends it."""
    sender, receiver = cable.sender(), cable.receiver()
    cable.settled()
    poller = select.poll()
    poller.register(sender.port.fileno(), select.POLLOUT)
    came: list[int] = []
    for start in range(0, 1024, 64):
        assert poller.poll(20_000) == [(sender.port.fileno(), select.POLLOUT)]
        sender.queue_up(sender.written(range(start, start + 64)))

        def arrived(goal: int = start + 64) -> bool:
            poller.poll(0)
            sender.port.complete()
            came.extend(packet.seq for packet in receiver.take())
            return len(came) == goal

        until(arrived)
    assert came == list(range(1024))
    assert sender.port.stats().tx_kicks == 0


def test_poll_rxq_full(cable: Cable) -> None:
    """Named so by the kernel: nobody sends."""
    receiver = cable.receiver()
    began = time.monotonic()
    assert not receiver.port.poll(0.2)
    assert time.monotonic() - began >= 0.2
    poller = select.poll()
    poller.register(receiver.port.fileno(), select.POLLIN)
    assert poller.poll(200) == []


def test_poll_txq_full(cable: Cable) -> None:
    """Nobody takes from a completion ring that is full: TX stays full. A count says so, and poll does not say yes."""
    sender = cable.sender(comp_size=64, tx_size=64)
    cable.receiver()  # the packets must have somewhere to go
    cable.settled()
    poller = select.poll()
    poller.register(sender.port.fileno(), select.POLLOUT)
    sent = 0

    def full() -> bool:
        nonlocal sent
        sent += sender.send(range(sent, sent + 64))
        sender.port.kick()
        return sent == 128

    until(full)

    def stuck() -> bool:
        sender.port.kick()
        return sender.port.ring_levels() == {"fill": 64, "comp": 64, "rx": 0, "tx": 64}

    until(stuck)
    assert sender.send([sent]) == 0
    assert poller.poll(200) == []
    until(lambda: sender.port.complete() >= 0 and bool(poller.poll(0)))
    until(lambda: sender.port.recycle() >= 0 and sender.port.stats().tx_completed == 128)


# What others see ----------------------------------------------------------------------------------------------------


def test_check_xsk(cable: Cable) -> None:
    def bound() -> list[int]:
        with in_netns(cable.near.netns):
            queues = netdev.xsk_queues()
        if queues is None:
            pytest.skip("netlink does not tell of sockets before Linux 6.14")
        return [queue for ifindex, queue in queues if ifindex == cable.near.ifindex]

    assert bound() == []
    last = cable.near.queues - 1
    receiver = cable.receiver(queue=last)
    assert bound() == [last]
    receiver.close()
    until(lambda: bound() == [])


def test_xdp_prog_cleanup(cable: Cable) -> None:
    """The program outlives the socket, and gives the queue to the next one; in between packets go to the stack."""
    sender, first = cable.sender(), cable.receiver()
    carry(sender, first, 256)
    program: ap.XdpProgram = cable.program(cable.near)
    first.close()
    second = cable.receiver()
    assert second.port.program is program
    carry(sender, second, 256)
    assert program.counters().redirected == 512
