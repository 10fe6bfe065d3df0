"""Measures ways for frames to come home from other threads, interleaved; docs/remote-returns.md says what came of it.

    .venv/bin/python -m benchmarks.pool.returns --rounds 7 --output benchmarks/results/returns.json

The ways are in returns.c, with the same checks. Each round runs every way of a setting right after the other, in
turning order; the result is the median of the rounds, and of the rounds' ratios to the library's way. The quartile is
the lower one: what it costs while nothing else disturbs. Instructions are counted by callgrind in one thread, on both
sides: they do not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.pool.callgrind import HERE, build, instructions

PROGRAM = "bench_returns"
WAYS = ("library", "posts", "spare_back", "spare_kept", "list", "list_unsafe", "lanes", "lanes_weak")
BULKS = (1, 8, 64)
RETURNERS = (1, 2, 4, 8)
#: What a returner spends a frame, and what the owner does. `wall` includes handing the frames out to the returners.
MEASURES = {"remote_solo": ("put", "alloc", "pair"), "remote": ("put", "alloc_mean", "wall")}


def command(way: str, case: str, bulk: int, threads: int, seconds: float, cpus: list[int]) -> list[str]:
    return [
        *(str(HERE / "build" / PROGRAM), "--subject", way, "--bulk", str(bulk), "--seconds", str(seconds)),
        *("--threads", str(threads), "--cpu", str(cpus[-1]), "--other-cpus", ",".join(map(str, cpus[:-1])), case),
    ]


def once(command: list[str], seconds: float) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + seconds, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{command[2]}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def medians(rounds: list[dict[str, dict[str, Any]]], case: str) -> dict[str, dict[str, float]]:
    """Of each way and measure: the median, the lower quartile, the range, and `ratio`, the median of the ratios to the
    library in the same round."""
    result = {}
    for way in WAYS:
        found: dict[str, float] = {"blocks": max(one[way]["blocks"] for one in rounds)}
        for key in MEASURES[case]:
            values = sorted(one[way][key] for one in rounds)
            found |= {key: statistics.median(values), f"{key}_quartile": values[len(values) // 4]}
            found |= {f"{key}_least": values[0], f"{key}_most": values[-1]}
            found[f"{key}_ratio"] = statistics.median(one[way][key] / one["library"][key] for one in rounds)
        result[way] = found
    return result


def counts() -> dict[str, dict[str, dict[str, float]]]:
    """Instructions a frame: by bulk, by way, at the returner (`put`) and at the owner (`alloc`)."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for bulk in BULKS:
        for way in WAYS:
            counted = instructions("remote_solo", bulk=bulk, subject=way, program=PROGRAM)
            result.setdefault(str(bulk), {})[way] = {"put": counted.put, "alloc": counted.alloc}
    return result


def table(results: list[dict[str, Any]], counted: dict[str, Any]) -> Iterator[str]:
    yield "| case | way | returner: quartile, median ns | to library | owner: quartile, median ns | to library |"
    yield "|---|---|---|---|---|---|"
    for one in results:
        name = f"{one['case']}, bulk {one['bulk']}" + (f", {one['threads']}" if one["case"] == "remote" else "")
        for way, found in one["ways"].items():
            cells = [name, way]
            for key in MEASURES[one["case"]][:2]:
                cells += [f"{found[key + '_quartile']:.2f}, {found[key]:.2f}", f"{found[key + '_ratio']:.2f}"]
            yield f"| {' | '.join(cells)} |"
    yield "\n| instructions: bulk | way | returner | owner |\n|---|---|---|---|"
    for bulk, ways in counted.items():
        for way, sides in ways.items():
            yield f"| {bulk} | {way} | {sides['put']:.1f} | {sides['alloc']:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.05, help="of each run")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        parser.error("needs two CPUs: the owner has one, the returners have the others")
    build(f"build/{PROGRAM}")

    settings = [("remote_solo", bulk, 1) for bulk in BULKS]
    settings += [("remote", bulk, threads) for bulk in BULKS for threads in RETURNERS]
    rounds: dict[tuple[str, int, int], list[dict[str, dict[str, Any]]]] = {one: [] for one in settings}
    for number in range(arguments.rounds):
        turn = number % len(WAYS)
        for case, bulk, threads in settings:
            seconds = arguments.seconds
            found = {
                way: once(command(way, case, bulk, threads, seconds, cpus), seconds)
                for way in WAYS[turn:] + WAYS[:turn]
            }
            rounds[case, bulk, threads].append(found)
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
    results = [
        {"case": case, "bulk": bulk, "threads": threads, "ways": medians(found, case)}
        for (case, bulk, threads), found in rounds.items()
    ]
    counted = counts()
    print("\n".join(table(results, counted)))
    if arguments.output:
        write(arguments.output, arguments.rounds, arguments.seconds, results, counted)


def write(path: Path, rounds: int, seconds: float, results: list[dict[str, Any]], counted: dict[str, Any]) -> None:
    from benchmarks.suite.machine import machine

    document = {
        "command": " ".join(["python", "-m", "benchmarks.pool.returns", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine() | {"load": os.getloadavg()},
        "rounds": rounds,
        "seconds": seconds,
        "instructions": counted,
        "results": results,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
