"""`Watch`: an eye on the devices under open ports, for what no event of a socket tells of.

A socket is silent when its device is deleted, goes down or loses its carrier, when somebody takes the XDP program off,
when queues are added beside its own, and when its packets get stuck: it only receives nothing any more, or gets nothing
back. A `Watch` looks once a second, in a thread of its own, since some of its questions wait for the kernel's
configuration lock; a running forwarder has one. It owns that thread, and a netlink socket in each of the devices'
namespaces, so that it sees a device whatever its namespace, or the device itself, is called by now.
Invariant: looking touches no ring and no frame.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from afxdp_pool import hook as xdp
from afxdp_pool import netdev as netdevs
from afxdp_pool import netlink
from afxdp_pool.config import PACKET_HEADROOM
from afxdp_pool.errors import AfXdpError, LinkGoneError, ProgramGoneError
from afxdp_pool.single import Single

if TYPE_CHECKING:
    from afxdp_pool.port import Port

log = logging.getLogger("afxdp_pool")
#: Seconds between two looks.
EVERY = 1.0
#: How long nothing may move before it counts as stuck.
STUCK_AFTER = 1.0

_RTM_GETLINK, _IFINFO = 18, struct.Struct("=HHiII")
_IFF_UP = 1
_IFNAME, _MTU, _CARRIER, _XDP, _EXT_MASK = 3, 4, 33, 43, 29
_SKIP_STATS = 8  # RTEXT_FILTER_SKIP_STATS
_PROGRAM_IDS = (4, 5, 6, 7)  # IFLA_XDP_PROG_ID, and those of the three modes
_ETHERNET = 14 + 4  # with one VLAN tag


@dataclass(frozen=True)
class LinkState:
    """A network device at one moment. `programs` are the numbers of the XDP programs on its hook, not those of a
    dispatcher's parts; queues are those in use."""

    name: str
    up: bool
    carrier: bool
    mtu: int
    programs: frozenset[int]
    rx_queues: int
    tx_queues: int


class Eye:
    """Sees the devices of one network namespace from any thread, as long as it is open, even if the name goes.

    Raises:
        NoSuchNamespaceError, PrivilegeError: the namespace cannot be entered. OSError: no descriptor, or no netlink.
    """

    def __init__(self, netns: str | None) -> None:
        with netdevs.in_netns(netns):
            self._netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._socket = socket.socket(
                    socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
                )
            except BaseException:
                os.close(self._netns)
                raise
        self._socket.settimeout(5)
        self._inside = f"/proc/self/fd/{self._netns}" if netns is not None else None

    def look(self, index: int) -> LinkState | None:
        """The device of that number; None when there is none any more. Raises OSError as the kernel says."""
        more = netlink.attribute(_EXT_MASK, _SKIP_STATS)
        try:
            reply = netlink.ask_on(self._socket, _RTM_GETLINK, _IFINFO.pack(0, 0, index, 0, 0) + more)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EINVAL):
                return None
            raise
        _, _, _, flags, _ = _IFINFO.unpack_from(reply)
        found = netlink.attributes(reply[_IFINFO.size :])
        ids = netlink.attributes(found.get(_XDP, b""))
        name = found[_IFNAME].rstrip(b"\0").decode()
        with netdevs.in_netns(self._inside):
            rx, tx = netdevs.channels(name)
        return LinkState(
            name,
            bool(flags & _IFF_UP),
            found.get(_CARRIER, b"\1") != b"\0",
            netlink.number(found[_MTU]),
            frozenset(netlink.number(ids.get(number)) for number in _PROGRAM_IDS) - {0},
            rx,
            tx,
        )

    def hook(self, index: int) -> xdp.Hook:
        """Who is on the device's XDP hook, the parts of a dispatcher too."""
        with netdevs.in_netns(self._inside):
            return xdp.look(index)

    def close(self) -> None:
        """Close its descriptors."""
        self._socket.close()
        os.close(self._netns)


