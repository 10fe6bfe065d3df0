"""Bars, curves and the map of frames, as rich's `Text` of a known width. Needs the extra `tui`; nothing here writes.

`letters` is for a terminal without colours: the states of frames are told by letters then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from rich.text import Text

from afxdp_pool import STATES

#: Each state's colour, and its letter without colours.
STATE_COLOURS = {"umem": "bright_black", "pool": "blue", "fill": "green", "app": "yellow", "tx": "magenta"}
STATE_LETTERS = {"umem": ".", "pool": "o", "fill": "f", "app": "A", "tx": "t"}
assert tuple(STATE_COLOURS) == STATES
_RISING = "▁▂▃▄▅▆▇█"
_EIGHTHS = " ▏▎▍▌▋▊▉"

Piece = tuple[str, str]


def spread(left: Text, right: Text, columns: int) -> Text:
    """One line with `left` at its start and `right` at its end, if there is room for both."""
    gap = columns - left.cell_len - right.cell_len
    return Text.assemble(left, " " * gap, right) if gap > 0 else left


def bar(share: float, columns: int, style: str) -> Text:
    """A bar `share` full (0 to 1), in eighths of a column. A little of anything shows."""
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8)
    if share > 0 and eighths == 0:
        eighths = 1
    full, part = divmod(eighths, 8)
    inside = "█" * full + (_EIGHTHS[part] if part else "")
    return Text.assemble((inside, style), ("·" * (columns - len(inside)), "dim"))


def curve(values: Sequence[float], columns: int, style: str) -> Text:
    """The last values as a curve one row high, the highest of them at the top, the newest at the right."""
    shown = list(values)[-columns:] if columns > 0 else []
    top = max(shown, default=0.0)
    marks = (_RISING[round(value / top * 7)] if top and value > 0 else " " for value in shown)
    return Text(" " * (columns - len(shown)) + "".join(marks), style)


def shares(counts: dict[str, int], columns: int, *, letters: bool) -> Text:
    """All frames as one bar: a stretch for each state as long as its share; no state with frames vanishes."""
    total = sum(counts.values())
    there = [state for state in STATES if counts[state]]
    if not total:
        return Text()
    room = columns - len(there)
    exact = {state: counts[state] / total * room for state in there}
    sizes = {state: 1 + int(exact[state]) for state in there}
    for state in sorted(there, key=lambda s: exact[s] - int(exact[s]), reverse=True)[: columns - sum(sizes.values())]:
        sizes[state] += 1
    marks = STATE_LETTERS if letters else dict.fromkeys(STATES, "█")
    return Text.assemble(*((marks[state] * sizes[state], STATE_COLOURS[state]) for state in there))


def frame_map(states: npt.NDArray[np.uint8], columns: int, rows: int, *, letters: bool) -> tuple[list[Text], int]:
    """Frames at their places in memory, one mark each; returns the lines and the step from one mark to the next.

    With colours a character cell shows two frames, one above the other, so that `rows` lines hold twice as many.
    When there are more frames than marks, every n-th is shown: as it is, not a mean.
    """
    marks = columns * rows * (1 if letters else 2)
    step = max(1, -(-len(states) // marks))
    chosen = states[::step]
    kinds = [STATES[state] for state in chosen]
    if letters:
        all_of_it = "".join(STATE_LETTERS[kind] for kind in kinds)
        return [Text(all_of_it[at : at + columns]) for at in range(0, len(kinds), columns)], step
    lines = []
    for at in range(0, len(kinds), 2 * columns):
        upper, lower = kinds[at : at + columns], kinds[at + columns : at + 2 * columns]
        lower += [""] * (len(upper) - len(lower))
        lines.append(_merge(_cell(top, bottom) for top, bottom in zip(upper, lower, strict=True)))
    return lines, step


def _cell(top: str, bottom: str) -> Piece:
    """Two frames in one character. Those no pool owns are dots, so that the others stand out."""
    if bottom in ("umem", ""):
        return ("·", "dim") if top == "umem" else ("▀", STATE_COLOURS[top])
    if top == "umem":
        return "▄", STATE_COLOURS[bottom]
    return "▀", f"{STATE_COLOURS[top]} on {STATE_COLOURS[bottom]}"


def _merge(pieces: Iterable[Piece]) -> Text:
    """Neighbours of one style become one piece."""
    joined = (("".join(text for text, _ in group), style) for style, group in groupby(pieces, key=lambda p: p[1]))
    return Text.assemble(*joined)


def legend(counts: dict[str, int], *, letters: bool) -> Text:
    """Which colour, or letter, is which state, and how many frames are in it."""
    line = Text()
    for state in STATES:
        line.append(STATE_LETTERS[state] if letters else "■", STATE_COLOURS[state])
        line.append(f" {state} ").append(f"{counts[state]:<6,} ", "bold")
    return line
