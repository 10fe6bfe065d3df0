"""`Beacon`: what a running forwarder does, for `afxdp-pool top` of somebody else to read; nothing on disk.

It is a memfd, which /proc shows to those who may trace the process, and which ends with it. It says which sockets the
forwarder has, and, a second old at most, its counters. Invariant: who reads it costs the loop nothing; telling costs it
a few microseconds a second.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from afxdp_pool.stats import EngineStats, PortStats

if TYPE_CHECKING:
    from afxdp_pool.port import Port

NAME = "afxdp_pool"
EVERY_NS = 1_000_000_000
_MOST = 1 << 20  # bytes of a beacon: any process can have a file of that name and of any size
_HEAD = struct.Struct("=8sII")  # magic, bytes of the description, where the counters begin
_MAGIC = b"afxpool1"


@dataclass(frozen=True)
class Told:
    """What a beacon says.

    Attributes:
        ports: of each port `inode` (of its socket), `netdev`, `queue`, `netns`, `mode`.
        cpu: where the loop's thread is pinned; None: anywhere.
        handler: as in `LoopInfo`.
        time_ns: CLOCK_MONOTONIC of the counters.
        engine: the loop's counters by name.
        counters: of each port, in order, its counters by name.
    """

    ports: tuple[dict[str, Any], ...]
    cpu: int | None
    handler: str
    time_ns: int
    engine: dict[str, int]
    counters: tuple[dict[str, int], ...]


class Beacon:
    """The beacon of one forwarder's run, from `with` to its end; lit when it first has something to tell.

    Concurrency: the loop's thread. Where the kernel allows no memfd there is none, and nothing else changes.
    """

    def __init__(self, ports: Sequence[Port], cpu: int | None, handler: str) -> None:
        self._ports = list(ports)
        self._about = {"cpu": cpu, "handler": handler}
        self._fd = -1
        self._counters_at = 0
        self._next_ns = 0

    @property
    def due(self) -> bool:
        """Whether a second has passed since it told anything."""
        return time.monotonic_ns() >= self._next_ns

    def tell(self, engine: EngineStats) -> None:
        """Write the counters: these of the loop, and those of its ports."""
        now = time.monotonic_ns()
        self._next_ns = now + EVERY_NS
        values = [now, *vars(engine).values()]
        for port in self._ports:
            values += vars(port.stats()).values()
        with contextlib.suppress(OSError):
            if self._fd < 0:
                self._light()
            os.pwrite(self._fd, struct.pack(f"={len(values)}Q", *values), self._counters_at)

    def _light(self) -> None:
        about = self._about | {
            "ports": [_described(port) for port in self._ports],
            "engine": [field.name for field in fields(EngineStats)],
            "counters": [field.name for field in fields(PortStats)],
        }
        import json  # not needed to import the package

        text = json.dumps(about).encode()
        self._fd = os.memfd_create(NAME, os.MFD_CLOEXEC)
        self._counters_at = -(-(_HEAD.size + len(text)) // 8) * 8
        os.pwrite(self._fd, text, _HEAD.size)
        os.pwrite(self._fd, _HEAD.pack(_MAGIC, len(text), self._counters_at), 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def read(path: str) -> Told | None:
    """What the beacon behind `path` says, such as ``"/proc/7/fd/12"``; None when it is none, or gone. Any thread."""
    import json

    try:
        with open(path, "rb") as file:
            magic, length, at = _HEAD.unpack(file.read(_HEAD.size))
            if magic != _MAGIC:
                return None
            about = json.loads(file.read(min(length, _MOST)))
            file.seek(at)
            data = file.read(_MOST)
        if not all(isinstance(port, dict) for port in about["ports"]) or not isinstance(about["handler"], str):
            return None
        values = list(struct.unpack(f"={len(data) // 8}Q", data[: len(data) // 8 * 8]))
        time_ns = values.pop(0)
        engine, rest = values[: len(about["engine"])], values[len(about["engine"]) :]
        each = len(about["counters"])
        counters = tuple(
            dict(zip(about["counters"], rest[n * each : (n + 1) * each], strict=True))
            for n in range(len(about["ports"]))
        )
        return Told(
            tuple(about["ports"]),
            about["cpu"],
            about["handler"],
            time_ns,
            dict(zip(about["engine"], engine, strict=True)),
            counters,
        )
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError, struct.error):
        return None


def _described(port: Port) -> dict[str, Any]:
    info = port.info
    inode = os.fstat(port.fileno()).st_ino if port.fileno() >= 0 else 0
    return {"inode": inode, "netdev": info.netdev, "queue": info.queue, "netns": info.netns, "mode": info.mode}