class Watch(Single):
    """Looks after `ports`: by a thread of its own from `with` to its end, or when `look()` is called.

    Ports in memory, and those whose namespace cannot be entered any more, are not looked after.

    Concurrency: `look` one thread at a time, and not beside the thread of `with`; `check` any.
    """

    def __init__(self, ports: Iterable[Port]) -> None:
        self._eyes: dict[str | None, Eye] = {}
        self._ports: list[tuple[Port, netdevs.Netdev, Eye]] = []
        self._first: dict[tuple[str | None, int], LinkState] = {}
        self._moved: dict[tuple[Port, str], tuple[int, float]] = {}
        self._said: dict[tuple[str, str], str] = {}
        self._failure: AfXdpError | None = None
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        for port in ports:
            if (where := port._where) is None:
                continue
            try:
                if where.netns not in self._eyes:
                    self._eyes[where.netns] = Eye(where.netns)
                self._ports.append((port, where, self._eyes[where.netns]))
            except (OSError, AfXdpError) as error:
                log.info("%s is not watched: %s", port.name, error)

    def look(self) -> list[str]:
        """Look at every device and port; what is wrong with them now, a sentence each. What is new is logged as well.

        Raises:
            LinkGoneError: a device was deleted. ProgramGoneError: the XDP program of a port was taken off or replaced.
        """
        found: dict[tuple[str, str], str] = {}
        states: dict[tuple[str | None, int], LinkState] = {}
        for port, where, eye in self._ports:
            key = where.netns, where.index
            if key not in states:
                state = eye.look(where.index)
                if state is None:
                    raise LinkGoneError(
                        "the interface was deleted", subject=where.name, hint="make it again and start anew"
                    )
                states[key] = state
            self._require_program(port, where, eye, states[key])
            for kind, text in self._troubles(port, states[key], self._first.setdefault(key, states[key])):
                device = kind in ("down", "carrier", "mtu", "queues")
                found[_shown(where) if device else port.name, kind] = text
        for (subject, kind), text in found.items():
            if (subject, kind) not in self._said:
                log.warning("%s: %s", subject, text)
        for subject, kind in self._said.keys() - found.keys():
            log.info("%s: no longer: %s", subject, self._said[subject, kind])
        self._said = found
        return [f"{subject}: {text}" for (subject, _), text in found.items()]

    def check(self) -> None:
        """Raise what the thread of `with` found, if that ends the ports' use.

        Raises:
            LinkGoneError, ProgramGoneError: as `look`.

        Concurrency: any thread.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def _require_program(self, port: Port, where: netdevs.Netdev, eye: Eye, state: LinkState) -> None:
        program = port.program
        if program is None or program.closed or program.id in state.programs:
            return
        hook = eye.hook(where.index)
        if program.id in (part.id for part in hook.parts) or program.closed:
            return
        there = f"{hook.program} is there now" if hook.program else "there is none now"
        raise ProgramGoneError(
            f"somebody took the XDP program off that brings its packets (program {program.id}): {there}",
            subject=_shown(where),
            hint="start anew once the hook is free",
        )

    def _troubles(self, port: Port, now: LinkState, first: LinkState) -> Iterator[tuple[str, str]]:
        if not now.up:
            yield "down", "the interface is down: nothing is received until it is up again"
        elif not now.carrier:
            yield "carrier", "there is no carrier, the other end is down: what is sent is lost"
        umem = port.pool.umem
        room = umem.frame_size - umem.config.headroom - PACKET_HEADROOM
        if port.config.receive and not port.config.multi_buffer and now.mtu + _ETHERNET > room:
            yield (
                "mtu",
                f"the MTU is {now.mtu}, and frames have room for packets of {room} bytes: longer ones are dropped "
                "by the kernel, and counted in rx_dropped",
            )
        if now.rx_queues > first.rx_queues > 0:
            yield (
                "queues",
                f"it has {now.rx_queues} receive queues now, and had {first.rx_queues}: packets of queues without "
                "a socket go to the kernel's stack",
            )
        if not port.closed:
            yield from self._stuck(port, now)

    def _stuck(self, port: Port, now: LinkState) -> Iterator[tuple[str, str]]:
        stats = port.stats()
        in_tx = stats.in_tx
        if self._still(port, "tx", stats.tx_completed, in_tx > 0):
            yield (
                "tx",
                f"{in_tx} packets were given to the kernel and none of them has been sent for a second: "
                + (_why_stuck(port, now)),
            )
        if port.config.receive and self._still(port, "fill", stats.rx_packets, stats.in_fill <= 0):
            count = port.pool.umem.count_states()
            holds = f"of {sum(count.values())} frames the application holds {count['app']} and TX {count['tx']}"
            yield "fill", f"the FILL ring is empty, so nothing can be received: {holds}"

    def _still(self, port: Port, what: str, value: int, waiting: bool) -> bool:
        """Whether it has been waiting for STUCK_AFTER seconds without the value moving."""
        then, since = self._moved.get((port, what), (-1, 0.0))
        clock = time.monotonic()
        if not waiting or value != then:
            self._moved[port, what] = (value if waiting else -1), clock
            return False
        return clock - since >= STUCK_AFTER

    # The thread -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while True:
                self.look()
                if self._end.wait(EVERY):
                    return
        except AfXdpError as error:
            self._failure = error
        except OSError as error:
            log.warning("the devices are not watched any more: %s", error)

    def __enter__(self) -> Self:
        if self._ports:
            self._thread = threading.Thread(target=self._work, name="afxdp-pool watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread and close its descriptors. Idempotent. Concurrency: any thread but its own."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        eyes, self._eyes, self._ports = self._eyes, {}, []
        for eye in eyes.values():
            eye.close()


def why_stuck(port: Port) -> str:
    """Why what was sent out of `port` does not come back, in a few words. For loops of one's own.

    Raises:
        LinkGoneError: the device was deleted. PoolClosedError: the port is closed.

    Concurrency: the port's thread.
    """
    if port.ring_levels()["comp"] >= port.config.comp_size:
        return "the COMPLETION ring is full: call complete()"
    if (where := port._where) is None:
        return "the kernel has not sent them"
    with contextlib.closing(Eye(where.netns)) as eye:
        state = eye.look(where.index)
    if state is None:
        raise LinkGoneError("the interface was deleted", subject=where.name, hint="make it again and start anew")
    return _why_stuck(port, state)


def _why_stuck(port: Port, now: LinkState) -> str:
    if not now.up:
        return "the interface is down"
    if now.tx_queues and port.queue >= now.tx_queues:
        return f"queue {port.queue} is beyond the device's {now.tx_queues} transmit queues"
    if not now.carrier:
        return "there is no carrier, the other end is down"
    return "the driver has them, or its queue is stopped"


def _shown(where: netdevs.Netdev) -> str:
    return f"{where.name} in namespace {where.netns}" if where.netns else where.name
