"""Measures rival engines, or settings of one, against each other on a veth lab, interleaved; 64 bytes, one flow.

    sudo .venv/bin/python -m benchmarks.peers.settings --jobs drop forward --output FILE \
        "peer" "peer -F 1024" "dpdk_af_xdp --busy-budget 64" "af_packet"

The source floods on CPU 0, the engine runs on CPU 1. Drop is counted by the engine, and received plus dropped by the
kernel must be what was sent; all else at the far end. Each engine has every job once a round; the result is the median.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source
from benchmarks.suite.beds import ENGINE_CPU, SOURCE_CPU
from benchmarks.suite.children import ROOT
from benchmarks.suite.engines import NATIVE
from benchmarks.suite.machine import machine

SIZE = 64
JOBS = ("drop", "forward", "reflect", "tx")


def command(lab: Lab, words: list[str], job: str) -> list[str]:
    """What runs an engine with its settings in the lab's engine namespace."""
    engine, *settings = words
    left, right = lab.pairs["left"], lab.pairs["right"]
    program = (
        [sys.executable, "-m", "benchmarks.peers.af_packet"]
        if engine == "af_packet"
        else [str(NATIVE / "build" / engine)]
    )
    line = ["taskset", "-c", str(ENGINE_CPU), "ip", "netns", "exec", lab.engine_netns, *program, job, *settings]
    line += ["-i", left.near.name]
    if job == "forward":
        line += ["-o", right.near.name]
    if job == "tx":
        packet = packets.build(SIZE, addresses=packets.Addresses(left.near.mac, left.far.mac))
        line += ["--size", str(SIZE), "--template-hex", packet.hex()]
    return line


def measure(lab: Lab, words: list[str], job: str, seconds: float) -> float:
    """One engine, one job, once: packets a second."""
    left, right = lab.pairs["left"], lab.pairs["right"]
    with (
        Sink(right.far if job == "forward" else left.far, verify=False) as sink,
        Source(left.far, size=SIZE, cpu=SOURCE_CPU) as source,
    ):
        engine = subprocess.Popen(
            command(lab, words, job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert engine.stderr is not None
        try:
            if not any(line.strip() == "ready" for line in engine.stderr):
                raise SystemExit(f"{shlex.join(words)} does not start")
            before, start = sink.report().packets, time.monotonic()
            if job == "tx":
                time.sleep(seconds)
                delivered, took = 0, time.monotonic() - start
            else:
                sent = source.send(seconds=seconds)
                delivered, took = sent.delivered, sent.seconds
            seen = sink.report().packets - before
        finally:
            engine.send_signal(signal.SIGTERM)
            output, errors = engine.communicate(timeout=20)
        if engine.returncode:
            raise SystemExit(f"{shlex.join(words)}: {errors}")
        report = json.loads(output)
        if job != "tx" and report["received"] + report["kernel_dropped"] != delivered:
            raise SystemExit(f"{shlex.join(words)}: of {delivered} packets not all are accounted for: {report}")
        return float(report["received"] if job == "drop" else seen) / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="+", help="an engine and its settings, in one word for the shell")
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.4)
    parser.add_argument("--output", type=Path, help="a JSON file; results are added to those it holds")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {SOURCE_CPU})
    results: dict[str, Any] = {}
    with Lab() as lab:
        lab.veth("left")
        lab.veth("right")
        for job in arguments.jobs:
            engines = [e for e in arguments.engines if (job, e.split()[0]) != ("tx", "kernel_xdp")]
            rounds: dict[str, list[float]] = {engine: [] for engine in engines}
            for number in range(arguments.rounds):
                for engine in engines if number % 2 else reversed(engines):
                    rounds[engine].append(round(measure(lab, shlex.split(engine), job, arguments.seconds)))
            for engine, pps in rounds.items():
                print(f"{job:8} {engine:36} {statistics.median(pps) / 1e6:7.3f} Mpps", flush=True)
            results[job] = {e: {"median_pps": statistics.median(pps), "rounds": pps} for e, pps in rounds.items()}
    if arguments.output:
        runs = json.loads(arguments.output.read_text())["runs"] if arguments.output.exists() else []
        line = shlex.join(["python", "-m", "benchmarks.peers.settings", *sys.argv[1:]])
        runs.append({"command": line, "date": time.strftime("%Y-%m-%d"), "results": results})
        document = {"machine": machine(), "runs": runs}
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
