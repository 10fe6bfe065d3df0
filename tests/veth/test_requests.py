"""What is asked of who sends packets: checksums as they come at the far end, timestamps between two looks at clocks."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_lab import audited, brokered, in_step, options, perfect, protocol_socket, wait_for

import afxdp_pool as ap
from afxdp_pool import requests
from afxdp_pool.config import TX_ROOM, TxMetadataName
from afxdp_pool.netdev import XdpFeature, XskFeature, find, in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.source import addresses_of
from afxdp_pool.testing.traffic import Sink, Source

pytestmark = pytest.mark.usefixtures("veth_machine")

SMALL = ap.PortConfig(fill_size=512, comp_size=256, rx_size=256, tx_size=256, fill_level=256)
SENDS = replace(SMALL, receive=False, tx_metadata=("timestamp", "software_checksum"))
COUNT = 200
ETH_P_IP = 0x0800


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a")


@contextmanager
def sending(
    pair: VethPair, config: ap.PortConfig = SENDS, headroom: int = TX_ROOM, **umem_options: Any
) -> Iterator[ap.Port]:
    """A port that sends out of the near end, over frames that are all home afterwards."""
    with ap.Umem(1024, headroom=headroom, **umem_options) as umem:
        with (
            ap.FramePool(umem) as pool,
            ap.Port(pool, pair.near.name, netns=pair.near.netns, config=config) as port,
        ):
            yield port
            umem.audit().check()
        umem.audit().check(idle=True)


def bare(port: ap.Port, pair: VethPair, n: int, size: int = packets.MIN_SIZE) -> ap.Batch:
    """So many test packets without a UDP checksum, numbered."""
    addresses, batch = addresses_of(pair.near, None, None), port.pool.alloc(n)
    for number in range(n):
        packet = bytearray(packets.build(size, seq=number, addresses=addresses))
        packet[packets.CHECKSUM_AT : packets.CHECKSUM_AT + 2] = b"\0\0"
        batch.write(number, packet)
    return batch


def sent(port: ap.Port, batch: ap.Batch) -> None:
    """All of them, completed."""
    n = len(batch)
    assert port.transmit(batch) == n
    done = 0

    def complete() -> bool:
        nonlocal done
        done += port.complete()
        return done == n

    assert wait_for(complete)


@pytest.mark.parametrize("size", [64, 65, 1514])
@pytest.mark.parametrize("kind", ["checksum", "software_checksum"])
def test_checksums_are_right_at_the_far_end(pair: VethPair, kind: TxMetadataName, size: int) -> None:
    """The lab's links have no checksum offload: so the kernel fills in what is left to the device, too."""
    with Sink(pair.far) as sink, sending(pair, replace(SENDS, tx_metadata=(kind,))) as port:
        assert (port.info.mode, port.info.transmit, port.info.tx_metadata) == ("copy", "socket", (kind,))
        for _ in range(2):
            batch = bare(port, pair, 100, size)
            assert not batch.udp.checksum.any()
            assert batch.offload_checksums().all()
            sent(port, batch)
            perfect(sink.wait(100), 100)
            sink.reset()
        # And who does not ask gets none.
        sent(port, bare(port, pair, 10, size))
        assert sink.wait(10).packets == 10
        assert sink.report().corrupt == 10


