"""Pictures of a Umem: every frame's state over time, as a map. Needs the extra `plot` (matplotlib).

A `Recorder` owns the samples it took; taking one reads the frame table without stopping anybody.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from afxdp_pool.audit import STATES
from afxdp_pool.errors import ConfigError, need_extra
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

    Concurrency: any one thread, while others move frames.
    """

    def __init__(self, umem: Umem, title: str = "") -> None:
        self.title = title
        self._umem = umem
        self.times: list[float] = []
        self.samples: list[npt.NDArray[np.uint8]] = []

    def sample(self) -> None:
        """Note the state of every frame, now."""
        self.times.append(time.monotonic())
        self.samples.append(self._umem.states())

    @property
    def states(self) -> npt.NDArray[np.uint8]:
        """All samples: shape ``(frames, samples)``, uint8, indices into `STATES`."""
        return np.stack(self.samples, axis=1)


def draw_umem(recordings: Sequence[Recorder], path: str | Path, heading: str = "Where every frame is") -> None:
    """Draw recordings side by side into a PNG: above the map of frames over time, below the share of each state.

    Raises:
        MissingExtraError: matplotlib is not installed. ConfigError: a recording without samples.
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
    figure.legend(handles=handles, loc="outside lower center", ncols=len(STATES), frameon=False, fontsize=9)
    figure.suptitle(heading, x=0.01, ha="left", fontsize=14, fontweight="bold")
    figure.savefig(path, dpi=150)
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
