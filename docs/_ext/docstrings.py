"""The sections of this library's docstrings, for autodoc.

Google's sections are headed by a line of their own. Here most fit one line: ``Concurrency: any thread. Ownership: the
caller holds them.``, and one line of ``Raises:`` may name several errors. This makes fields of them, and lets
napoleon's parser have the rest, so that a docstring stays as short as it is read in an editor.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring

_HEAD = re.compile(r"(?:^|(?<=[.:)] ))(Concurrency|Ownership|Source(?: of the \w+)?): ")
_ERRORS = re.compile(r"(?:^|(?<=[.;] ))(\w+Error(?:, \w+Error)*)(?:: |(?= when| if))")
_NAPOLEON = Config(
    napoleon_use_param=False, napoleon_use_rtype=False, napoleon_custom_sections=[("Attributes", "params_style")]
)


def blocks(lines: list[str]) -> list[list[str]]:
    """The paragraphs of a docstring; a line that begins with a field's name begins one too."""
    made: list[list[str]] = [[]]
    for line in lines:
        if not line.strip() or _HEAD.match(line.strip()):
            made.append([])
        if line.strip():
            made[-1].append(line)
    return [block for block in made if block]


def joined(lines: list[str]) -> str:
    """The lines as one."""
    return " ".join(line.strip() for line in lines)


def pairs(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]]:
    """What the pattern found, each with the text up to the next; first, under "", the text before."""
    parts = pattern.split(text)
    return [("", parts[0].strip()), *zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True)]


def rewrite(lines: list[str]) -> list[str]:
    """A docstring's lines, with the one-line sections as fields."""
    made: list[str] = []
    for block in blocks(lines):
        text = joined(block)
        if block[0].strip() == "Raises:":
            indented = [line for line in block[1:] if line.startswith(" ")]
            made.append("")
            for errors, why in pairs(_ERRORS, joined(indented)):
                if why:
                    made.append(f":raises {errors}: {why}" if errors else f":Raises: {why}")
            made += ["", *block[1 + len(indented) :]]
        elif _HEAD.search(text) and not block[0].startswith((" ", ">>>")):
            (_, before), *found = pairs(_HEAD, text)
            made += ["", before, ""] if before else []
            made += ["", *(f":{name}: {said}" for name, said in found)]
        else:
            made += ["", *block]
    return made


def process(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """autodoc's hook: the lines, rewritten in place."""
    google = GoogleDocstring(rewrite(lines), _NAPOLEON)  # without `what`: it takes a property's text for its type
    lines[:] = [*google.lines(), ""]


def signature(app: Any, what: str, *_: object) -> tuple[str, None] | None:
    """No signature for an error: nobody but this library makes one."""
    return ("", None) if what == "exception" else None


def link(app: Any, name: str, source: list[str]) -> None:
    """A page's links to files beside the book, which work where the repository is read, become downloads."""
    up = "../" * (name.count("/") + 1)
    source[0] = re.sub(rf"(?<!!)\[([^]]*)\]\({re.escape(up)}([^)#]*[^)/#])\)", rf"[\1](<path:{up}\2>)", source[0])


def setup(app: Any) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", signature)
    app.connect("source-read", link)
    return {"parallel_read_safe": True}
