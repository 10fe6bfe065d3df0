"""Network devices and network namespaces as the engine needs to know them; a `Netdev` owns nothing.

Everything is asked in the calling thread's network namespace, over netlink and the ethtool ioctl. sysfs
is not used: it shows the namespace it was mounted in, not the one the thread is in.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from afxdp_pool._native import ffi, lib
from afxdp_pool.errors import AfXdpError, NoSuchInterfaceError, NoSuchNamespaceError, PrivilegeError

NETNS_DIR = "/run/netns"

_IFF_UP = 1
_SIOCETHTOOL, _ETHTOOL_GDRVINFO, _ETHTOOL_GCHANNELS = 0x8946, 0x3, 0x3C
_NLM_F_REQUEST, _NLMSG_ERROR = 1, 2
_NETLINK_GENERIC = 16
_RTM_GETLINK = 18
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 1, 3, 4, 31, 32
_GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, _CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 16, 3, 1, 2
_NETDEV_CMD_DEV_GET, _NETDEV_A_DEV_IFINDEX, _NETDEV_A_DEV_XDP_FEATURES, _NETDEV_A_DEV_ZC_MAX_SEGS = 1, 1, 3, 4
_NAME_MAX = 15
_NLA_TYPE_MASK = 0x3FFF


@dataclass(frozen=True)
class Netdev:
    """A network device at one moment.

    Attributes:
        mac: hardware address, 6 bytes for Ethernet, empty when the device has none.
        mtu: bytes of payload of one frame.
        driver: the driver's name, e.g. ``"veth"``; empty when the device has no ethtool operations.
        rx_queues, tx_queues: queues in use now; if the driver does not tell, those it was made with.
        netns: the name it was looked up with, None for the thread's own namespace.
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


class XdpFeature(IntFlag):
    """What a driver says it can do (`enum netdev_xdp_act`, include/uapi/linux/netdev.h)."""

    BASIC = 1
    REDIRECT = 2
    NDO_XMIT = 4
    XSK_ZEROCOPY = 8
    HW_OFFLOAD = 16
    RX_SG = 32
    NDO_XMIT_SG = 64


@dataclass(frozen=True)
class XdpFeatures:
    """The driver's XDP features; `zc_max_segments` is 0 when zero-copy is not offered or not told."""

    flags: XdpFeature
    zc_max_segments: int


def find(name: str, netns: str | None = None) -> Netdev:
    """Look up the network device `name` in namespace `netns` (None: the thread's own).

    Raises:
        NoSuchInterfaceError: there is none of that name (the hint lists those there are).
        NoSuchNamespaceError: there is no such namespace.

    Concurrency: any thread.
    """
    with in_netns(netns):
        where = f"{name} in namespace {netns}" if netns else name
        if not 0 < len(name) <= _NAME_MAX:
            raise NoSuchInterfaceError(
                f"an interface name has 1 to {_NAME_MAX} characters", subject=repr(name), hint=_names_hint()
            )
        header = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0)
        try:
            reply = _ask(socket.NETLINK_ROUTE, _RTM_GETLINK, header + _attribute(_IFLA_IFNAME, name.encode() + b"\0"))
        except OSError as error:
            if error.errno not in (errno.ENODEV, errno.EINVAL):
                raise AfXdpError(subject=where, doing="asking about the interface", errno=error.errno or 0) from error
            raise NoSuchInterfaceError(
                "there is no such interface", subject=where, errno=errno.ENODEV, hint=_names_hint()
            ) from None
        _, _, index, flags, _ = struct.unpack_from("=BxHiII", reply)
        attributes = _attributes(reply[16:])
        rx, tx = _channels(name)
        return Netdev(
            name=name,
            index=index,
            mac=attributes.get(_IFLA_ADDRESS, b""),
            mtu=_u32(attributes, _IFLA_MTU),
            up=bool(flags & _IFF_UP),
            driver=_driver(name),
            rx_queues=rx or _u32(attributes, _IFLA_NUM_RX_QUEUES),
            tx_queues=tx or _u32(attributes, _IFLA_NUM_TX_QUEUES),
            netns=netns,
        )


def xdp_features(name: str, netns: str | None = None) -> XdpFeatures | None:
    """The XDP features of a device's driver, or None when the kernel cannot tell (before Linux 6.3).

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError: as `find`.

    Concurrency: any thread.
    """
    index = find(name, netns).index
    with in_netns(netns):
        try:
            family = _ask(
                _NETLINK_GENERIC,
                _GENL_ID_CTRL,
                struct.pack("=BBH", _CTRL_CMD_GETFAMILY, 1, 0) + _attribute(_CTRL_ATTR_FAMILY_NAME, b"netdev\0"),
            )
            (kind,) = struct.unpack_from("=H", _attributes(family[4:])[_CTRL_ATTR_FAMILY_ID])
            reply = _ask(
                _NETLINK_GENERIC,
                kind,
                struct.pack("=BBH", _NETDEV_CMD_DEV_GET, 1, 0)
                + _attribute(_NETDEV_A_DEV_IFINDEX, struct.pack("=I", index)),
            )
        except (OSError, KeyError):
            return None
    attributes = _attributes(reply[4:])
    raw = attributes.get(_NETDEV_A_DEV_XDP_FEATURES)
    if raw is None:
        return None
    return XdpFeatures(XdpFeature(struct.unpack("=Q", raw)[0] & 0x7F), _u32(attributes, _NETDEV_A_DEV_ZC_MAX_SEGS))


def netns_path(name: str) -> str:
    """The file of a network namespace: an absolute path as it is, a name below /run/netns."""
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
    subject = f"network namespace {name}"
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
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
        try:
            yield
        finally:
            _enter(home, "the thread's own network namespace")
    finally:
        os.close(home)


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


def _ethtool(name: str, request: bytes) -> bytes | None:
    """One ethtool ioctl; None when the driver does not offer it."""
    buffer = array.array("B", request)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), buffer.buffer_info()[0]))
        except OSError:
            return None
    return buffer.tobytes()


def _driver(name: str) -> str:
    reply = _ethtool(name, struct.pack("=I192x", _ETHTOOL_GDRVINFO))
    return reply[4:36].split(b"\0")[0].decode(errors="replace") if reply else ""


def _channels(name: str) -> tuple[int, int]:
    """Receive and transmit queues in use; (0, 0) when the driver does not tell."""
    reply = _ethtool(name, struct.pack("=I32x", _ETHTOOL_GCHANNELS))
    if reply is None:
        return 0, 0
    rx, tx, _, combined = struct.unpack_from("=4I", reply, 20)
    return rx + combined, tx + combined


def _attribute(kind: int, payload: bytes) -> bytes:
    padding = -len(payload) % 4
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * padding


def _attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, at)
        if size < 4:
            break
        found[kind & _NLA_TYPE_MASK] = data[at + 4 : at + size]
        at += (size + 3) & ~3
    return found


def _u32(attributes: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, b"")[:4], sys.byteorder)


def _ask(protocol: int, kind: int, body: bytes) -> bytes:
    """One netlink request with one answer; returns the answer's body. Raises OSError as the kernel says."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        link.settimeout(5)
        link.bind((0, 0))
        link.send(struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST, 1, 0) + body)
        reply = link.recv(65536)
    size, answer = struct.unpack_from("=IH", reply)
    if answer == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", reply, 16)
        raise OSError(-code, os.strerror(-code))
    return reply[16:size]
