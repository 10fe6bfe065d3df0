"""Writes what docs/reliability.md says of faults and soak, from their results; with --check it only says whether."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "tests" / "fault" / "results.json"
PAGE = ROOT / "docs" / "reliability.md"
SOAK = ROOT / "benchmarks" / "results" / "soak.json"
HEAD = "| fault | times tried | frames lost | seconds to recover, median (most) | left behind | what the library does |"


RESTARTS = (
    "Of the {tries} starts after a SIGKILL, packets flowed within a second in {within_a_second}; the load average "
    "was {load} on {cpus} CPUs. The median of {seconds_median} s is made of {interpreter} ms until the "
    "interpreter runs, {imports} ms of imports, numpy's among them, and {engine} ms from there to the packets at "
    "the far end. What a start takes of a CPU does not depend on who else wants it (median of {cpu_tries}): "
    "{cpu_interpreter} ms for the interpreter, {cpu_imports} ms for the imports, and {cpu_engine} ms for the "
    "engine: memory, rings, two BPF programs, the link."
)
SOAKED = (
    "{minutes:.0f} minutes, {legs} legs, {tried} faults (seed {seed}; {cpus} CPUs, Linux {kernel}, {date}). "
    "{came:,} packets came in, as many as the sources could send: far more than two workers in Python take, so "
    "most were dropped by the kernel for want of room, and counted. {out:,} were forwarded and arrived, "
    "{mirrored:,} were mirrored, {second:,} went through the second engine. {audits} audits found every frame; "
    "engines were opened {engines_opened} times. {lost:,} packets were lost to faults that took a link or the "
    "engine away under them; none was lost without such a fault, came twice, out of order, or spoiled."
)
GROWTH = (
    "With no engine open, the process held {second:.1f} MiB in the second quarter and {last:.1f} MiB in the last "
    "one (at most {most:.1f}), and {descriptors} descriptors and {threads} thread{s} all the time. At the end "
    "nothing was left on the machine."
)


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
    for row in results["faults"]:
        if parts := row.get("parts"):
            lines += [
                "",
                RESTARTS.format(
                    **{"cpu_tries": row["tries"]} | row, **{name: round(1e3 * value) for name, value in parts.items()}
                ),
            ]
    return "\n".join(lines)


def soaked(result: dict[str, Any]) -> str:
    """The soak's result as two paragraphs and a table."""
    packets, growth = result["packets"], result["growth"]
    rss, threads = growth["rss_kib"], growth["threads"]["most"]
    said = SOAKED.format(
        **result,
        minutes=result["seconds"] / 60,
        tried=sum(one["tried"] for one in result["faults"].values()),
        came=packets["in"],
        out=packets["out"],
        mirrored=packets["mirrored"],
        second=packets["by_the_second_engine"],
        lost=sum(result["packets_lost_to_faults"].values()),
    )
    grown = GROWTH.format(
        second=rss["second_quarter"] / 1024,
        last=rss["last_quarter"] / 1024,
        most=rss["most"] / 1024,
        descriptors=growth["descriptors"]["most"],
        threads=threads,
        s="s" * (threads > 1),
    )
    head = ["| fault | times | seconds until packets flowed, median (most) |", "|---|---:|---:|"]
    rows = [
        f"| {name} | {one['tried']} | {one['seconds_median']:.2f} ({one['seconds_most']:.2f}) |"
        for name, one in result["faults"].items()
    ]
    return "\n".join([said, "", grown, "", *head, *rows])


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text()
    for name, path, write in (("faults", RESULTS, table), ("soak", SOAK, soaked)):
        before, rest = text.split(f"<!-- {name} -->", 1)
        after = rest.split(f"<!-- /{name} -->", 1)[1]
        text = f"{before}<!-- {name} -->\n{write(json.loads(path.read_text()))}\n<!-- /{name} -->{after}"
    return text


def main() -> int:
    """Write, or check."""
    wanted = page()
    if sys.argv[1:] == ["--check"]:
        return int(wanted != PAGE.read_text())
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
