"""The result in pictures, from its JSON alone; PNG files beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afxdp_pool.errors import need_extra
from benchmarks.suite import figures
from benchmarks.suite.engines import CEILING
from benchmarks.suite.figures import Spread

COLOURS = {"ours": "#1f6fb2", "handler": "#6fb1dd", "rival": "#9aa3ab", "ceiling": "#c8452f"}
SIZE_COLOURS = ("#1f6fb2", "#6fb1dd", "#bcd9ec")
PERCENTS = ((50.0, "p50", "#1f6fb2"), (99.0, "p99", "#e09c2c"), (99.9, "p99.9", "#c8452f"))
PARTS = (
    ("user", "engine, own code", "#1f6fb2"),
    ("system", "engine, system calls", "#6fb1dd"),
    ("rest", "rest of the machine: source, its softirqs", "#d5d9dc"),
)
DPI = 110
ROW = 0.27  # inches a bar
WIDTH = 11.0
FOOT = 0.3  # inches for the legend and the note
RATE_TITLES = {
    "first": "after a pause of 50 ms",
    "1000": "1,000 a second",
    "50000": "50,000 a second",
    "100000": "100,000 a second",
    "half": "half of its highest rate",
}


def draw(document: Mapping[str, Any], output: Path) -> list[Path]:
    """Draw what the result has figures for, as `NAME-rates.png`, `-sizes`, `-latency`, `-cost`; return the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise need_extra("plot", "matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10})
    made = []
    for name, maker in (("rates", _rates), ("sizes", _sizes), ("latency", _latency), ("cost", _cost)):
        figure = maker(pyplot, document)
        if figure is None:
            continue
        path = output.with_name(f"{output.stem}-{name}.png")
        where = document["machine"]
        note = f"{where['cpu']}, Linux {where['kernel']}, veth, {document['date']}; counted at the far end"
        figure.text(0.995, 0.004, note, ha="right", va="bottom", fontsize=7, color="#777777")
        figure.savefig(path, dpi=DPI)
        pyplot.close(figure)
        made.append(path)
    return made


def _panels(pyplot: Any, rows: Sequence[int], columns: int, title: str) -> tuple[Any, list[Any]]:
    """A figure of panels, `columns` in a row, each row as high as its longest list of bars."""
    lines = [rows[at : at + columns] for at in range(0, len(rows), columns)]
    heights = [max(line) * ROW + 1.0 for line in lines]
    height = sum(heights) + 0.6
    figure, axes = pyplot.subplots(
        len(lines),
        columns,
        figsize=(WIDTH, height),
        squeeze=False,
        layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )
    figure.get_layout_engine().set(rect=(0.004, FOOT / height, 0.992, 1 - FOOT / height), wspace=0.05, hspace=0.06)
    figure.suptitle(title, fontsize=12, x=0.01, ha="left")
    flat = [axis for line in axes for axis in line]
    for axis in flat[len(rows) :]:
        axis.set_visible(False)
    return figure, flat[: len(rows)]


def _legend(figure: Any, handles: Any, labels: Any) -> None:
    """One for all panels, at the foot, with each label once."""
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="lower left", ncols=len(once), frameon=False, borderaxespad=0.1)


def _names(document: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], *, ceiling: bool = True) -> list[str]:
    return [
        name for name in document["engines"] if any(name in once for once in rounds) and (ceiling or name != CEILING)
    ]


