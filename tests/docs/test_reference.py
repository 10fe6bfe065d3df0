"""The book builds without a warning; its reference has every public name; docstrings say what the house wants said."""

from __future__ import annotations

import argparse
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import afxdp_pool
from afxdp_pool import errors, testing
from afxdp_pool.cli import arguments

pytestmark = pytest.mark.timeout(600)  # whichever test is the first builds the book
DOCS = Path(__file__).resolve().parents[2] / "docs"
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name) for module in (afxdp_pool, testing) for name in module.__all__
}
CLASSES = {name: made for name, made in PUBLIC.items() if inspect.isclass(made)}


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    pytest.importorskip("furo", reason="needs the extra docs: pip install 'afxdp-pool[docs]'")
    out = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(DOCS), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def inventory(book: Path) -> dict[str, set[str]]:
    """What can be linked to: by kind (`py:class`, `std:cmdoption`, ...) the names."""
    made: dict[str, set[str]] = {}
    packed = (book / "objects.inv").read_bytes().split(b"\n", 4)[4]  # behind four lines of head
    for name, kind in re.findall(r"^(.+?) (\S+:\S+) -?\d+ ", zlib.decompress(packed).decode(), re.MULTILINE):
        made.setdefault(kind, set()).add(name)
    return made


def test_every_public_name_is_in_the_reference(inventory: dict[str, set[str]]) -> None:
    known = set().union(*(names for kind, names in inventory.items() if kind.startswith("py:")))
    assert sorted(set(PUBLIC) - known) == []


def test_every_error_is_in_the_reference(inventory: dict[str, set[str]]) -> None:
    raised = {name for name, made in vars(errors).items() if inspect.isclass(made) and issubclass(made, Exception)}
    assert (
        sorted(name for name in raised if not any(known.endswith(f".{name}") for known in inventory["py:exception"]))
        == []
    )


def test_every_flag_of_the_command_is_in_the_reference(inventory: dict[str, set[str]]) -> None:
    (commands,) = (action for action in arguments.parser()._actions if action.dest == "command")
    assert isinstance(commands.choices, dict)
    flags = {
        f"afxdp-pool-{name}.{action.option_strings[0]}"
        for name, parser in commands.choices.items()
        for action in parser._actions
        if action.option_strings and action.help != argparse.SUPPRESS and "-h" not in action.option_strings
    }
    assert len(flags) > 50
    assert sorted(flags - inventory["std:cmdoption"]) == []


def test_pages_look_as_meant(book: Path) -> None:
    """No field of a docstring was left in its text, and the search has something to find."""
    for page in (book / "reference").glob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text())
        assert re.findall(r"(?m):(?:raises \w+|Concurrency|Ownership|Source[\w ]*|ivar \w+):.*", text) == [], page.name
    index = (book / "searchindex.js").read_text()
    assert "framepool" in index
    assert "napi_defer_hard_irq" in index


# Docstrings ---------------------------------------------------------------------------------------------------------


def members(made: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that are written in Python here."""
    for name, member in inspect.getmembers(made):
        function = member.fget if isinstance(member, property) else inspect.unwrap(getattr(member, "__func__", member))
        if not name.startswith("_") and str(getattr(function, "__module__", "")).startswith("afxdp_pool"):
            yield name, function


def raises_itself(function: Callable[..., Any]) -> bool:
    return (
        inspect.isfunction(function)
        and re.search(r"^\s+raise\b", inspect.getsource(function), re.MULTILINE) is not None
    )


def test_public_names_have_docstrings() -> None:
    bare = [name for name, made in PUBLIC.items() if callable(made) and not (made.__doc__ or "").strip()]
    bare += [f"{name}.{member}" for name, made in CLASSES.items() for member, has in members(made) if not has.__doc__]
    assert bare == []


def test_classes_that_do_something_say_which_thread_may_use_them() -> None:
    silent = [
        name
        for name, made in CLASSES.items()
        if not issubclass(made, (BaseException, tuple, Enum))
        and not dataclasses.is_dataclass(made)
        and "Concurrency:" not in (made.__doc__ or "")
    ]
    assert silent == []


def test_the_ready_made_paths_say_who_owns_what() -> None:
    for path in (afxdp_pool.drop, afxdp_pool.forward, afxdp_pool.reflect, afxdp_pool.transmit, afxdp_pool.handle):
        assert "Concurrency:" in (path.__doc__ or ""), path
        assert "Ownership:" in (path.__doc__ or ""), path


def test_what_raises_says_so() -> None:
    functions: dict[str, Any] = {name: made for name, made in PUBLIC.items() if inspect.isfunction(made)}
    functions |= {f"{name}.{member}": made for name, of in CLASSES.items() for member, made in members(of)}
    silent = [
        n for n, made in functions.items() if raises_itself(made) and "Raises:" not in (inspect.getdoc(made) or "")
    ]
    assert silent == []


def modules() -> list[ModuleType]:
    names = [found.name for found in pkgutil.walk_packages(afxdp_pool.__path__, "afxdp_pool.")]
    return [importlib.import_module(name) for name in names if not name.endswith(("__main__", "._ffi"))]


def test_examples_in_docstrings_run() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for module in modules() for test in finder.find(module, module.__name__) if test.examples]
    runner = doctest.DocTestRunner()
    told: list[str] = []
    for test in tests:
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)
    # Those that need a lab, numba or real interfaces are only read; the same calls run in the blocks of the pages.
    skipped = {test.name for test in tests if any(doctest.SKIP in one.options for one in test.examples)}
    assert skipped <= {
        "afxdp_pool.capture.Capture",
        "afxdp_pool.compiling.compiled",
        "afxdp_pool.testing.lab",
        "afxdp_pool.testing.latency",
        "afxdp_pool.testing.proof.Traffic",
        "afxdp_pool.testing.traffic",
    }
