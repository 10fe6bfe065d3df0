"""An engine as a child process: `ready` on its standard error, SIGTERM to end it, one JSON object on its output.

Invariant: nothing outlives its `with`, and every wait has an end.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN = 40.0  # seconds: a compiler of Python may have to run first
ENDS_WITHIN = 15.0
BUSY_FOR = 0.3  # seconds that a queue may still be busy after its last socket was closed
_TICKS = os.sysconf("SC_CLK_TCK")


class EngineError(Exception):
    """An engine did not start, did not end, failed, or lost count of packets."""


@dataclass(frozen=True)
class CpuTime:
    """Seconds of CPU: an engine's, by where they went, and the whole machine's, when it was not idle."""

    user: float
    system: float
    machine: float

    def since(self, before: CpuTime) -> CpuTime:
        """What was used in between."""
        return CpuTime(self.user - before.user, self.system - before.system, self.machine - before.machine)


class Child:
    """One engine, running from the time it says it is ready until `stop`.

    Raises:
        EngineError: it ended, or said nothing, before it was ready. A queue still busy after the process before is
            tried once more.
    """

    def __init__(self, command: Sequence[str], cpu: int) -> None:
        self.command = list(command)
        dies_with_us = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        self._full = [*dies_with_us, "taskset", "-c", str(cpu), *self.command]
        self._process: subprocess.Popen[str] | None = None
        self._errors: list[str] = []
        self.started_in = 0.0

    def __enter__(self) -> Self:
        try:
            self._start()
        except EngineError as error:
            if "busy" not in str(error).lower():
                raise
            time.sleep(BUSY_FOR)
            self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()

    def _start(self) -> None:
        self._errors = []
        start = time.monotonic()
        process = self._process = subprocess.Popen(
            self._full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        ready = threading.Event()
        reader = threading.Thread(target=self._read_errors, args=(process, ready), daemon=True)
        reader.start()
        while not ready.wait(0.02):
            if process.poll() is not None:
                reader.join(1)
            elif time.monotonic() - start < READY_WITHIN:
                continue
            if ready.is_set():
                break
            self.__exit__(None, None, None)
            raise EngineError(f"{' '.join(self.command)} did not start: {self._said()}")
        self.started_in = time.monotonic() - start

    def _read_errors(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if line.strip() == "ready":
                    ready.set()
                else:
                    self._errors.append(line.rstrip())
        except ValueError:  # closed meanwhile
            return

    def _said(self) -> str:
        return " / ".join(self._errors[-5:]) or "it said nothing"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> dict[str, Any]:
        """End it, and return what it reports.

        Raises:
            EngineError: it failed, or did not end.
        """
        process = self._process
        assert process is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGTERM)
        # Its standard error has a reader already; its output is one line, less than a pipe holds.
        try:
            process.wait(ENDS_WITHIN)
        except subprocess.TimeoutExpired:
            raise EngineError(f"{' '.join(self.command)} did not end within {ENDS_WITHIN:.0f} s of SIGTERM") from None
        output = process.stdout.read()
        if process.returncode != 0:
            raise EngineError(f"{' '.join(self.command)} ended with {process.returncode}: {self._said()}")
        try:
            report: dict[str, Any] = json.loads(output)
        except ValueError:
            raise EngineError(f"{' '.join(self.command)} printed no report: {output[:200]!r}") from None
        return report

    def cpu(self) -> CpuTime:
        """CPU time so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = int(fields[11]), int(fields[12])
        ran = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            ran += int((task / "schedstat").read_text().split()[0])
        # To the nanosecond in all, to a tick by kind.
        share = user / (user + system) if user + system else 0.0
        return CpuTime(ran * share / 1e9, ran * (1 - share) / 1e9, machine_seconds())

    def memory(self) -> dict[str, int]:
        """Bytes resident: all of it, and its anonymous, file and shared parts."""
        found = {}
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "RssAnon", "RssFile", "RssShmem"):
                found[name] = int(value.split()[0]) * 1024
        return found


def machine_seconds() -> float:
    """Seconds that CPUs were not idle since boot, all together; time stolen by a hypervisor not counted."""
    with open("/proc/stat") as stat:
        user, nice, system, _idle, _iowait, irq, softirq, *_ = (int(word) for word in stat.readline().split()[1:])
    return (user + nice + system + irq + softirq) / _TICKS
