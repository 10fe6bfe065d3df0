"""Plants each bug of planted.py in a copy of the library, and sees whether a test fails: `make mutants`.

A test kills a mutant when it fails, or does not end. The tests a mutant names are tried first, then all of
tests/native and tests/fuzz. Results go to results.json and, as a table, to docs/mutants.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from planted import MUTANTS, Mutant

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
TABLE = ROOT / "docs" / "mutants.md"
PARTS = ("afxdp_pool", "tests", "bpf", "pyproject.toml", "pytest_afxdp_pool.py")
#: What is tried on a mutant that its own tests let live.
REST = ("native/test_native.py", "fuzz/test_fuzz.py")

#: What pytest returns when it ran no test: wrong usage, none found, an error of its own.
NOT_RUN = {3, 4, 5}

HEAD = """# Planted bugs

`make mutants` plants each of these bugs in a copy of the library, one at a time, builds it, and runs the tests: one of
them has to fail. It writes this table, from `tests/mutants/results.json`. The bugs are in `tests/mutants/planted.py`;
a test sees to it that each still fits the code. Of the results shown, those that survived
were tried on the tests that the bug names alone, and some bugs of the list were not tried yet.

"""


def arguments_of(test: str) -> list[str]:
    """The words for pytest that name a test of `Mutant.tests`."""
    if test.startswith("fuzz:"):
        return [f"tests/fuzz/test_fuzz.py::test_nothing_breaks_within_seconds[{test[5:]}]"]
    if "/" in test:
        return [f"tests/{test}"]
    program, _, sanitizer = test.partition(":")
    return [f"tests/native/test_native.py::test_native[{program}-{sanitizer or 'asan'}]"]


def plant(root: Path, mutant: Mutant) -> None:
    """Write the bug into the library below `root`."""
    path = root / "afxdp_pool" / mutant.file
    source = path.read_text()
    if source.count(mutant.before) != 1:
        raise SystemExit(f"{mutant.name}: {mutant.file} has {source.count(mutant.before)} times {mutant.before!r}")
    path.write_text(source.replace(mutant.before, mutant.after))


def fails(root: Path, test: str) -> bool:
    """Whether the test fails there; one that could not be run at all is an error."""
    words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments_of(test)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run(words, cwd=root, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode in NOT_RUN or (done.returncode == 0 and " passed" not in done.stdout):
        raise SystemExit(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    if re.search(r"\.c:\d+:\d+: error: ", done.stdout):
        raise SystemExit(f"{test}: the mutant does not compile\n{done.stdout}")
    return done.returncode != 0  # the interpreter may be gone as well


def copy(source: Path, target: Path) -> None:
    """The library and its tests, with what is built and when."""
    target.mkdir()
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=shutil.ignore_patterns("__pycache__", "found"))
        else:
            shutil.copy2(source / part, target / part)


def judge(pristine: Path, mutant: Mutant) -> dict[str, Any]:
    """Plant it, and try the tests until one fails."""
    root = pristine.with_name(mutant.name)
    copy(pristine, root)
    plant(root, mutant)
    killer = next((test for test in (*mutant.tests, *REST) if fails(root, test)), None)
    shutil.rmtree(root)
    print(f"{'killed ' if killer else 'SURVIVED'} {mutant.name} {killer or ''}", flush=True)
    return {"name": mutant.name, "kind": mutant.kind, "killed_by": killer}


def table(results: list[dict[str, Any]]) -> str:
    """docs/mutants.md, whole."""
    files = {mutant.name: mutant.file for mutant in MUTANTS}
    killed = sum(result["killed_by"] is not None for result in results)
    lines = [
        f"Killed: {killed} of {len(results)} that were tried; {len(MUTANTS)} are in the list.",
        "",
        "| class | bug | file | killed by |",
        "|---|---|---|---|",
    ]
    for result in results:
        killer = result["killed_by"]
        shown = f"`{killer}`" if killer else "**survived**"
        lines.append(f"| {result['kind']} | {result['name']} | `{files[result['name']]}` | {shown} |")
    return HEAD + "\n".join(lines) + "\n"


def main() -> int:
    """Judge all of them, or those named; 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these; nothing is written")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="at once (the number of CPUs)")
    arguments = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not arguments.names or mutant.name in arguments.names]
    with tempfile.TemporaryDirectory(prefix="afxdp-mutants-") as directory:
        pristine = Path(directory) / "pristine"
        copy(ROOT, pristine)
        # Builds everything, once; and what fails without a bug in it shows nothing.
        for test in dict.fromkeys(test for mutant in chosen for test in mutant.tests):
            if fails(pristine, test):
                raise SystemExit(f"{test} fails as it is")
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(lambda mutant: judge(pristine, mutant), chosen))
    killed = sum(result["killed_by"] is not None for result in results)
    print(f"{killed} of {len(results)} killed")
    if not arguments.names:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        TABLE.write_text(table(results))
    return 0 if killed == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
