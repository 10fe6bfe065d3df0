"""The live view: a screen of the terminal drawn anew some times a second, by rich. Needs the extra `tui`.

A `Picture` is all that one screen shows, and draws itself at any size. `Screen` owns the terminal while it is up, and
puts it back however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import termios
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.cli.meter import FILL_EMPTY, Rate, losses
from afxdp_pool.cli.notices import Notices
from afxdp_pool.cli.output import clock, duration, places
from afxdp_pool.cli.views import History, View
from afxdp_pool.errors import need_extra
from afxdp_pool.report import scaled

try:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live
    from rich.text import Text

    from afxdp_pool.cli import drawing as draw
except ImportError as error:
    raise need_extra("tui", "rich") from error

#: Stand-ins where the terminal's character set has no blocks.
_ASCII = str.maketrans("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉▀▄■·", "__..--=#||::::#''#.")
_RX, _TX, _DONE, _BAD, _WARN = "green", "magenta", "cyan", "red", "yellow"
_RINGS = ("fill", "rx", "tx", "comp")
#: Lines kept for what stands below the ports: pool, frames, their legend, two rows of the map, the last line.
_BELOW = 8
_BLOCK = 6


@dataclass(frozen=True)
class Shape:
    """What does not change about a port: its name, what it was granted, its rings' sizes (of those it has)."""

    name: str
    granted: str
    sizes: dict[str, int]

    @classmethod
    def of(cls, port: ap.Port) -> Shape:
        """The shape of an open port."""
        config, info = port.config, port.info
        xdp = f"{info.xdp_mode} XDP" if info.xdp_mode else "no XDP program"
        has = {"fill": config.receive, "rx": config.receive, "tx": config.transmit, "comp": config.transmit}
        sizes = {ring: getattr(config, f"{ring}_size") for ring in _RINGS if has[ring]}
        granted = [info.driver, xdp, info.mode, info.pages]
        granted += [{"live": "sends live", "socket": "sends by socket"}[info.transmit]] if config.transmit else []
        return cls(f"{port.netdev} queue {port.queue}", " · ".join(granted), sizes)


