"""`.. commands::` writes the reference of a command line from its argparse parser: a section a command.

    .. commands:: afxdp_pool.cli.arguments:parser

Each flag is an ``option``, so that it can be found by the search and linked to.
"""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


def subcommands(parser: argparse.ArgumentParser) -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Of each command its line of help and its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (helps.get(name, ""), sub) for name, sub in action.choices.items()}
    return {}


def described(parser: argparse.ArgumentParser, summary: str) -> list[str]:
    """A command in reStructuredText: what it is for, its usage, its flags by group."""
    text = parser.description or f"{summary[:1].upper()}{summary[1:]}."
    lines = [text, "", f".. program:: {parser.prog}", ""]
    formatter = parser._get_formatter()
    formatter._width = 100
    formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups, prefix="")
    lines += [".. code-block:: text", "", *(f"   {line}" for line in formatter.format_help().splitlines()), ""]
    for group in parser._action_groups:
        shown = [
            action for action in group._group_actions if action.help != argparse.SUPPRESS and action.dest != "help"
        ]
        if not shown:
            continue
        if group.title not in ("options", "positional arguments"):
            about = f": {group.description}" if group.description else ""
            title = group.title or ""
            lines += [f".. rubric:: {title[:1].upper()}{title[1:]}{about}", ""]
        for action in shown:
            value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
            if action.choices and not action.metavar:
                value = " {" + ",".join(map(str, action.choices)) + "}"
            names = [f"{name}{value}" for name in action.option_strings] or [value.strip()]
            explained = (action.help or "") % (vars(action) | {"prog": parser.prog})
            explained = re.sub(r"(?<!\w)--?[a-z][\w-]*", r"``\g<0>``", explained)
            lines += [f".. option:: {', '.join(names)}", "", f"   {explained}", ""]
    return lines


class Commands(SphinxDirective):
    """A section for each command of the parser that ``module:function`` makes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The sections, on the level of those of the page."""
        module, _, function = self.arguments[0].partition(":")
        made: list[nodes.Node] = []
        for name, (summary, parser) in subcommands(getattr(import_module(module), function)()).items():
            section = nodes.section(ids=[name], names=[name])
            section += nodes.title("", parser.prog)
            self.state.document.note_explicit_target(section)
            lines = StringList(described(parser, summary), source=f"{module}, {name}")
            self.state.nested_parse(lines, self.content_offset, section)
            made.append(section)
        return made


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True}
