"""How long `import afxdp_pool` takes, and what is asked for first, beside numpy's import; each in a new interpreter.

    python -m benchmarks.imports --output benchmarks/results/imports.json

The statements take turns. Milliseconds are of the CPU's time, as on a quiet machine: the least of all rounds, and their
median. Instructions, counted by valgrind where it is installed, are less what the interpreter's own start takes, and do
not vary. Bytecode is there, as after the first run of any installed package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.suite.machine import machine

STATEMENTS = (
    "import numpy",
    "import afxdp_pool",
    "from afxdp_pool import FramePool",
    "from afxdp_pool import Port",
    "from afxdp_pool import forward",
    "import afxdp_pool.cli.entry",
)
CLOCK = "import time; began = time.process_time(); {}; print((time.process_time() - began) * 1e3)"


def python(code: str, cache: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a new interpreter that keeps its bytecode in `cache`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.run(
        [*before, sys.executable, "-c", code],
        env=environment | {"PYTHONPYCACHEPREFIX": cache},
        capture_output=True,
        text=True,
        check=True,
    )


def instructions(statement: str, cache: str) -> int:
    """How many a new interpreter executes from its start to its end."""
    counter = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    found = re.search(r"Collected : (\d+)", python(statement, cache, *counter).stderr)
    assert found is not None
    return int(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as cache:
        for statement in STATEMENTS:
            python(statement, cache)  # makes the bytecode
        for _ in range(arguments.rounds):
            for statement in STATEMENTS:
                times[statement].append(float(python(CLOCK.format(statement), cache).stdout))
        if shutil.which("valgrind"):
            start = instructions("pass", cache)
            counts = {statement: instructions(statement, cache) - start for statement in STATEMENTS}
    results = [
        {
            "statement": name,
            "least_ms": round(min(ms), 1),
            "median_ms": round(statistics.median(ms), 1),
            "instructions": counts.get(name),
        }
        for name, ms in times.items()
    ]
    for row in results:
        print(f"{row['least_ms']:7} ms at least, {row['median_ms']:7} ms usually  {row['statement']}")
    if arguments.output:
        command = " ".join(["python", "-m", "benchmarks.imports", *sys.argv[1:]])
        document = {"command": command, "date": time.strftime("%Y-%m-%d"), "machine": machine(), "results": results}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
