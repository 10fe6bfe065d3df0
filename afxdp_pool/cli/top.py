"""`afxdp-pool top`: every AF_XDP socket and XDP program on the machine, once or again and again.

`rows` words what a `Watcher` saw, without touching anything; `run` shows it: as a table of rich's, or, without the
extra `tui` or a terminal, as plain columns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from afxdp_pool.cli.meter import CAUSES
from afxdp_pool.cli.output import duration
from afxdp_pool.machine import Engine, Machine, Program, Socket, Watcher
from afxdp_pool.report import scaled
from afxdp_pool.stats import KernelStats

#: Nanoseconds in a handler's call from which it is shown as slow: a batch a millisecond is far from any line rate.
SLOW_NS = 1_000_000
_SOCKETS = ("NETNS", "NETDEV", "QUEUE", "MODE", "RX/S", "TX/S", "DROPPED", "DROP/S", "FILL EMPTY", "HANDLER", "IDLE",
            "PID", "COMMAND")  # fmt: skip
_PROGRAMS = ("NETNS", "NETDEV", "MODE", "ID", "PROGRAM", "OWNER")
#: What is left out first, and what is cut, where the terminal is narrow.
_LEAST, _LONG, _GAP = ("MODE", "FILL EMPTY", "IDLE", "DROP/S", "TX/S"), ("COMMAND", "NETNS", "HANDLER"), "  "
_LEFT = {"NETNS", "NETDEV", "MODE", "COMMAND", "PROGRAM", "OWNER", "HANDLER"}


@dataclass(frozen=True)
class Row:
    """One line of a table. `alarm`: something is being lost, or too slow."""

    cells: tuple[str, ...]
    alarm: bool = False


def rows(now: Machine, before: Machine | None = None) -> list[Row]:
    """The sockets, with rates since `before`; without it, means of the engine's counters over no time are left out."""
    earlier = {one.seen.inode: one for one in before.sockets} if before else {}
    seconds = now.time - before.time if before else 0.0
    return [_row(one, earlier.get(one.seen.inode), seconds) for one in now.sockets]


def _row(one: Socket, before: Socket | None, seconds: float) -> Row:
    seen, engine = one.seen, one.engine
    last = before.engine if before else None
    lost, was_lost = _lost(seen.stats), _lost(before.seen.stats if before else None)
    losing = (lost - was_lost) / seconds if lost is not None and was_lost is not None and seconds > 0 else None
    took = _handler_ns(engine, last)
    process = one.processes[0] if one.processes else None
    cells = (
        one.netns or "-",
        one.netdev or "?",
        "?" if one.queue is None else str(one.queue),
        {None: "?", True: "zero-copy", False: "copy"}[seen.zero_copy],
        _rate(engine, last, "rx_packets"),
        _rate(engine, last, "tx_packets"),
        "?" if lost is None else f"{lost:,}",
        "" if losing is None else _short(losing),
        "?" if seen.stats is None else f"{seen.stats.rx_fill_ring_empty_descs:,}",
        "" if engine is None else engine.handler.rpartition(".")[2] + ("" if took is None else f" {duration(took)}"),
        _idle(engine, last),
        str(process.pid) if process else "?",
        _command(one),
    )
    return Row(cells, alarm=bool(losing) or (took or 0) >= SLOW_NS)


def _command(one: Socket) -> str:
    if not one.processes:
        return ""
    others = f" (+{len(one.processes) - 1} more)" if len(one.processes) > 1 else ""
    # Whatever a process calls itself, it does not write to this terminal.
    return "".join(letter for letter in one.processes[0].command if letter.isprintable())[:60] + others


def _lost(kernel: KernelStats | None) -> int | None:
    return None if kernel is None else sum(getattr(kernel, name) for name in CAUSES)


def _rate(engine: Engine | None, last: Engine | None, field: str) -> str:
    """Packets a second between what the engine told twice; it tells once a second."""
    if engine is None or last is None or engine.time_ns <= last.time_ns:
        return ""
    packets = engine.port.get(field, 0) - last.port.get(field, 0)
    return _short(packets * 1e9 / (engine.time_ns - last.time_ns))


def _short(value: float) -> str:
    return scaled(value, "").replace(" ", "")


def _grown(engine: Engine, last: Engine | None, field: str) -> int:
    return engine.loop.get(field, 0) - (last.loop.get(field, 0) if last else 0)


def _idle(engine: Engine | None, last: Engine | None) -> str:
    rounds = _grown(engine, last, "rounds") if engine else 0
    return f"{_grown(engine, last, 'idle_rounds') / rounds:.0%}" if engine and rounds > 0 else ""


def _handler_ns(engine: Engine | None, last: Engine | None) -> float | None:
    """What a call of the handler took, of those that were timed since `last`, or ever; None if none was."""
    for since in (last, None):
        timed = _grown(engine, since, "handler_timed") if engine else 0
        if engine and timed > 0:
            return _grown(engine, since, "handler_ns") / timed
    return None


