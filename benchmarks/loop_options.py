"""Measures what each option of the loop is worth: drop and forward, 64 bytes, on a veth lab, as ratios to the defaults.

    sudo .venv/bin/python -m benchmarks.loop_options --output benchmarks/results/loop-options.json
    sudo .venv/bin/python -m benchmarks.loop_options --knobs batch spin     # a part; adds to the output file

Within a round every value of a knob runs once, and the defaults run first, in the middle and last; a ratio is to their
median in that round. The source floods on CPU 0, the loop is pinned to CPU 1, unless the knob says otherwise. Forwarded
packets are counted at the far end; dropped ones by the engine, which the XDP program's count of redirects bounds.
`idle` measures the worker without traffic and the delay of a packet that comes after a pause.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.traffic import Sink, Source
from benchmarks.suite.beds import ENGINE_CPU, SOURCE_CPU
from benchmarks.suite.machine import machine

BASE = ap.Options(cpus=(ENGINE_CPU,))
WARM_UP = 0.1  # seconds, while the link settles after the program was attached


def port(**changes: Any) -> ap.Options:
    return replace(BASE, port=ap.PortConfig(**changes))


def rings(size: int) -> ap.Options:
    level = min(2048, 2 * size)
    return port(fill_size=2 * size, comp_size=size, rx_size=size, tx_size=size, fill_level=level)


KNOBS: dict[str, dict[str, ap.Options]] = {
    "batch": {str(n): replace(BASE, batch=n) for n in (16, 32, 128, 256, 512, 1024)},
    "fill_level": {str(n): port(fill_level=n, fill_size=max(4096, n)) for n in (512, 1024, 4096, 8192)},
    "rings": {str(n): rings(n) for n in (512, 1024, 4096, 8192)},
    "spin": {str(n): replace(BASE, spin=n) for n in (0, 64, 256, 4096, 8192)},
    "busy_poll": {
        "on": port(busy_poll_us=20),
        "on, budget 256": port(busy_poll_us=20, busy_poll_budget=256),
        "on, interrupts deferred": replace(port(busy_poll_us=20), napi_defer_hard_irqs=2, gro_flush_timeout=200_000),
    },
    "threaded_napi": {
        "on": replace(BASE, threaded_napi=True),
        "on, and busy polling": replace(port(busy_poll_us=20), threaded_napi=True),
    },
    "pinning": {"anywhere": replace(BASE, cpus=None), "the source's CPU": replace(BASE, cpus=(SOURCE_CPU,))},
}


def thread_ns(runner: ap.Runner) -> int:
    """CPU time of the forwarder's thread."""
    assert isinstance(runner, ap.Forwarder)
    assert runner._thread is not None
    return int(Path(f"/proc/self/task/{runner._thread.native_id}/schedstat").read_text().split()[0])


class Bed:
    """The lab, with the source flooding it."""

    def __init__(self, lab: Lab) -> None:
        self.left, self.right, self.netns = lab.veth("left"), lab.veth("right"), lab.engine_netns

    def open(self, job: str, options: ap.Options) -> ap.Runner:
        options = replace(options, netns=self.netns)
        if job == "drop":
            return ap.drop(self.left.near.name, options=options)
        return ap.forward(self.left.near.name, self.right.near.name, options=options)


def measure(bed: Bed, job: str, options: ap.Options, sink: Sink, seconds: float) -> dict[str, float]:
    """One path, once, under the flood: packets a second that got through, and the loop's CPU."""
    with bed.open(job, options) as runner:
        runner.start()
        time.sleep(WARM_UP)
        before, far, used, started = runner.snapshot(), sink.report().packets, thread_ns(runner), time.monotonic()
        time.sleep(seconds)
        after, far_after, used_after = runner.snapshot(), sink.report().packets, thread_ns(runner)
        took = time.monotonic() - started
        runner.stop()
        done = runner.join()
        runner.audit().check()
        if done.received > done.ports[0].program["redirected"]:
            raise SystemExit(f"{job}: more was received than redirected to the socket")
        moved = after.received - before.received if job == "drop" else far_after - far
        return {"pps": moved / took, "cpu": (used_after - used) / took / 1e9}


