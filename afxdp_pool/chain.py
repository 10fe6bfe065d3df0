"""`Chain`: the frames of a batch's packets, where packets of several frames are among them (multi-buffer).

A packet that is longer than a frame lies in several, described by consecutive descriptors with `CONTD` in the options
of all but the last. A batch shows the first frame of each packet; the chain knows the others, which move with it. It
owns descriptors, no frames. Invariant: it describes whole packets only, however it is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import lib

#: XDP_PKT_CONTD (include/uapi/linux/if_xdp.h): the packet goes on in the next descriptor.
CONTD = int(lib.AFP_CONTD)


class Chain:
    """All frames of n packets.

    Attributes:
        frames: their descriptors, in order; dtype `DESC`, shape ``(m,)``.
        starts: where in `frames` each packet begins, and at last m; intp, shape ``(n + 1,)``.
    """

    __slots__ = ("frames", "starts")

    def __init__(self, frames: npt.NDArray[Any], starts: npt.NDArray[np.intp]) -> None:
        self.frames = frames
        self.starts = starts

    @classmethod
    def of(cls, frames: npt.NDArray[Any]) -> Chain | None:
        """That of these frames, whose options say where packets end; None where each packet is one frame."""
        more = frames["options"] & CONTD
        if not more.any():
            return None
        return cls(frames, np.concatenate(([0], np.flatnonzero(more == 0) + 1)))

    @property
    def heads(self) -> npt.NDArray[Any]:
        """The first frame of each packet, copied; shape ``(n,)``."""
        return self.frames[self.starts[:-1]]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of each packet; shape ``(n,)``."""
        return np.add.reduceat(self.frames["len"], self.starts[:-1], dtype=np.int64)

    def sync(self, heads: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`frames`, with the first of each packet as `heads` has it by now; where packets end is not theirs to say."""
        firsts = self.starts[:-1]
        more = self.frames["options"][firsts] & CONTD
        self.frames[firsts] = heads
        self.frames["options"][firsts] = heads["options"] & ~np.uint16(CONTD) | more
        return self.frames

    def part(self, key: Any) -> Chain:
        """That of some of the packets: a slice, mask or array of them."""
        which = np.arange(len(self.starts) - 1)[key]
        counts = np.diff(self.starts)[which]
        starts = np.concatenate(([0], np.cumsum(counts)))
        # Frame k of the part: as far from its packet's first frame as there.
        shift = np.repeat(self.starts[:-1][which] - starts[:-1], counts)
        return Chain(self.frames[np.arange(starts[-1]) + shift], starts)


def packets_of(chain: Chain | None, frames: int) -> int:
    """How many packets the first so many frames are."""
    return frames if chain is None else int(np.searchsorted(chain.starts, frames))


class Chained:
    """What a `Batch` offers on packets that lie in several frames."""

    __slots__ = ()

    _chain: Chain | None
    _count: int
    _look: Callable[[int, int], None]
    data: npt.NDArray[np.uint8]
    descs: Any
    len: Any

    @property
    def starts(self) -> npt.NDArray[np.intp]:
        """Where in `parts` each packet begins, and at last how many parts there are; intp, shape ``(n + 1,)``."""
        return np.arange(self._count + 1) if self._chain is None else self._chain.starts

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Bytes of each whole packet, as `len` has those in its first frame; int64, shape ``(n,)``."""
        if self._chain is None:
            return np.asarray(self.len, np.int64)
        self._chain.sync(self.descs)
        return self._chain.lengths

    def whole(self, index: int) -> bytes:
        """The whole of packet `index`, copied out of its frames.

        Raises:
            FrameGoneError: as ``batch[index]``.
        """
        at = range(self._count)[index]
        self._look(at, 1)
        frames = self.descs[at : at + 1]
        if self._chain is not None:
            first, end = self._chain.starts[at : at + 2]
            frames = self._chain.sync(self.descs)[first:end]
        places = zip(frames["addr"].tolist(), frames["len"].tolist(), strict=True)
        return b"".join(self.data[addr : addr + length].tobytes() for addr, length in places)


def spread(lengths: Sequence[int], room: int) -> tuple[list[int], list[int]]:
    """For packets of these lengths in frames with so much room: bytes of each frame, and options of each."""
    sizes: list[int] = []
    options: list[int] = []
    for length in lengths:
        full, rest = divmod(length, room)
        parts = [room] * full + [rest] * (rest > 0 or not full)
        sizes += parts
        options += [CONTD] * (len(parts) - 1) + [0]
    return sizes, options
