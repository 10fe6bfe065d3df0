"""Half an hour of everything at once, with faults all the while: `make soak`.

Two workers receive from two links, as much as their sources can send, and drop, keep, forward, mirror, and hold what
they forward; threads give back what was kept. A second engine, a process with NAPI values of its own, forwards between
two more links, and is killed again and again. The run is cut into legs. In each some faults are inflicted, in an order
that the seed decides, and packets have to flow again after each. At its end the sources pause, and then, to the packet:

* what a source's link took is what the engine received, and what the kernel says it lost for want of room;
* what the engine says it delivered arrived at the far end, each packet once, in order and intact;
* every frame is accounted for (an audit), and, when the engine is closed, at home.

A fault that takes a link or the engine away loses packets that were under way there: these are counted by fault. Any
other difference ends the soak. Memory, descriptors and threads are looked at whenever the engine is closed; at the end
nothing may be left on the machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

from faulty import left_behind
from holding import Holding, exactly, look
from inflicted import WITHIN, Faults
from live_lab import wait_for
from mixed import INS, MIRROR, OUTS

from afxdp_pool import machine
from afxdp_pool.testing import Lab, Sink

#: Seconds in which neither side says anything new.
STILL = 1.0
#: What may be more in the end: for what is noted down here of each leg, in bytes and blocks; and of resident memory,
#: in KiB, for pages that are not whole any more.
NOISE = {"in_use": 64 << 10, "blocks": 4000, "mappings": 20, "rss_kib": 2048}
log = logging.getLogger("soak")
Count = tuple[int, int, int]


class Soak(Faults):
    """Legs, one after the other, and what was found."""

    def __init__(self, lab: Lab, seed: int, rate: float | None = None) -> None:
        super().__init__(lab, seed, rate)
        self.order = self.faults()
        self.tried: Counter[str] = Counter()
        self.recovery: defaultdict[str, list[float]] = defaultdict(list)
        self.lost: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()
        self.legs = 0
        self.samples: list[Holding] = []

    # Legs -----------------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        """One leg after the other; at least one of each fault if there is time for that."""
        self.start_forwarder()
        self.far_source.start(rate=20_000)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.leg(end)
        self.close_engine()
        self.sample()
        self.end_forwarder()
        self.far_source.stop()
        self.intact(self.far_sink, "kout")
        self.moved["second"] = self.far_sink.seen()

    def leg(self, end: float) -> None:
        """Some faults under full load, then a count of everything."""
        if self.engine is None:
            self.open_engine()
        self.excused.clear()
        self.told.clear()
        before = {name: self.count(name) for name in self.roads}
        for name in INS:
            self.roads[name].send(self.rate)
        self.flows("")
        for _ in range(self.chance.randint(1, 4)):
            time.sleep(self.chance.uniform(0.05, 0.4))
            fault = next(self.order)
            name = fault.__doc__ or ""
            log.info("%7.1f  %s", time.monotonic() - STARTED, name)
            fault()
            self.tried[name] += 1
            self.recovery[name].append(self.flows(name))
            if time.monotonic() > end:
                break
        for name in INS:
            self.roads[name].pause()
        self.settle()
        for name in INS:  # before it stops: the last of them are late on a busy machine, and would be the next leg's
            self.missing_at_last(name, before[name])
        assert self.engine is not None
        self.engine.stop()
        self.audits += 1
        for name, start in before.items():
            self.balance(name, start)
        self.legs += 1
        if self.chance.random() < 0.5:
            self.close_engine()
            self.sample()
        else:
            self.engine.start()

    def count(self, name: str) -> Count:
        """Packets so far: by the engine's word, by the kernel's at the far end, and strays."""
        road = self.roads[name]
        assert self.engine is not None
        if name in INS:
            return self.told[name] + self.engine.accounted(name), road.sent, road.strays()
        return self.told[name] + self.engine.delivered(name) - road.dropped_by_link(), road.seen(), road.strays()

    def missing(self, name: str, before: Count) -> tuple[int, int]:
        """(packets that are not where they should be, packets that the engine moved) since then."""
        now = self.count(name)
        ours, theirs, strays = (new - old for new, old in zip(now, before, strict=True))
        if name in INS:
            return theirs + strays - ours, ours
        lost = ours - theirs
        return lost - min(max(lost, 0), max(strays, 0)), ours

    def missing_at_last(self, name: str, before: Count) -> tuple[int, int]:
        """The same, once the last packets are out of the link's ring, whose softirq may be late on a busy machine.

        So this waits until none is missing; after a fault that lost some, until the number stays.
        """
        last, since, deadline = 0, time.monotonic(), time.monotonic() + WITHIN
        while True:
            missing, ours = self.missing(name, before)
            if missing != last:
                last, since = missing, time.monotonic()
            still = self.excused[name] and time.monotonic() - since > STILL
            if not missing or still or self.roads[name].uncounted or time.monotonic() > deadline:
                return missing, ours
            time.sleep(0.01)

    def balance(self, name: str, before: Count) -> None:
        """Nothing is missing, but for what a fault of this leg took; and nothing arrived spoiled."""
        road = self.roads[name]
        missing, ours = self.missing_at_last(name, before)
        road.intact()
        self.moved[name] += ours
        if road.uncounted:
            road.uncounted = False
            return
        faults = " and ".join(dict.fromkeys(self.excused[name]))
        assert missing == 0 or faults, f"{name}: of {ours} packets {missing} are missing"
        assert missing >= 0, f"{name}: of {ours} packets {-missing} are too many, after {faults}"
        if missing:
            self.lost[faults] += missing

    def settle(self) -> None:
        """Wait until nothing comes in, and all that was sent has completed."""
        engine = self.engine
        assert engine is not None
        last: list[int] = []

        def still() -> bool:
            now = [engine.received(name) for name in INS]
            sent = [port.stats() for name in (*OUTS, MIRROR) for port in engine.of(name)]
            now += [stats.tx_packets - stats.tx_completed for stats in sent]
            same, last[:] = now == last and not any(now[len(INS) :]), now
            time.sleep(0.02)
            return same

        assert wait_for(still, WITHIN), f"packets stay in TX: {last}"

    def flows(self, fault: str) -> float:
        """Wait until packets of both engines arrive again; the seconds it took."""
        began = time.monotonic()
        goals = {name: self.roads[name].seen() + 100 for name in OUTS}
        far = self.far_sink.seen() + 100

        def arrived() -> bool:
            return all(self.roads[name].seen() >= goal for name, goal in goals.items()) and self.far_sink.seen() >= far

        assert wait_for(arrived, WITHIN), f"nothing arrives any more after {fault}"
        return time.monotonic() - began

    def sample(self) -> None:
        """What this process holds while no engine is open."""
        self.samples.append(look())
        log.info("%7.1f  %s", time.monotonic() - STARTED, self.samples[-1])

    # In the end -----------------------------------------------------------------------------------------------------

    @staticmethod
    def intact(sink: Sink, name: str) -> None:
        seen = sink.report()
        wrong = seen.corrupt, seen.duplicate, seen.reordered, seen.stale
        assert not any(wrong), f"{name}: corrupt, duplicate, reordered, stale: {wrong}"

    def left(self) -> list[str]:
        """What is left of both engines while the lab is still there."""
        found = left_behind(self.lab, self.pids)
        netns = self.lab.engine_netns
        sockets = [one for one in machine.Watcher().look().sockets if one.netns == netns]
        return found + [f"socket on {one.netdev} queue {one.queue}" for one in sockets]

    def result(self, seconds: float) -> dict[str, Any]:
        """What is written down."""
        return {
            "seed": self.seed,
            "seconds": round(seconds),
            "rate": self.rate or "all they can",
            "kernel": os.uname().release,
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "cpus": os.cpu_count(),
            "legs": self.legs,
            "engines_opened": self.opened,
            "audits": self.audits,
            "packets": {
                "in": sum(self.moved[name] for name in INS),
                "out": sum(self.moved[name] for name in OUTS),
                "mirrored": self.moved[MIRROR],
                "by_the_second_engine": self.moved["second"],
            },
            "packets_lost_to_faults": dict(sorted(self.lost.items())),
            "frames_lost": 0,
            "faults": {
                name: {
                    "tried": self.tried[name],
                    "seconds_median": round(statistics.median(self.recovery[name]), 3),
                    "seconds_most": round(max(self.recovery[name]), 3),
                }
                for name in sorted(self.tried)
            },
            "growth": growth(self.samples),
        }


def growth(samples: list[Holding]) -> dict[str, Any]:
    """What the process held while no engine was open: at the first quarter's end, in the last quarter, at most."""
    quarter = max(1, len(samples) // 4)
    out: dict[str, Any] = {"samples": len(samples)}
    for what in (one.name for one in fields(Holding)):
        values = [getattr(sample, what) for sample in samples]
        out[what] = {
            "first": values[0],
            "second_quarter": round(statistics.median(values[quarter : 2 * quarter] or values)),
            "last_quarter": round(statistics.median(values[-quarter:])),
            "most": max(values),
        }
    return out


def check_growth(found: dict[str, Any]) -> None:
    """Nothing of it grows: descriptors and threads not by one, what is in use not beyond `NOISE`."""
    for what in ("descriptors", "threads"):
        assert found[what]["last_quarter"] == found[what]["second_quarter"] == found[what]["most"], found
    if found["samples"] < 20:
        return  # what Python takes at first says nothing
    for what, noise in NOISE.items():
        assert found[what]["last_quarter"] <= found[what]["second_quarter"] + noise, found


STARTED = time.monotonic()


def soak(seconds: float, seed: int, rate: float | None = None) -> dict[str, Any]:
    """A soak of so many seconds; its result, when nothing was wrong. Raises AssertionError, or what failed."""
    began = time.monotonic()
    with Lab() as lab:
        soaked = Soak(lab, seed, rate)
        try:
            soaked.run(seconds)
            soaked.close()
            left = soaked.left()
        finally:
            soaked.close()
    assert left == [], left
    result = soaked.result(time.monotonic() - began)
    check_growth(result["growth"])
    return result


def main() -> int:
    """The half hour, and its result into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="of the faults")
    parser.add_argument("--rate", type=float, help="packets a second of each source; without, all it can")
    parser.add_argument("--output", type=Path, help="where the result goes, as JSON")
    arguments = parser.parse_args()
    exactly()
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    log.setLevel(logging.INFO)
    logging.getLogger("afxdp_pool").setLevel(logging.ERROR)  # of the faults, all of which are wanted
    print(f"seed {arguments.seed}", flush=True)
    result = soak(arguments.seconds, arguments.seed, arguments.rate)
    print(json.dumps(result, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
