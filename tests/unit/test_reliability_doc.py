"""docs/reliability.md says what the tests of the faults found, and there is a row for each of those tests."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "fault" / "results.json"


def test_the_page_has_the_table_of_the_results() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "fault_table.py", "--check"], check=False)
    assert done.returncode == 0, "run scripts/fault_table.py"


def test_every_fault_has_a_row_and_none_of_them_lost_a_frame() -> None:
    rows = json.loads(RESULTS.read_text())["faults"]
    tests = {
        node.name
        for path in (ROOT / "tests" / "fault").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert {row["test"].partition("[")[0] for row in rows} == tests
    assert all(row["tries"] > 0 and row["frames_lost"] == 0 and row["left_behind"] == [] for row in rows)
