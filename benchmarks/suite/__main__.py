"""Runs the suite: `sudo .venv/bin/python -m benchmarks.suite [--quick] [--output FILE.json]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from afxdp_pool.errors import AfXdpError
from benchmarks.suite import idle, latency, losses, memory, plan, report, throughput
from benchmarks.suite.beds import Bed, bed
from benchmarks.suite.children import EngineError
from benchmarks.suite.engines import BY_NAME, CEILING, JOBS, Engine, build, sort_out
from benchmarks.suite.machine import machine
from benchmarks.suite.throughput import Cell

COST_RATE = 500_000.0  # packets a second that every engine but a Python loop keeps up with
IDLE_SECONDS = 2.0
LOSS_SECONDS = 0.3
WHOLE = ("jobs", "extras", "sizes", "flows", "engines", "rounds", "seconds")

Measure = Callable[[Engine], dict[str, Any]]


class Suite:
    """One run of a plan: measures, tells, and keeps the result so far in its file.

    Invariant: an engine that fails is reported at once, listed in the result, and makes the whole run a failure; the
    other engines' figures are not lost with it.
    """

    def __init__(self, where: Bed, todo: plan.Plan, document: dict[str, Any], output: Path | None) -> None:
        self.bed, self.plan, self.document, self.output = where, todo, document, output
        self.engines, document["left_out"] = sort_out(todo.engines)
        for one in document["left_out"]:
            print(f"left out: {one['label']}: {one['why']}", flush=True)
        document["engines"] = {
            engine.name: {"label": engine.label, "kind": engine.kind}
            for engine in map(BY_NAME.__getitem__, todo.engines)
        }
        document["failures"] = []

    def run(self) -> None:
        """All of the plan."""
        self.document["throughput"] = []
        for cell in self.plan.cells:
            self._cell("throughput", cell, self._throughput(cell))
        if "cost" in self.plan.extras:
            self.document["cost"] = []
            for job in ("drop", "forward"):
                self._cell("cost", Cell(job, 64), self._cost(job), {"rate": COST_RATE}, rounds=2)
        if "losses" in self.plan.extras:
            self.document["losses"] = []
            self._cell("losses", Cell("forward", 64), self._losses, rounds=2)
        if "latency" in self.plan.extras:
            self.document["latency"] = []
            self._cell("latency", Cell("forward", 64), self._latency, rounds=2)
        if "idle" in self.plan.extras:
            self.document["idle"] = []
            rest = {"machine_at_rest": idle.machine_at_rest(IDLE_SECONDS)}
            self._cell(
                "idle", Cell("forward", 64), lambda one: idle.measure(self.bed, one, IDLE_SECONDS), rest, rounds=1
            )
            self.document["frames"] = memory.measure()

    def _throughput(self, cell: Cell) -> Measure:
        return lambda engine: throughput.measure(self.bed, engine, cell, self.plan.seconds)

    def _cost(self, job: str) -> Measure:
        return lambda one: throughput.measure(self.bed, one, Cell(job, 64), self.plan.seconds, COST_RATE)

    def _latency(self, engine: Engine) -> dict[str, Any]:
        return latency.measure(self.bed, engine, list(self.plan.latency_rates), self.plan.seconds)

    def _losses(self, engine: Engine) -> dict[str, Any]:
        return losses.measure(self.bed, engine, LOSS_SECONDS, start=self._forwarded(engine) or losses.START)

    def _forwarded(self, engine: Engine) -> float:
        """What it was seen to forward: where the search begins."""
        for one in self.document["throughput"]:
            if (one["job"], one["size"], one["flows"]) == ("forward", 64, 1):
                return max((once[engine.name]["pps"] for once in one["rounds"] if engine.name in once), default=0.0)
        return 0.0

    def _cell(
        self,
        kind: str,
        cell: Cell,
        measure: Measure,
        facts: dict[str, Any] | None = None,
        rounds: int = 99,
    ) -> None:
        """One measurement of all engines, interleaved: every round has each engine once, in alternating order."""
        able = [one for one in self.engines if takes_part(one, kind, cell)]
        into: list[dict[str, Any]] = []
        entry = {"job": cell.job, "size": cell.size, "flows": cell.flows, **(facts or {}), "rounds": into}
        self.document[kind].append(entry)
        for number in range(min(rounds, self.plan.rounds)):
            once: dict[str, Any] = {}
            for engine in able if number % 2 else reversed(able):
                try:
                    once[engine.name] = measure(engine)
                except (EngineError, AfXdpError, OSError) as error:
                    failure = {"engine": engine.name, "what": kind, "cell": str(cell), "why": str(error)}
                    self.document["failures"].append(failure)
                    print(f"FAILED: {engine.label}: {error}", file=sys.stderr, flush=True)
            into.append({engine.name: once[engine.name] for engine in able if engine.name in once})
            text = ", ".join(f"{name} {brief(kind, found)}" for name, found in into[-1].items())
            print(f"{kind} {cell.job} {cell.size} B, {cell.flows} flows, round {number + 1}: {text}", flush=True)
        self.save()

    def save(self) -> None:
        """Write what there is so far."""
        self.document["took_seconds"] = round(time.monotonic() - self.document["_start"])
        if self.output is not None:
            kept = {name: value for name, value in self.document.items() if not name.startswith("_")}
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self.output.write_text(
                json.dumps(kept, indent=None, separators=(",", ":")).replace('{"job"', '\n{"job"') + "\n"
            )


def takes_part(engine: Engine, kind: str, cell: Cell) -> bool:
    """Whether this engine is measured in a cell: handlers briefly, and the kernel not where it has no process."""
    if cell.job not in engine.jobs or (kind == "idle" and engine.name == CEILING):
        return False
    if engine.idle:
        return kind in ("latency", "idle")
    return not engine.brief or (cell.brief and kind in ("throughput", "cost"))


def brief(kind: str, found: dict[str, Any]) -> str:
    """One measurement in a word, for who watches."""
    if kind == "latency":
        return " ".join(f"{rate}:{report.percentile_us(one, 50):.1f}us" for rate, one in found.items())
    if kind == "idle":
        return f"{found['engine']:.1%}"
    if kind == "cost":
        used = found["user_seconds"] + found["system_seconds"]
        return f"{used / found['packets'] * 1e9:.0f} ns" if found["packets"] else "nothing"
    return f"{found['pps'] / 1e6:.3f}"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite", description=__doc__)
    names = sorted(BY_NAME)
    parser.add_argument("--quick", action="store_true", help="the figures that matter, within two minutes")
    parser.add_argument("--jobs", nargs="*", choices=JOBS, help="jobs whose throughput is measured (all)")
    parser.add_argument("--extras", nargs="*", choices=plan.EXTRAS, help="what else is measured (all)")
    parser.add_argument("--sizes", nargs="+", type=int, help="bytes of a packet (64 256 1500)")
    parser.add_argument("--flows", nargs="+", type=int, help="numbers of flows (1 64)")
    parser.add_argument("--engines", nargs="+", choices=names, metavar="ENGINE", help=f"of {', '.join(names)} (all)")
    parser.add_argument("--rounds", type=int, help="measurements of each engine (3)")
    parser.add_argument("--seconds", type=float, help="seconds of traffic a measurement (1)")
    parser.add_argument("--source-cpu", type=int, default=0)
    parser.add_argument("--engine-cpu", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON; a table and plots are written beside it")
    return parser.parse_args(words)


def chosen(asked: argparse.Namespace) -> plan.Plan:
    """The plan that was asked for."""
    names = ("engines", "rounds", "seconds") if asked.quick else WHOLE
    given = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    return plan.quick(**given) if asked.quick else plan.whole(**given)


def main() -> int:
    asked = arguments()
    document: dict[str, Any] = {
        "command": " ".join(["python", "-m", "benchmarks.suite", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "_start": time.monotonic(),
    }
    for line in build():
        print(f"build: {line}", file=sys.stderr)
    os.sched_setaffinity(0, {asked.source_cpu})
    with bed(asked.source_cpu, asked.engine_cpu) as where:
        suite = Suite(where, chosen(asked), document, asked.output)
        suite.run()
        suite.save()
    print()
    print(report.markdown(document))
    if asked.output:
        for path in report.write(document, asked.output):
            print(f"wrote {path}")
    return 1 if document["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
