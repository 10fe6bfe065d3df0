"""The same three jobs for each kind of handler, and for a Python loop on AF_PACKET: what handlers.py compares.

Jobs: ``drop`` without a look at the packets; ``swap`` the MAC addresses and send; ``filter``: send the packets of one
flow, known by its 5-tuple, drop the rest. The traffic is that flow, so that every kind moves the same packets; the
built-in loop has no filter, and forwards without a look.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import afxdp_pool as ap
from afxdp_pool.testing import packets

JOBS = ("drop", "swap", "filter")
KINDS = (
    "built-in",
    "C, batch",
    "C, packet",
    "compiled",
    "compiled, packet",
    "numpy",
    "numpy, headers",
    "packet, memoryview",
    "packet, numpy",
)
LIBRARY = Path(__file__).resolve().parent / "native" / "build" / "handlers.so"

UDP = 17
_ETH_P_ALL = 3
_HEADERS = struct.Struct("!12xHB8xB2xIIHH").unpack_from  # type, version and length, protocol, addresses, ports
_HEADERS_LENGTH = 38
_MACS = struct.Struct("6s6s")


@dataclass(frozen=True)
class Flow:
    """The flow to let through, of UDP over IPv4: what the test packets are."""

    src: int
    dst: int
    sport: int = packets.SOURCE_PORT
    dport: int = packets.PORT

    @classmethod
    def of(cls, src: str | bytes, dst: str | bytes) -> Flow:
        """From addresses as text or in 4 bytes."""
        return cls(int(ipaddress.IPv4Address(src)), int(ipaddress.IPv4Address(dst)))


def compiled(job: str, out: int, flow: Flow) -> ap.Compiled:
    """A handler compiled by numba; `out` is the verdict of what is sent."""
    # numba takes these as constants.
    src, dst, sport, dport = flow.src, flow.dst, flow.sport, flow.dport

    def drop(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
        pass

    def swap(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
        for i in range(len(descs)):
            at = descs[i].addr
            if descs[i].len >= 14:
                for k in range(at, at + 6):
                    umem[k], umem[k + 6] = umem[k + 6], umem[k]
            verdicts[i] = out

    def select(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
        for i in range(len(descs)):
            at = descs[i].addr
            if descs[i].len < _HEADERS_LENGTH or ap.be16(umem, at + 12) != 0x0800 or umem[at + 14] != 0x45:
                continue
            if (
                umem[at + 23] == UDP
                and ap.be32(umem, at + 26) == src
                and ap.be32(umem, at + 30) == dst
                and ap.be16(umem, at + 34) == sport
                and ap.be16(umem, at + 36) == dport
            ):
                verdicts[i] = out

    return ap.compiled({"drop": drop, "swap": swap, "filter": select}[job])


def compiled_packet(job: str, out: int, flow: Flow) -> ap.Compiled:
    """The same, called once a packet."""
    src, dst, sport, dport = flow.src, flow.dst, flow.sport, flow.dport
    nothing = ap.DROP

    def drop(packet: Any, length: Any, port: Any, user: Any) -> int:
        return nothing

    def swap(packet: Any, length: Any, port: Any, user: Any) -> int:
        if length >= 14:
            for k in range(6):
                packet[k], packet[k + 6] = packet[k + 6], packet[k]
        return out

    def select(packet: Any, length: Any, port: Any, user: Any) -> int:
        if length < _HEADERS_LENGTH or ap.be16(packet, 12) != 0x0800 or packet[14] != 0x45 or packet[23] != UDP:
            return nothing
        if (
            ap.be32(packet, 26) == src
            and ap.be32(packet, 30) == dst
            and ap.be16(packet, 34) == sport
            and ap.be16(packet, 36) == dport
        ):
            return out
        return nothing

    return ap.compiled({"drop": drop, "swap": swap, "filter": select}[job])


def of_library(per: str, job: str, out: int, flow: Flow) -> ap.Compiled:
    """A handler in C: native/handlers.c."""
    source = LIBRARY.parents[1] / "handlers.c"
    if not LIBRARY.exists() or LIBRARY.stat().st_mtime < source.stat().st_mtime:
        LIBRARY.parent.mkdir(exist_ok=True)
        command = ["cc", "-O2", "-Wall", "-shared", "-fPIC", f"-I{ap.include_dir()}", "-o", str(LIBRARY), str(source)]
        subprocess.run(command, check=True)
    wire = np.array([out, int.from_bytes(struct.pack("!HH", flow.sport, flow.dport), sys.byteorder)], np.uint32)
    user = np.concatenate([wire, np.array([flow.src, flow.dst], ">u4").view(np.uint32)])
    return ap.from_library(LIBRARY, f"{per}_{job}", user=user)


def of_headers(job: str, out: int, flow: Flow) -> Callable[[ap.Batch], Any]:
    """A numpy handler that reads headers by their names."""

    def select(batch: ap.Batch) -> Any:
        wanted = batch.udp.dport == flow.dport
        wanted &= batch.udp.sport == flow.sport
        wanted &= batch.ipv4.src == flow.src
        wanted &= batch.ipv4.dst == flow.dst
        return np.multiply(wanted, np.uint8(out), out=batch.verdicts)

    def swap(batch: ap.Batch) -> int:
        eth = batch.eth
        target = eth.dst.copy()
        eth.dst, eth.src = eth.src, target
        return out

    return {"drop": lambda batch: ap.DROP, "swap": swap, "filter": select}[job]


def of_numpy(job: str, out: int, flow: Flow) -> Callable[[ap.Batch], Any]:
    """A numpy handler."""

    def swap(batch: ap.Batch) -> int:
        batch.swap_macs()
        return out

    def select(batch: ap.Batch) -> Any:
        found = batch.five_tuple()
        wanted = found.dport == flow.dport
        wanted &= found.sport == flow.sport
        wanted &= found.src == flow.src
        wanted &= found.dst == flow.dst
        wanted &= found.proto == UDP
        return np.multiply(wanted, np.uint8(out), out=batch.verdicts)

    return {"drop": lambda batch: ap.DROP, "swap": swap, "filter": select}[job]


def wanted(packet: Any, flow: Flow) -> bool:
    """Whether the rule wants a packet, in plain Python."""
    if len(packet) < _HEADERS_LENGTH:
        return False
    kind, version, protocol, src, dst, sport, dport = _HEADERS(packet)
    return bool(
        kind == 0x0800
        and version == 0x45
        and protocol == UDP
        and src == flow.src
        and dst == flow.dst
        and sport == flow.sport
        and dport == flow.dport
    )


def swap_macs(packet: Any) -> None:
    """Exchange the MAC addresses of one packet, by the quickest of the ways plain Python has."""
    if len(packet) >= 14:
        target, source = _MACS.unpack_from(packet)
        _MACS.pack_into(packet, 0, source, target)


def of_packet(job: str, out: int, flow: Flow) -> Callable[[Any], int]:
    """A handler of one packet, which it sees as a memoryview or an array."""

    def swap(packet: Any) -> int:
        swap_macs(packet)
        return out

    def select(packet: Any) -> int:
        return out if wanted(packet, flow) else ap.DROP

    return {"drop": lambda packet: ap.DROP, "swap": swap, "filter": select}[job]


def handler(kind: str, job: str, out: int, flow: Flow) -> Any:
    """The handler of that kind, or None for the built-in loop."""
    if kind == "built-in":
        return None
    made: dict[str, Callable[[str, int, Flow], Any]] = {
        "C, batch": partial(of_library, "batch"),
        "C, packet": partial(of_library, "packet"),
        "compiled": compiled,
        "compiled, packet": compiled_packet,
        "numpy": of_numpy,
        "numpy, headers": of_headers,
    }
    if kind in made:
        return made[kind](job, out, flow)
    view: Any = kind.removeprefix("packet, ")
    return ap.per_packet(of_packet(job, out, flow), view=view)


def route(job: str, out: int) -> ap.Route:
    """What the built-in loop does instead."""
    return ap.Route(ap.DROP if job == "drop" else out, ap.Rewrite(swap=job == "swap"))


def packet_loop(
    job: str,
    flow: Flow,
    source: socket.socket,
    target: socket.socket,
    stop: Callable[[], bool],
    received: list[int],
) -> None:
    """The same with AF_PACKET sockets, one packet at a time; ``received[0]`` counts them."""
    buffer = bytearray(2048)
    view = memoryview(buffer)
    receive, send = source.recv_into, target.send
    source.settimeout(0.05)
    while not stop():
        with contextlib.suppress(TimeoutError):
            for _ in range(1024):
                n = receive(buffer)
                received[0] += 1
                if job == "drop":
                    continue
                if job == "swap":
                    swap_macs(view[:n])
                elif not wanted(view[:n], flow):
                    continue
                try:  # noqa: SIM105 - a context manager a packet would cost the rival a third
                    send(view[:n])
                except OSError:
                    pass  # the device's queue is full: dropped, as a kernel forwarder would


def packet_socket(netdev: str) -> socket.socket:
    """A raw socket on a device of this thread's namespace. What it sends itself it does not see."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    made.setsockopt(263, 23, 1)  # SOL_PACKET, PACKET_IGNORE_OUTGOING
    made.bind((netdev, 0))
    return made
