"""Writes the table of docs/reliability.md from tests/fault/results.json; with --check only says whether it is so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "fault" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults -->", "<!-- /faults -->"
HEAD = "| fault | times tried | frames lost | seconds to recover, median (most) | left behind | what the library does |"


def table(results: dict[str, Any]) -> str:
    """The results as a table, and under it what the user reads."""
    lines = [HEAD, "|---|---:|---:|---:|---|---|"]
    for row in results["faults"]:
        seconds = "" if row["seconds_median"] is None else f"{row['seconds_median']:.2f} ({row['seconds_most']:.2f})"
        left = ", ".join(row["left_behind"]) or "nothing"
        cells = row["fault"], str(row["tries"]), str(row["frames_lost"]), seconds, left, row["does"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"Linux {results['kernel']}, {results['date']}. What the user reads, by fault:", ""]
    for row in results["faults"]:
        if row["reads"]:
            text = row["reads"].replace("`", "'")
            lines.append(f"* {row['fault']}: `{text}`")
    return "\n".join(lines)


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    return f"{before}{BEGIN}\n{table(json.loads(RESULTS.read_text()))}\n{END}{after}"


def main() -> int:
    """Write, or check."""
    wanted = page()
    if sys.argv[1:] == ["--check"]:
        return int(wanted != PAGE.read_text())
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
