"""docs/troubleshooting.md is complete: every group of known pains has rows, each row tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_page_pool_doc import TEST, names_in

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
GROUPS = "ABCDEFGHIJKL"


def rows() -> list[tuple[str, list[str]]]:
    """(group, cells) of each row of the tables, in the order of the page."""
    sections = re.findall(r"^## ([A-Z])\. .*?\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert sections
    return [
        (group, [cell.strip() for cell in line.strip("|").split(" | ")])
        for group, text in sections
        for line in re.findall(r"^\| .*\|$", text, re.MULTILINE)[1:]  # behind the head
    ]


def test_every_group_is_there_once_and_has_rows() -> None:
    assert re.findall(r"^## ([A-Z])\. ", PAGE.read_text(), re.MULTILINE) == list(GROUPS)
    assert {group for group, _ in rows()} == set(GROUPS)


def test_every_row_says_what_why_what_is_done_what_to_do_and_what_proves_it() -> None:
    for group, cells in rows():
        assert len(cells) == 5, f"{group}: {cells[0]}"
        assert all(len(cell) > 10 for cell in cells[:2]), f"{group}: {cells[0]}"
        assert all(cells), f"{group}: {cells[0]}: `nothing` is a word too"
        assert TEST.search(cells[4]), f"{group}: {cells[0]} has no test"


def test_every_test_the_page_names_exists() -> None:
    named = TEST.findall(PAGE.read_text())
    missing = [f"{path}::{name}" for path, name in named if not (ROOT / path).exists() or name not in names_in(path)]
    assert missing == []


def test_nothing_on_the_page_only_looks_like_a_test() -> None:
    text = PAGE.read_text()
    assert len(re.findall(r"tests/[\w/]+\.\w+::", text)) == len(TEST.findall(text))


@pytest.mark.parametrize("path", ["tests/unit/test_versions_and_limits.py", "tests/veth/test_troubles.py"])
def test_the_tests_of_troubles_are_all_on_the_page(path: str) -> None:
    text = PAGE.read_text()
    assert [name for name in names_in(path) if f"`{path}::{name}`" not in text] == []
