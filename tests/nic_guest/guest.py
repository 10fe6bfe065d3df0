"""The guest of tests/nic, running beside the other tests: booted before the first of them, asked for after the last."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

NIC = Path(__file__).resolve().parents[1] / "nic"


class Beside:
    """``tests/nic/machine.py`` in a process group of its own, which takes the time that nobody else wants."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Boot it. Idempotent."""
        if self._process is not None:
            return
        dies = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        command = [*dies, "nice", "-n", "19", sys.executable, str(NIC / "machine.py")]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, within: float) -> tuple[int, str]:
        """Wait for its end; the exit code and what it printed.

        Raises:
            TimeoutExpired: it has not ended.
        """
        self.start()
        assert self._process is not None
        code = self._process.wait(within)
        return code, self._log.read_text(errors="replace")

    def stop(self) -> None:
        """End it, if it still runs."""
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
