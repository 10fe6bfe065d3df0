"""A result as tables and plots, from its JSON alone: `python -m benchmarks.suite.report results/suite.json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from afxdp_pool.testing.latency import percentile
from benchmarks.suite import figures, targets
from benchmarks.suite.engines import BASELINE

PERCENTS = (50.0, 99.0, 99.9)
RATE_NAMES = {
    "first": "after a pause",
    "1000": "1 k/s",
    "50000": "50 k/s",
    "100000": "100 k/s",
    "half": "half of maximum",
}


def percentile_us(found: Mapping[str, Any], percent: float) -> float:
    """A percentile in microseconds of one measurement."""
    return percentile(figures.histogram([found]), percent) / 1e3


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; "" without rows."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if not lines:
        return ""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines]) + "\n"


def markdown(document: Mapping[str, Any]) -> str:
    """The whole result as Markdown."""
    where = document["machine"]
    versions = ", ".join(
        f"{name} {where[name]}" for name in where if name not in ("cpu", "cores", "kernel") and where[name]
    )
    parts = [
        f"# Results of {document['date']}\n",
        f"`{document['command']}`\n",
        f"{where['cpu']}, {where['cores']} cores, Linux {where['kernel']}; {versions}.\n"
        "Packets are counted at the far end. Medians of the rounds; in brackets the median ratio to the C peer, and "
        "the least and greatest of the rounds' ratios.\n",
    ]
    for title, text in _sections(document):
        if text:
            parts.append(f"## {title}\n\n{text}")
    return "\n".join(parts)


def _sections(document: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    yield "To reach", table(["what", "at least", "measured", "met"], targets.rows(document))
    for job in ("drop", "forward", "reflect", "tx"):
        yield f"{job.capitalize()}, million packets a second", _throughput(document, job)
    yield "Highest forward rate with fewer than 10 in a million lost", _losses(document)
    yield "Latency one way, microseconds (p50 / p99 / p99.9)", _latency(document)
    for one in document.get("cost", ()):
        yield f"CPU a packet, {one['job']}, {one['rate'] / 1e6:g} million offered", _cost(document, one)
    yield "Without traffic", _idle(document)
    yield "Left out", table(["engine", "why"], [(one["label"], one["why"]) for one in document["left_out"]])
    failures = [(one["engine"], one["what"], one["cell"], one["why"].replace("|", "/")) for one in document["failures"]]
    yield "Failed", table(["engine", "what", "cell", "why"], failures)


def _labels(document: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Engines that have a figure in these rounds, as name and label."""
    return [(name, one["label"]) for name, one in document["engines"].items() if any(name in once for once in rounds)]


def _rate(rounds: Sequence[Mapping[str, Any]], name: str) -> str:
    value = figures.value(rounds, name, figures.pps)
    if value is None:
        return ""
    text = f"{value.median / 1e6:.3f}"
    ratio = figures.ratio(rounds, name, BASELINE, figures.pps)
    if ratio is not None and name != BASELINE:
        text += f" ({ratio.median:.2f}: {ratio.least:.2f} to {ratio.most:.2f})"
    return text


def _throughput(document: Mapping[str, Any], job: str) -> str:
    cells = [one for one in document.get("throughput", ()) if one["job"] == job]
    head = ["engine", *(f"{one['size']} B" + (f", {one['flows']} flows" if one["flows"] > 1 else "") for one in cells)]
    everybody = _labels(document, [once for one in cells for once in one["rounds"]])
    return table(head, [[label, *(_rate(one["rounds"], name) for one in cells)] for name, label in everybody])


def _losses(document: Mapping[str, Any]) -> str:
    rounds = figures.entry(document, "losses", "forward")
    rows = []
    for name, label in _labels(document, rounds):
        limited = any(once[name]["source_limited"] for once in rounds if name in once)
        rows.append([label, _rate(rounds, name), "the source" if limited else ""])
    return table(["engine", "million packets a second", "bounded by"], rows)


def _latency(document: Mapping[str, Any]) -> str:
    rounds = figures.entry(document, "latency", "forward")
    rates = [rate for rate in RATE_NAMES if any(rate in found for once in rounds for found in once.values())]
    rows = []
    for name, label in _labels(document, rounds):
        row = [label]
        for rate in rates:
            each = [figures.microseconds(rounds, name, rate, percent) for percent in PERCENTS]
            row.append(" / ".join(figures.short(one) for one in each if one is not None))
        rows.append(row)
    return table(["engine", *(RATE_NAMES[rate] for rate in rates)], rows)


def _cost(document: Mapping[str, Any], one: Mapping[str, Any]) -> str:
    rows = []
    for name, label in _labels(document, one["rounds"]):
        row = [label]
        for part in ("user", "system", "machine"):
            spread = figures.value(one["rounds"], name, figures.nanoseconds(part))
            row.append(f"{spread.median:.0f}" if spread else "")
        through = figures.value(one["rounds"], name, lambda found: found["pps"] / found["offered_pps"])
        row.append(f"{through.median:.1%}" if through else "")
        rows.append(row)
    head = ["engine", "its own code, ns", "its system calls, ns", "whole machine, ns", "got through"]
    return table(head, rows)


def _idle(document: Mapping[str, Any]) -> str:
    rounds = figures.entry(document, "idle", "forward")
    rows = []
    for name, label in _labels(document, rounds):
        used = figures.value(rounds, name, lambda found: found["engine"])
        whole = figures.value(rounds, name, lambda found: found["machine"])
        resident = figures.value(rounds, name, lambda found: found["memory"]["VmRSS"] / 1e6)
        packets = figures.value(rounds, name, lambda found: found["frame_bytes"] / 1e6 or None)
        if used and whole and resident:
            rows.append(
                [
                    label,
                    f"{used.median:.2%}",
                    f"{whole.median:.2%}",
                    f"{resident.median:.1f}",
                    f"{packets.median:.1f}" if packets else "",
                ]
            )
    text = table(["engine", "engine, of one core", "machine, of one core", "resident, MB", "of it frames"], rows)
    if rounds:
        rest = document["idle"][0]["machine_at_rest"]
        text += f"\nThe machine with no engine: {rest:.2%} of one core.\n"
    if "frames" in document:
        found = document["frames"]
        text += (
            f"\nAn interpreter has {found['interpreter'] / 1e6:.1f} MB resident, with the library imported "
            f"{found['imported'] / 1e6:.1f} MB; a frame takes {found['bytes_a_frame']:.1f} bytes beyond its own.\n"
        )
    return text


def write(document: Mapping[str, Any], output: Path) -> list[Path]:
    """Write table and plots beside the JSON file `output`; return what was written."""
    from benchmarks.suite import plots

    written = [output.with_suffix(".md")]
    written[0].write_text(markdown(document))
    return written + plots.draw(document, output)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.suite.report", description=__doc__)
    parser.add_argument("result", type=Path)
    asked = parser.parse_args(words)
    for path in write(json.loads(asked.result.read_text()), asked.result):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
