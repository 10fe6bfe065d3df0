"""Text with colours that knows its own width: lines of (text, style) pieces, bars, curves and the map of frames.

A style is a few SGR numbers such as ``"1;32"``; without colours a line is its text alone. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from afxdp_pool import STATES

Piece = tuple[str, str]
Line = list[Piece]

BOLD, DIM, RED, YELLOW = "1", "2", "31", "33"
#: Each state's colour: the foreground's SGR number (the background's is 10 more), and its letter without colours.
STATE_COLOURS = {"umem": 90, "pool": 34, "fill": 32, "app": 33, "tx": 35}
STATE_LETTERS = {"umem": ".", "pool": "o", "fill": "f", "app": "A", "tx": "t"}
assert tuple(STATE_COLOURS) == STATES
_RISING = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"


def width(line: Line) -> int:
    """Columns a line takes. Every character used here takes one."""
    return sum(len(text) for text, _ in line)


def render(line: Line, columns: int, *, colour: bool) -> str:
    """A line as the terminal wants it, cut off at `columns`."""
    parts, left = [], columns
    for text, style in line:
        shown = text[:left]
        left -= len(shown)
        if shown:
            parts.append(f"\x1b[{style}m{shown}\x1b[0m" if colour and style else shown)
    return "".join(parts)


def spread(left: Line, right: Line, columns: int) -> Line:
    """One line with `left` at its start and `right` at its end, if there is room for both."""
    gap = columns - width(left) - width(right)
    return [*left, (" " * gap, ""), *right] if gap > 0 else left


def bar(share: float, columns: int, style: str) -> Line:
    """A bar `share` full (0 to 1), in eighths of a column. A little of anything shows."""
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8)
    if share > 0 and eighths == 0:
        eighths = 1
    full, part = divmod(eighths, 8)
    inside = "█" * full + (_EIGHTHS[part] if part else "")
    return [(inside, style), ("·" * (columns - len(inside)), DIM)]


def curve(values: Sequence[float], columns: int, style: str) -> Line:
    """The last values as a curve one row high, the highest of them at the top, the newest at the right."""
    shown = list(values)[-columns:]
    top = max(shown, default=0.0)
    marks = (_RISING[round(value / top * 7)] if top and value > 0 else " " for value in shown)
    return [(" " * (columns - len(shown)) + "".join(marks), style)]


def shares(counts: dict[str, int], columns: int, *, colour: bool) -> Line:
    """All frames as one bar: a stretch for each state as long as its share; no state with frames vanishes."""
    total = sum(counts.values())
    there = [state for state in STATES if counts[state]]
    if not total:
        return []
    least = {state: 1 for state in there}
    room = columns - len(there)
    exact = {state: counts[state] / total * room for state in there}
    sizes = {state: least[state] + int(exact[state]) for state in there}
    for state in sorted(there, key=lambda s: exact[s] - int(exact[s]), reverse=True)[: columns - sum(sizes.values())]:
        sizes[state] += 1
    mark = "█" if colour else ""
    return [((mark or STATE_LETTERS[state]) * sizes[state], str(STATE_COLOURS[state])) for state in there]


def frame_map(states: npt.NDArray[np.uint8], columns: int, rows: int, *, colour: bool) -> tuple[list[Line], int]:
    """Frames at their places in memory, one mark each; returns the lines and the step from one mark to the next.

    With colours a character cell shows two frames, one above the other, so that `rows` lines hold twice as many.
    When there are more frames than marks, every n-th is shown: as it is, not a mean.
    """
    marks = columns * rows * (2 if colour else 1)
    step = max(1, -(-len(states) // marks))
    chosen = states[::step]
    if not colour:
        letters = "".join(STATE_LETTERS[STATES[state]] for state in chosen)
        return [[(letters[at : at + columns], "")] for at in range(0, len(letters), columns)], step
    kinds = [STATES[state] for state in chosen]
    lines = []
    for at in range(0, len(kinds), 2 * columns):
        upper, lower = kinds[at : at + columns], kinds[at + columns : at + 2 * columns]
        lower += [""] * (len(upper) - len(lower))
        lines.append(_merge(_cell(top, bottom) for top, bottom in zip(upper, lower, strict=True)))
    return lines, step


def _cell(top: str, bottom: str) -> Piece:
    """Two frames in one character. Those no pool owns are dots, so that the others stand out."""
    if bottom in ("umem", ""):
        return ("·", DIM) if top == "umem" else ("▀", str(STATE_COLOURS[top]))
    if top == "umem":
        return "▄", str(STATE_COLOURS[bottom])
    return "▀", f"{STATE_COLOURS[top]};{STATE_COLOURS[bottom] + 10}"


def _merge(pieces: Iterable[Piece]) -> Line:
    """Neighbours of one style become one piece."""
    return [("".join(text for text, _ in group), style) for style, group in groupby(pieces, key=lambda piece: piece[1])]


def legend(counts: dict[str, int], *, colour: bool) -> Line:
    """Which colour, or letter, is which state, and how many frames are in it."""
    line: Line = []
    for state in STATES:
        mark = "■" if colour else STATE_LETTERS[state]
        line += [(mark, str(STATE_COLOURS[state])), (f" {state} ", ""), (f"{counts[state]:<6,} ", BOLD)]
    return line
