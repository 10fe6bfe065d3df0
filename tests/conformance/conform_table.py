"""Results of the conformance cases, kept beside them, and as the table of docs/conformance.md.

``python tests/conformance/conform_table.py FILE...`` takes in, test by test, what AFXDP_CONFORMANCE_RESULTS got.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel_cases import CASES, Case

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
RESULTS, PAGE = HERE / "results.json", REPOSITORY / "docs" / "conformance.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"
#: In the order of the table's columns; `cables.WORLDS` has them.
WORLDS = ("veth-generic", "veth-native", "veth-busy-poll",
          "igb-generic", "igb-copy", "igb-zero-copy",
          "virtio_net-generic", "virtio_net-copy", "virtio_net-zero-copy")  # fmt: skip


def table(results: Mapping[str, Any]) -> str:
    """A row a case and a column a world; why a case was not run is numbered, and told below."""
    reasons: dict[str, int] = {}

    def note(why: str) -> str:
        return f"[{reasons.setdefault(why, len(reasons) + 1)}]"

    def cell(case: Case, world: str) -> str:
        if case.not_here:
            return note(case.not_here)
        outcome, *why = results[world]["tests"].get(case.test, ["skipped", "not run there"])
        return {"passed": "✓", "skipped": note(why[0]) if why else "?"}.get(outcome, str(outcome))

    rows = [
        f"| `{case.name}` | {case.checks} | {' | '.join(cell(case, world) for world in WORLDS)} |" for case in CASES
    ]
    cells = [case.test for case in CASES if not case.not_here]
    passed = sum(results[world]["tests"].get(test, [""])[0] == "passed" for test in cells for world in WORLDS)
    failed = sum(results[world]["tests"].get(test, [""])[0] == "failed" for test in cells for world in WORLDS)
    runs = sorted({(results[world]["date"], results[world]["kernel"]) for world in WORLDS})
    told = " and ".join(f"Linux {kernel} ({date})" for date, kernel in runs)
    return "\n".join([
        f"{passed} of {len(CASES) * len(WORLDS)} passed, on {told}; {failed or 'none'} failed.",
        "",
        f"| case of the kernel's | what is checked | {' | '.join(world.replace('-', ' ', 1) for world in WORLDS)} |",
        f"|---|---|{'---|' * len(WORLDS)}",
        *rows,
        "",
        *(f"[{number}] {why}  " for why, number in reasons.items()),
    ])  # fmt: skip


def written(page: str, results: Mapping[str, Any]) -> str:
    """The page with the table between its marks."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n\n{table(results)}\n\n{END}", page, flags=re.DOTALL)


def main(files: list[str]) -> None:
    """Take in these results, and write the page."""
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for file in files:
        for world, told in json.loads(Path(file).read_text()).items():
            tests = kept.get(world, {}).get("tests", {}) | told["tests"]
            kept[world] = {**told, "tests": dict(sorted(tests.items()))}
    RESULTS.write_text(json.dumps({world: kept[world] for world in WORLDS if world in kept}, indent=1) + "\n")
    PAGE.write_text(written(PAGE.read_text(), kept))


if __name__ == "__main__":
    main(sys.argv[1:])
