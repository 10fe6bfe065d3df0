"""`Audit`: the proof that every frame is accounted for, or the names of those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from afxdp_pool._native import ffi, lib
from afxdp_pool.errors import AuditError, MemoryLimitError

#: The five states, in the order of the frame table's numbers.
STATES = ("umem", "pool", "fill", "app", "tx")

_WRONG = {
    1: "is in two places at once",
    2: "is marked free, but no list has it",
    3: "is in a list that does not fit its state",
    4: "is owned by a pool that does not exist, or lies in another pool's list",
    5: "has references that do not fit its state",
    6: "is with a port that does not exist",
}
_COUNTS = {
    7: "pool {0} has held {1} frames more than it released, but owns {2}",
    8: "port {0} should have {1} frames in FILL, but {2} say they are",
    9: "port {0} should have {1} frames in TX, but {2} say they are",
}


@dataclass(frozen=True)
class Audit:
    """Where every frame was at one quiet moment.

    Attributes:
        frames: number of frames of the Umem.
        umem, pool, fill, app, tx: frames in each state; they add up to `frames`.
        inbox: of the frames in `pool`, those another thread gave back and the owner has not taken in yet.
        problems: a sentence for each frame or counter that breaks the conservation law (the first 64).
        wrong: how many do.
    """

    frames: int
    umem: int
    pool: int
    fill: int
    app: int
    tx: int
    inbox: int
    problems: tuple[str, ...]
    wrong: int

    @property
    def ok(self) -> bool:
        """Every frame is in exactly one place, and all counters agree."""
        return self.wrong == 0 and self.umem + self.pool + self.fill + self.app + self.tx == self.frames

    @property
    def idle(self) -> bool:
        """No frame is with the kernel or with the application."""
        return self.fill + self.app + self.tx == 0

    def check(self, *, idle: bool = False) -> Self:
        """Return self if all is well; with `idle` also no frame may be in flight.

        Raises:
            AuditError: it is not; the text says what is wrong, and names the frames.
        """
        if not self.ok:
            more = f" (and {self.wrong - len(self.problems)} more)" if self.wrong > len(self.problems) else ""
            raise AuditError(f"{self.wrong} wrong: " + "; ".join(self.problems) + more)
        if idle and not self.idle:
            raise AuditError(
                f"frames are in flight: {self.fill} in FILL, {self.app} with the application, {self.tx} in TX"
            )
        return self

    def __str__(self) -> str:
        where = ", ".join(f"{name} {getattr(self, name)}" for name in STATES)
        return f"{self.frames} frames: {where}; " + ("all accounted for" if self.ok else f"{self.wrong} WRONG")


def audit_table(table: Any) -> Audit:
    """Audit a C frame table. Concurrency: when no other thread moves frames."""
    out = ffi.new("struct afp_audit *")
    if lib.afp_audit(table, out) != 0:
        raise MemoryLimitError("no memory for the audit")
    problems = []
    for item in list(out.wrong)[: min(out.nwrong, lib.AFP_WRONGS)]:
        if item.what in _COUNTS:
            problems.append(_COUNTS[item.what].format(item.frame, item.expected, item.found))
        else:
            problems.append(f"frame {item.frame} {_WRONG[item.what]} ({describe_word(item.word)})")
    states = dict(zip(STATES, out.state, strict=True))
    return Audit(frames=out.nframes, **states, inbox=out.inbox, problems=tuple(problems), wrong=out.nwrong)


def describe_word(word: int) -> str:
    """A frame's word in plain text, for messages."""
    state, owner, holder = word >> 36 & 0xF, word >> 24 & 0xFFF, word >> 40 & 0xFF
    name = STATES[state] if state < len(STATES) else f"state {state}"
    where = f", port {holder}" if holder and holder != 255 else ", several ports" if holder else ""
    return f"{name}, pool {owner}{where}, {word & 0xFFF} references, {word >> 12 & 0xFFF} in TX"
