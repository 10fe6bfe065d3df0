"""What a person sees while it runs: nothing, a line a second, or the screen."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Self, TextIO

import afxdp_pool as ap
from afxdp_pool.cli.meter import Rate
from afxdp_pool.cli.notices import Notices
from afxdp_pool.cli.output import progress

History = Sequence[tuple[deque[float], deque[float]]]


class View:
    """Shows nothing; the others are made of it. `every` is the seconds between two calls of `show`."""

    every = 0.5

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
    """The screen on a terminal; lines when stdout is something else, or is for the document; nothing if so wanted."""
    if args.quiet:
        return View()
    if args.json:
        return Lines(args.command, sys.stderr)
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        return Lines(args.command, sys.stdout)
    from afxdp_pool.cli.screen import Screen

    return Screen(args, notices)
