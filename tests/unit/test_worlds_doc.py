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


def test_all_parts_were_run_on_debian_13_and_none_failed(worlds: ModuleType) -> None:
    results = json.loads(worlds.RESULTS.read_text())
    assert set(results) <= set(worlds.RELEASES)
    assert set(results["trixie"]["parts"]) == set(worlds.PARTS)
    for suite, told in results.items():
        assert {name: part["failed"] for name, part in told["parts"].items() if part["failed"]} == {}, suite


def test_extras_within_extras_are_resolved(worlds: ModuleType) -> None:
    needed = list(worlds.requirements("test"))
    assert any(one.startswith("numba") for one in needed)
    assert not any("afxdp-pool" in one for one in needed)
