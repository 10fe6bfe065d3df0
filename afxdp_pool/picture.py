"""Pictures of a Umem: every frame's state over time, as a map or as an animation. Needs the extra `plot` (matplotlib).

A `Recorder` owns the samples it took; taking one reads the frame table without stopping anybody.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from afxdp_pool.audit import STATES
from afxdp_pool.errors import AfXdpError, ConfigError, need_extra
from afxdp_pool.umem import Umem

#: One colour a state, told apart also without seeing colours: they differ in lightness.
COLOURS = {"umem": "#e8e6e1", "pool": "#9ec5ab", "fill": "#32746d", "app": "#f4a261", "tx": "#a4243b"}
_LABELS = {
    "umem": "Umem (owned by nobody)",
    "pool": "pool (cached, idle)",
    "fill": "FILL (kernel receives into it)",
    "app": "application",
    "tx": "TX (on its way out)",
}
_MOST_ROWS = 2048


class Recorder:
    """Samples of the state of each frame of `umem`, under the heading `title`.

    Args:
        most: how many samples to keep, 2 or more. When there are so many every second one goes, and from then on every
            second call of `sample` takes none: they reach over the whole time, however long. None: no limit.

    Concurrency: any one thread, while others move frames.
    """

    def __init__(self, umem: Umem, title: str = "", *, most: int | None = None) -> None:
        if most is not None and most < 2:
            raise ConfigError(f"a recording of {most} samples is not possible", hint="choose 2 or more")
        self.title = title
        self._umem = umem
        self._most = most
        self._stride = 1
        self._calls = 0
        self.times: list[float] = []
        self.samples: list[npt.NDArray[np.uint8]] = []

    def sample(self) -> None:
        """Note the state of every frame, now."""
        self._calls += 1
        if self._calls % self._stride:
            return
        if len(self.samples) == self._most:
            del self.times[1::2], self.samples[1::2]
            self._stride *= 2
        self.times.append(time.monotonic())
        self.samples.append(self._umem.states())

    @property
    def states(self) -> npt.NDArray[np.uint8]:
        """All samples: shape ``(frames, samples)``, uint8, indices into `STATES`."""
        return np.stack(self.samples, axis=1)


def require_plot() -> None:
    """Raise MissingExtraError unless pictures can be drawn; it takes no time where they can."""
    if importlib.util.find_spec("matplotlib") is None:
        raise need_extra("plot", "matplotlib")


def draw_umem(recordings: Sequence[Recorder], path: str | Path, heading: str = "Where every frame is") -> None:
    """Draw recordings side by side: above the map of frames over time, below the share of each state.

    The ending of `path` says the format: ``.png``, ``.svg``, ``.pdf``.

    Raises:
        MissingExtraError: matplotlib is not installed. AfXdpError: the file cannot be written.
        ConfigError: a recording without samples; no such format.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        from matplotlib.colors import BoundaryNorm, ListedColormap
        from matplotlib.patches import Patch
    except ImportError as error:
        raise need_extra("plot", "matplotlib") from error
    if not recordings or not all(recording.samples for recording in recordings):
        raise ConfigError("there is nothing to draw", hint="take samples first")
    colours = ListedColormap([COLOURS[state] for state in STATES])
    norm = BoundaryNorm(np.arange(len(STATES) + 1) - 0.5, len(STATES))
    plt.rcParams.update({"font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(
        2,
        len(recordings),
        figsize=(4.6 * len(recordings) + 0.6, 7.4),
        height_ratios=(3, 1),
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for column, recording in enumerate(recordings):
        _draw_one(recording, axes[0][column], axes[1][column], colours, norm)
    axes[0][0].set_ylabel("frame")
    axes[1][0].set_ylabel("share of frames")
    handles = [
        Patch(facecolor=COLOURS[state], edgecolor="#888888", linewidth=0.4, label=_LABELS[state]) for state in STATES
    ]
    columns = len(STATES) if len(recordings) > 2 else 1 + len(recordings)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=14, fontweight="bold")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise AfXdpError(subject=str(path), doing="writing the picture", errno=error.errno or 0) from None
    except ValueError:
        raise ConfigError("it is no format for pictures", subject=str(path), hint="use .png, .svg or .pdf") from None
    finally:
        plt.close(figure)


def _draw_one(recording: Recorder, above: Any, below: Any, colours: Any, norm: Any) -> None:
    states = recording.states
    step = -(-len(states) // _MOST_ROWS)
    times = np.asarray(recording.times) - recording.times[0]
    end = float(times[-1]) + (float(times[-1] - times[-2]) if len(times) > 1 else 1.0)
    above.pcolormesh(
        np.append(times, end),
        np.arange(0, len(states) + step, step)[: len(states[::step]) + 1],
        states[::step],
        cmap=colours,
        norm=norm,
        rasterized=True,
    )
    above.set_title(recording.title, loc="left", fontsize=10)
    above.set_ylim(0, len(states))
    shares = [(states == index).mean(axis=0) for index in range(len(STATES))]
    below.stackplot(times, shares, colors=[COLOURS[state] for state in STATES], linewidth=0)
    below.set_ylim(0, 1)
    below.set_xlim(0, end)
    below.set_xlabel("seconds")


# Animation ------------------------------------------------------------------------------------------------------------

#: Pixels: around everything, of a line of text, of a bar; of a map's longer side, about.
_MARGIN, _LINE, _BAR, _SIDE = 16, 18, 14, 300
_PAPER, _INK, _GREY = len(STATES), len(STATES) + 1, len(STATES) + 2


def animate_umem(
    recordings: Sequence[Recorder],
    path: str | Path,
    heading: str = "Where every frame is",
    *,
    slower: float = 1.0,
    most: int | None = None,
) -> None:
    """Draw recordings side by side as an animation: each frame at its place in the Umem, row by row, as time goes on.

    Args:
        path: its ending says the format: ``.gif``, ``.png`` (an animated one) or ``.webp``.
        slower: how many times slower than it was.
        most: images, evenly spread over the samples; None: one for each sample.

    Raises:
        MissingExtraError: matplotlib is not installed; Pillow, which draws, comes with it.
        ConfigError: a recording without samples; no such format. AfXdpError: the file cannot be written.
    """
    try:
        import matplotlib  # noqa: F401 - whose font it is
        from PIL import Image
    except ImportError as error:
        raise need_extra("plot", "matplotlib") from error
    if not recordings or not all(recording.samples for recording in recordings):
        raise ConfigError("there is nothing to draw", hint="take samples first")
    if Path(path).suffix.lower() not in (".gif", ".png", ".webp"):
        raise ConfigError("it is no format for animations", subject=str(path), hint="use .gif, .png or .webp")
    if not 0 < slower < 1e6 or (most is not None and most < 1):
        raise ConfigError(f"{most} images, {slower} times slower, are not possible")
    times = max((recording.times for recording in recordings), key=len)
    chosen = np.unique(np.linspace(0, len(times) - 1, min(most or len(times), len(times))).round().astype(int)).tolist()
    palette = [*COLOURS.values(), "#ffffff", "#222222", "#888888"]
    flat = [int(colour[at : at + 2], 16) for colour in palette for at in (1, 3, 5)]
    images = []
    for number in chosen:
        image = Image.fromarray(_page(recordings, number, heading), mode="P")
        image.putpalette(flat)
        _write_words(image, recordings, number, heading)
        images.append(image)
    steps = [*np.diff([times[number] for number in chosen]), 1.0 / slower]  # and a second's rest at the end
    durations = [max(20, round(step * slower * 1000)) for step in steps]
    if Path(path).suffix.lower() != ".gif":
        images = [image.convert("RGB") for image in images]
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)
    except OSError as error:
        raise AfXdpError(subject=str(path), doing="writing the animation", errno=error.errno or 0) from None


def _grid(frames: int) -> tuple[int, int, int]:
    """How a Umem is laid out: frames a row, the step from one to the next that is shown, pixels of each."""
    step = max(1, -(-frames // (_SIDE * _SIDE)))
    shown = -(-frames // step)
    columns = 1 << max(0, (shown - 1).bit_length() + 1) // 2
    return columns, step, max(1, _SIDE // columns)


def _boxes(recordings: Sequence[Recorder]) -> list[tuple[int, int, int, int]]:
    """Left, top, width and height of each map, in pixels."""
    boxes, left = [], _MARGIN
    for recording in recordings:
        columns, step, size = _grid(len(recording.samples[0]))
        rows = -(-len(recording.samples[0][::step]) // columns)
        boxes.append((left, _MARGIN + 2 * _LINE, columns * size, rows * size))
        left += columns * size + _MARGIN
    return boxes


def _page(recordings: Sequence[Recorder], number: int, heading: str) -> npt.NDArray[np.uint8]:
    """One image without its words, as numbers of colours."""
    boxes = _boxes(recordings)
    last = boxes[-1]
    below = max(top + height for _, top, _, height in boxes) + _MARGIN // 2
    page = np.full((below + _BAR + 2 * _LINE + _MARGIN, last[0] + last[2] + _MARGIN), _PAPER, np.uint8)
    for recording, (left, top, width, height) in zip(recordings, boxes, strict=True):
        states = recording.samples[min(number, len(recording.samples) - 1)]
        columns, step, size = _grid(len(states))
        shown = states[::step]
        cells = np.full(columns * (height // size), _PAPER, np.uint8)
        cells[: len(shown)] = shown
        page[top : top + height, left : left + width] = cells.reshape(-1, columns).repeat(size, 0).repeat(size, 1)
        counts = np.bincount(states, minlength=len(STATES)).cumsum() * width // len(states)
        page[below : below + _BAR, left : left + width] = np.searchsorted(counts, np.arange(width), side="right")
    return page


def _write_words(image: Any, recordings: Sequence[Recorder], number: int, heading: str) -> None:
    import matplotlib
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(image)
    draw.font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", 12)
    draw.fontmode = "1"  # no shades between ink and paper: there are no colours for them
    draw.text((_MARGIN, _MARGIN), heading, fill=_INK)
    boxes = _boxes(recordings)
    for recording, (left, top, width, _) in zip(recordings, boxes, strict=True):
        at = recording.times[min(number, len(recording.times) - 1)] - recording.times[0]
        draw.text((left, top - _LINE), recording.title, fill=_INK)
        draw.text((left + width, top - _LINE), f"{at:.2f} s", fill=_GREY, anchor="ra")
    left, bottom = _MARGIN, image.height - _MARGIN - _LINE // 2
    for index, state in enumerate(STATES):
        draw.rectangle((left, bottom - 4, left + 8, bottom + 4), fill=index, outline=_GREY)
        draw.text((left + 13, bottom), state, fill=_INK, anchor="lm")
        left += 24 + round(draw.textlength(state))