def _label_rows(axis: Any, document: Mapping[str, Any], names: Sequence[str]) -> None:
    axis.set_yticks(range(len(names)), [document["engines"][name]["label"] for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    for text, name in zip(axis.get_yticklabels(), names, strict=True):
        if document["engines"][name]["kind"] in ("ours", "handler"):
            text.set_color(COLOURS["ours"])


def _whiskers(axis: Any, at: float, spread: Spread, scale: float) -> None:
    axis.plot([spread.least * scale, spread.most * scale], [at, at], color="#333333", linewidth=1)


def _rates(pyplot: Any, document: Mapping[str, Any]) -> Any:
    """Bars of packets a second by engine, a panel a job, at 64 bytes; the kernel's own rate is a line."""
    panels = [(job, figures.entry(document, "throughput", job)) for job in ("drop", "forward", "reflect", "tx")]
    panels = [(job, rounds) for job, rounds in panels if any(rounds)]
    panels += [("loss-free forward", figures.entry(document, "losses", "forward"))]
    panels = [(job, rounds) for job, rounds in panels if any(rounds)]
    if not panels:
        return None
    rows = [len(_names(document, rounds, ceiling=False)) for _, rounds in panels]
    figure, axes = _panels(pyplot, rows, 2, "Million packets a second, 64 bytes: median, least and greatest round")
    for axis, (job, rounds) in zip(axes, panels, strict=True):
        names = _names(document, rounds, ceiling=False)
        most = 0.0
        for at, name in enumerate(names):
            spread = figures.value(rounds, name, figures.pps)
            assert spread is not None
            axis.barh(at, spread.median / 1e6, height=0.7, color=COLOURS[document["engines"][name]["kind"]])
            _whiskers(axis, at, spread, 1e-6)
            axis.annotate(
                f"{spread.median / 1e6:.2f}", (spread.most / 1e6, at), (4, 0), textcoords="offset points", va="center"
            )
            most = max(most, spread.most / 1e6)
        top = figures.value(rounds, CEILING, figures.pps)
        if top is not None:
            most = max(most, top.median / 1e6)
            axis.axvline(top.median / 1e6, color=COLOURS["ceiling"], linestyle="--", linewidth=1)
        title = job.capitalize()
        axis.set_title(title, loc="left", fontweight="bold")
        if top is not None:
            axis.set_title(f"kernel XDP {top.median / 1e6:.2f}", loc="right", color=COLOURS["ceiling"], fontsize=9)
        axis.set_xlim(0, most * 1.14)
        _label_rows(axis, document, names)
    return figure


def _sizes(pyplot: Any, document: Mapping[str, Any]) -> Any:
    """Packets a second by size, a panel a job; the kernel is among the bars, as it has another rate at each size."""
    cells = [one for one in document.get("throughput", ()) if one["flows"] == 1]
    sizes = sorted({one["size"] for one in cells})[: len(SIZE_COLOURS)]
    jobs = [job for job in ("drop", "forward", "reflect", "tx") if sum(one["job"] == job for one in cells) > 1]
    if len(sizes) < 2 or not jobs:
        return None
    found = {(one["job"], one["size"]): one["rounds"] for one in cells}
    names = {
        job: [
            name
            for name in _names(document, found.get((job, sizes[0]), []))
            if all(any(name in once for once in found.get((job, size), ({name: 0},))) for size in sizes)
        ]
        for job in jobs
    }
    jobs = [job for job in jobs if names[job]]
    figure, axes = _panels(
        pyplot, [2 * len(names[job]) for job in jobs], 2, "Million packets a second by size of the packets"
    )
    for axis, job in zip(axes, jobs, strict=True):
        height = 0.8 / len(sizes)
        most = 0.0
        for number, size in enumerate(sizes):
            for at, name in enumerate(names[job]):
                spread = figures.value(found.get((job, size), []), name, figures.pps)
                if spread is None:
                    continue
                place = at + (number - (len(sizes) - 1) / 2) * height
                label = f"{size} B" if at == 0 else None
                axis.barh(place, spread.median / 1e6, height * 0.92, color=SIZE_COLOURS[number], label=label)
                axis.annotate(
                    f"{spread.median / 1e6:.2f}",
                    (spread.median / 1e6, place),
                    (3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7,
                )
                most = max(most, spread.median / 1e6)
        axis.set_title(job.capitalize(), loc="left", fontweight="bold")
        axis.set_xlim(0, most * 1.12)
        _label_rows(axis, document, names[job])
    handles, labels = axes[0].get_legend_handles_labels()
    _legend(figure, handles, labels)
    return figure


def _latency(pyplot: Any, document: Mapping[str, Any]) -> Any:
    """Percentiles by engine, a panel a rate, on a logarithmic axis."""
    rounds = figures.entry(document, "latency", "forward")
    rates = [rate for rate in RATE_TITLES if any(rate in found for once in rounds for found in once.values())]
    if not rates:
        return None
    names = _names(document, rounds)
    title = "Latency one way through the forwarder, 64 bytes, microseconds"
    figure, axes = _panels(pyplot, [len(names)] * len(rates), 2 if len(rates) > 1 else 1, title)
    for axis, rate in zip(axes, rates, strict=True):
        for at, name in enumerate(names):
            asked = [figures.microseconds(rounds, name, rate, percent) for percent, *_ in PERCENTS]
            each = [value for value in asked if value is not None]
            if not each:
                axis.annotate("none arrived", (0.02, at), xycoords=("axes fraction", "data"), va="center", fontsize=7)
                continue
            axis.plot(each, [at] * len(each), color="#c3c8cc", linewidth=2, zorder=1)
            for (_, label, colour), value in zip(PERCENTS, each, strict=True):
                axis.scatter([value], [at], color=colour, s=24, zorder=2, label=label)
            for value, shift, side in ((each[0], -6, "right"), (each[2], 6, "left")):
                axis.annotate(
                    figures.short(value),
                    (value, at),
                    (shift, 0),
                    textcoords="offset points",
                    va="center",
                    ha=side,
                    fontsize=7,
                )
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.set_xlim(low / 2.2, high * 2.2)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.grid(axis="x", color="#eeeeee")
        axis.set_axisbelow(True)
        axis.set_title(RATE_TITLES[rate], loc="left", fontweight="bold")
        _label_rows(axis, document, names)
    handles, labels = axes[0].get_legend_handles_labels()
    _legend(figure, handles, labels)
    return figure


def _cost(pyplot: Any, document: Mapping[str, Any]) -> Any:
    """CPU time a packet at a rate all keep up with, in stages: the engine's code, its system calls, the rest."""
    panels = [one for one in document.get("cost", ()) if any(one["rounds"])]
    if not panels:
        return None
    rows = [len(_names(document, one["rounds"])) for one in panels]
    title = f"CPU nanoseconds a packet at {panels[0]['rate'] / 1e6:g} million packets a second, 64 bytes"
    figure, axes = _panels(pyplot, rows, 2 if len(panels) > 1 else 1, title)
    for axis, one in zip(axes, panels, strict=True):
        names = _names(document, one["rounds"])
        most = 0.0
        for at, name in enumerate(names):
            parts = _stages(one["rounds"], name)
            start = 0.0
            for (_, label, colour), part in zip(PARTS, parts, strict=True):
                axis.barh(at, part, height=0.7, left=start, color=colour, label=label if at == 0 else None)
                start += part
            if start:
                note = f"{parts[0] + parts[1]:.0f} of {start:.0f}"
                axis.annotate(note, (start, at), (4, 0), textcoords="offset points", va="center")
            most = max(most, start)
        axis.set_xlim(0, most * 1.3 or 1)
        axis.locator_params(axis="x", nbins=6)
        axis.set_title(one["job"].capitalize(), loc="left", fontweight="bold")
        _label_rows(axis, document, names)
    handles, labels = axes[0].get_legend_handles_labels()
    _legend(figure, handles, labels)
    return figure


def _stages(rounds: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """Medians of the engine's two parts, and of what the machine used beside them."""
    medians = []
    for part in ("user", "system", "machine"):
        spread = figures.value(rounds, name, figures.nanoseconds(part))
        medians.append(spread.median if spread else 0.0)
    user, system, machine = medians
    return [user, system, max(machine - user - system, 0.0)]