def program_rows(programs: Sequence[Program]) -> list[Row]:
    """The XDP programs."""
    return [
        Row(
            (
                one.netns or "-",
                one.netdev,
                one.mode,
                str(one.id),
                one.name + (f" ({', '.join(one.parts)})" if one.parts else ""),
                f"pid {one.owner}" if one.owner else "",
            )
        )
        for one in programs
    ]


def tables(now: Machine, before: Machine | None, columns: int | None = None) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Both tables: heads and rows, at most `columns` wide. Columns in which nothing stands are left out."""
    both = ((_SOCKETS, rows(now, before)), (_PROGRAMS, program_rows(now.programs)))
    return [_fitted(heads, lines, columns) for heads, lines in both]


def _fitted(heads: tuple[str, ...], lines: list[Row], columns: int | None) -> tuple[tuple[str, ...], list[Row]]:
    """Without what is empty; where room is short, without what matters least, and long names cut."""
    widths = {
        head: max(len(head), *(len(line.cells[at]) for line in lines))
        for at, head in enumerate(heads)
        if any(line.cells[at] for line in lines)
    }
    if columns is not None:
        for head in ("", *_LEAST):
            widths.pop(head, None)
            over = sum(width + len(_GAP) for width in widths.values()) - len(_GAP) - columns
            for name in _LONG:
                if over > 0 and name in widths:
                    cut = min(over, widths[name] - len(name) - 4)
                    widths[name] -= max(0, cut)
                    over -= max(0, cut)
            if over <= 0:
                break
    places = [heads.index(head) for head in widths]

    def cell(text: str, width: int) -> str:
        return text if len(text) <= width else text[: width - 2] + ".."

    shown = [Row(tuple(map(cell, (line.cells[at] for at in places), widths.values())), line.alarm) for line in lines]
    return tuple(widths), shown


def headline(now: Machine) -> str:
    """What there is, in one line."""
    counts = (("AF_XDP socket", len(now.sockets)), ("XDP program", len(now.programs)), ("namespace", now.namespaces))
    return ", ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts)


def plain(now: Machine, before: Machine | None, columns: int | None = None) -> list[str]:
    """The tables as aligned columns."""
    lines = [headline(now)]
    for heads, shown in tables(now, before, columns):
        if shown:
            cells = [heads, *(row.cells for row in shown)]
            widths = [max(len(line[at]) for line in cells) for at in range(len(heads))]
            lines.append("")
            for line in cells:
                padded = (
                    cell.ljust(width) if head in _LEFT else cell.rjust(width)
                    for cell, width, head in zip(line, widths, heads, strict=True)
                )
                lines.append(_GAP.join(padded).rstrip())
    return [*lines, *([""] if now.notes else []), *(f"note: {note}" for note in now.notes)]


def _rich_picture(now: Machine, before: Machine | None, columns: int) -> Any:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text.assemble((" afxdp-pool top ", "bold reverse"), f" {headline(now)}"), Text()]
    for heads, shown in tables(now, before, columns):
        if shown:
            table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, len(_GAP), 0, 0))
            for head in heads:
                table.add_column(head, justify="left" if head in _LEFT else "right", no_wrap=True)
            for row in shown:
                table.add_row(*map(Text, row.cells), style="red" if row.alarm else None)
            parts += [table, Text()]
    return Group(*parts, *(Text(f"note: {note}", "yellow") for note in now.notes))


def run(args: argparse.Namespace) -> int:
    """Look once, or again and again until Ctrl-C. Returns the exit code.

    Raises:
        NoSuchNamespaceError, PrivilegeError: the namespace asked for.
    """
    watcher = Watcher(args.netns)
    live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")
    if args.json:
        print(json.dumps({"command": "top", **watcher.look().as_dict()}, indent=2))
    elif args.once or not live:
        print(*plain(watcher.look(), None), sep="\n")
    else:
        _again(watcher, args.interval)
    return 0


def _again(watcher: Watcher, interval: float) -> None:
    ended = threading.Event()
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if find_spec("rich") is not None:
            _again_rich(watcher, ended, interval)
        else:
            _refresh(watcher, ended, interval, _print_screen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _again_rich(watcher: Watcher, ended: threading.Event, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False)
    with Live(console=console, screen=True, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as live:
        _refresh(
            watcher,
            ended,
            interval,
            lambda now, then: live.update(_rich_picture(now, then, console.width), refresh=True),
        )


def _refresh(
    watcher: Watcher, ended: threading.Event, interval: float, show: Callable[[Machine, Machine | None], None]
) -> None:
    then = None
    while not ended.is_set():
        now = watcher.look()
        show(now, then)
        then = now
        ended.wait(interval)


def _print_screen(now: Machine, before: Machine | None) -> None:
    columns, lines = shutil.get_terminal_size()
    text = [line[:columns] for line in plain(now, before, columns)[: lines - 1]]
    print("\x1b[H\x1b[2J" + "\n".join(text), flush=True)
