"""The results of the guest as the table of docs/real-nics.md: ``python tests/nic/table.py FILE`` writes it there.

What a run of some of the tests found takes the place of what was known of these, under the same kernel.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "nic.json"
PAGE = REPOSITORY / "docs" / "real-nics.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def table(results: dict[str, Any]) -> str:
    """One row a test: what it is about, and how each of its cases ended."""
    cases: dict[str, list[str]] = defaultdict(list)
    for one in results["tests"]:
        name, _, parameters = one["test"].partition("[")
        about = name.removeprefix("test_").replace("_", " ").replace("zero copy", "zero-copy")
        how = {"passed": "", "skipped": f": skipped, {one['reason']}"}.get(one["outcome"], ": failed")
        cases[about].append(
            (parameters.rstrip("]").replace("-", ", ").replace("zero, copy", "zero-copy") or "one case") + how
        )
    rows = [f"| {about} | {'; '.join(ends)} |" for about, ends in cases.items()]
    passed = sum(one["outcome"] == "passed" for one in results["tests"])
    head = f"{passed} of {len(results['tests'])} cases passed, {results['date']}, Linux {results['kernel']}."
    return "\n".join([head, "", "| what | passed with |", "|---|---|", *rows])


def written(page: str, results: dict[str, Any]) -> str:
    """The page with the table between its marks."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{table(results)}\n\n{END}", page, flags=re.DOTALL)


def together(known: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """The results of a run, and of those tests that were not run again."""
    if known["kernel"] != told["kernel"]:
        return told
    again = {one["test"].partition("[")[0] for one in told["tests"]}
    kept = [one for one in known["tests"] if one["test"].partition("[")[0] not in again]
    return {**told, "tests": kept + told["tests"]}


if __name__ == "__main__":
    told = together(json.loads(RESULTS.read_text()), json.loads(Path(sys.argv[1]).read_text()))
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text(), told))
