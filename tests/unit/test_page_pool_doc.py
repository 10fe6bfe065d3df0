"""docs/page-pool.md is complete: each row of the checklist and each pitfall with tests that exist, or a reason."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "page-pool.md"
REASON = re.compile(r"\b[Nn]o meaning: \w.{20,}")
TEST = re.compile(r"`(tests/[\w/]+\.(?:py|c))::(\w+)`")


def rows(heading: str) -> dict[int, str]:
    """The numbered rows of the table under a heading; none twice."""
    text = PAGE.read_text()
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    numbered = re.findall(r"^\| (\d+) \|(.*)$", found[1], re.MULTILINE)
    numbers = [int(number) for number, _ in numbered]
    assert len(numbers) == len(set(numbers)), f"{heading}: a number twice"
    return {int(number): row for number, row in numbered}


@cache
def names_in(path: str) -> frozenset[str]:
    """The names of the tests in a file."""
    text = (ROOT / path).read_text()
    if path.endswith(".c"):
        return frozenset(re.findall(r'^\t\{"(\w+)", \1, [01]\},$', text, re.MULTILINE))
    names = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(name for name in names if name.lower().startswith("test"))


def test_every_row_of_the_checklist_is_there_once() -> None:
    assert sorted(rows("The checklist")) == list(range(1, 41))


def test_every_pitfall_is_there_once() -> None:
    assert sorted(rows("The pitfalls")) == list(range(28))


@pytest.mark.parametrize("heading", ["The checklist", "The pitfalls"])
def test_each_row_names_a_test_or_says_why_there_is_none(heading: str) -> None:
    for number, row in rows(heading).items():
        assert TEST.search(row) or REASON.search(row), f"{heading}, row {number} proves nothing and gives no reason"


def test_every_test_the_page_names_exists() -> None:
    named = TEST.findall(PAGE.read_text())
    assert len(named) > 68
    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).exists() or name not in names_in(path)]
    assert missing == []


def test_nothing_on_the_page_only_looks_like_a_test() -> None:
    text = PAGE.read_text()
    assert len(re.findall(r"tests/[\w/]+\.\w+::", text)) == len(TEST.findall(text))


def test_pitfalls_name_the_tests_that_bear_their_number() -> None:
    text = {number: row for number, row in rows("The pitfalls").items()}
    for path in (*ROOT.glob("tests/unit/test_pitfalls*.py"), *ROOT.glob("tests/veth/test_kernel_*.py")):
        relative = path.relative_to(ROOT).as_posix()
        for name in names_in(relative):
            number = re.match(r"test_pitfall_(\d\d)_", name)
            assert not number or f"`{relative}::{name}`" in text[int(number[1])], f"{name} is not in its row"


def test_rows_name_the_tests_that_bear_their_number() -> None:
    text = rows("The checklist")
    for name in names_in("tests/unit/test_page_pool.py"):
        number = re.match(r"test_row_(\d\d)_", name)
        assert number
        assert f"`tests/unit/test_page_pool.py::{name}`" in text[int(number[1])], f"{name} is not in its row"


SESSION = """
import pytest

def test_proven(): pass

@pytest.mark.parametrize("n", [1, 2])
def test_skipped(n):
    if n == 2: pytest.skip("for want of a test bed")

def test_of_no_row(): pytest.skip("nobody minds")
"""


@pytest.mark.parametrize(
    ("named", "privileged", "fails"),
    [("test_skipped", True, True), ("test_skipped", False, False), ("test_proven", True, False)],
)
def test_a_session_fails_in_which_a_row_was_skipped(tmp_path: Path, named: str, privileged: bool, fails: bool) -> None:
    """As root with all capabilities; anybody else may skip what he cannot run."""
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "docs" / "page-pool.md").write_text(f"| 1 | a row | `tests/unit/test_it.py::{named}` |\n")
    (tmp_path / "tests" / "unit" / "test_it.py").write_text(SESSION)
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path / "tests")
    with (tmp_path / "tests" / "conftest.py").open("a") as conftest:
        conftest.write(f"\n\ndef may_do_everything():\n    return {privileged}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take longer than the test
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == int(fails), done.stdout
    listed = "tests/unit/test_it.py::test_skipped[2]: Skipped: for want of a test bed"
    assert (listed in done.stdout.splitlines()) == fails
    assert "nobody minds" not in done.stdout
