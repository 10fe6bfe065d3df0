"""`Info`: what a runner was granted, as opposed to what was asked for, and to what happened (`Report`). Plain data.

Invariant: it describes open things; of what is closed there is nothing to tell.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afxdp_pool.compiling import Compiled
from afxdp_pool.filters import Rule
from afxdp_pool.port import Port, PortInfo

if TYPE_CHECKING:
    from afxdp_pool.forwarder import Forwarder
    from afxdp_pool.handlers import Handler
    from afxdp_pool.program import XdpProgram
    from afxdp_pool.umem import Umem


@dataclass(frozen=True)
class MemoryInfo:
    """The Umem.

    Attributes:
        frames, frame_size, headroom: as the Umem has them.
        bytes: all of it.
        pages: what it is made of.
        registrations: sockets it is registered with, each for itself.
        locked_bytes: what these pin; it counts against the locked-memory limit of a process without CAP_IPC_LOCK.
    """

    frames: int
    frame_size: int
    headroom: int
    bytes: int
    pages: str
    registrations: int
    locked_bytes: int


@dataclass(frozen=True)
class XdpInfo:
    """An XDP program that brings packets.

    Attributes:
        netdev, netns: where it is attached; None: the caller's namespace.
        id, name, tag: as the kernel and bpftool name it; the tag is a hash of its instructions.
        mode: ``"native"`` or ``"generic"``.
        attach: ``"link"`` or ``"libxdp"``.
        fallback_reason: why the mode is generic although native was tried, else None.
        rules: the filter; empty: every packet.
    """

    netdev: str
    netns: str | None
    id: int
    name: str
    tag: str
    mode: str
    attach: str
    fallback_reason: str | None
    rules: tuple[Rule, ...]


@dataclass(frozen=True)
class LoopInfo:
    """A loop.

    Attributes:
        ports: the names of its ports.
        cpu: where its thread runs; None: anywhere.
        batch, spin: see `Forwarder`.
        handler: ``"built in"``, ``"compiled"``, or a Python handler's name.
    """

    ports: tuple[str, ...]
    cpu: int | None
    batch: int
    spin: int
    handler: str


@dataclass(frozen=True)
class Versions:
    """What it runs on. `libxdp` and `libbpf` are ``""`` when they are linked into the package."""

    afxdp_pool: str
    python: str
    kernel: str
    libxdp: str
    libbpf: str


@dataclass(frozen=True)
class Info:
    """What a runner was granted."""

    ports: tuple[PortInfo, ...]
    programs: tuple[XdpInfo, ...]
    memory: MemoryInfo
    loops: tuple[LoopInfo, ...]
    versions: Versions

    def as_dict(self) -> dict[str, Any]:
        """All of it as nested dicts and lists of plain values."""
        return asdict(self)


def make_info(umem: Umem, ports: Sequence[Port], forwarders: Sequence[Forwarder]) -> Info:
    """What these were granted; closed ports are left out. Concurrency: any thread."""
    there = [port for port in ports if port._port is not None]
    programs = dict.fromkeys(port.program for port in there if port.program is not None)
    size, registrations = umem.frames * umem.frame_size, sum(port.fileno() >= 0 for port in umem._ports)
    return Info(
        tuple(port.info for port in there),
        tuple(_xdp_info(program) for program in programs),
        MemoryInfo(
            umem.frames,
            umem.frame_size,
            umem.config.headroom,
            size,
            umem.pages,
            registrations,
            registrations * size,
        ),
        tuple(
            LoopInfo(tuple(port.name for port in one.ports), one.cpu, one.batch, one.spin, handler_name(one.handler))
            for one in forwarders
        ),
        Versions(
            sys.modules["afxdp_pool"].__version__,
            ".".join(map(str, sys.version_info[:3])),
            os.uname().release,
            library_version("libxdp"),
            library_version("libbpf"),
        ),
    )


def library_version(name: str, maps: str | None = None) -> str:
    """The version of a shared library this process has mapped; empty when it has not."""
    text = Path("/proc/self/maps").read_text() if maps is None else maps
    match = re.search(rf"/{name}[^/\s]*\.so\.(\d[\d.]*)$", text, re.MULTILINE)
    return match[1] if match else ""


def _xdp_info(program: XdpProgram) -> XdpInfo:
    netdev = program.netdev
    return XdpInfo(
        netdev.name,
        netdev.netns,
        program.id,
        program.loaded.name,
        program.loaded.tag,
        program.mode,
        program.attach_kind,
        program.fallback_reason,
        program.rules,
    )


def handler_name(handler: Handler | None) -> str:
    """What to call a handler: ``"built in"``, ``"compiled"``, or the name of a Python function."""
    if handler is None:
        return "built in"
    if isinstance(handler, Compiled):
        return "compiled"
    return getattr(handler, "__qualname__", type(handler).__qualname__)
