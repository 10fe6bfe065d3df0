"""`Machine`: every AF_XDP socket and XDP program there is, in all network namespaces this process can enter.

`Watcher` takes one picture after the other, and owns what it remembers between them (which descriptors are sockets of
another kind). Three things are put together: what sock_diag says of each namespace, where the kernel has it; what /proc
shows of every process, and a socket told when it was asked; and the beacons of our own engines, which alone know what
went through. Invariant: what cannot be known is None, and a note says why.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from afxdp_pool import beacon, hook, sockets
from afxdp_pool.errors import AfXdpError, NoSuchNamespaceError, PrivilegeError
from afxdp_pool.netdev import NETNS_DIR, in_netns, xsk_queues
from afxdp_pool.sockets import SocketSeen

_OWN = "/proc/thread-self/ns/net"
_MEMFD = f"/memfd:{beacon.NAME} (deleted)"


@dataclass(frozen=True)
class Process:
    """Who has a socket; empty names of one that has ended."""

    pid: int
    name: str
    command: str


@dataclass(frozen=True)
class Engine:
    """The forwarder that runs a socket, if it is one of ours: its counters, and those of the port. See `Told`."""

    handler: str
    cpu: int | None
    time_ns: int
    loop: dict[str, int]
    port: dict[str, int]


@dataclass(frozen=True)
class Socket:
    """An AF_XDP socket: where, whose, and what the kernel and its engine say of it.

    `netns` is ``""`` for the namespace of this process, a name below /run/netns, or ``"pid N"`` for one without a name,
    in which that process is. `netdev` and `queue` are None when the kernel does not tell.
    """

    netns: str
    netdev: str | None
    queue: int | None
    processes: tuple[Process, ...]
    seen: SocketSeen
    engine: Engine | None = None


@dataclass(frozen=True)
class Program:
    """An XDP program on a network device. `owner` is the process it is of, if it is one of ours that says so."""

    netns: str
    netdev: str
    mode: str
    id: int
    name: str
    parts: tuple[str, ...] = ()
    owner: int | None = None


@dataclass(frozen=True)
class Machine:
    """What was found at one moment. `time` is CLOCK_MONOTONIC in seconds; `notes` say what could not be seen."""

    time: float
    sockets: tuple[Socket, ...]
    programs: tuple[Program, ...]
    namespaces: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as nested dicts and lists of plain values."""
        return asdict(self)


@dataclass
class _Found:
    """What one look gathers. Sockets by inode, descriptors as (pid, fd)."""

    holders: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    beacons: list[tuple[int, int]] = field(default_factory=list)
    places: dict[int, tuple[str, str | None, int | None]] = field(default_factory=dict)
    seen: dict[int, SocketSeen] = field(default_factory=dict)
    engines: dict[int, Engine] = field(default_factory=dict)
    queues: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    programs: list[Program] = field(default_factory=list)
    notes: dict[str, None] = field(default_factory=dict)


