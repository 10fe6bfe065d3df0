"""The table of planted bugs fits the code, and its results are of that table."""

from __future__ import annotations

import json

import mutants
import pytest
from planted import MUTANTS, Mutant
from trial import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_bug_can_be_planted(mutant: Mutant) -> None:
    source = (ROOT / "afxdp_pool" / mutant.file).read_text()
    assert source.count(mutant.before) == 1


def test_all_were_killed_and_the_table_says_so() -> None:
    results = json.loads(mutants.RESULTS.read_text())
    assert [(result["name"], result["kind"]) for result in results] == [(m.name, m.kind) for m in MUTANTS]
    assert [result["name"] for result in results if result["killed_by"] is None] == []
    assert mutants.TABLE.read_text() == mutants.table(results)
