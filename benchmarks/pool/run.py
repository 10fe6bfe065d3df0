"""Measures the frame pool against DPDK's rte_mempool and rte_ring, interleaved; see README.md for what is compared.

    .venv/bin/python -m benchmarks.pool.run --rounds 7 --output benchmarks/results/pool-NAME.json

Each round runs every subject of a case right after the other, in turning order. The result is the median of the
rounds, and of the rounds' ratios to the library's pool. Instructions are counted once: load does not change them.
`flat` says what grows with the number of frames or of returners, and whether `bare`, which has no pool, grows as much.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.pool import border
from benchmarks.pool.callgrind import DPDK, POOL, available, build, instructions

HERE = Path(__file__).resolve().parent
OURS = "afxdp_pool"
BARE = "bare"  # what any pool must do to memory: bench_bare.c
BULKS = (1, 8, 32, 64)
FRAMES = (1 << 10, 1 << 14, 1 << 17, 1 << 20)
RETURNERS = (1, 2, 4, 8)
RIVALS = {
    "direct": (BARE, "mempool", "mempool_cookies"),
    "ring": ("mempool", "mempool_nocache", "mempool_cookies"),
    "slow": ("mempool", "mempool_cookies"),
    "remote_solo": ("ring_spsc", "ring_mpmc", "mempool_nocache"),
    "remote": (BARE, "mempool", "mempool_cookies", "ring_spsc", "ring_mpsc", "ring_mpmc"),
}
#: What is compared in each case, and what else is shown.
MEASURES = {
    "direct": ("pair",),
    "ring": ("pair", "alloc", "put"),
    "slow": ("pair",),
    "remote_solo": ("pair", "alloc", "put"),
    "remote": ("put", "take", "alloc_mean", "wall"),
}
#: Cores are near each other when a line that goes to the other one is back within so many nanoseconds. Virtual cores
#: move while they are measured: a run counts as near, or far, if it was so before and after.
NEAR = 200.0


@dataclass(frozen=True)
class Setting:
    """One line of the result: a case, and how it is run."""

    case: str
    bulk: int = 64
    frames: int = 8192
    window: int = 0
    threads: int = 1

    @property
    def program(self) -> dict[str, int]:
        """What the programs are told of it, but for the case and the subject."""
        return {"bulk": self.bulk, "frames": self.frames, "window": self.window}

    def __str__(self) -> str:
        parts = [self.case, f"bulk {self.bulk}"]
        if self.window or self.frames != Setting.frames:
            parts.append(f"{self.frames} frames" + (f", {self.window} out" if self.window else ""))
        if self.case == "remote":
            parts.append(f"{self.threads} returner{'s' if self.threads > 1 else ''}")
        return ", ".join(parts)


def settings(quick: bool) -> Iterator[Setting]:
    bulks = (64,) if quick else BULKS
    for case in ("direct", "ring", "slow", "remote_solo"):
        yield from (Setting(case, bulk) for bulk in bulks)
    for out in (False, True):
        for frames in FRAMES[::3] if quick else FRAMES:
            yield Setting("direct", 64, frames, frames // 2 if out else 0)
    yield from (Setting("remote", bulk) for bulk in bulks[:-1])
    yield from (Setting("remote", 64, threads=threads) for threads in (RETURNERS[:2] if quick else RETURNERS))


def program_of(subject: str) -> str:
    return POOL if subject in (OURS, BARE) else DPDK


def command(setting: Setting, subject: str, seconds: float, cpus: tuple[int, str]) -> list[str]:
    return [
        *(str(HERE / "build" / program_of(subject)), "--subject", subject, "--seconds", str(seconds)),
        *(word for name, value in setting.program.items() for word in (f"--{name}", str(value))),
        *("--threads", str(setting.threads), "--cpu", str(cpus[0]), "--other-cpus", cpus[1], setting.case),
    ]


def rivals(setting: Setting, bare_only: bool) -> tuple[str, ...]:
    """The other subjects of a setting; with many frames, where DPDK takes seconds to start, the quickest of them."""
    few = {BARE} if bare_only else {BARE, "mempool"}
    return tuple(
        one for one in RIVALS[setting.case] if one in few or not (bare_only or setting.frames != Setting.frames)
    )


def once(setting: Setting, subject: str, seconds: float, cpus: tuple[int, str]) -> dict[str, Any]:
    done = subprocess.run(
        command(setting, subject, seconds, cpus), capture_output=True, text=True, timeout=60 + seconds
    )
    if done.returncode != 0:
        raise SystemExit(f"{subject}, {setting}: {done.stderr.strip().splitlines()[-1:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(rounds: list[dict[str, dict[str, Any]]], case: str) -> dict[str, Any]:
    """Medians of each subject's measures; `ratio` is the median of ours to theirs in the same round, first measure, and
    `beyond` of what ours takes more."""
    first = MEASURES[case][0]
    subjects = {
        subject: {key: statistics.median(one[subject][key] for one in rounds) for key in MEASURES[case]}
        | {"ratio": statistics.median(one[OURS][first] / one[subject][first] for one in rounds)}
        | {"beyond": statistics.median(one[OURS][first] - one[subject][first] for one in rounds)}
        for subject in rounds[0]
    }
    for subject, found in subjects.items():
        values = [one[subject][first] for one in rounds]
        found |= {"least": min(values), "most": max(values)}
        for where, runs in by_distance([one[subject] for one in rounds]).items():
            found[where] = {"runs": len(runs), first: statistics.median(one[first] for one in runs)}
    return subjects


def by_distance(runs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs in which the two cores stayed near each other, and those in which they stayed far."""
    sides: dict[str, list[dict[str, Any]]] = {"near": [], "far": []}
    for one in runs:
        trips = [one[key] for key in ("trip_before", "trip_after") if key in one]
        if trips and max(trips) <= NEAR:
            sides["near"].append(one)
        elif trips and min(trips) > NEAR:
            sides["far"].append(one)
    return {where: found for where, found in sides.items() if found}


