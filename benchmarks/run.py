"""Measures the library's built-in drop and forward against the plain C peer, interleaved, on a veth lab.

    sudo .venv/bin/python -m benchmarks.run --rounds 7 --output benchmarks/results/NAME.json

Each round runs every engine once on the same two veth pairs: the source floods on CPU 0, the engine runs on CPU 1.
Forward is counted at the far end by the sink's XDP program; drop by the engine, whose count must equal what was sent
less what the kernel says it dropped. Machines are shared and noisy: the result is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.traffic import Sink, Source

HERE = Path(__file__).resolve().parent
PEER = HERE / "native" / "build" / "peer"
SOURCE_CPU, ENGINE_CPU = 0, 1


@dataclass(frozen=True)
class Bed:
    """The lab of one benchmark."""

    left: VethPair
    right: VethPair
    netns: str


def ours(bed: Bed, job: str) -> list[str]:
    target = ["-o", bed.right.near.name] if job == "forward" else []
    return [sys.executable, "-m", "benchmarks.engine", job, "--netns", bed.netns, "-i", bed.left.near.name, *target]


def peer(bed: Bed, job: str) -> list[str]:
    target = ["-o", bed.right.near.name] if job == "forward" else []
    return ["ip", "netns", "exec", bed.netns, str(PEER), job, "-i", bed.left.near.name, *target]


ENGINES: dict[str, Callable[[Bed, str], list[str]]] = {"afxdp_pool": ours, "c_peer": peer}


def measure(bed: Bed, job: str, command: list[str], size: int, seconds: float) -> dict[str, Any]:
    """One engine, one job, once: packets a second that got through while the source was flooding."""
    with Sink(bed.right.far, verify=False) as sink, Source(bed.left.far, size=size, cpu=SOURCE_CPU) as source:
        engine = subprocess.Popen(
            ["taskset", "-c", str(ENGINE_CPU), *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=HERE.parent,
        )
        assert engine.stderr is not None
        try:
            for line in engine.stderr:
                if line.strip() == "ready":
                    break
            else:
                raise SystemExit(f"{command[0]} did not start: {engine.communicate()[1]}")
            sent = source.send(seconds=seconds)
            seen = sink.report()
            time.sleep(0.2)  # what is under way comes to rest; it is not counted
        finally:
            engine.send_signal(signal.SIGTERM)
            output, errors = engine.communicate(timeout=20)
        if engine.returncode != 0:
            raise SystemExit(f"{command}: {errors}")
        report = json.loads(output)
        missing = sent.delivered - report["received"] - dropped_by_kernel(report)
        if missing:
            raise SystemExit(
                f"{command}: {missing} of {sent.delivered} packets are neither received nor counted as dropped"
            )
        got = int(report["received"]) if job == "drop" else seen.packets
        return {"pps": got / sent.seconds, "offered_pps": sent.rate, "packets": got, "cpu_seconds": cpu(report)}


def dropped_by_kernel(report: dict[str, Any]) -> int:
    """What the socket's statistics, and for ours the program's counters, say of the first port."""
    port = report["ports"][0]
    kernel = port.get("kernel", port)
    passed = sum(port.get("program", {}).get(name, 0) for name in ("passed_filter", "passed_no_socket"))
    return int(kernel["rx_dropped"] + kernel["rx_ring_full"] + passed)


def cpu(report: dict[str, Any]) -> float:
    return float(report["user_seconds"]) + float(report["sys_seconds"])


def machine() -> dict[str, Any]:
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {"cpu": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64])
    parser.add_argument("--jobs", nargs="+", default=["drop", "forward"], choices=["drop", "forward"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    subprocess.run(["make", "-s", "-C", str(HERE / "native")], check=True)
    os.sched_setaffinity(0, {SOURCE_CPU})
    results: list[dict[str, Any]] = []
    with Lab() as lab:
        bed = Bed(lab.veth("left"), lab.veth("right"), lab.engine_netns)
        for size in arguments.sizes:
            for job in arguments.jobs:
                rounds = []
                for number in range(arguments.rounds + 1):
                    names = list(ENGINES) if number % 2 else list(reversed(ENGINES))
                    once = {name: measure(bed, job, ENGINES[name](bed, job), size, arguments.seconds) for name in names}
                    if number == 0:
                        continue  # warm-up
                    rounds.append(once)
                    text = ", ".join(f"{name} {once[name]['pps'] / 1e6:.3f}" for name in ENGINES)
                    print(f"{job} {size} B, round {number}: {text} Mpps", flush=True)
                ratios = [once["afxdp_pool"]["pps"] / once["c_peer"]["pps"] for once in rounds]
                ratio = statistics.median(ratios)
                print(f"{job} {size} B: {ratio:.3f} of the C peer (rounds {min(ratios):.3f} to {max(ratios):.3f})")
                results.append({"job": job, "size": size, "ratio": ratio, "ratios": ratios, "rounds": rounds})
    if arguments.output:
        document = {
            "command": " ".join(["python", "-m", "benchmarks.run", *sys.argv[1:]]),
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "results": results,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
