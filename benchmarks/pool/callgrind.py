"""Instructions a frame, counted by valgrind's callgrind: the same on a busy machine, so a test can hold them.

>>> round(instructions("direct").total) < 60  # doctest: +SKIP
True
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
POOL = "bench_pool"
DPDK = "bench_dpdk"
ALLOC = {"alloc_frames", "mempool_alloc", "cookies_alloc", "stack_alloc"}
PUT = {"put_frames", "mempool_put", "cookies_put", "ring_put"}
_FUNCTION = re.compile(r"c?fn=\((\d+)\)(?: (.*))?")
_COST = re.compile(r"[+\-*\d]\S*(?: \S+)* (\d+)$")


@dataclass(frozen=True)
class Instructions:
    """What one frame costs: taken and given back, and where that goes."""

    total: float
    alloc: float
    put: float
    functions: dict[str, float]
    """Instructions of each function itself, without those it calls; most first."""


def build(target: str = "all") -> None:
    """Build the programs, or one of them: ``build/bench_pool`` needs only a C compiler."""
    subprocess.run(["make", "-s", "-C", str(HERE), target], check=True)


def available() -> bool:
    """Is valgrind here?"""
    return shutil.which("valgrind") is not None


def instructions(
    case: str,
    *,
    bulk: int = 64,
    frames: int = 8192,
    window: int = 0,
    subject: str = "afxdp_pool",
    program: str = POOL,
    rounds: int = 20,
) -> Instructions:
    """Count the instructions a frame of one case: ``direct``, ``ring``, ``slow`` or ``remote_solo``.

    The count has the driver's own part in it, about 37 instructions a batch.

    Raises:
        subprocess.CalledProcessError: the program found an error, such as a frame that did not come home.
    """
    options = ("--subject", subject, "--bulk", str(bulk), "--frames", str(frames), "--window", str(window))
    return counted(str(HERE / "build" / program), *options, "--callgrind", "--rounds", str(rounds), case)


def counted(*command: str) -> Instructions:
    """Count the instructions a program spends in `measured()`, by each frame that it says it has ``"moved"``.

    Raises:
        subprocess.CalledProcessError: the program found an error.
    """
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "callgrind.out"
        tool = ("--quiet", "--tool=callgrind", f"--callgrind-out-file={output}", "--toggle-collect=measured")
        done = subprocess.run(["valgrind", *tool, *command], check=True, capture_output=True, text=True, timeout=120)
        moved = re.search(r'"moved": (\d+)', done.stdout)
        if moved is None:
            raise RuntimeError(f"{command[0]} gave no count: {done.stdout}")
        return _read(output.read_text(), int(moved.group(1)))


def _read(text: str, frames: int) -> Instructions:
    """Read callgrind's output: costs of lines, grouped by function; calls with what they cost in all."""
    names: dict[str, str] = {}
    own: dict[str, int] = defaultdict(int)
    inclusive: dict[str, int] = defaultdict(int)
    here = called = ""
    after_call = False
    for line in text.splitlines():
        if match := _FUNCTION.match(line):
            number, name = match.groups()
            if name:
                names[number] = name
            if line.startswith("c"):
                called = names.get(number, number)
            else:
                here = names.get(number, number)
        elif line.startswith("calls="):
            after_call = True
        elif match := _COST.match(line):
            if after_call:
                inclusive[called] += int(match.group(1))
            else:
                own[here] += int(match.group(1))
            after_call = False
    ordered = sorted(own.items(), key=lambda item: -item[1])
    return Instructions(
        total=sum(own.values()) / frames,
        alloc=sum(cost for name, cost in inclusive.items() if name in ALLOC) / frames,
        put=sum(cost for name, cost in inclusive.items() if name in PUT) / frames,
        functions={name: cost / frames for name, cost in ordered if cost},
    )


if __name__ == "__main__":
    build("build/bench_pool")
    for one in sys.argv[1:] or ("direct", "ring", "slow", "remote_solo"):
        count = instructions(one)
        print(f"{one}: {count.total:.1f} instructions a frame (alloc {count.alloc:.1f}, put {count.put:.1f})")
        for name, cost in list(count.functions.items())[:8]:
            print(f"  {cost:7.2f} {name}")
