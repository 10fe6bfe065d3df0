"""The engine that is to be hurt, the traffic through it, and what may not be left of it."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from live_lab import audited, wait_for

import afxdp_pool as ap
from afxdp_pool import hook as xdp
from afxdp_pool import knobs
from afxdp_pool._native import ffi, lib
from afxdp_pool.errors import AfXdpError
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, Source
from afxdp_pool.testing.lab import LabLink
from afxdp_pool.tuning import tuned

RATE = 20_000
WITHIN = 20.0
ROUNDS = int(os.environ.get("AFXDP_FAULT_ROUNDS", "5"))


@dataclass
class Record:
    """What a fault did. `lost` frames are those an audit did not find at home; `seconds` until packets flowed again,
    and `parts` what those consist of."""

    test: str
    title: str = ""
    does: str = ""
    reads: str = ""
    tries: int = 0
    lost: int = 0
    seconds: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=lambda: {os.getpid()})

    def of(self, title: str, does: str, reads: object = "") -> None:
        """Which fault it is, what the library does, and what the user reads."""
        self.title, self.does, self.reads = title, does, str(reads)

    def tried(self, seconds: float | None = None) -> None:
        """Once more, and packets flow again after so many seconds."""
        self.tries += 1
        if seconds is not None:
            self.seconds.append(seconds)

    def took(self, **parts: float) -> None:
        """What the seconds of the last try consist of."""
        for name, seconds in parts.items():
            self.parts.setdefault(name, []).append(seconds)

    def row(self) -> dict[str, Any]:
        """As it goes into the results."""
        parts = {name: round(statistics.median(seconds), 3) for name, seconds in self.parts.items()}
        within = sum(one <= 1 for one in self.seconds)
        started = {"within_a_second": within, "load": round(os.getloadavg()[1]), "cpus": os.cpu_count(), "parts": parts}
        return {
            "test": self.test,
            "fault": self.title,
            "does": self.does,
            "reads": self.reads,
            "tries": self.tries,
            "frames_lost": self.lost,
            "seconds_median": round(statistics.median(self.seconds), 3) if self.seconds else None,
            "seconds_most": round(max(self.seconds), 3) if self.seconds else None,
            "left_behind": self.left,
        } | (started if parts else {})


class Flow:
    """`left.far` sends, an engine forwards from `left.near` to `right.near`, and `right.far` counts and proves."""

    def __init__(self, lab: Lab, **link: Any) -> None:
        self.lab = lab
        self.left, self.right = lab.veth("left", queues=2), lab.veth("right", queues=2)
        self._undo = ExitStack()
        self.sink = self._undo.enter_context(Sink(self.right.far))
        self.source = self._undo.enter_context(Source(self.left.far, size=128, cpu=_even_cpu()))
        self.engine: ap.Runner | None = None

    def options(self, **more: Any) -> ap.Options:
        return ap.Options(netns=self.lab.engine_netns, frames=8192, **more)

    def start(self, **more: Any) -> ap.Runner:
        """The engine in a thread of this process, with packets coming."""
        self.engine = ap.forward(self.left.near.name, self.right.near.name, options=self.options(**more))
        self.engine.start()
        return self.engine

    def send(self) -> None:
        """Packets from now on, from a process of its own."""
        self.source.start(rate=RATE, seconds=100)

    def flows(self, more: int = 100, within: float = WITHIN) -> float:
        """Wait until so many more packets have arrived; the seconds it took."""
        began, goal = time.monotonic(), self.sink.seen() + more
        assert wait_for(lambda: self.sink.seen() >= goal, within), "nothing arrives any more"
        return time.monotonic() - began

    def stopped(self) -> None:
        """End the engine, and prove that its frames are at home."""
        assert self.engine is not None
        engine, self.engine = self.engine, None
        engine.stop()
        engine.join()
        audited(engine)

    def ended_by(self, kind: type[AfXdpError]) -> AfXdpError:
        """The error that ends the engine by itself; its frames are at home all the same."""
        assert self.engine is not None
        engine, self.engine = self.engine, None
        try:
            began = time.monotonic()
            engine.join()
        except kind as error:
            assert time.monotonic() - began < WITHIN
            audited(engine)
            return error
        raise AssertionError(f"no {kind.__name__}")

    def intact(self) -> None:
        """No packet was spoiled, sent twice, or out of order."""
        seen = self.sink.report()
        assert (seen.corrupt, seen.duplicate, seen.reordered) == (0, 0, 0)

    def __enter__(self) -> Flow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.engine is not None:
            self.engine.close()
        self._undo.close()


def _even_cpu() -> int:
    """A CPU whose redirected packets arrive at queue 0 of two."""
    return next((cpu for cpu in sorted(os.sched_getaffinity(0)) if cpu % 2 == 0), 0)


def ip(netns: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", "-n", netns, *words], capture_output=True, text=True, timeout=WITHIN, check=False)


def ip_done(netns: str, *words: str) -> None:
    done = ip(netns, *words)
    assert done.returncode == 0, done.stderr


def script(text: str, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    """A program in a process of its own, which keeps its bytecode, as one that has been used before."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        **more,
    )


def ended(process: subprocess.Popen[str], by: int | None = None) -> tuple[str, str]:
    """What it said; it ends by itself, or by this signal."""
    if by is not None and process.poll() is None:
        process.send_signal(by)
    try:
        return process.communicate(timeout=WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"it hangs: {out} {err}") from None


def killed(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WITHIN)


def on_hook(link: LabLink) -> xdp.Attached | None:
    with in_netns(link.netns):
        return xdp.look(link.ifindex).program


def left_behind(lab: Lab, pids: set[int]) -> list[str]:
    """What is left of our engines: programs and pins of these processes; settings of the lab's links."""
    found: list[str] = []

    def programs() -> list[str]:
        return [f"program {number} of process {owner}" for number, owner in _owned() if owner in pids]

    if not wait_for(lambda: not programs(), 5):
        found += programs()
    for pair in lab.pairs.values():
        try:
            attached = on_hook(pair.near)
            place = pair.near.name, pair.near.netns
            found += [f"{name} of {pair.near.name} is {value}" for name, value in (tuned(*place) or {}).items()]
            found += [f"{one} of {pair.near.name}" for one in knobs.left(*place)]
        except AfXdpError:
            continue  # the test took the namespace away
        if attached is not None and attached.name.startswith("afxdp"):
            found.append(f"{attached} on {pair.near.name}")
    for pair in lab.pairs.values():
        pins = xdp.stale_pins(xdp.Hook(pair.near.ifindex, "", None))
        found += [f"pin {path}" for path, inside in pins if any(one.owner and one.owner.pid in pids for one in inside)]
    return found


def _owned() -> list[tuple[int, int]]:
    """(program, pid) of every program on the machine that has an owner record of ours."""
    number, found = ffi.new("uint32_t *"), []
    while lib.bpf_prog_get_next_id(number[0], number) == 0:
        program = xdp._identify(int(number[0]))
        if program.owner is not None:
            found.append((program.id, program.owner.pid))
    return found
