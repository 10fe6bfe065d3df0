"""NUMA: the nodes that a NIC, a Umem's frames and a worker's thread are on. It owns nothing.

A packet that the NIC writes into another node's memory, or that a CPU of another node reads, crosses the link between
the nodes. Invariant: what cannot be known is None, or left out; it is never guessed.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from afxdp_pool.syscalls import syscall

#: Where sysfs is. What is read here is the machine's, the same in every network namespace.
SYS = Path("/sys")
#: Pages of a Umem that are asked for; they are spread over all of it.
_SAMPLES = 1024
_PAGE = 4096
#: move_pages(2): its number (arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h).
_MOVE_PAGES = {"x86_64": 279}.get(os.uname().machine, 239)


def nodes() -> tuple[int, ...]:
    """The nodes this machine has; none if the kernel was built without NUMA. Concurrency: any thread."""
    return _list(SYS / "devices/system/node/online")


def cpus_of(node: int) -> tuple[int, ...]:
    """The CPUs of a node. Concurrency: any thread."""
    return _list(SYS / f"devices/system/node/node{node}/cpulist")


def node_of_device(bus: str) -> int | None:
    """The node of the device of that address, such as ``"0000:01:00.0"``; None: it has none, or it is not known.

    Concurrency: any thread.
    """
    if not re.fullmatch(r"[\w.:-]+", bus):
        return None
    paths = [SYS / "bus/pci/devices" / bus / "numa_node"]
    paths += [path / "devices" / bus / "numa_node" for path in sorted((SYS / "bus").glob("*"))]
    path = next(filter(Path.exists, paths), None)
    node = int(path.read_text()) if path is not None else -1
    return node if node >= 0 else None


def node_of_cpus(cpus: Iterable[int]) -> int | None:
    """The node that all these CPUs are of; None: they are of several, or it is not known. Concurrency: any thread."""
    wanted = set(cpus)
    return next((node for node in nodes() if wanted and wanted <= set(cpus_of(node))), None)


def nodes_of_memory(address: int, size: int) -> tuple[int, ...]:
    """The nodes that this process's memory from `address` on, of `size` bytes, lies on; the one with most of it first.

    A sample of its pages is asked for. Pages that nothing has touched yet are on no node.

    Concurrency: any thread.
    Source: move_pages(2), which only tells when it is given no nodes to move to.
    """
    pages = max(1, size // _PAGE)
    count = min(pages, _SAMPLES)
    asked = (ctypes.c_void_p * count)(*(address + pages * number // count * _PAGE for number in range(count)))
    told = (ctypes.c_int * count)()
    try:
        syscall(_MOVE_PAGES, 0, ctypes.c_ulong(count), asked, None, told, 0)
    except OSError:  # a sandbox, or a kernel without NUMA
        return ()
    return tuple(node for node, _ in Counter(node for node in told if node >= 0).most_common())


def differences(devices: Mapping[str, int | None], memory: tuple[int, ...], thread: int | None) -> list[str]:
    """What is not on one node, a sentence each.

    Args:
        devices: by their names, the node of each.
        memory: the nodes of the frames.
        thread: the node of the thread.

    What is None, or empty, is not compared.
    """
    told = []
    for name, node in devices.items():
        if node is None:
            continue
        strange = [other for other in memory if other != node]
        if strange:
            told.append(f"{name} is on NUMA node {node}, and {_frames(memory, strange)}")
        if thread is not None and thread != node:
            told.append(f"{name} is on NUMA node {node}, and the thread that runs it on node {thread}")
    if not told and thread is not None and (strange := [other for other in memory if other != thread]):
        told.append(f"the thread is on NUMA node {thread}, and {_frames(memory, strange)}")
    return told


def _frames(memory: tuple[int, ...], strange: list[int]) -> str:
    part = "" if len(strange) == len(memory) else "some of "
    return f"{part}the frames on node{'s' * (len(strange) > 1)} {', '.join(map(str, strange))}"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as the kernel and taskset(1) write them, such as ``"0-3,8"``."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of a list as the kernel writes it, such as ``"0-3,8"``."""
    found: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


def _list(path: Path) -> tuple[int, ...]:
    try:
        return numbers(path.read_text())
    except OSError:
        return ()