class Watcher:
    """Takes pictures of the machine.

    Args:
        netns: only this network namespace, by name or path; None: all.

    Concurrency: one thread at a time; it moves that thread between network namespaces, and back.
    """

    def __init__(self, netns: str | None = None) -> None:
        self._netns = netns
        self._kinds: dict[int, bool] = {}  # by a socket's inode, whether it is AF_XDP

    def look(self) -> Machine:
        """One picture. What ends meanwhile is left out.

        Raises:
            NoSuchNamespaceError, PrivilegeError: the one namespace asked for does not exist, or cannot be entered.
        """
        found = _Found()
        self._read_proc(found)
        spaces = {inode: (name, path) for inode, name, path in self._namespaces()}
        for name, path in spaces.values():
            self._read_namespace(found, name, path)
        names = {inode: name for inode, (name, _) in spaces.items()}
        for inode, holders in found.holders.items():
            self._ask(found, inode, holders, names)
        for pid, fd in found.beacons:
            _read_beacon(found, pid, fd)
        _place_the_rest(found)
        return Machine(
            time.monotonic(),
            tuple(sorted((_made(found, inode) for inode in found.places), key=_order)),
            tuple(found.programs),
            len(spaces),
            tuple(found.notes),
        )

    # Namespaces -----------------------------------------------------------------------------------------------------

    def _namespaces(self) -> Iterator[tuple[int, str, str | None]]:
        """Inode, name, and a path of each; None for the thread's own."""
        own = os.stat(_OWN).st_ino
        if self._netns is not None:
            with in_netns(self._netns):
                yield os.stat(_OWN).st_ino, self._netns, self._netns
            return
        known = {own}
        yield own, "", None
        paths = [(path.name, path) for path in sorted(Path(NETNS_DIR).glob("*"))]
        paths += [(f"pid {path.name}", path / "ns/net") for path in _processes()]
        for name, path in paths:
            with contextlib.suppress(OSError):
                inode = path.stat().st_ino
                if inode not in known:
                    known.add(inode)
                    yield inode, name, str(path)

    def _read_namespace(self, found: _Found, name: str, path: str | None) -> None:
        try:
            with in_netns(path):
                devices = {index: device for index, device in socket.if_nameindex()}
                self._read_programs(found, name, devices)
                self._read_diag(found, name, devices)
                queues = xsk_queues() or []
                found.queues[name] = [(devices.get(index, f"#{index}"), queue) for index, queue in queues]
        except (NoSuchNamespaceError, PrivilegeError) as error:
            if self._netns is not None:
                raise
            if isinstance(error, PrivilegeError):
                found.notes["some network namespaces cannot be entered: run as root to see all"] = None

    def _read_programs(self, found: _Found, name: str, devices: dict[int, str]) -> None:
        for index, device in devices.items():
            try:
                there = hook.look(index)
            except PrivilegeError:
                found.notes["XDP programs cannot be named: run as root, or with CAP_BPF and CAP_SYS_ADMIN"] = None
                return
            except AfXdpError:
                continue  # it went away
            if there.program is not None:
                owners = [part.owner for part in (there.program, *there.parts) if part.owner is not None]
                found.programs.append(
                    Program(
                        name,
                        device,
                        there.mode,
                        there.program.id,
                        there.program.name,
                        tuple(part.name for part in there.parts),
                        owners[0].pid if owners else None,
                    )
                )

    def _read_diag(self, found: _Found, name: str, devices: dict[int, str]) -> None:
        try:
            dumped = sockets.dump()
        except OSError as error:
            found.notes[f"sock_diag: {error.strerror}"] = None
            return
        if dumped is None:
            found.notes[
                "this kernel has no XDP_DIAG: sockets are looked for in /proc, and their rings are not known"
            ] = None
            return
        for seen in dumped:
            device = devices.get(seen.ifindex, f"#{seen.ifindex}") if seen.ifindex else None
            found.seen[seen.inode] = seen
            found.places[seen.inode] = (name, device, seen.queue if device else None)

    # Processes ------------------------------------------------------------------------------------------------------

    def _read_proc(self, found: _Found) -> None:
        """Who has which AF_XDP socket, and where beacons are."""
        kinds: dict[int, bool] = {}
        hidden = False
        for process in _processes():
            try:
                fds = os.listdir(process / "fd")
            except PermissionError:
                hidden = True
                continue
            except OSError:
                continue
            for fd in fds:
                path = f"{process}/fd/{fd}"
                with contextlib.suppress(OSError, ValueError):
                    target = os.readlink(path)
                    if target == _MEMFD:
                        found.beacons.append((int(process.name), int(fd)))
                    elif target.startswith("socket:["):
                        inode = int(target[8:-1])
                        known = self._kinds.get(inode)
                        kinds[inode] = sockets.is_xdp(path) if known is None else known
                        if kinds[inode]:
                            found.holders[inode].append((int(process.name), int(fd)))
        self._kinds = kinds
        if hidden:
            found.notes["other users' processes are hidden: run as root to see all"] = None

    def _ask(self, found: _Found, inode: int, holders: list[tuple[int, int]], names: dict[int, str]) -> None:
        """Let a socket tell what sock_diag did not."""
        if inode in found.seen and found.seen[inode].stats is not None:
            return
        told = next(filter(None, (sockets.ask(pid, fd) for pid, fd in holders)), None)
        before = found.seen.get(inode, SocketSeen(inode))
        if told is not None:
            zero_copy = before.zero_copy if before.zero_copy is not None else told.zero_copy
            found.seen[inode] = replace(before, zero_copy=zero_copy, stats=told.stats)
        if inode in found.places:
            return
        if told is not None and told.netns in names:
            found.places[inode] = (names[told.netns], None, None)
        elif self._netns is None:
            found.places[inode] = ("?", None, None)
            found.notes["some sockets cannot be asked (ptrace): run as root to see all"] = None


def _processes() -> Iterator[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())


def _read_beacon(found: _Found, pid: int, fd: int) -> None:
    """What an engine of ours tells of its sockets: also where they are, where the kernel did not."""
    told = beacon.read(f"/proc/{pid}/fd/{fd}")
    if told is None:
        return
    for port, counters in zip(told.ports, told.counters, strict=True):
        inode = port["inode"]
        if inode in found.places:
            found.engines[inode] = Engine(told.handler, told.cpu, told.time_ns, told.engine, counters)
            found.places[inode] = (found.places[inode][0], port["netdev"], port["queue"])


def _place_the_rest(found: _Found) -> None:
    """Sockets that nobody placed are on the queues of their namespace that are bound, and left."""
    taken = set(found.places.values())
    for inode, (netns, netdev, _) in list(found.places.items()):
        if netdev is None:
            left = [place for place in found.queues.get(netns, []) if (netns, *place) not in taken]
            if len({device for device, _ in left}) == 1:
                found.places[inode] = (netns, left[0][0], left[0][1] if len(left) == 1 else None)


def _made(found: _Found, inode: int) -> Socket:
    processes = dict.fromkeys(pid for pid, _ in found.holders.get(inode, []))
    seen = found.seen.get(inode, SocketSeen(inode))
    return Socket(*found.places[inode], tuple(map(_process, processes)), seen, found.engines.get(inode))


def _process(pid: int) -> Process:
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return Process(pid, "", "")
    return Process(pid, name, " ".join([os.path.basename(words[0]), *words[1:]]).strip() or name)


def _order(one: Socket) -> tuple[str, str, int, int]:
    return one.netns, one.netdev or "~", -1 if one.queue is None else one.queue, one.seen.inode