def test_a_kernel_takes_what_a_port_left_to_the_device(pair: VethPair) -> None:
    """And refuses the one packet whose checksum is wrong."""
    with in_netns(pair.far.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((pair.far.ipv4, packets.PORT))
        sock.settimeout(20)
        with sending(pair) as port:
            batch = bare(port, pair, 5)
            batch.offload_checksums(np.arange(5) != 3)
            batch.udp.checksum = np.where(np.arange(5) == 3, 1, batch.udp.checksum)
            sent(port, batch)
            numbers = [packets.TEST_HEADER.unpack_from(sock.recv(64))[2] for _ in range(4)]
        assert numbers == [0, 1, 2, 4]


def test_timestamps_come_back_with_their_packets_numbers(pair: VethPair) -> None:
    with Sink(pair.far) as sink, sending(pair) as port:
        batch = bare(port, pair, COUNT)
        every_third = np.arange(COUNT) % 3 == 0
        numbers = np.arange(COUNT, dtype=np.uint64) << np.uint64(40)
        assert batch.offload_checksums().all()
        assert (batch.request_timestamps(numbers, where=every_third) == every_third).all()
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        sent(port, batch)
        after = time.clock_gettime_ns(time.CLOCK_TAI)
        stamps = port.take_timestamps(1000)
        assert stamps.number.tolist() == numbers[every_third].tolist()
        assert (stamps.timestamp >= before).all()
        assert (stamps.timestamp <= after).all()
        assert (np.diff(stamps.timestamp.astype(np.int64)) >= 0).all()
        assert stamps.lost == 0
        perfect(sink.wait(COUNT), COUNT)
        # The same frames again, with no request: nothing of the old ones is left.
        sent(port, bare(port, pair, COUNT))
        assert len(port.take_timestamps().number) == 0


@pytest.mark.parametrize("headroom", [TX_ROOM + 1, 101])
def test_a_timestamp_is_that_of_its_packet_at_odd_addresses_too(pair: VethPair, headroom: int) -> None:
    """Linux 6.18 completes a packet at an odd address as if it began a byte before."""
    with sending(pair, headroom=headroom) as port:
        batch = bare(port, pair, COUNT)
        batch.request_timestamps(np.arange(COUNT))
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        sent(port, batch)
        after = time.clock_gettime_ns(time.CLOCK_TAI)
        stamps = port.take_timestamps(COUNT)
        assert stamps.number.tolist() == list(range(COUNT))
        assert ((stamps.timestamp >= before) & (stamps.timestamp <= after)).all()


# Packets of several frames, and frames that are no power of two -------------------------------------------------------

LONG = replace(SENDS, multi_buffer=True, tx_metadata=("checksum", "timestamp"))


def asked_of_long_ones(port: ap.Port, pair: VethPair, sizes: list[int]) -> None:
    """Test packets of these sizes are sent, each summed up by the kernel, and each stamped; they arrive as they are."""
    addresses, made = addresses_of(pair.near, None, None), []
    for number, size in enumerate(sizes):
        packet = bytearray(packets.build(size, seq=number, addresses=addresses))
        packet[packets.CHECKSUM_AT : packets.CHECKSUM_AT + 2] = b"\0\0"
        made.append(packet)
    with protocol_socket(pair.far, ETH_P_IP) as rx:
        for _ in range(2):
            batch = port.pool.write(made, multi_buffer=port.config.multi_buffer)
            assert batch.offload_checksums().all()
            assert batch.request_timestamps(np.arange(len(sizes))).all()
            before = time.clock_gettime_ns(time.CLOCK_TAI)
            assert port.transmit(batch) == len(sizes)
            seen = [packets.parse(rx.recv(1 << 16)) for _ in sizes]
            assert wait_for(lambda: port.complete() >= 0 and not port.stats().in_tx)
            after = time.clock_gettime_ns(time.CLOCK_TAI)
            assert seen == [packets.TestPacket(0, number, size) for number, size in enumerate(sizes)]
            stamps = port.take_timestamps(len(sizes))
            assert stamps.number.tolist() == list(range(len(sizes)))
            assert ((stamps.timestamp >= before) & (stamps.timestamp <= after)).all()
    assert port.kernel_stats().tx_invalid_descs == 0


def test_packets_of_several_frames_are_asked_for(lab: Lab) -> None:
    pair = lab.veth("a", mtu=9000)
    with sending(pair, LONG) as port:
        room = 4096 - TX_ROOM
        asked_of_long_ones(port, pair, [9000, 64, room, room + 1, 2 * room, 5000, 9014, 1514])


@pytest.mark.parametrize("frame_size", [2049, 3000])
@pytest.mark.parametrize("multi", [False, True])
def test_unaligned_frames_are_asked_for(lab: Lab, frame_size: int, multi: bool) -> None:
    pair = lab.veth("a", mtu=9000)
    room = frame_size - TX_ROOM
    sizes = [64, room, 65, room - 1, *([room + 1, 9000, 9014, 2 * room] if multi else [])]
    config = replace(LONG, multi_buffer=multi)
    with sending(pair, config, frame_size=frame_size, unaligned=True) as port:
        asked_of_long_ones(port, pair, sizes)


def test_a_broker_asks_for_packets_of_several_frames(lab: Lab, tmp_path: Path) -> None:
    pair = lab.veth("a", mtu=9000)
    memory = ap.SharedMemory(1024 * 4096)
    with (
        brokered(pair.near, tmp_path / "s") as path,
        ap.Umem(1024, headroom=TX_ROOM, memory=memory) as umem,
    ):
        with ap.FramePool(umem) as pool, ap.Port(pool, pair.near.name, config=LONG, via=path) as port:
            assert (port.info.tx_metadata, port.info.max_frames > 3) == (LONG.tx_metadata, True)
            asked_of_long_ones(port, pair, [9000, 64, 9014, 5000])
        umem.audit().check(idle=True)


def test_what_is_forwarded_may_be_asked_for_in_a_handler(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")

    def handle(batch: ap.Batch) -> int:
        batch.udp.checksum = 0
        batch.offload_checksums()
        batch.request_timestamps(batch.load(packets.SEQUENCE_AT, ">u8"))
        return ap.FORWARD(1)

    chosen = replace(options(lab, SMALL), ports={right.near.name: replace(SMALL, tx_metadata=SENDS.tx_metadata)})
    runner = ap.handle([left.near.name], handle, outputs=[right.near.name], options=chosen)
    assert runner.umem.config.headroom == TX_ROOM
    with Sink(right.far) as sink, Source(left.far, cpu=0) as source:
        runner.start()
        in_step(source, runner, 500, 50)
        runner.stop()
        runner.join()
        perfect(sink.wait(500), 500)
    stamps = runner.ports[1].take_timestamps(1000)
    assert stamps.number.tolist() == list(range(500))
    audited(runner)


def test_frames_without_room_for_requests_are_refused(pair: VethPair) -> None:
    with (
        pytest.raises(ap.ConfigError, match=r"32 bytes before each packet.*Umem\(1024, headroom=32\)"),
        sending(pair, headroom=31),
    ):
        pass
    with sending(pair) as port:
        batch = bare(port, pair, 3)
        batch.addr[1] -= 8
        assert batch.offload_checksums().tolist() == [True, False, True]
        with pytest.raises(ap.InvalidDescriptorError, match="frame 1 of the batch") as error:
            port.transmit(batch)
        assert error.value.done == 1
        port.pool.put(batch[1:])
        assert wait_for(lambda: port.complete() == 1)


def test_what_the_driver_does_not_do_is_refused_or_done_by_the_kernel(pair: VethPair) -> None:
    with pytest.raises(ap.MetadataUnsupportedError, match=r"driver veth sends at no time.*does nothing of the kind"):
        sending(pair, replace(SENDS, tx_metadata=("launch_time",))).__enter__()
    here = find(pair.near.name, pair.near.netns)
    assert here.features is not None
    nic = replace(
        here,
        driver="nic",
        features=replace(here.features, flags=XdpFeature.XSK_ZEROCOPY, xsk=XskFeature.TX_CHECKSUM),
    )
    both = replace(SENDS, tx_metadata=("checksum", "timestamp"))
    assert requests.for_requests(nic, both).mode == "copy"
    assert requests.for_requests(nic, replace(both, mode="copy")).mode == "copy"
    assert requests.for_requests(nic, replace(both, tx_metadata=("checksum",))).mode == "auto"
    assert requests.for_requests(nic, SENDS).mode == "copy"
    with pytest.raises(ap.MetadataUnsupportedError, match=r"nic does no timestamp in zero-copy: it does tx_checksum"):
        requests.for_requests(nic, replace(both, mode="zero-copy"))


@pytest.mark.parametrize("transmit", [True, "socket"])
def test_a_port_with_requests_receives_and_closes_as_any_other(pair: VethPair, transmit: bool) -> None:
    """Its socket is made without libxdp: its rings and its end are the same."""
    both = replace(SMALL, transmit=transmit, tx_metadata=("checksum",), rx_metadata=("arrival",))
    for _ in range(3):
        with sending(pair, both) as port, Source(pair.far, cpu=0) as source:
            port.fill()
            assert source.send(64).dropped == 0
            assert wait_for(lambda port=port: port.ring_levels()["rx"] == 64)  # type: ignore[misc]
            batch = port.receive(64)
            assert batch.rx_metadata().has_arrival.all()
            assert [packets.parse(packet.tobytes()) for packet in batch].count(None) == 0
            with pytest.raises(ap.QueueBusyError), sending(pair, replace(both, bind_timeout=0)):
                pass
            port.pool.put(batch)
