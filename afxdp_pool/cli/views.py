"""What a person sees while it runs: nothing, a line a second, or the live view."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Self, TextIO

import afxdp_pool as ap
from afxdp_pool.cli.meter import Rate
from afxdp_pool.cli.notices import Notices
from afxdp_pool.cli.output import progress

log = logging.getLogger("afxdp_pool")
History = Sequence[tuple[deque[float], deque[float]]]


class View:
    """Shows nothing; the others are made of it. `every` is the seconds between two calls of `show`."""

    every = 0.5
    #: What goes on beside the run, in a few words each; asked at every `show`.
    beside: Sequence[Callable[[], str]] = ()

    def of(self, forwarder: ap.Runner) -> Self:
        """Say what it will show; before `with`."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, report: ap.Report, rates: Sequence[Rate], history: History) -> None:
        """Show this moment."""


class Lines(View):
    """One line a second, for pipes and logs."""

    every = 0.25

    def __init__(self, command: str, stream: TextIO) -> None:
        self._command, self._stream = command, stream
        self._next = time.monotonic() + 1

    def show(self, report: ap.Report, rates: Sequence[Rate], history: History) -> None:
        """Write the line, when its second has come."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = max(self._next + 1, now + 0.5)
        print(progress(self._command, report, rates), file=self._stream, flush=True)


def choose_view(args: argparse.Namespace, notices: Notices) -> View:
    """The live view on a terminal that can show it, if rich is there; else lines; nothing if so wanted.

    With `--json` stdout is for the document: lines go to stderr, and so does the live view, if it is asked for.

    Raises:
        MissingExtraError: the live view is asked for, and rich is not installed.
    """
    if args.quiet:
        return View()
    stream = sys.stderr if args.json else sys.stdout
    lines = Lines(args.command, stream)
    wanted = args.live if args.live is not None else not args.json and find_spec("rich") is not None
    if not wanted:
        return lines
    if not stream.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        if args.live:
            log.warning("--live: there is no terminal that can show it, so it is a line a second")
        return lines
    from afxdp_pool.cli.screen import Screen

    return Screen(args, notices)
