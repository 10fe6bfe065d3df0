"""docs/real-nics.md tells what the guest's committed results say, and they cover every test there is."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

NIC = Path(__file__).resolve().parents[1] / "nic"


def test_the_table_is_that_of_the_committed_results() -> None:
    spec = importlib.util.spec_from_file_location("nic_table", NIC / "table.py")
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    results = json.loads(table.RESULTS.read_text())
    page = table.PAGE.read_text()
    assert table.written(page, results) == page, "run tests/nic/table.py"
    assert {one["outcome"] for one in results["tests"]} == {"passed"}
    named = {one["test"].partition("[")[0] for one in results["tests"]}
    there = {name for path in NIC.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert named == there
