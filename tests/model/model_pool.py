"""What pools and ports promise, in plain Python: sets, lists and counters, and not one idea of how C does it.

A frame is home (free or idle), in FILL of a port, or held: by so many references of the application and so many
transmissions. Which level of a pool an idle frame rests in is not modelled, only the sums the identities speak of.
A frame that fragments are cut from has a reference for each of them, and is also its pool's until that is done with it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

FRAME_SIZE, ALIGN = 4096, 64


@dataclass
class Frame:
    """One frame out of its pool: `refs` of the application, `sent` by port, `posted` when on its way to the owner.

    `cut` while its pool cuts fragments from it.
    """

    pool: int
    refs: int = 0
    sent: Counter[int] = field(default_factory=Counter)
    fill: int | None = None
    posted: bool = False
    cut: bool = False

    @property
    def state(self) -> str:
        if self.posted:
            return "home"
        if self.fill is not None:
            return "fill"
        return "tx" if self.sent.total() else "app"


@dataclass
class Pool:
    """Counts of one pool: frames ever taken out, ever returned, posted to its inbox; the frame it cuts, up to where."""

    quota: int
    open: bool = True
    taken: int = 0
    returned: int = 0
    inbox: int = 0
    cutting: int | None = None
    at: int = 0


class Model:
    """The whole Umem: which frames are out, who holds them, and what each pool must have counted."""

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.out: dict[int, Frame] = {}
        self.pools: dict[int, Pool] = {}

    def count(self, state: str) -> int:
        return sum(frame.state == state for frame in self.out.values())

    def outstanding(self, pool: int) -> int:
        return sum(frame.pool == pool for frame in self.out.values())

    def take(self, pool: int, frames: list[int], fill: int | None = None) -> None:
        """Frames leave a pool, to the application or to FILL of a port."""
        for frame in frames:
            assert frame not in self.out, f"frame {frame} was given out twice"
            self.out[frame] = Frame(pool, refs=0 if fill is not None else 1, fill=fill)
        self.pools[pool].taken += len(frames)

    def cut(self, pool: int, n: int, size: int, starts: list[int]) -> list[tuple[int, int]]:
        """Address and length of up to `n` fragments; number i begins frame `starts[i]` if it needs a new one."""
        size, owner, made = -(-size // ALIGN) * ALIGN, self.pools[pool], []
        for i in range(n):
            if owner.cutting is not None and owner.at + size > FRAME_SIZE:
                self.finish(pool)
            if owner.cutting is None:
                if i == len(starts):
                    break
                self.take(pool, [starts[i]])
                self.out[starts[i]].refs, self.out[starts[i]].cut = 0, True
                owner.cutting, owner.at = starts[i], 0
            length = size if owner.at + 2 * size <= FRAME_SIZE else FRAME_SIZE - owner.at
            made.append((owner.cutting * FRAME_SIZE + owner.at, length))
            owner.at += length
            self.out[owner.cutting].refs += 1
        return made

    def finish(self, pool: int) -> None:
        """The pool is done with the frame it cut."""
        frame, self.pools[pool].cutting = self.pools[pool].cutting, None
        if frame is not None:
            self.out[frame].cut = False
            self._home(frame, remote=False)

    def receive(self, frame: int) -> None:
        self.out[frame].fill = None
        self.out[frame].refs = 1

    def may_put(self, frame: int) -> bool:
        held = self.out.get(frame)
        return held is not None and not held.posted and held.refs > 0

    def put(self, frame: int, *, remote: bool) -> None:
        self.out[frame].refs -= 1
        self._home(frame, remote)

    def ref(self, frame: int) -> None:
        self.out[frame].refs += 1

    def send(self, frame: int, port: int) -> None:
        self.out[frame].refs -= 1
        self.out[frame].sent[port] += 1

    def complete(self, frame: int, port: int, *, remote: bool) -> None:
        self.out[frame].sent[port] -= 1
        self._home(frame, remote)

    def reclaim(self, port: int, *, remote: bool) -> tuple[int, int]:
        """A port closes: how many frames FILL and TX had of it."""
        filled = [frame for frame, held in self.out.items() if held.fill == port]
        sent = [frame for frame, held in self.out.items() for _ in range(held.sent[port])]
        for frame in filled:
            self.out[frame].fill = None
            self._home(frame, remote)
        for frame in sent:
            self.complete(frame, port, remote=remote)
        return len(filled), len(sent)

    def collect(self, pool: int) -> int:
        """The owner takes its inbox in."""
        mine = [frame for frame, held in self.out.items() if held.posted and held.pool == pool]
        for frame in mine:
            self._arrive(frame)
        return len(mine)

    def _home(self, frame: int, remote: bool) -> None:
        held = self.out[frame]
        if held.refs or held.sent.total() or held.cut:
            return
        if remote and self.pools[held.pool].open:
            held.posted = True
        else:
            self._arrive(frame)

    def _arrive(self, frame: int) -> None:
        self.pools[self.out.pop(frame).pool].returned += 1
