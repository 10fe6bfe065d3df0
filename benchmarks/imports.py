"""How long `import afxdp_pool` takes, and what is asked for first, beside numpy's import; each in a new interpreter.

    python -m benchmarks.imports --output benchmarks/results/imports.json

The statements take turns. Milliseconds are of the wall clock, from the statement's start to its end: the least of all
rounds, and their median. Bytecode is there, as after the first run of any installed package.
"""

from __future__ import annotations

import argparse
import json
import os
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
CLOCK = "import time; began = time.perf_counter(); {}; print((time.perf_counter() - began) * 1e3)"


def took(statement: str, cache: str) -> float:
    """Milliseconds of one statement in a new interpreter that keeps its bytecode in `cache`."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", CLOCK.format(statement)],
        env=environment | {"PYTHONPYCACHEPREFIX": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    times: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    with tempfile.TemporaryDirectory() as cache:
        for statement in STATEMENTS:
            took(statement, cache)  # makes the bytecode
        for _ in range(arguments.rounds):
            for statement in STATEMENTS:
                times[statement].append(took(statement, cache))
    results = [
        {"statement": name, "least_ms": round(min(ms), 1), "median_ms": round(statistics.median(ms), 1)}
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