def table(results: list[dict[str, Any]]) -> Iterator[str]:
    heads = ["case", "subject", "ns a frame", "least to most", "ours / this", "of it alloc", "put", "wall"]
    heads += ["instructions", "near (runs)", "far (runs)"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for result in results:
        for subject, found in result["subjects"].items():
            alloc, put = found.get("alloc", found.get("alloc_mean")), found.get("put")
            cells = [
                *(result["name"], subject, f"{found[result['measure']]:.2f}"),
                *(f"{found['least']:.2f} to {found['most']:.2f}", f"{found['ratio']:.2f}"),
                *(f"{value:.2f}" if value is not None else "" for value in (alloc, put, found.get("wall"))),
                f"{found['instructions']:.1f}" if "instructions" in found else "",
                *(
                    f"{found[where][result['measure']]:.2f} ({found[where]['runs']})" if where in found else ""
                    for where in ("near", "far")
                ),
            ]
            yield f"| {' | '.join(cells)} |"


def count(settings: list[Setting], results: list[dict[str, Any]]) -> None:
    """Add the instructions a frame to each result that has them: those without threads."""
    for setting, result in zip(settings, results, strict=True):
        if setting.case == "remote":
            continue
        for subject, found in result["subjects"].items():
            if setting.frames != Setting.frames and program_of(subject) != POOL:
                continue
            counted = instructions(setting.case, **setting.program, subject=subject, program=program_of(subject))
            found |= {"instructions": counted.total, "instructions_by_function": counted.functions}


def flatness(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By what a frame gets dearer from 1 k to 1 M frames, and a return from 1 returner to 8; 1.0 is not at all."""
    found = []
    series: dict[str, Callable[[dict[str, Any]], bool]] = {
        "1 k to 1 M frames, the same 64 used again": lambda one: one["frames"] != Setting.frames and not one["window"],
        "1 k to 1 M frames, half of them out in random order": lambda one: one["window"] > 0,
        "1 to 8 returners": lambda one: one["case"] == "remote" and one["bulk"] == 64,
    }
    for name, belongs in series.items():
        chosen = [one for one in results if belongs(one)]
        if len(chosen) < 2:
            continue
        line: dict[str, Any] = {"name": name}
        first = chosen[0]["measure"]
        for subject in (OURS, BARE):
            every = [one["subjects"][subject] for one in chosen]
            for key in (first, "least", "instructions", "near", "far"):
                values = [one[key][first] if isinstance(one[key], dict) else one[key] for one in every if key in one]
                if len(values) == len(every):
                    line[f"{subject} {key}"] = values
                    line[f"{subject} {key}, most by least"] = max(values) / min(values)
        line["ratio"] = [one["subjects"][BARE]["ratio"] for one in chosen]
        line["ratio, most by least"] = max(line["ratio"]) / min(line["ratio"])
        line["beyond"] = [one["subjects"][BARE]["beyond"] for one in chosen]
        found.append(line)
    return found


def python_border(rounds: int, seconds: float) -> dict[str, Any]:
    samples: dict[str, list[float]] = {}
    with border.variants() as calls:
        for _ in range(rounds):
            for name, call in calls.items():
                samples.setdefault(name, []).append(border.measure(call, seconds))
    return {name: {"ns": statistics.median(found), "least": min(found)} for name, found in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each run")
    parser.add_argument("--quick", action="store_true", help="bulk 64, few sizes, short runs")
    parser.add_argument("--cases", nargs="+", choices=list(RIVALS), help="only these")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="of the owner, and of Python")
    parser.add_argument("--other-cpus", help="of the returners, in turn: 0,2,3 (default: all but the owner's)")
    parser.add_argument("--no-rivals", action="store_true", help="without DPDK; `bare` stays")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    rounds, seconds = (3, 0.05) if arguments.quick else (arguments.rounds, arguments.seconds)
    others = sorted(os.sched_getaffinity(0) - {arguments.cpu})[:16]
    cpus = (arguments.cpu, arguments.other_cpus or ",".join(map(str, others)))
    build(f"build/{POOL}" if arguments.no_rivals else "all")

    chosen = [one for one in settings(arguments.quick) if not arguments.cases or one.case in arguments.cases]
    gathered: dict[Setting, list[dict[str, dict[str, Any]]]] = {one: [] for one in chosen}
    for number in range(rounds):
        for setting in chosen:
            subjects = [OURS, *rivals(setting, arguments.no_rivals)]
            turn = number % len(subjects)
            order = subjects[turn:] + subjects[:turn]
            found = {subject: once(setting, subject, seconds, cpus) for subject in order}
            gathered[setting].append({subject: found[subject] for subject in subjects})
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    results = [
        {"name": str(one), **asdict(one), "measure": MEASURES[one.case][0], "subjects": compare(found, one.case)}
        for one, found in gathered.items()
    ]
    if available():
        count(chosen, results)
    else:
        print("valgrind is missing: no instructions counted", file=sys.stderr)
    os.sched_setaffinity(0, {arguments.cpu})
    python = python_border(rounds, seconds)

    flat = flatness(results)

    print("\n".join(table(results)))
    for line in flat:
        print(f"\n{line['name']}")
        for key, value in line.items():
            if key != "name":
                values = value if isinstance(value, list) else [value]
                print(f"  {key}: {' / '.join(f'{one:.2f}' for one in values)}")
    print(f"\n| Python, alloc and put of {border.BATCH} | ns a frame | least |\n|---|---|---|")
    for name, found in python.items():
        print(f"| {name} | {found['ns']:.2f} | {found['least']:.2f} |")
    if arguments.output:
        write(arguments.output, rounds, seconds, results, flat, python, gathered)


def write(
    path: Path,
    rounds: int,
    seconds: float,
    results: list[dict[str, Any]],
    flat: list[dict[str, Any]],
    python: dict[str, Any],
    gathered: dict[Setting, list[dict[str, dict[str, Any]]]],
) -> None:
    from benchmarks.suite.machine import machine

    document = {
        "command": " ".join(["python", "-m", "benchmarks.pool.run", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine() | {"load": os.getloadavg(), "dpdk": dpdk_version()},
        "rounds": rounds,
        "seconds": seconds,
        "results": results,
        "flat": flat,
        "python": python,
        "raw": {str(one): found for one, found in gathered.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def dpdk_version() -> str:
    done = subprocess.run(["pkg-config", "--modversion", "libdpdk"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


if __name__ == "__main__":
    main()