def sweep(bed: Bed, knob: str, job: str, rounds: int, seconds: float) -> dict[str, Any]:
    """One knob: every value against the defaults, round by round."""
    values = KNOBS[knob]
    ratios: dict[str, list[float]] = {name: [] for name in values}
    cpus: dict[str, list[float]] = {name: [] for name in ("defaults", *values)}
    speeds: list[float] = []
    with Sink(bed.right.far, verify=False) as sink, Source(bed.left.far, size=64, cpu=SOURCE_CPU) as source:
        source.start()
        for number in range(rounds):
            names = list(values) if number % 2 else list(reversed(values))
            middle = len(names) // 2
            bases, once = [], {}
            for at, name in enumerate(names):
                if at in (0, middle):
                    bases.append(measure(bed, job, BASE, sink, seconds))
                once[name] = measure(bed, job, values[name], sink, seconds)
            bases.append(measure(bed, job, BASE, sink, seconds))
            base = statistics.median(one["pps"] for one in bases)
            speeds.append(base)
            cpus["defaults"].append(statistics.mean(one["cpu"] for one in bases))
            for name, one in once.items():
                ratios[name].append(one["pps"] / base)
                cpus[name].append(one["cpu"])
        source.stop()
    middle_ratio = {name: round(statistics.median(all_), 3) for name, all_ in ratios.items()}
    result: dict[str, Any] = {
        "knob": knob,
        "job": job,
        "defaults_pps": statistics.median(speeds),
        "cpu": {name: round(statistics.median(all_), 3) for name, all_ in cpus.items()},
        "ratio": middle_ratio,
        "ratios": {name: [round(one, 3) for one in all_] for name, all_ in ratios.items()},
    }
    shown = ", ".join(
        f"{name} {result['ratio'][name]:.2f} ({min(ratios[name]):.2f}-{max(ratios[name]):.2f})" for name in values
    )
    print(f"{knob}, {job}, defaults {result['defaults_pps'] / 1e6:.2f} Mpps: {shown}", flush=True)
    return result


# Idle ---------------------------------------------------------------------------------------------------------------


@contextmanager
def running(bed: Bed, options: ap.Options) -> Iterator[ap.Runner]:
    with bed.open("forward", options) as runner:
        runner.start()
        time.sleep(WARM_UP)
        yield runner
        runner.stop()
        runner.join()
        runner.audit().check()


def delays(pair: VethPair, sink: Sink, source: Source, times: int, pause: float) -> list[float]:
    """Microseconds from before the send of a single packet to its arrival at the far end, after pauses."""
    seen = []
    with in_netns(pair.far.netns):
        for _ in range(times):
            sink.reset()
            time.sleep(pause)
            sent = time.monotonic_ns()
            source._run(1)
            while not (report := sink.report()).packets:
                pass
            seen.append((report.first_ns - sent) / 1000)
    return seen


def idle(bed: Bed, seconds: float, times: int) -> dict[str, Any]:
    """The loop without traffic: its CPU, its sleeps, and what a packet after a pause waits."""
    result: dict[str, Any] = {}
    with Sink(bed.right.far, verify=False) as sink, Source(bed.left.far, cpu=SOURCE_CPU) as source:
        with running(bed, BASE) as runner:
            first, used, started = runner.snapshot().engine, thread_ns(runner), time.monotonic()
            time.sleep(seconds)
            last, used, took = runner.snapshot().engine, thread_ns(runner) - used, time.monotonic() - started
        result |= {
            "share_of_a_core": used / took / 1e9,
            "sleeps_a_second": (last.sleeps - first.sleeps) / took,
            "rounds_a_second": (last.rounds - first.rounds) / took,
        }
        os.sched_setaffinity(0, {SOURCE_CPU})
        for name, options in {"asleep": BASE, "spinning": replace(BASE, spin=(1 << 32) - 1)}.items():
            with running(bed, options):
                waits = sorted(delays(bed.left, sink, source, times, 0.005))
            result[f"delay_us_{name}"] = {
                "p50": round(waits[len(waits) // 2], 1), "p90": round(waits[len(waits) * 9 // 10], 1)
            }  # fmt: skip
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    print("idle:", result, flush=True)
    return result


def write(document: dict[str, Any], output: Path | None) -> None:
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.25)
    parser.add_argument("--knobs", nargs="+", default=[*KNOBS, "idle"], choices=[*KNOBS, "idle"])
    parser.add_argument("--jobs", nargs="+", default=["drop", "forward"], choices=["drop", "forward"])
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    document: dict[str, Any] = {"commands": [], "results": []}
    if arguments.output and arguments.output.exists():
        document = json.loads(arguments.output.read_text())
    document |= {"date": time.strftime("%Y-%m-%d"), "machine": machine()}
    document["commands"].append(" ".join(["python", "-m", "benchmarks.loop_options", *sys.argv[1:]]))
    with Lab() as lab:
        bed = Bed(lab)
        for knob in arguments.knobs:
            if knob == "idle":
                document["idle"] = idle(bed, 3.0, 200)
                write(document, arguments.output)
                continue
            for job in arguments.jobs:
                old = [one for one in document["results"] if (one["knob"], one["job"]) != (knob, job)]
                document["results"] = [*old, sweep(bed, knob, job, arguments.rounds, arguments.seconds)]
                write(document, arguments.output)


if __name__ == "__main__":
    main()
