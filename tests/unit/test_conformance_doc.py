"""docs/conformance.md tells what the committed results say; each case of the kernel's has a test, or a reason."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType

import pytest

CONFORMANCE = Path(__file__).resolve().parents[1] / "conformance"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(CONFORMANCE))
    monkeypatch.syspath_prepend(str(CONFORMANCE.with_name("veth")))
    import conform_table

    return conform_table


def functions_there() -> set[str]:
    trees = [ast.parse(path.read_text()) for path in CONFORMANCE.glob("test_*.py")]
    functions = [node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {name for name in functions if name.startswith("test_")}


def test_the_table_is_that_of_the_committed_results(table: ModuleType) -> None:
    results = json.loads(table.RESULTS.read_text())
    page = table.PAGE.read_text()
    assert table.written(page, results) == page, "run tests/conformance/conform_table.py"


def test_each_case_has_a_test_or_a_reason_and_each_test_a_case(table: ModuleType) -> None:
    cases = table.CASES
    assert {case.test for case in cases if not case.not_here} == functions_there()
    assert len({case.name for case in cases}) == len(cases)


def test_each_was_run_in_each_world_and_none_failed(table: ModuleType) -> None:
    results = json.loads(table.RESULTS.read_text())
    from cables import WORLDS

    assert tuple(world.name.replace(" ", "-") for world in WORLDS) == table.WORLDS == tuple(results)
    for world, told in results.items():
        assert set(told["tests"]) == functions_there(), world
        for test, (outcome, *why) in told["tests"].items():
            assert outcome == "passed" or (outcome == "skipped" and why), (world, test)