@dataclass(frozen=True)
class Picture:
    """All that one screen shows."""

    title: str
    report: ap.Report
    rates: Sequence[Rate]
    history: History
    shapes: Sequence[Shape]
    states: npt.NDArray[np.uint8]
    notice: str = ""
    beside: Sequence[str] = ()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns, rows = options.max_width, options.height or console.height
        letters = console.no_color or console.color_system is None
        for number, line in enumerate(self.lines(columns, rows, letters=letters)):
            if options.ascii_only:
                line.plain = line.plain.translate(_ASCII)
            line.truncate(columns, overflow="crop")
            line.end = "" if number == rows - 1 else "\n"
            yield line

    def lines(self, columns: int, rows: int, *, letters: bool) -> list[Text]:
        """The screen's lines, `rows` of them, for a terminal `columns` wide."""
        report = self.report
        head = Text.assemble((" afxdp-pool ", "bold reverse"), (f" {self.title}", "bold"))
        lines = [draw.spread(head, Text(f"{clock(report.seconds)} ", "bold"), columns), Text()]
        workers = _worker_lines(self)[: rows // 4]
        below = _BELOW + len(workers)
        room = rows - len(lines) - below
        if room >= _BLOCK * len(self.shapes) - sum(len(shape.sizes) < 4 for shape in self.shapes):
            for index in range(len(self.shapes)):
                lines += _port_block(self, index, columns)
        else:
            lines += _port_table(self, max(room, 2))
        if len(lines) + below < rows:
            lines.append(Text())
        if len(lines) + below < rows:
            lines.append(_loop_line(report))
        lines += [*workers, _pool_line(report)]
        bar = draw.shares(report.frames, columns - 10, letters=letters)
        lines.append(Text.assemble((" frames  ", "bold"), bar))
        lines.append(Text.assemble("         ", draw.legend(report.frames, letters=letters)))
        last = [Text(f" {part}", _WARN) for part in textwrap.wrap(self.notice, columns - 2)[: 1 + rows // 20]]
        last = last or [Text(f" {' · '.join(('Ctrl-C stops', *self.beside))}", "dim")]
        map_rows = rows - len(lines) - len(last) - 1
        if map_rows > 0:
            drawn, step = draw.frame_map(self.states, columns - 10, map_rows, letters=letters)
            what = "map" if step == 1 else f"1 in {step}"
            lines += [
                Text.assemble((f" {what if i == 0 else '':7} ", "dim"), line) for i, line in enumerate(drawn[:map_rows])
            ]
        lines += [Text() for _ in range(rows - len(last) - len(lines))]
        return [*lines[: rows - len(last)], *last]


def _port_block(picture: Picture, index: int, columns: int) -> list[Text]:
    """One port in full: what it was granted, its rates and their past, its rings, what the kernel dropped."""
    port, rate, shape = picture.report.ports[index], picture.rates[index], picture.shapes[index]
    stats, (rx_past, tx_past) = port.stats, picture.history[index]
    lines = [Text.assemble((f" {shape.name}", "bold"), (f"  {shape.granted}", "dim"))]
    if "rx" in shape.sizes:
        lines.append(_rate_line("rx", rate.rx_pps, rate.rx_bps, rx_past, stats.rx_packets, columns, _RX))
    if "tx" in shape.sizes:
        lines.append(_rate_line("tx", rate.tx_pps, rate.tx_bps, tx_past, stats.tx_packets, columns, _TX))
        away = stats.in_tx
        done = Text.assemble(("   done ", _DONE), (f"{scaled(rate.completed_pps, 'pps'):>11}", "bold"))
        done.append(f"  {away:,} on their way", "dim").append_text(_live(port))
        lines.append(draw.spread(done, Text(f"{stats.tx_completed:,} "), columns))
    lines.append(_ring_line(port.rings, shape.sizes, columns))
    lines.append(_loss_line(port, rate))
    return lines


def _live(port: ap.PortReport) -> Text:
    """How much of what was sent went live, and what the device did not take of it."""
    live, line = port.live, Text()
    if live is None:
        return line
    line.append(f" · {live.frames / (port.stats.tx_packets or 1):.0%} live", "dim")
    if live.dropped:
        line.append(f", {live.dropped:,} dropped by the device", _BAD)
    if live.pools_left:
        line.append(f", {live.pools_left} runs' pages out", _WARN)
    return line


def _rate_line(name: str, pps: float, bps: float, past: Sequence[float], total: int, columns: int, style: str) -> Text:
    line = Text.assemble((f"   {name:4} ", style), (f"{scaled(pps, 'pps'):>11}", "bold"))
    line.append(f"{scaled(bps, 'bit/s'):>14}  ")
    right = f"{total:>17,} "
    line.append_text(draw.curve(past, max(0, columns - line.cell_len - len(right)), style))
    return line.append(right)


def _ring_line(rings: dict[str, int], sizes: dict[str, int], columns: int) -> Text:
    """A bar for each ring, full to what is in it now."""
    line = Text("   ring ")
    each = (columns - 8) // len(_RINGS)
    for ring, size in sizes.items():
        level = rings.get(ring, 0)
        style = {"fill": _RX, "rx": _RX, "tx": _TX, "comp": _DONE}[ring]
        line.append(f"{ring:4} ", "dim").append_text(draw.bar(level / size, max(2, each - 11), style))
        line.append(f" {level:<5}")
    return line


def _loss_line(port: ap.PortReport, rate: Rate) -> Text:
    lost = losses(port.kernel)
    line = Text("   kernel dropped none", "dim") if not lost else Text()
    if lost:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in lost.items())
        line.append(f"   kernel dropped {causes}", _BAD)
        line.append(f" ({scaled(rate.lost_pps, 'pps')} now)" if rate.lost_pps else "", _BAD)
    if port.kernel.rx_fill_ring_empty_descs and FILL_EMPTY not in lost:
        line.append(f"; FILL empty {port.kernel.rx_fill_ring_empty_descs:,} times", _WARN)
    passed = port.program.get("passed_filter", 0) + port.program.get("passed_no_socket", 0)
    if passed:
        line.append(f"; {passed:,} left to the stack", "dim")
    return line


def _port_table(picture: Picture, room: int) -> list[Text]:
    """A line a port, when there are too many for blocks."""
    lines = [Text(f" {'port':<22}{'rx':>13}{'tx':>13}{'completed':>13}{'dropped':>14}", "dim")]
    fits = len(picture.shapes) if len(picture.shapes) < room else room - 2
    for shape, rate, port in list(zip(picture.shapes, picture.rates, picture.report.ports, strict=True))[:fits]:
        lost = sum(losses(port.kernel).values())
        line = Text(f" {shape.name:<22}", "bold")
        for name, style in (("rx", _RX), ("tx", _TX), ("completed", _DONE)):
            line.append(f"{scaled(getattr(rate, f'{name}_pps'), 'pps'):>13}", style)
        lines.append(line.append(f"{lost:>14,}", _BAD if lost else "dim"))
    if fits < len(picture.shapes):
        lines.append(Text(f" and {len(picture.shapes) - fits} more ports", "dim"))
    return lines


def _idle(engine: ap.EngineStats) -> float:
    return engine.idle_rounds / engine.rounds if engine.rounds else 0.0


def _loop_line(report: ap.Report) -> Text:
    """The loop; of several workers, their sums."""
    engine = report.engine
    line = Text.assemble((" loop    ", "bold"), f"{engine.rounds:,} rounds, {_idle(engine):.0%} without work")
    line.append(f" · {engine.sleeps:,} sleeps", "dim")
    if engine.handler_timed:
        line.append(f" · handler {duration(engine.handler_mean_ns)} a batch", _WARN if engine.handler_slow else "")
    for name, style in (("kept", ""), ("refused", _BAD)):
        if count := getattr(engine, name):
            line.append(f" · {count:,} {name}", style)
    return line


def _worker_lines(picture: Picture) -> list[Text]:
    """A line a worker, when there are several: where it runs, what it moves, and how often it slept."""
    lines = []
    at = 0
    for worker in picture.report.workers:
        rates = picture.rates[at : at + len(worker.ports)]
        at += len(worker.ports)
        where = f"CPU {worker.cpu}" if worker.cpu is not None else ""
        line = Text.assemble((f" {worker.name:<10}", "bold"), (f"{where:<7}", "dim"))
        for name, style in (("rx", _RX), ("tx", _TX)):
            pps = sum(getattr(rate, f"{name}_pps") for rate in rates)
            line.append(f" {name} ", style).append(f"{scaled(pps, 'pps'):>11}", "bold")
        lines.append(line.append(f"  {_idle(worker.engine):4.0%} idle, {worker.engine.sleeps:,} sleeps", "dim"))
    return lines


def _pool_line(report: ap.Report) -> Text:
    """The pool; of several, their sums."""
    pools = report.pools
    cached = sum(pool.recycle_cached for pool in pools)
    put = cached + sum(pool.recycle_ring + pool.recycle_ring_full for pool in pools)
    inflight = sum(pool.inflight for pool in pools)
    line = Text(" pool    " if len(pools) == 1 else f" {len(pools)} pools ", "bold")
    if put:
        line.append(f"{cached / put:.1%} recycled in cache", _RX).append(" · ", "dim")
    if len(pools) == 1:
        (pool,) = pools
        line.append(f"hold {pool.hold_cnt:,} - release {pool.release_cnt:,} = {inflight:,} frames owned", "not bold")
    else:
        remote = sum(pool.remote_frames for pool in pools)
        line.append(f"{inflight:,} frames owned · {remote:,} from other threads", "not bold")
    failed = sum(pool.alloc_failed for pool in pools)
    return line.append(f" · ran dry {failed:,} times" if failed else "", _WARN)


class Screen(View):
    """The live view on the terminal, from `with` to its end: of stdout, or of stderr when stdout is for the document.

    Raises:
        MissingExtraError: on import, when rich is not installed.
    """

    every = 0.2

    def __init__(self, args: argparse.Namespace, notices: Notices) -> None:
        self._title = f"{args.command} {places(args)}" + (f" in {args.netns}" if args.netns else "")
        self._notices = notices
        # Not a second thread: each picture is drawn when `show` is called. What others print is none of its business.
        self._live = Live(
            console=Console(stderr=bool(args.json), highlight=False),
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._keyboard: list[Any] | None = None

    def of(self, forwarder: ap.Runner) -> Self:
        """Show this forwarder, whose ports are open."""
        self._shapes = [Shape.of(port) for port in forwarder.ports]
        self._umem = forwarder.umem
        return self

    def __enter__(self) -> Self:
        self._notices.aloud = False
        with contextlib.suppress(termios.error, ValueError, OSError):
            # What is typed, the ^C among it, must not show up in the picture.
            self._keyboard = termios.tcgetattr(sys.stdin)
            quiet = [*self._keyboard]
            quiet[3] &= ~(termios.ECHO | termios.ECHOCTL)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()
        if self._keyboard is not None:
            with contextlib.suppress(termios.error, ValueError, OSError):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._keyboard)
        self._notices.aloud = True

    def show(self, report: ap.Report, rates: Sequence[Rate], history: History) -> None:
        """Draw this moment."""
        notice = self._notices.all[-1] if self._notices.all else ""
        beside = [said() for said in self.beside]
        shown = Picture(self._title, report, rates, history, self._shapes, self._umem.states(), notice, beside)
        self._live.update(shown, refresh=True)
