"""The guest's NICs and the wire between them: what the tests of this folder share."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import live_lab
import pytest
from machine import NICS

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import LabLink

ENGINE, TRAFFIC = "engine", "traffic"
#: The drivers under test: the engine's NIC of each.
DRIVERS = {"igb": "i0", "virtio_net": "v0"}
#: Drivers with native XDP and no zero-copy.
COPYING = {"vmxnet3": "x0"}
MODES = ("copy", "zero-copy")
#: Few frames with the kernel: less to go through in an emulated machine.
RINGS = {"fill_size": 512, "fill_level": 256, "rx_size": 512, "tx_size": 512, "comp_size": 512}

each_driver = pytest.mark.parametrize("driver", DRIVERS)
each_mode = pytest.mark.parametrize("mode", MODES)
#: Every driver, in every mode it has.
each_way = pytest.mark.parametrize(
    ("driver", "mode"),
    [*((driver, mode) for driver in DRIVERS for mode in MODES), *((driver, "copy") for driver in COPYING)],
)

_SIOCGIFFLAGS, _IFF_RUNNING = 0x8913, 0x40
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_IGNORE_OUTGOING, _MR_PROMISC = 263, 1, 23, 1


def config(mode: str, **changes: Any) -> ap.PortConfig:
    """A port for these tests: small rings, the socket's own way out."""
    return ap.PortConfig(**{**RINGS, "mode": mode, "transmit": "socket", **changes})


def options(mode: str, **changes: Any) -> ap.Options:
    """The same for the ready-made paths."""
    return ap.Options(netns=ENGINE, port=config(mode, **changes))


def near_of(driver: str) -> str:
    """The engine's NIC of a driver."""
    return {**DRIVERS, **COPYING}[driver]


def with_two_queues(name: str) -> str:
    """The same, if it can have two queues."""
    channels = ap.steering_state(name, ENGINE).channels
    if channels is None or channels.most_combined < 2:
        pytest.skip(f"{name} has one queue: the host of this guest has no tap devices")
    return name


def mac_of(name: str) -> bytes:
    """A NIC's MAC address."""
    return bytes.fromhex(NICS[name][0].replace(":", ""))


def far_of(near: str) -> str:
    """The NIC at the other end of the cable."""
    return near[0] + "1"


def link(name: str) -> LabLink:
    """A NIC as the library's own test tools take it."""
    netns = TRAFFIC if name.endswith("1") else ENGINE
    peer = name[0] + ("0" if name.endswith("1") else "1")
    with in_netns(netns):
        index = socket.if_nametoindex(name)
    return LabLink(name, netns, mac_of(name), "", index, 1, 1500, mac_of(peer) if peer in NICS else bytes(6), "")


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    """Wait on a condition, with a deadline: an emulated machine takes its time."""
    return live_lab.wait_for(condition, seconds)


def ip(netns: str, *arguments: str) -> None:
    """ip(8) in a namespace."""
    subprocess.run(["ip", "-n", netns, *arguments], check=True, timeout=30)


def running(name: str) -> bool:
    """Whether a NIC is up and has a carrier."""
    with in_netns(link(name).netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", name.encode(), 0)
        (flags,) = struct.unpack_from("H", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request), 16)
    return bool(flags & _IFF_RUNNING)


def up(*names: str) -> None:
    """Wait until these NICs have a carrier: igb loses it for a moment whenever a program or a socket comes or goes."""
    for name in names:
        assert wait_for(lambda name=name: running(name)), f"{name} has no carrier"  # type: ignore[misc]


#: The fixture `closed`: takes a port or a forwarder, and closes it at the end of the test, whatever comes.
Thing = TypeVar("Thing", bound=contextlib.AbstractContextManager[Any])


class Closed(Protocol):
    """See `Thing`."""

    def __call__(self, thing: Thing) -> Thing: ...


class Wire:
    """The far end of a cable, by a packet socket: sends numbered test packets, takes in what the engine sends."""

    def __init__(self, name: str) -> None:
        self.name, self.link, self.next = name, link(name), 0
        self._addresses = packets.Addresses(source_mac=self.link.mac, target_mac=self.link.peer_mac)
        with in_netns(TRAFFIC):
            self.raw = self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.bind((name, 3))
        # What the engine forwards is addressed to the NIC it came in by.
        membership = struct.pack("iHH8x", self.link.ifindex, _MR_PROMISC, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, membership)

    def send(self, count: int, *, flows: int = 1, size: int = 64) -> int:
        """Send `count` more, numbered on; how many in all."""
        for number in range(self.next, self.next + count):
            packet = packets.build(size, flow=number % flows, seq=number // flows, addresses=self._addresses)
            self._socket.send(packet)
        self.next += count
        return self.next

    def take(self, count: int, seconds: float = 30.0) -> list[int]:
        """The numbers of the next `count` test packets that arrive, as they came; fewer at the deadline."""
        numbers: list[int] = []
        deadline = time.monotonic() + seconds
        while len(numbers) < count and (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                packet = packets.parse(self._socket.recv(4096))
                if packet is not None:
                    numbers.append(packet.seq)
        return numbers

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@contextlib.contextmanager
def wires(*names: str) -> Iterator[Sequence[Wire]]:
    """The far ends of these NICs."""
    made = [Wire(far_of(name)) for name in names]
    try:
        yield made
    finally:
        for one in made:
            one.close()
