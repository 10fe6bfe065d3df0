"""Packets of several frames: what arrives of them, and what one bad part makes of the whole."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cables import Cable, End, until
from kernel_bench import Raw

import afxdp_pool as ap
from afxdp_pool.netdev import XdpFeature, xdp_features

JUMBO, LARGE, FRAME = 9000, 3072, 4096
CONTD = 1
#: Of a descriptor no kernel knows.
NO_SUCH_OPTION = 0xFFFF


def ends(cable: Cable, **umem: Any) -> tuple[End, End]:
    """A sender and a receiver of such packets, where the driver has them."""
    features = xdp_features(cable.near.name, cable.near.netns)
    assert features is not None
    if cable.world.mode == "zero-copy" and features.zc_max_segments < 2:
        pytest.skip("the driver's zero-copy is of packets in one frame")
    if cable.world.mode == "copy" and XdpFeature.RX_SG not in features.flags:
        pytest.skip("the driver's XDP is of packets in one buffer")
    cable.enlarge(JUMBO)
    return cable.sender(multi_buffer=True, **umem), cable.receiver(multi_buffer=True, **umem)


def packet(sender: End, number: int, size: int) -> bytes:
    """A test packet's head, and words that say which packet they are of, and where in it they belong."""
    words = np.arange(size // 4 + 1, dtype=">u4") + np.uint32(number << 16)
    return (sender.packet(number)[:14] + words.astype(">u4").tobytes())[:size]


def arrive(sender: End, receiver: End, wanted: Sequence[bytes]) -> None:
    """Exactly these packets arrive, whole and in order; and all that is under way with them is done with."""
    came: list[bytes] = []

    def all_came() -> bool:
        sender.port.recycle()
        batch = receiver.port.receive()
        came.extend(batch.whole(index) for index in range(len(batch)))
        receiver.pool.put(batch)
        receiver.port.recycle()
        return len(came) >= len(wanted) and sender.port.ring_levels()["tx"] == 0

    until(all_came)
    assert [len(one) for one in came] == [len(one) for one in wanted]
    assert came == list(wanted)


def nine_k(cable: Cable, **umem: Any) -> None:
    sender, receiver = ends(cable, **umem)
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
    sender, receiver = ends(cable)
    cable.settled()
    packets = [packet(sender, number, JUMBO) for number in range(16)]
    assert sender.port.transmit(sender.pool.write(packets, multi_buffer=True)) == 16
    for number in range(16):
        until(lambda: sender.port.recycle() >= 0 and receiver.port.ring_levels()["rx"] > 0)
        batch = receiver.port.receive(1)
        at = int(batch.addr[0])
        assert receiver.umem.data[at - 8 : at].tobytes() == number.to_bytes(8, "little")
        assert batch.whole(0) == packets[number]
        receiver.pool.put(batch)
    assert program.refused == 0


def move_tail(cable: Cable, by: int) -> None:
    program = cable.own("move_tail", by)
    sender, receiver = ends(cable)
    cable.settled()
    packets = [packet(sender, number, 2 * LARGE) for number in range(16)]
    assert sender.port.transmit(sender.pool.write(packets, multi_buffer=True)) == 16
    until(lambda: sender.port.recycle() >= 0 and bool(program.refused or receiver.port.ring_levels()["rx"]))
    if program.refused == errno.EOPNOTSUPP:
        pytest.skip("the driver does not let a packet in several buffers grow")
    if by < 0:
        arrive(sender, receiver, [one[:by] for one in packets])
    else:
        arrive(sender, receiver, [one + bytes(by) for one in packets])


def test_xdp_adjust_tail_shrink_multi_buff(cable: Cable) -> None:
    move_tail(cable, -FRAME)


def test_xdp_adjust_tail_grow_multi_buff(cable: Cable) -> None:
    move_tail(cable, FRAME // 2 - 1)


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


OVER_A_FRAMES_END: list[Part] = [(0, LARGE, CONTD), (FRAME - 32, 64, 0)]
#: As in the kernel's case, and in its order.
PACKETS: list[list[Part]] = [
    [(0, 64, 0)],
    [(0, LARGE, CONTD), (0, LARGE, CONTD), (0, 0, 0)],
    [(0, LARGE, CONTD), (BEYOND, LARGE, 0)],
    [(0, LARGE, CONTD), (0, JUMBO + 1, 0)],
    [(0, LARGE, CONTD), (0, LARGE, NO_SUCH_OPTION & ~CONTD)],
    [(0, FRAME, CONTD), (0, FRAME, 0)],
    OVER_A_FRAMES_END,
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
    sender, receiver = ends(cable, unaligned=unaligned)
    cable.settled()
    front_door(sender, receiver, PACKETS)
    # Where frames are not aligned, the kernel does not mind a part that reaches into the next one.
    packets = [parts for parts in PACKETS if not (unaligned and parts is OVER_A_FRAMES_END)]
    behind_it(sender, receiver, packets, [number for number, parts in enumerate(packets) if good(parts)])


def test_aligned_inv_desc_multi_buff(cable: Cable) -> None:
    inv_desc(cable)


def test_unaligned_inv_desc_multi_buff(cable: Cable) -> None:
    inv_desc(cable, unaligned=True)


def test_too_many_frags(cable: Cable) -> None:
    """As many parts as the kernel takes, and one more, which is left out or refused."""
    sender, receiver = ends(cable)
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
