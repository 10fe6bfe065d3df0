"""`Parser`: a wrong command line is answered by what is wrong and what was probably meant, not by all there is."""

from __future__ import annotations

import argparse
import difflib
import re
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in a line or two, where argparse has twenty of usage in front of it."""

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
