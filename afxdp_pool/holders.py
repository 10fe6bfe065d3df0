"""Who has which frames: the answer to "where did my frames go", from the frame table and, if tracing, call stacks.

A `Tracer` notes where frames were handed to the application, or kept by it. It costs a stack walk a batch, so it is off
unless `Umem(trace=True)` or the environment's ``AFXDP_POOL_TRACE=1`` asks for it.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from afxdp_pool.batch import Batch

_PACKAGE = os.path.dirname(__file__) + os.sep
_FILL, _APP, _TX = 2, 3, 4
_SEVERAL = 255
_NAMES = {_FILL: "fill", _APP: "application", _TX: "tx"}


@dataclass(frozen=True)
class Holder:
    """Frames that somebody has.

    Attributes:
        who: ``"application"``, or ``"fill"`` or ``"tx"``: the kernel, through that ring of `port`.
        frames: their numbers, ascending.
        pool: the number of the pool that owns them.
        port: the port's name; None for the application, and for frames sent out of several ports.
        age: seconds since they were handed to the application; None unless tracing is on.
        thread: name of the thread that took them; None unless tracing is on.
        traceback: where it took them, as Python prints it; None unless tracing is on.
    """

    who: str
    frames: tuple[int, ...]
    pool: int
    port: str | None = None
    age: float | None = None
    thread: str | None = None
    traceback: str | None = None

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.frames[:8])) + (", ..." if len(self.frames) > 8 else "")
        where = f" of {self.port}" if self.port else ""
        since = f" for {self.age:.1f} s" if self.age is not None else ""
        taken = f", taken by {self.thread}:\n{self.traceback}" if self.traceback else ""
        count = f"{len(self.frames)} frame{'s' * (len(self.frames) != 1)}"
        return f"{self.who}{where} has {count} of pool {self.pool}{since}: {shown}{taken}"


@dataclass(frozen=True)
class Taken:
    """When, by which thread and where frames were taken."""

    at: float
    thread: str
    traceback: str

    def __str__(self) -> str:
        return f"{time.monotonic() - self.at:.1f} s ago by {self.thread}:\n{self.traceback}"


class Tracer:
    """Notes who took each frame last. Concurrency: any thread; one writer a frame, who holds it."""

    def __init__(self) -> None:
        self._taken: dict[int, tuple[int, Taken]] = {}  # by frame: its generation then, and who

    def note(self, batch: Batch) -> Taken:
        """These frames were handed to the caller of the library, now."""
        stack = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(_PACKAGE)]
        taken = Taken(time.monotonic(), threading.current_thread().name, "".join(traceback.format_list(stack)))
        every = batch if batch._chain is None else batch.parts
        for frame, gen in zip(every.frames(every.frame_size), every.descs["gen"].tolist(), strict=True):
            self._taken[frame] = gen, taken
        return taken

    def who(self, frame: int, gen: int) -> Taken | None:
        """Who took `frame` last, if in that life of it."""
        noted, taken = self._taken.get(frame, (-1, None))
        return taken if noted == gen else None


def wanted(trace: bool | None) -> bool:
    """Whether to trace: as said, or, with None, as the environment says."""
    return os.environ.get("AFXDP_POOL_TRACE", "") not in ("", "0") if trace is None else trace


def find_holders(words: npt.NDArray[np.uint64], ports: Mapping[int, str], tracer: Tracer | None) -> list[Holder]:
    """Group the frames that are out by who has them; the largest groups first."""
    states = (words >> np.uint64(36)) & np.uint64(0x7)
    out = np.flatnonzero((states == _FILL) | (states == _APP) | (states == _TX))
    now = time.monotonic()
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for frame in out.tolist():
        word = int(words[frame])
        state, pool, port = word >> 36 & 0x7, word >> 24 & 0xFFF, word >> 40 & 0xFF
        taken = tracer.who(frame, word >> 48) if tracer and state == _APP else None
        name = ports.get(port) if state != _APP and port != _SEVERAL else None
        groups[(state, pool, name, taken)].append(frame)
    holders = [
        Holder(
            _NAMES[state],
            tuple(frames),
            pool,
            port,
            now - taken.at if taken else None,
            taken.thread if taken else None,
            taken.traceback if taken else None,
        )
        for (state, pool, port, taken), frames in groups.items()
    ]
    return sorted(holders, key=lambda holder: -len(holder.frames))
