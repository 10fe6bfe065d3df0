"""Plants each bug of planted.py in a copy of the library, and sees whether a test fails: `make mutants`.

A test kills a mutant when it fails, or does not end. The tests a mutant names are tried first, then all of
tests/native and tests/fuzz. Results go to results.json and, as a table, to docs/mutants.md. Some of the tests move
real packets, so it wants root, as they do.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from planted import MUTANTS, Mutant
from trial import ROOT, Trial

RESULTS = Path(__file__).with_name("results.json")
TABLE = ROOT / "docs" / "mutants.md"
HEAD = """# Planted bugs

`make mutants` plants each of these bugs in a copy of the library, one at a time, builds it, and runs the tests: one of
them has to fail. It writes this table, from `tests/mutants/results.json`. The bugs are in `tests/mutants/bugs_*.py`;
a test sees to it that each still fits the code, and that each was killed. The last column is the test that failed
first, and what it failed by where that was no check of its own.

Where the processor keeps an order that the code forgot to ask for, no run shows it. ThreadSanitizer does, as it follows
what the code asks for: these are the rows of the class *ordering*. What needs sequential consistency, the end of a
pool, is taken away from a model instead, by the mutants in [Concurrency](concurrency.md).

"""


def judge(directory: Path, mutant: Mutant, named: bool) -> dict[str, Any]:
    """Plant it, and try the tests until one fails."""
    killer = Trial(directory, mutant).killer(named)
    print(f"{'killed  ' if killer else 'SURVIVED'} {mutant.name} {killer or ''}", flush=True)
    return {"name": mutant.name, "kind": mutant.kind, "killed_by": killer}


def table(results: list[dict[str, Any]]) -> str:
    """docs/mutants.md, whole."""
    files = {mutant.name: mutant.file for mutant in MUTANTS}
    killed = sum(result["killed_by"] is not None for result in results)
    lines = [
        f"Killed: {killed} of {len(results)}.",
        "",
        "| class | bug | file | killed by |",
        "|---|---|---|---|",
    ]
    for result in results:
        killer = result["killed_by"]
        test, _, by = (killer or "").partition(" ")
        shown = f"`{test.removeprefix('tests/')}` {by}".strip() if killer else "**survived**"
        lines.append(f"| {result['kind']} | {result['name']} | `{files[result['name']]}` | {shown} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Judge all of them, or those named; 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; the results of the others stay")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once (the number of CPUs)")
    parser.add_argument("--named", action="store_true", help="try only the tests that a bug names")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    with tempfile.TemporaryDirectory(prefix="afxdp-mutants-") as directory:
        # Builds everything, once; and what fails without a bug in it shows nothing.
        pristine = Trial(Path(directory), None)
        for test in dict.fromkeys(test for mutant in chosen for test in mutant.tests):
            pristine.fails(test if ":" in test or "/" in test else f"{test}:asan")
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(lambda mutant: judge(Path(directory), mutant, arguments.named), chosen))
    killed = sum(result["killed_by"] is not None for result in results)
    print(f"{killed} of {len(results)} killed")
    known = {result["name"]: result for result in json.loads(RESULTS.read_text()) + results}
    results = [known[mutant.name] for mutant in MUTANTS if mutant.name in known]
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text(table(results))
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
