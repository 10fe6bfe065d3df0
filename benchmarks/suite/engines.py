"""Who is measured: the library's variants, its rivals, and the kernel by itself as the ceiling.

All of them take the same arguments (`JOB -i IF [-o IF] [--size N --template-hex HEX]`) and give the same report, so a
new rival is a line in `ENGINES`.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.suite import ours
from benchmarks.suite.beds import Bed

NATIVE = Path(__file__).resolve().parents[1] / "native"
JOBS = ("drop", "forward", "reflect", "tx")
HANDLED = frozenset(("drop", "forward"))
BASELINE = "c_peer"
SLEEPER = "c_peer_poll"
CEILING = "kernel"


@dataclass(frozen=True)
class Engine:
    """One engine.

    Attributes:
        name: in options and results.
        label: in tables and plots.
        program: of a rival: a program in native/build, or a module of Python.
        arguments: before the usual ones.
        transmit, handler: of the library's variants.
        jobs: what it can do.
        brief: only its rate and cost are measured, with 64 bytes and one flow.
        idle: only its latency and what it costs when idle are measured.
    """

    name: str
    label: str
    program: str = ""
    arguments: tuple[str, ...] = ()
    transmit: str = ""
    handler: str = "builtin"
    jobs: frozenset[str] = frozenset(JOBS)
    brief: bool = False
    idle: bool = False

    @property
    def kind(self) -> str:
        """``"ours"``, ``"handler"`` for ours with a handler, ``"rival"`` or ``"ceiling"``."""
        if self.transmit:
            return "ours" if self.handler == "builtin" else "handler"
        return "ceiling" if self.name == CEILING else "rival"

    def command(self, bed: Bed, job: str, size: int = 64) -> list[str]:
        """What to run for a job. Packets come in at `bed.left`; tx sends out of `bed.right`."""
        place = ["-i", (bed.right if job == "tx" else bed.left).near.name]
        if job == "forward":
            place += ["-o", bed.right.near.name]
        if job == "tx":
            place += ["--template-hex", bed.template(size).hex()]
        if self.transmit:
            variant = ["--transmit", self.transmit, "--handler", self.handler]
            return [sys.executable, "-m", "benchmarks.suite.ours", job, "--netns", bed.netns, *place, *variant]
        if job == "tx":
            place += ["--size", str(size)]
        if job == "tx" and self.name == CEILING:
            start = [sys.executable, "-m", "benchmarks.suite.kernel_tx"]
            return [*start, "--netns", bed.netns, "-i", bed.right.near.name, "--size", str(size)]
        start = [sys.executable, "-m", self.program] if "." in self.program else [str(NATIVE / "build" / self.program)]
        return ["ip", "netns", "exec", bed.netns, *start, job, *place, *self.arguments]

    def cannot(self) -> str:
        """Why it cannot run here; "" when it can."""
        if self.transmit:
            return ours.cannot(self.handler)
        if "." in self.program:
            try:
                found = importlib.util.find_spec(self.program)
            except ModuleNotFoundError:
                found = None
            return "" if found else f"there is no module {self.program}"
        return "" if (NATIVE / "build" / self.program).exists() else f"{self.program} is not built"


ENGINES = (
    Engine("ours_auto", "afxdp_pool, auto", transmit="auto"),
    Engine("ours_live", "afxdp_pool, live", transmit="live"),
    Engine("ours_socket", "afxdp_pool, socket", transmit="socket"),
    Engine("ours_numba", "numba, socket", transmit="socket", handler="numba", jobs=HANDLED, brief=True),
    Engine("ours_swap", "numpy swap, socket", transmit="socket", handler="numpy-swap", jobs=HANDLED, brief=True),
    Engine("ours_filter", "numpy filter, socket", transmit="socket", handler="numpy-filter", jobs=HANDLED, brief=True),
    Engine("ours_python", "Python, socket", transmit="socket", handler="python", jobs=HANDLED, brief=True),
    Engine("ours_numba_live", "numba, live", transmit="live", handler="numba", jobs=HANDLED, brief=True),
    Engine("ours_swap_live", "numpy swap, live", transmit="live", handler="numpy-swap", jobs=HANDLED, brief=True),
    Engine("ours_filter_live", "numpy filter, live", transmit="live", handler="numpy-filter", jobs=HANDLED, brief=True),
    Engine(BASELINE, "C peer (libxdp)", program="peer"),
    Engine(
        SLEEPER,
        "C peer, asleep in poll",
        program="peer",
        arguments=("--poll",),
        jobs=frozenset(("forward",)),
        idle=True,
    ),
    Engine("dpdk", "DPDK af_xdp", program="dpdk_af_xdp"),
    Engine("dpdk_busy", "DPDK af_xdp, busy poll", program="dpdk_af_xdp", arguments=("--busy-budget", "64")),
    Engine("packet_mmap", "AF_PACKET C, TPACKET_V3", program="packet_mmap"),
    Engine("packet_python", "AF_PACKET Python", program="benchmarks.peers.af_packet"),
    Engine(CEILING, "kernel XDP", program="kernel_xdp"),
)
BY_NAME = {engine.name: engine for engine in ENGINES}


def build() -> list[str]:
    """Build the native programs, and return what could not be built."""
    made = subprocess.run(["make", "-s", "-k", "-C", str(NATIVE)], capture_output=True, text=True, check=False)
    return [] if made.returncode == 0 else made.stderr.splitlines()[-3:]


def sort_out(names: Iterable[str]) -> tuple[list[Engine], list[dict[str, str]]]:
    """Which of these engines can run, and why the others cannot."""
    able, left_out = [], []
    for name in names:
        engine = BY_NAME[name]
        why = engine.cannot()
        if why:
            left_out.append({"engine": name, "label": engine.label, "why": why})
        else:
            able.append(engine)
    return able, left_out
