"""`Finding`: one thing the doctor looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "missing"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: its name.
        level: ``"ok"``; ``"warn"`` it works, but slower or not all of it; ``"missing"`` it will not work.
        text: what was found.
        fix: the command, or the advice, that makes it better.
    """

    what: str
    level: Level
    text: str
    fix: str = ""
