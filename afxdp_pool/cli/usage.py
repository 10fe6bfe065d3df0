"""`Parser`: a wrong command line is answered by what is wrong and what was probably meant, not by all there is.

`Formatter` writes its help: usage on one line where there are many flags, and no flag cut in two.
"""

from __future__ import annotations

import argparse
import difflib
import re
import textwrap
from collections.abc import Iterable
from typing import Any, NoReturn

#: Flags that may be left out, up to which the usage has them all.
_IN_USAGE = 8


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as argparse writes it, but for usage that is twenty lines, and flags that are cut at a hyphen."""

    def add_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Iterable[Any], prefix: str | None = None
    ) -> None:
        """Every flag, if they are few; else what must be given, for all of them are explained below."""
        actions = list(actions)
        flags = [action for action in actions if action.option_strings]
        if usage is None and sum(not flag.required for flag in flags) > _IN_USAGE:
            needed = [f"{flag.option_strings[0]} {flag.metavar}" for flag in flags if flag.required]
            others = [action for action in actions if not action.option_strings]
            words = [f"[{one.metavar} ...]" if one.nargs == "*" else str(one.metavar) for one in others]
            usage = " ".join(["%(prog)s", *needed, "[options]", *words])
        super().add_usage(usage, actions, groups, prefix)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """Says what is wrong in a line or two, where argparse has all of the usage in front of it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Formatter, **settings})

    def error(self, message: str) -> NoReturn:
        """What is wrong, what was probably meant, and where it is written; exit code 2."""
        if wrong := re.match(r"argument COMMAND: invalid choice: '([^']*)' \(choose from (.*)\)", message):
            names = re.findall(r"\w+", wrong[2])
            near = difflib.get_close_matches(wrong[1], names, 1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            message = f"there is no command {wrong[1]!r}; {meant}"
        elif missing := re.search(r"required: (-i/--interface|-o/--output)", message):
            name = missing[1]
            message += f"; write it as `{name.partition('/')[0]} eth1` (`ip -br link` lists those there are)"
        elif stray := re.match(r"unrecognized arguments: ([^-\s]\S*)$", message):
            message += f"; if {stray[1]} is an interface, write -i {stray[1]}"
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help tells what may be written\n")
