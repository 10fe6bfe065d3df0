"""Descriptors at every border of frames and Umem: what the library lets through, what the kernel makes of the rest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from cables import Cable, End, until
from kernel_bench import Raw

import afxdp_pool as ap

FRAMES = 256
SIZE = 64
BEYOND = (1 << 64) - 2
#: The frame whose descriptor reaches into the next one; where frames are not aligned, the kernel does not mind.
OVER_ITS_END = 6


@dataclass(frozen=True)
class Border:
    """A descriptor: the frame that is given for it, where it begins, how long it is, whether it is valid."""

    frame: int
    addr: int
    length: int = SIZE
    valid: bool = True


def borders(umem: ap.Umem) -> list[Border]:
    end, frame, at = umem.config.size, umem.frame_size, umem.config.start_of
    return [
        Border(0, 0),
        Border(1, at(1)),
        Border(2, BEYOND, valid=False),  # over the Umem's start
        Border(3, at(3), 9001, valid=False),
        Border(FRAMES - 1, end - SIZE),
        Border(4, end, valid=False),
        Border(5, end - SIZE // 2, valid=False),  # over the Umem's end
        Border(OVER_ITS_END, at(OVER_ITS_END) + frame - SIZE // 2, valid=False),
        Border(8, at(8) + 2048 - SIZE // 2, valid=frame > 2048),
        Border(9, at(9), 0, valid=False),
        Border(10, at(10)),
    ]


def held(sender: End) -> ap.Batch:
    """Every frame of the sender's Umem that its FILL ring has not, in order of their numbers."""
    batch = sender.pool.alloc(FRAMES)
    return batch[np.argsort(batch.addr)]


def prepared(sender: End, wanted: list[Border]) -> ap.Batch:
    """Descriptors with a frame of the sender's each, numbered packets where they are valid."""
    mine = held(sender)
    numbers = sender.umem.config.frame_at(mine.addr.astype(np.int64)).tolist()
    batch = mine[np.array([numbers.index(one.frame) for one in wanted])].copy()
    sender.pool.put(mine[~np.isin(numbers, [one.frame for one in wanted])])
    for index, one in enumerate(wanted):
        if one.valid:
            batch.addr[index] = one.addr
            batch.write(index, sender.packet(index))
    return batch


def arrived(sender: End, receiver: End, wanted: list[Border]) -> None:
    """Exactly the valid ones arrive, in order."""
    good = [index for index, one in enumerate(wanted) if one.valid]
    came: list[int] = []

    def all_came() -> bool:
        sender.port.recycle()
        came.extend(packet.seq for packet in receiver.take())
        return len(came) >= len(good) and sender.port.ring_levels()["tx"] == 0

    until(all_came)
    assert came == good


def by_the_front_door(sender: End, receiver: End, wanted: list[Border]) -> None:
    """`transmit` takes the valid ones and refuses the others, one by one; the kernel hears of no invalid one."""
    batch = prepared(sender, wanted)
    for index, one in enumerate(wanted):
        if one.valid:
            assert sender.port.transmit(batch[index : index + 1]) == 1
            continue
        bad = batch[index : index + 1].copy()
        bad.addr[0], bad.len[0] = one.addr, one.length
        with pytest.raises(ap.PoolError):
            sender.port.transmit(bad)
        sender.pool.put(batch[index : index + 1])
    arrived(sender, receiver, wanted)
    assert sender.port.kernel_stats().tx_invalid_descs == 0
    until(lambda: sender.port.recycle() >= 0 and sender.umem.audit().check().tx == 0)


def behind_it(sender: End, receiver: End, wanted: list[Border]) -> None:
    """Written into the ring as they are: the kernel drops the invalid ones, counts each and sends the valid ones."""
    batch = prepared(sender, wanted)
    for index, one in enumerate(wanted):
        if not one.valid:
            batch.len[index] = SIZE
    ring = Raw(sender.port, "tx")
    first = ring.producer
    sender.queue_up(batch)
    for index, one in enumerate(wanted):
        if not one.valid:
            ring.entries["addr"][ring.at(first + index)] = one.addr
            ring.entries["len"][ring.at(first + index)] = one.length
    arrived(sender, receiver, wanted)
    assert sender.port.kernel_stats().tx_invalid_descs == sum(not one.valid for one in wanted)


def both_ways_in(cable: Cable, frame_size: int, *, unaligned: bool = False) -> None:
    sender = cable.sender(frames=FRAMES, frame_size=frame_size, fill_level=1, unaligned=unaligned)
    receiver = cable.receiver(frame_size=frame_size, unaligned=unaligned)
    cable.settled()
    wanted = borders(sender.umem)
    by_the_front_door(sender, receiver, wanted)
    behind_it(sender, receiver, [one for one in wanted if not (unaligned and one.frame == OVER_ITS_END)])


def test_aligned_inv_desc(cable: Cable) -> None:
    both_ways_in(cable, 4096)


def test_aligned_inv_desc_2k_frame_size(cable: Cable) -> None:
    both_ways_in(cable, 2048)


def test_unaligned_inv_desc(cable: Cable) -> None:
    both_ways_in(cable, 4096, unaligned=True)


def test_unaligned_inv_desc_4001_frame_size(cable: Cable) -> None:
    """Every second frame begins at an odd address, and is completed by an even one, in copy mode of Linux 6.18."""
    both_ways_in(cable, 4001, unaligned=True)
