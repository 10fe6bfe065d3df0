"""What this process holds, so that growth is told from noise: C's memory, Python's blocks, descriptors, threads.

Resident memory tells none of it: it has what malloc keeps of memory that was freed. Even memory in use is blurred: by
what malloc puts aside for each thread, and Python's by names that its cache of methods keeps. `EXACT` is the
environment of a process without the first; `look` empties the second. So what leaves nothing behind differs by nothing.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

#: glibc: nothing is put aside for a thread, and all threads share one heap.
EXACT = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1"}
#: Bytes of the smallest block that malloc gives (x86-64).
SMALLEST = 32


class _Mallinfo(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


_libc = ctypes.CDLL(None)
_libc.mallinfo2.restype = _Mallinfo


@dataclass(frozen=True)
class Holding:
    """What a process holds at one moment.

    Attributes:
        in_use: bytes of C's memory that were asked for and not freed (mallinfo2).
        kept: bytes that were freed, and that malloc keeps.
        rss_kib: resident memory.
        blocks: of Python's own allocator, one or more an object; `objects`: those its collector looks at.
        descriptors, threads, mappings: how many.
    """

    in_use: int
    kept: int
    rss_kib: int
    blocks: int
    objects: int
    descriptors: int
    threads: int
    mappings: int


def look() -> Holding:
    """What this process holds now, when nothing is left to be collected."""
    gc.collect()
    sys._clear_type_cache()
    heap, blocks = _libc.mallinfo2(), sys.getallocatedblocks()
    with open("/proc/self/status") as status:
        told = dict(line.split(":", 1) for line in status)
    with open("/proc/self/maps") as maps:
        mappings = sum(1 for _ in maps)
    return Holding(
        in_use=heap.uordblks + heap.hblkhd,
        kept=heap.fordblks,
        rss_kib=int(told["VmRSS"].split()[0]),
        blocks=blocks,
        objects=len(gc.get_objects()),
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=int(told["Threads"]),
        mappings=mappings,
    )


def exactly() -> None:
    """Start this program anew where what it holds can be told exactly, if that is not here."""
    if any(os.environ.get(name) != value for name, value in EXACT.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | EXACT)


def grown(found: Mapping[str, int]) -> list[str]:
    """What of it is growth: a descriptor or a thread in all, or half of the least thing a cycle."""
    least = {"in_use": SMALLEST, "blocks": 1, "mappings": 1}
    limits = {name: one * found["cycles"] // 2 for name, one in least.items()} | {"descriptors": 0, "threads": 0}
    return [f"{name}: {found[name]:+d}" for name, most in limits.items() if found[name] > most]


def growth(cycle: Callable[[], object], cycles: int, warm: int = 5) -> dict[str, int]:
    """What so many cycles leave behind, after some that fill what is made once.

    What leaks does so every time. So it is measured again where something grew: a busy machine lets two threads overlap
    that never did before, and what the C library made for the second one stays.
    """
    for _ in range(warm):
        cycle()
    for _ in range(5):
        found = _growth(cycle, cycles)
        if not grown(found):
            break
    return found


def _growth(cycle: Callable[[], object], cycles: int) -> dict[str, int]:
    first, before = asdict(look()), asdict(look())  # what the first adds to the second, `before` adds to the third
    for _ in range(cycles):
        cycle()
    after = asdict(look())
    return {"cycles": cycles} | {name: after[name] - 2 * before[name] + first[name] for name in after}


def in_a_process(program: str | Path, within: float = 100) -> dict[str, dict[str, int]]:
    """Run a program that prints the growth of each of its cycles, as JSON, where it is exact."""
    path = os.pathsep.join(str(Path(__file__).resolve().parents[1] / name) for name in ("veth", "unit"))
    words, env = [sys.executable, str(program)], os.environ | EXACT | {"PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, text=True, env=env, timeout=within, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found
