"""The live screen: drawn anew in place some times a second, and the terminal put back as it was at the end.

`compose` makes the lines from plain values and touches nothing; `Screen` owns the terminal while it is up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.cli import drawing as draw
from afxdp_pool.cli.drawing import BOLD, DIM, RED, YELLOW, Line
from afxdp_pool.cli.meter import FILL_EMPTY, Rate, losses
from afxdp_pool.cli.notices import Notices
from afxdp_pool.cli.output import clock, places, scaled
from afxdp_pool.cli.views import History, View

#: Alternate screen, cursor off, no line wrap; and the way back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J", "\x1b[?7h\x1b[?25h\x1b[?1049l"
#: A terminal that knows how shows the picture only when it is whole.
_BEGIN, _END = "\x1b[?2026h\x1b[H", "\x1b[J\x1b[?2026l"
#: Stand-ins where the terminal's character set has no blocks.
_PLAIN = str.maketrans("▁▂▃▄▅▆▇█▏▎▍▌▋▊▉▀■·", "__..--=#||::::#'#.")
_RX, _TX, _DONE, _GOOD = "32", "35", "36", "32"
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
        granted += [f"{info.transmit} transmit"] if info.transmit != "none" else []
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


def compose(picture: Picture, columns: int, rows: int, *, colour: bool) -> list[Line]:
    """The screen's lines, at most `rows`, for a terminal `columns` wide."""
    report = picture.report
    head: Line = [(" afxdp-pool ", "1;7"), (f" {picture.title}", BOLD)]
    lines = [draw.spread(head, [(f"{clock(report.seconds)} ", BOLD)], columns), []]
    workers = _worker_lines(picture)[: rows // 4]
    below = _BELOW + len(workers)
    room = rows - len(lines) - below
    if room >= _BLOCK * len(picture.shapes) - sum(len(shape.sizes) < 4 for shape in picture.shapes):
        for index in range(len(picture.shapes)):
            lines += _port_block(picture, index, columns)
    else:
        lines += _port_table(picture, max(room, 2))
    if len(lines) + below < rows:
        lines.append([])
    lines += [*workers, _pool_line(report)]
    lines.append([(" frames  ", BOLD), *draw.shares(report.frames, columns - 10, colour=colour)])
    lines.append([("         ", ""), *draw.legend(report.frames, colour=colour)])
    map_rows = rows - len(lines) - 2
    if map_rows > 0:
        drawn, step = draw.frame_map(picture.states, columns - 10, map_rows, colour=colour)
        what = "map" if step == 1 else f"1 in {step}"
        lines += [[(f" {what if i == 0 else '':7} ", DIM), *line] for i, line in enumerate(drawn[:map_rows])]
    lines += [[]] * (rows - 1 - len(lines))
    last: Line = [(f" {picture.notice}", YELLOW)] if picture.notice else [(" Ctrl-C stops", DIM)]
    return [*lines[: rows - 1], last]


def _port_block(picture: Picture, index: int, columns: int) -> list[Line]:
    """One port in full: what it was granted, its rates and their past, its rings, what the kernel dropped."""
    port, rate, shape = picture.report.ports[index], picture.rates[index], picture.shapes[index]
    stats, (rx_past, tx_past) = port.stats, picture.history[index]
    lines: list[Line] = [[(f" {shape.name}", BOLD), (f"  {shape.granted}", DIM)]]
    if "rx" in shape.sizes:
        lines.append(_rate_line("rx", rate.rx_pps, rate.rx_bps, rx_past, stats.rx_packets, columns, _RX))
    if "tx" in shape.sizes:
        lines.append(_rate_line("tx", rate.tx_pps, rate.tx_bps, tx_past, stats.tx_packets, columns, _TX))
        away = stats.tx_packets - stats.tx_completed
        flying: Line = [(f"  {away:,} on their way", DIM), *_live(port)]
        done: Line = [("   done ", _DONE), (f"{scaled(rate.completed_pps, 'pps'):>11}", BOLD), *flying]
        lines.append(draw.spread(done, [(f"{stats.tx_completed:,} ", "")], columns))
    lines.append(_ring_line(port.rings, shape.sizes, columns))
    lines.append(_loss_line(port, rate))
    return lines


def _live(port: ap.PortReport) -> Line:
    """How much of what was sent went live, and what the device did not take of it."""
    live = port.live
    if live is None:
        return []
    line: Line = [(f" · {live.frames / (port.stats.tx_packets or 1):.0%} live", DIM)]
    if live.dropped:
        line.append((f", {live.dropped:,} dropped by the device", RED))
    if live.pools_left:
        line.append((f", {live.pools_left} runs' pages out", YELLOW))
    return line


def _rate_line(name: str, pps: float, bps: float, past: Sequence[float], total: int, columns: int, style: str) -> Line:
    left: Line = [(f"   {name:4} ", style), (f"{scaled(pps, 'pps'):>11}", BOLD), (f"{scaled(bps, 'bit/s'):>14}  ", "")]
    right: Line = [(f"{total:>17,} ", "")]
    return [*left, *draw.curve(past, max(0, columns - draw.width(left) - draw.width(right)), style), *right]


def _ring_line(rings: dict[str, int], sizes: dict[str, int], columns: int) -> Line:
    """A bar for each ring, full to what is in it now."""
    line: Line = [("   ring ", "")]
    each = (columns - 8) // len(_RINGS)
    for ring, size in sizes.items():
        level = rings.get(ring, 0)
        style = {"fill": _RX, "rx": _RX, "tx": _TX, "comp": _DONE}[ring]
        line += [(f"{ring:4} ", DIM), *draw.bar(level / size, max(2, each - 11), style), (f" {level:<5}", "")]
    return line


def _loss_line(port: ap.PortReport, rate: Rate) -> Line:
    lost = losses(port.kernel)
    if not lost:
        line: Line = [("   kernel dropped none", DIM)]
    else:
        causes = ", ".join(f"{count:,} {cause}" for cause, count in lost.items())
        line = [(f"   kernel dropped {causes}", RED)]
        line += [(f" ({scaled(rate.lost_pps, 'pps')} now)", RED)] if rate.lost_pps else []
    if port.kernel.rx_fill_ring_empty_descs and FILL_EMPTY not in lost:
        line.append((f"; FILL empty {port.kernel.rx_fill_ring_empty_descs:,} times", YELLOW))
    passed = port.program.get("passed_filter", 0) + port.program.get("passed_no_socket", 0)
    if passed:
        line.append((f"; {passed:,} left to the stack", DIM))
    return line


def _port_table(picture: Picture, room: int) -> list[Line]:
    """A line a port, when there are too many for blocks."""
    lines: list[Line] = [[(f" {'port':<22}{'rx':>13}{'tx':>13}{'completed':>13}{'dropped':>14}", DIM)]]
    fits = len(picture.shapes) if len(picture.shapes) < room else room - 2
    for shape, rate, port in list(zip(picture.shapes, picture.rates, picture.report.ports, strict=True))[:fits]:
        lost = sum(losses(port.kernel).values())
        rx, tx, done = (scaled(getattr(rate, f"{name}_pps"), "pps") for name in ("rx", "tx", "completed"))
        line: Line = [(f" {shape.name:<22}", BOLD), (f"{rx:>13}", _RX), (f"{tx:>13}", _TX), (f"{done:>13}", _DONE)]
        lines.append([*line, (f"{lost:>14,}", RED if lost else DIM)])
    if fits < len(picture.shapes):
        lines.append([(f" and {len(picture.shapes) - fits} more ports", DIM)])
    return lines


def _worker_lines(picture: Picture) -> list[Line]:
    """A line a worker, when there are several: where it runs, what it moves, and how often it slept."""
    lines: list[Line] = []
    at = 0
    for worker in picture.report.workers:
        rates = picture.rates[at : at + len(worker.ports)]
        at += len(worker.ports)
        rx, tx = (scaled(sum(getattr(rate, f"{name}_pps") for rate in rates), "pps") for name in ("rx", "tx"))
        where = f"CPU {worker.cpu}" if worker.cpu is not None else ""
        idle = worker.engine.idle_rounds / worker.engine.rounds if worker.engine.rounds else 0.0
        line: Line = [(f" {worker.name:<10}", BOLD), (f"{where:<7}", DIM), (" rx ", _RX), (f"{rx:>11}", BOLD)]
        line += [(" tx ", _TX), (f"{tx:>11}", BOLD)]
        lines.append([*line, (f"  {idle:4.0%} idle, {worker.engine.sleeps:,} sleeps", DIM)])
    return lines


def _pool_line(report: ap.Report) -> Line:
    """The pool; of several, their sums."""
    put, cached, failed, inflight = 0, 0, 0, 0
    for pool in report.pools:
        put += pool.recycle_cached + pool.recycle_ring + pool.recycle_ring_full
        cached += pool.recycle_cached
        failed += pool.alloc_failed
        inflight += pool.inflight
    line: Line = [(" pool    " if len(report.pools) == 1 else f" {len(report.pools)} pools ", BOLD)]
    if put:
        line += [(f"{cached / put:.1%} recycled in cache", _GOOD), (" · ", DIM)]
    if len(report.pools) == 1:
        (pool,) = report.pools
        line.append((f"hold {pool.hold_cnt:,} - release {pool.release_cnt:,} = {inflight:,} frames owned", ""))
    else:
        remote = sum(pool.remote_frames for pool in report.pools)
        line.append((f"{inflight:,} frames owned · {remote:,} from other threads", ""))
    if failed:
        line.append((f" · ran dry {failed:,} times", YELLOW))
    return line


class Screen(View):
    """The screen on stdout's terminal, from `with` to its end."""

    every = 0.2

    def __init__(self, args: argparse.Namespace, notices: Notices) -> None:
        self._title = f"{args.command} {places(args)}" + (f" in {args.netns}" if args.netns else "")
        self._notices = notices
        self._colour = not os.environ.get("NO_COLOR")
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
        self._write(_ENTER)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._write(_LEAVE)
        if self._keyboard is not None:
            with contextlib.suppress(termios.error, ValueError, OSError):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._keyboard)
        self._notices.aloud = True

    def show(self, report: ap.Report, rates: Sequence[Rate], history: History) -> None:
        """Draw this moment."""
        columns, rows = shutil.get_terminal_size()
        notice = self._notices.all[-1] if self._notices.all else ""
        picture = Picture(self._title, report, rates, history, self._shapes, self._umem.states(), notice)
        lines = compose(picture, columns, rows, colour=self._colour)
        body = "\x1b[K\r\n".join(draw.render(line, columns, colour=self._colour) for line in lines)
        self._write(f"{_BEGIN}{body}\x1b[K{_END}")

    def _write(self, text: str) -> None:
        encoding = sys.stdout.encoding or "ascii"
        plain = text if encoding.lower().startswith("utf") else text.translate(_PLAIN)
        raw = plain.encode(encoding, errors="replace")
        sys.stdout.flush()
        sys.stdout.buffer.write(raw)
        sys.stdout.buffer.flush()
