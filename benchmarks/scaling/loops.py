"""Instructions a packet in the loops of 1 to 8 workers (see loops.c), counted by callgrind."""

from __future__ import annotations

import subprocess
from pathlib import Path

from benchmarks.pool.callgrind import counted

HERE = Path(__file__).resolve().parent
CASES = ("forward", "cross")
WORKERS = (1, 2, 4, 8)


def build() -> None:
    """Build the program: needs a C compiler, libxdp and libbpf."""
    subprocess.run(["make", "-s", "-C", str(HERE), "build/loops"], check=True)


def instructions(case: str, workers: int, rounds: int = 40) -> float:
    """Instructions a packet of one case, all of the loop: receive, verdict, transmit, complete, refill.

    Raises:
        subprocess.CalledProcessError: a frame did not come home.
    """
    return counted(str(HERE / "build" / "loops"), case, str(workers), str(rounds)).total
