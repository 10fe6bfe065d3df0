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

from afxdp_pool import numa
from afxdp_pool.compiling import Compiled
from afxdp_pool.filters import Rule
from afxdp_pool.granted import PortInfo
from afxdp_pool.netdev import Netdev, flag_names
from afxdp_pool.port import Port
from afxdp_pool.umem import DmaDevice

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
        numa_nodes: the nodes the frames lie on, the one with most first; empty when the kernel does not tell.
        devices: who reads and writes the frames by DMA; none in copy mode.
    """

    frames: int
    frame_size: int
    headroom: int
    bytes: int
    pages: str
    registrations: int
    locked_bytes: int
    numa_nodes: tuple[int, ...] = ()
    devices: tuple[DmaDevice, ...] = ()


@dataclass(frozen=True)
class DeviceInfo:
    """A network device that ports are on, as it was when the first of them was opened.

    Attributes:
        netdev, netns, driver, bus, numa_node, rx_queues, tx_queues: see `Netdev`.
        xdp, rx_metadata, xsk: what its driver offers, by the names of `XdpFeature`, `RxMetadata` and `XskFeature`, in
            lower case; bits without a name as one hexadecimal number. None when the kernel cannot tell.
        zc_max_segments: frames a packet may have in zero-copy; 0: not offered, or not told.
    """

    netdev: str
    netns: str | None
    driver: str
    bus: str
    numa_node: int | None
    rx_queues: int
    tx_queues: int
    xdp: tuple[str, ...] | None
    rx_metadata: tuple[str, ...] | None
    xsk: tuple[str, ...] | None
    zc_max_segments: int


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
        rx_metadata: what it tells of each packet beside its bytes.
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
    rx_metadata: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoopInfo:
    """A loop.

    Attributes:
        ports: the names of its ports.
        cpu: where its thread runs; None: anywhere.
        batch, spin: see `Forwarder`.
        handler: ``"built in"``, ``"compiled"``, or a Python handler's name.
        numa_node: the node of the CPUs its thread may run on; None: of several, or not known.
    """

    ports: tuple[str, ...]
    cpu: int | None
    batch: int
    spin: int
    handler: str
    numa_node: int | None = None


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
    devices: tuple[DeviceInfo, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as nested dicts and lists of plain values."""
        return asdict(self)


def make_info(umem: Umem, ports: Sequence[Port], forwarders: Sequence[Forwarder]) -> Info:
    """What these were granted; closed ports are left out. Concurrency: any thread."""
    there = [port for port in ports if port._port is not None]
    programs = dict.fromkeys(port.program for port in there if port.program is not None)
    places: dict[tuple[str | None, str], Netdev] = {}
    for place in (port.place for port in there):
        if place is not None:
            places.setdefault((place.netns, place.name), place)
    size, registrations = umem.config.size, sum(port.fileno() >= 0 for port in umem._ports)
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
            umem.numa_nodes,
            umem.devices,
        ),
        tuple(
            LoopInfo(
                tuple(port.name for port in one.ports),
                one.cpu,
                one.batch,
                one.spin,
                handler_name(one.handler),
                numa.node_of_cpus(os.sched_getaffinity(0) if one.cpu is None else [one.cpu]),
            )
            for one in forwarders
        ),
        Versions(
            sys.modules["afxdp_pool"].__version__,
            ".".join(map(str, sys.version_info[:3])),
            os.uname().release,
            library_version("libxdp"),
            library_version("libbpf"),
        ),
        tuple(_device_info(place) for place in places.values()),
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
        program.rx_metadata,
    )


def _device_info(place: Netdev) -> DeviceInfo:
    told = place.features
    return DeviceInfo(
        place.name,
        place.netns,
        place.driver,
        place.bus,
        place.numa_node,
        place.rx_queues,
        place.tx_queues,
        flag_names(told.flags) if told else None,
        flag_names(told.rx_metadata) if told else None,
        flag_names(told.xsk) if told else None,
        told.zc_max_segments if told else 0,
    )


def handler_name(handler: Handler | None) -> str:
    """What to call a handler: ``"built in"``, ``"compiled"``, or the name of a Python function."""
    if handler is None:
        return "built in"
    if isinstance(handler, Compiled):
        return "compiled"
    return getattr(handler, "__qualname__", type(handler).__qualname__)
