"""Packets of several frames: what arrives of them, and what one bad part makes of the whole."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cables import Cable, End, until
from kernel_bench import Raw

import afxdp_pool as ap
from afxdp_pool.config import FRAME_RESERVE, PACKET_HEADROOM
from afxdp_pool.netdev import XdpFeature, xdp_features

JUMBO, LARGE, FRAME = 9000, 3072, 4096
CONTD = 1
#: A packet in three frames of 448 bytes that leaves room behind it (see `test_programs.LENGTH`).
ROOM_BEHIND = 3 * 448 - 28
#: Buffers in a virtio_net's RX ring, as QEMU has it.
VIRTIO_RING = 256
#: Of a descriptor no kernel knows.
NO_SUCH_OPTION = 0xFFFF


@pytest.fixture(autouse=True)
def room_for_long_packets(cable: Cable) -> None:
    """Short packets, until virtio_net has short buffers: under XDP it drops long packets in long buffers of before.

    Those have no headroom; the driver copies what fits into a page with it, and no more (mergeable_xdp_get_buf()). How
    long it makes them follows what came lately.
    """
    if (cable.world.driver, cable.world.xdp, cable.world.mode) != ("virtio_net", "native", "copy"):
        return
    import nics  # only the guest has them

    with nics.wires(cable.near.name) as (far,):
        before = cable.near.counters()["rx_packets"]
        for sent in range(64, 4 * VIRTIO_RING + 64, 64):
            far.send(64)
            until(lambda goal=before + sent: cable.near.counters()["rx_packets"] >= goal)  # type: ignore[misc]


@dataclass(frozen=True)
class Sizes:
    """How long a packet and its parts are: `last` of it are in its last frame, `whole` fills a frame up to its end."""

    packet: int
    part: int
    whole: int
    last: int


KERNELS_OWN = Sizes(JUMBO, LARGE, FRAME, FRAME)
#: For packets that a driver has in one buffer: the frames of a `SPARING` receiver hold 448 bytes of it.
SMALL = Sizes(1400, 480, 720, 448)
SPARING = {"frame_size": 2048, "headroom": 2048 - PACKET_HEADROOM - FRAME_RESERVE}


def takes_parts(cable: Cable) -> bool:
    """Whether XDP has packets in several buffers here. A test is skipped where sockets have none in several frames."""
    features = xdp_features(cable.near.name, cable.near.netns)
    assert features is not None
    if cable.world.mode == "zero-copy" and features.zc_max_segments < 2:
        pytest.skip("the driver's zero-copy is of packets in one frame")
    return cable.world.xdp == "generic" or XdpFeature.RX_SG in features.flags


def ends(cable: Cable, **umem: Any) -> tuple[End, End, Sizes]:
    """A sender and a receiver of packets in several frames, and how long these are."""
    if takes_parts(cable):
        cable.enlarge(JUMBO)
        return cable.sender(multi_buffer=True, **umem), cable.receiver(multi_buffer=True, **umem), KERNELS_OWN
    return cable.sender(multi_buffer=True, **umem), cable.receiver(multi_buffer=True, **umem, **SPARING), SMALL


def packet(sender: End, number: int, size: int) -> bytes:
    """A test packet's head, and words that say which packet they are of, and where in it they belong."""
    words = np.arange(size // 4 + 1, dtype=">u4") + np.uint32(number << 16)
    headers = sender.packet(number)[:42]  # an emulated NIC sends nothing whose headers it cannot read
    return (headers + words.astype(">u4").tobytes())[:size]


def arrive(sender: End, receiver: End, wanted: Sequence[bytes], more: int = 0) -> None:
    """Exactly these packets arrive, whole and in order; and all that is under way with them is done with.

    Args:
        more: bytes of any value behind each of them.
    """
    came: list[bytes] = []

    def all_came() -> bool:
        sender.port.recycle()
        batch = receiver.port.receive()
        came.extend(batch.whole(index) for index in range(len(batch)))
        receiver.pool.put(batch)
        receiver.port.recycle()
        return len(came) >= len(wanted) and sender.port.ring_levels()["tx"] == 0

    until(all_came)
    assert [len(one) for one in came] == [len(one) + more for one in wanted]
    assert [one[: len(one) - more] for one in came] == list(wanted)


def nine_k(cable: Cable, **umem: Any) -> None:
    if not takes_parts(cable):
        pytest.skip("the driver refuses native XDP at an MTU of 9000")
    sender, receiver, _ = ends(cable, **umem)
    cable.settled()
    for start in range(0, 256, 16):
        packets = [packet(sender, number, JUMBO) for number in range(start, start + 16)]
        assert sender.port.transmit(sender.pool.write(packets, multi_buffer=True)) == 16
        arrive(sender, receiver, packets)


def test_send_receive_9k_packets(cable: Cable) -> None:
    nine_k(cable)


def test_send_receive_unaligned_9k_packets(cable: Cable) -> None:
    nine_k(cable, frame_size=3000, unaligned=True)


def test_xdp_metadata_copy_multi_buff(cable: Cable) -> None:
    program = cable.own("count_before")
    sender, receiver, sizes = ends(cable)
    cable.settled()
    packets = [packet(sender, number, sizes.packet) for number in range(16)]
    assert sender.port.transmit(sender.pool.write(packets, multi_buffer=True)) == 16
    for number in range(16):
        until(lambda: sender.port.recycle() >= 0 and receiver.port.ring_levels()["rx"] > 0)
        batch = receiver.port.receive(1)
        at = int(batch.addr[0])
        assert receiver.umem.data[at - 8 : at].tobytes() == number.to_bytes(8, "little")
        assert batch.whole(0) == packets[number]
        receiver.pool.put(batch)
    assert program.refused == 0


def test_xdp_adjust_tail_shrink_multi_buff(cable: Cable) -> None:
    """Takes off what the last frame has, and a little more."""
    program = cable.own("move_tail", -(FRAME if takes_parts(cable) else SMALL.last))
    sender, receiver, sizes = ends(cable)
    cable.settled()
    packets = [packet(sender, number, 2 * sizes.part) for number in range(16)]
    assert sender.port.transmit(sender.pool.write(packets, multi_buffer=True)) == 16
    arrive(sender, receiver, [one[: -sizes.last] for one in packets])
    assert program.refused == 0


def test_xdp_adjust_tail_grow_multi_buff(cable: Cable) -> None:
    """As the kernel's case in several buffers, where a driver lets these grow; else in one, and several frames."""
    by = FRAME // 2 - 1
    if takes_parts(cable):
        program = cable.own("move_tail", by)
        sender, receiver, sizes = ends(cable)
        cable.settled()
        packets = [packet(sender, number, 2 * sizes.part) for number in range(16)]
        assert sender.port.transmit(sender.pool.write(packets, multi_buffer=True)) == 16
        until(lambda: sender.port.recycle() >= 0 and bool(program.refused or receiver.port.ring_levels()["rx"]))
        if program.refused != errno.EOPNOTSUPP:
            arrive(sender, receiver, [one + bytes(by) for one in packets])
            return
        until(lambda: sender.port.recycle() >= 0 and sender.umem.audit().check().tx == 0)
        sender.close()
        receiver.close()
        program.close()
    cable.own("move_tail", 4)
    sender, receiver = cable.sender(), cable.receiver(multi_buffer=True, **SPARING)
    cable.settled()
    packets = [packet(sender, number, ROOM_BEHIND) for number in range(16)]
    assert sender.port.transmit(sender.pool.write(packets)) == 16
    until(lambda: sender.port.recycle() >= 0 and receiver.port.ring_levels()["rx"] >= 48)
    arrive(sender, receiver, packets, more=4)


# Bad parts ------------------------------------------------------------------------------------------------------------

#: A part of a packet: where it begins in its frame, or beyond the Umem; its length; its options.
Part = tuple[int, int, int]
BEYOND = 1 << 40


def good(parts: Sequence[Part]) -> bool:
    last = len(parts) - 1
    return all(
        0 < length <= FRAME - at and options == (CONTD if index < last else 0)
        for index, (at, length, options) in enumerate(parts)
    )


OVER_A_FRAMES_END: Part = (FRAME - 32, 64, 0)


def spoiled(large: int, whole: int) -> list[list[Part]]:
    """The packets of the kernel's case, in its order; a part is `large` bytes, or `whole` up to its frame's end."""
    return [
        [(0, 64, 0)],
        [(0, large, CONTD), (0, large, CONTD), (0, 0, 0)],
        [(0, large, CONTD), (BEYOND, large, 0)],
        [(0, large, CONTD), (0, JUMBO + 1, 0)],
        [(0, large, CONTD), (0, large, NO_SUCH_OPTION & ~CONTD)],
        [(FRAME - whole, whole, CONTD), (FRAME - whole, whole, 0)],
        [(0, large, CONTD), OVER_A_FRAMES_END],
        [(0, 64, 0)],
    ]


def filled(sender: End, packets: Sequence[Sequence[Part]]) -> tuple[list[bytes], npt.NDArray[Any]]:
    """What these packets hold where they lie in their frames, and descriptors of their parts, a frame each."""
    descs = sender.pool.alloc(sum(map(len, packets))).descs
    contents, at = [], 0
    for number, parts in enumerate(packets):
        whole = packet(sender, number, sum(min(length, FRAME) for _, length, _ in parts))
        contents.append(whole)
        for offset, length, options in parts:
            start, length_here = int(descs["addr"][at]), min(length, FRAME)
            if offset + length_here <= FRAME:
                sender.umem.data[start + offset :][:length_here] = np.frombuffer(whole[:length_here], np.uint8)
            whole = whole[length_here:]
            descs["addr"][at] += np.uint64(offset)
            descs["len"][at], descs["options"][at] = length, options
            at += 1
    return contents, descs


def front_door(sender: End, receiver: End, packets: Sequence[Sequence[Part]]) -> None:
    """`transmit` takes the good ones whole and refuses the others whole; no invalid part reaches the kernel."""
    contents, descs = filled(sender, packets)
    at = 0
    for parts in packets:
        these = descs[at : at + len(parts)].copy()
        at += len(parts)
        batch = ap.Batch.of_frames(these, sender.umem.data, umem=sender.umem)
        if good(parts) and len(parts) <= sender.port.info.max_frames:
            assert sender.port.transmit(batch) == 1
            continue
        with pytest.raises(ap.PoolError):
            sender.port.transmit(batch)
        these["addr"] -= np.array([offset for offset, _, _ in parts], np.uint64)
        these["len"], these["options"] = 64, 0
        sender.pool.put(ap.Batch(these, sender.umem.data, umem=sender.umem))
    wanted = [whole for whole, parts in zip(contents, packets, strict=True) if good(parts)]
    arrive(sender, receiver, wanted)
    assert sender.port.kernel_stats().tx_invalid_descs == 0


def behind_it(sender: End, receiver: End, packets: Sequence[Sequence[Part]], wanted: Sequence[int]) -> None:
    """Written into the ring as they are: the kernel drops a packet with an invalid part whole, and counts it."""
    contents, descs = filled(sender, packets)
    plain = descs.copy()
    plain["addr"] -= np.array([offset for parts in packets for offset, _, _ in parts], np.uint64)
    plain["len"], plain["options"] = 64, 0
    ring = Raw(sender.port, "tx")
    first = ring.producer
    sender.queue_up(ap.Batch(plain, sender.umem.data, umem=sender.umem))
    for index, desc in enumerate(descs):
        for field in ("addr", "len", "options"):
            ring.entries[field][ring.at(first + index)] = desc[field]
    arrive(sender, receiver, [contents[number] for number in wanted])
    assert sender.port.kernel_stats().tx_invalid_descs > 0
    sender.umem.audit().check()


def inv_desc(cable: Cable, *, unaligned: bool = False) -> None:
    sender, receiver, sizes = ends(cable, unaligned=unaligned)
    packets = spoiled(sizes.part, sizes.whole)
    cable.settled()
    front_door(sender, receiver, packets)
    # Where frames are not aligned, the kernel does not mind a part that reaches into the next one.
    packets = [parts for parts in packets if not (unaligned and OVER_A_FRAMES_END in parts)]
    behind_it(sender, receiver, packets, [number for number, parts in enumerate(packets) if good(parts)])


def test_aligned_inv_desc_multi_buff(cable: Cable) -> None:
    inv_desc(cable)


def test_unaligned_inv_desc_multi_buff(cable: Cable) -> None:
    inv_desc(cable, unaligned=True)


def test_too_many_frags(cable: Cable) -> None:
    """As many parts as the kernel takes, and one more, which is left out or refused."""
    sender, receiver, _ = ends(cable)
    cable.settled()
    most = sender.port.info.max_frames
    fits = [*[(0, 64, CONTD)] * (most - 1), (0, 64, 0)]
    too_many = [*[(0, 64, CONTD)] * most, (0, 64, 0)]
    contents, descs = filled(sender, [fits])
    assert sender.port.transmit(ap.Batch.of_frames(descs, sender.umem.data, umem=sender.umem)) == 1
    arrive(sender, receiver, contents)
    _, descs = filled(sender, [too_many])
    with pytest.raises(ap.InvalidDescriptorError):
        sender.port.transmit(ap.Batch.of_frames(descs, sender.umem.data, umem=sender.umem))
    descs["options"] = 0
    sender.pool.put(ap.Batch(descs, sender.umem.data, umem=sender.umem))
    assert sender.port.kernel_stats().tx_invalid_descs == 0
    behind_it(sender, receiver, [[(0, 64, 0)], too_many, [(0, 64, 0)]], [0, 2])
