"""docs/development.md tells what the tests' runs on other Debians gave, and none failed there."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

PACKAGING = Path(__file__).resolve().parents[1] / "packaging"


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PACKAGING))
    import worlds

    return worlds


def test_the_table_is_that_of_the_committed_results(worlds: ModuleType) -> None:
    results = json.loads(worlds.RESULTS.read_text())
    page = worlds.PAGE.read_text()
    assert worlds.written(page, results) == page, "run tests/packaging/worlds.py"


def test_debian_13_was_run_and_none_failed(worlds: ModuleType) -> None:
    results = json.loads(worlds.RESULTS.read_text())
    assert {"trixie"} <= set(results) <= set(worlds.RELEASES)
    for suite, told in results.items():
        assert set(told["parts"]) <= set(worlds.PARTS), suite
        assert {name: part["failed"] for name, part in told["parts"].items() if part["failed"]} == {}, suite


def test_every_folder_of_tests_is_a_part_or_left_out_on_purpose(worlds: ModuleType) -> None:
    folders = {path.name for path in PACKAGING.parent.iterdir() if any(path.glob("test_*.py"))}
    assert folders - set(worlds.PARTS) == {"packaging", "nic", "nic_guest"}


def test_extras_within_extras_are_resolved(worlds: ModuleType) -> None:
    needed = list(worlds.requirements("test"))
    assert any(one.startswith("numba") for one in needed)
    assert not any("afxdp-pool" in one for one in needed)


def test_what_passes_only_when_run_again_is_named(worlds: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    once = {"veth": {"passed": 5, "failed": ["a", "b"], "skipped": {"no NIC": 1}}}
    twice = {"veth": {"passed": 1, "failed": ["b"], "skipped": {}}}
    monkeypatch.setattr(worlds, "results", lambda _: twice)
    monkeypatch.setattr(worlds, "test", lambda root, work, which: run.append(which))
    run: list[list[str]] = []
    worlds.run_again(Path(), Path(), once)
    assert run == [["a", "b"]]
    assert once["veth"] == {"passed": 6, "failed": ["b"], "skipped": {"no NIC": 1}, "again": ["a"]}
    assert worlds.said(once["veth"]) == "6 passed, 1 of them when run again, 1 failed, 1 skipped"
    assert worlds.said(None) == "not run"
