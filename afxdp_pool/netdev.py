"""Network devices and network namespaces as the engine needs to know them; a `Netdev` owns nothing.

Everything is asked in the calling thread's network namespace, by netlink and the ethtool ioctl. sysfs is not used: it
shows the namespace it was mounted in, not the one the thread is in.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from afxdp_pool import netlink, numa
from afxdp_pool._native import ffi, lib
from afxdp_pool.config import need
from afxdp_pool.errors import AfXdpError, NoSuchInterfaceError, NoSuchNamespaceError, PrivilegeError

NETNS_DIR = "/run/netns"

_OWN_NETNS = "/proc/thread-self/ns/net"

_IFF_UP, _IFF_PROMISC, _IFF_LOWER_UP = 1, 1 << 8, 1 << 16
_RTM_GETLINK = 18
_IFINFO = struct.Struct("=HHiII")  # struct ifinfomsg: family, type, number, flags, mask of a change
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 1, 3, 4, 31, 32
# include/uapi/linux/netdev.h: commands; attributes of devices (features, ZC segments, RX metadata, XSK), and of queues.
_NETDEV_CMD_DEV_GET, _NETDEV_CMD_QUEUE_GET = 1, 10
_DEV_IFINDEX, _DEV_FEATURES = 1, (3, 4, 5, 6)
_QUEUE_ID, _QUEUE_IFINDEX, _QUEUE_TYPE, _QUEUE_XSK = 1, 2, 3, 7
_SIOCETHTOOL, _ETHTOOL_GDRVINFO, _ETHTOOL_GCHANNELS = 0x8946, 0x3, 0x3C
_NAME_MAX = 15
_MOST_NAMESPACES = 100


class XdpFeature(IntFlag):
    """What a driver says it can do (`enum netdev_xdp_act`, include/uapi/linux/netdev.h). Keeps bits not known here."""

    BASIC = 1
    REDIRECT = 2
    NDO_XMIT = 4
    XSK_ZEROCOPY = 8
    HW_OFFLOAD = 16
    RX_SG = 32
    NDO_XMIT_SG = 64


class RxMetadata(IntFlag):
    """What a driver tells an XDP program of a packet (`enum netdev_xdp_rx_metadata`). Keeps bits not known here."""

    TIMESTAMP = 1
    HASH = 2
    VLAN_TAG = 4


class XskFeature(IntFlag):
    """What a driver does for packets that a socket sends (`enum netdev_xsk_flags`). Keeps bits not known here."""

    TX_TIMESTAMP = 1
    TX_CHECKSUM = 2
    TX_LAUNCH_TIME_FIFO = 4


def flag_names(flags: IntFlag) -> tuple[str, ...]:
    """The flags by name, in lower case; bits without a name as one number, such as ``"0x180"``."""
    known = sum(type(flags))
    names = [flag.name.lower() for flag in type(flags) if flag in flags and flag.name]
    return (*names, hex(flags & ~known)) if flags & ~known else tuple(names)


@dataclass(frozen=True)
class XdpFeatures:
    """What a driver offers to XDP and AF_XDP.

    Attributes:
        flags: XDP itself.
        zc_max_segments: frames a packet may have in zero-copy; 0 when zero-copy is not offered, or it is not told.
        rx_metadata: what XDP programs can ask of a received packet (Linux 6.8; none told before).
        xsk: what it does for packets sent by a socket in zero-copy (Linux 6.8).
    """

    flags: XdpFeature
    zc_max_segments: int
    rx_metadata: RxMetadata
    xsk: XskFeature


@dataclass(frozen=True)
class Netdev:
    """A network device at one moment.

    Attributes:
        mac: hardware address, 6 bytes for Ethernet, empty when the device has none.
        mtu: bytes of payload of one frame.
        driver: the driver's name, e.g. ``"veth"``; empty when the device has no ethtool operations.
        rx_queues, tx_queues: queues in use now; if the driver does not tell, those it was made with.
        netns: the name it was looked up with, None for the thread's own namespace.
        carrier: whether its other end is there; without, nothing arrives and what is sent is dropped.
        promisc: whether it also takes what is for other MAC addresses.
        bus: the address of the hardware, such as ``"0000:01:00.0"``; empty for a device of software.
        numa_node: the NUMA node of the hardware; None: it has none, or it is not known.
        features: what its driver offers; None when the kernel cannot tell (before Linux 6.3).
    """

    name: str
    index: int
    mac: bytes
    mtu: int
    up: bool
    driver: str
    rx_queues: int
    tx_queues: int
    netns: str | None = None
    carrier: bool = True
    promisc: bool = False
    bus: str = ""
    numa_node: int | None = None
    features: XdpFeatures | None = None


def find(name: str, netns: str | None = None) -> Netdev:
    """Look up the network device `name` in namespace `netns` (None: the thread's own).

    Raises:
        NoSuchInterfaceError: there is none of that name (the hint lists those there are).
        NoSuchNamespaceError: there is no such namespace.

    Concurrency: any thread.
    """
    need(name, str)
    with in_netns(netns):
        where = f"{name} in namespace {netns}" if netns else name
        if not 0 < len(name) <= _NAME_MAX:
            raise NoSuchInterfaceError(
                f"an interface name has 1 to {_NAME_MAX} characters", subject=repr(name), hint=_names_hint()
            )
        try:
            index, flags, link = _ask_link(name)
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise AfXdpError(subject=where, doing="asking about the interface", errno=error.errno or 0) from error
            raise NoSuchInterfaceError(
                "there is no such interface",
                subject=where,
                errno=errno.ENODEV,
                hint=_names_hint() + ("" if netns else _elsewhere(name)),
            ) from None
        rx, tx = channels(name)
        driver, bus = _driver(name)
        return Netdev(
            name=name,
            index=index,
            mac=link.get(_IFLA_ADDRESS, b""),
            mtu=netlink.number(link.get(_IFLA_MTU)),
            up=bool(flags & _IFF_UP),
            driver=driver,
            rx_queues=rx or netlink.number(link.get(_IFLA_NUM_RX_QUEUES)),
            tx_queues=tx or netlink.number(link.get(_IFLA_NUM_TX_QUEUES)),
            netns=netns,
            carrier=bool(flags & _IFF_LOWER_UP),
            promisc=bool(flags & _IFF_PROMISC),
            bus=bus,
            numa_node=numa.node_of_device(bus),
            features=_features(index),
        )


def _ask_link(name: str) -> tuple[int, int, dict[int, bytes]]:
    """A device of the thread's namespace as rtnetlink tells it: its number, its flags, its attributes (IFLA_...).

    Raises:
        OSError: as the kernel says.
    """
    reply = netlink.ask(
        socket.NETLINK_ROUTE,
        _RTM_GETLINK,
        _IFINFO.pack(0, 0, 0, 0, 0) + netlink.attribute(_IFLA_IFNAME, name.encode() + b"\0"),
    )
    _, _, index, flags, _ = _IFINFO.unpack_from(reply)
    return index, flags, netlink.attributes(reply[_IFINFO.size :])


def xdp_features(name: str, netns: str | None = None) -> XdpFeatures | None:
    """The XDP features of a device's driver, or None when the kernel cannot tell (before Linux 6.3).

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError: as `find`.

    Concurrency: any thread.
    """
    return find(name, netns).features


def _features(index: int) -> XdpFeatures | None:
    try:
        told = netlink.generic("netdev", _NETDEV_CMD_DEV_GET, netlink.attribute(_DEV_IFINDEX, index))
    except OSError:
        return None
    flags, segments, metadata, xsk = (told.get(number) for number in _DEV_FEATURES)
    if flags is None:
        return None
    return XdpFeatures(
        XdpFeature(netlink.number(flags)),
        netlink.number(segments),
        RxMetadata(netlink.number(metadata)),
        XskFeature(netlink.number(xsk)),
    )


def xsk_queues() -> list[tuple[int, int]] | None:
    """(ifindex, queue) of each receive queue that an AF_XDP socket is bound to, in the thread's network namespace.

    None when the kernel cannot tell (before Linux 6.14). Concurrency: any thread.
    """
    try:
        queues = list(netlink.generic_dump("netdev", _NETDEV_CMD_QUEUE_GET))
    except OSError:
        return None
    bound = [queue for queue in queues if _QUEUE_XSK in queue and netlink.number(queue.get(_QUEUE_TYPE)) == 0]
    return [(netlink.number(queue[_QUEUE_IFINDEX]), netlink.number(queue[_QUEUE_ID])) for queue in bound]


def netns_path(name: str) -> str:
    """The file of a network namespace: an absolute path as it is, a name below /run/netns."""
    need(name, str)
    return name if name.startswith("/") else f"{NETNS_DIR}/{name}"


@contextlib.contextmanager
def in_netns(name: str | None) -> Iterator[None]:
    """Run the body with this thread in the network namespace `name`, and come back whatever happens.

    Sockets and attachments made in the body stay in that namespace. None does nothing.

    Raises:
        NoSuchNamespaceError: there is no such namespace.
        PrivilegeError: changing the namespace needs CAP_SYS_ADMIN.

    Concurrency: moves the calling thread only; a generator or coroutine must not yield inside the body.
    """
    if name is None:
        yield
        return
    home = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_netns(name)
        try:
            yield
        finally:
            _enter(home, "the thread's own network namespace")
    finally:
        os.close(home)


def enter_netns(name: str) -> None:
    """Move this thread into the network namespace `name`, and whatever threads it starts from now on.

    Raises:
        NoSuchNamespaceError, PrivilegeError: as `in_netns`.
    """
    subject = f"network namespace {name}"
    try:
        target = os.open(netns_path(name), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NoSuchNamespaceError(
            subject=subject,
            doing="opening it",
            errno=error.errno or 0,
            hint=f"make it with `ip netns add {name}`" if not name.startswith("/") else "",
        ) from None
    try:
        _enter(target, subject)
    finally:
        os.close(target)


def new_netns() -> int:
    """A new, nameless network namespace, as a descriptor that alone keeps it alive. Ownership: close it.

    Raises:
        PrivilegeError: it needs CAP_SYS_ADMIN.
    """
    made: list[int] = []
    failed: list[BaseException] = []

    def make() -> None:
        try:
            before = os.stat(_OWN_NETNS).st_ino
            if lib.unshare(lib.CLONE_NEWNET) != 0:
                code = ffi.errno
                kind = PrivilegeError if code == errno.EPERM else AfXdpError
                raise kind(doing="making a network namespace", errno=code, hint="run as root, or grant CAP_SYS_ADMIN")
            made.append(os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC))
            if os.fstat(made[0]).st_ino == before:
                raise AfXdpError("the kernel made no new network namespace")
        except BaseException as error:
            failed.append(error)

    # In a thread of its own, which takes the namespace it is in with it.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        for fd in made:
            os.close(fd)
        raise failed[0]
    return made[0]


def _enter(fd: int, subject: str) -> None:
    if lib.setns(fd, lib.CLONE_NEWNET) == 0:
        return
    code = ffi.errno
    if code == errno.EPERM:
        raise PrivilegeError(
            subject=subject, doing="entering it", errno=code, hint="run as root, or grant CAP_SYS_ADMIN"
        )
    raise NoSuchNamespaceError("it is not a network namespace", subject=subject, doing="entering it", errno=code)


def _names_hint() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return f"interfaces there: {', '.join(names[:20])}{' ...' if len(names) > 20 else ''}"


def _elsewhere(name: str) -> str:
    """The named namespaces that have a device of this name, as far as they can be entered."""
    found = []
    with contextlib.suppress(OSError):
        for netns in sorted(os.listdir(NETNS_DIR))[:_MOST_NAMESPACES]:
            with contextlib.suppress(AfXdpError, OSError), in_netns(netns):
                found += [netns] if name in dict(socket.if_nameindex()).values() else []
    return f"; namespace {' and '.join(found)} has one of that name" if found else ""


def ethtool(name: str, request: bytes) -> bytes:
    """One ethtool ioctl on a device of this thread's namespace: the request as the kernel answered it.

    Raises:
        OSError: as the kernel says; ENOTSUP where the driver does not offer it.
    """
    buffer = array.array("B", request)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), buffer.buffer_info()[0]))
    return buffer.tobytes()


def _driver(name: str) -> tuple[str, str]:
    """The driver's name and the address of what it drives."""
    try:
        reply = ethtool(name, struct.pack("=I192x", _ETHTOOL_GDRVINFO))
    except OSError:
        return "", ""
    driver, bus = (part.split(b"\0")[0].decode(errors="replace") for part in (reply[4:36], reply[100:132]))
    return driver, "" if bus in ("N/A", "tun", "tap") else bus


def channels(name: str) -> tuple[int, int]:
    """Receive and transmit queues in use by a device of this thread's namespace; (0, 0): the driver does not tell."""
    try:
        rx, tx, _, combined = struct.unpack_from("=4I", ethtool(name, struct.pack("=I32x", _ETHTOOL_GCHANNELS)), 20)
    except OSError:
        return 0, 0
    return rx + combined, tx + combined
