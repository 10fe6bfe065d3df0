"""AF_XDP sockets as others see them: the kernel's sock_diag, and what a descriptor of somebody else's tells.

Nothing here owns anything but for the length of a call, and all acts in the network namespace the thread is in. What
sock_diag says comes from net/xdp/xsk_diag.c (XDP_DIAG, an option of the kernel); a dump of it ends at the first socket
that is not bound, so it may lack some.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass, replace

from afxdp_pool._native import ffi, lib
from afxdp_pool.netlink import dump as netlink_dump
from afxdp_pool.stats import KernelStats

AF_XDP, SOL_XDP = 44, 283
_XDP_STATISTICS, _XDP_OPTIONS = 7, 8
_OPTIONS_ZEROCOPY = 1
_SIOCGSKNS = 0x894C
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST_DUMP = 0x301
_SHOW_INFO, _SHOW_RINGS, _SHOW_UMEM, _SHOW_STATS = 1, 2, 4, 16
_INFO, _UID, _RX_RING, _TX_RING, _UMEM, _FILL_RING, _COMP_RING, _MEMINFO, _STATS = range(1, 10)
_RINGS = {_RX_RING: "rx_size", _TX_RING: "tx_size", _FILL_RING: "fill_size", _COMP_RING: "comp_size"}
_HEAD = 16  # bytes of a netlink message's head
_UMEM_ZEROCOPY = 1
_PIDFD_GETFD = 438  # on every architecture (include/uapi/asm-generic/unistd.h)


@dataclass(frozen=True)
class UmemSeen:
    """A Umem as sock_diag describes it. `refs` sockets and processes share it."""

    id: int
    size: int
    chunk_size: int
    headroom: int
    refs: int


@dataclass(frozen=True)
class SocketSeen:
    """An AF_XDP socket. What nobody told is None.

    Attributes:
        inode: its number, which /proc/PID/fd shows.
        ifindex, queue: where it is bound.
        uid: who made it.
        zero_copy: whether it is bound so.
        rx_size, tx_size, fill_size, comp_size: entries of its rings.
        umem: its memory.
        stats: the kernel's counters.
    """

    inode: int
    ifindex: int | None = None
    queue: int | None = None
    uid: int | None = None
    zero_copy: bool | None = None
    rx_size: int | None = None
    tx_size: int | None = None
    fill_size: int | None = None
    comp_size: int | None = None
    umem: UmemSeen | None = None
    stats: KernelStats | None = None


def dump() -> list[SocketSeen] | None:
    """The sockets of this network namespace by sock_diag; None when the kernel has no XDP_DIAG.

    Raises:
        OSError: as the kernel says.
    """
    show = _SHOW_INFO | _SHOW_RINGS | _SHOW_UMEM | _SHOW_STATS
    request = struct.pack("=BBHIIII", AF_XDP, 0, 0, 0, show, 0, 0)
    head = struct.pack("=IHHII", _HEAD + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0)
    try:
        return [parse(message[_HEAD:]) for message in netlink_dump(_NETLINK_SOCK_DIAG, head + request)]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP):
            return None
        raise


def parse(body: bytes) -> SocketSeen:
    """One socket of a dump: ``struct xdp_diag_msg`` and its attributes (include/uapi/linux/xdp_diag.h)."""
    seen = SocketSeen(struct.unpack_from("=I", body, 4)[0])
    at = 16
    while at + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, at)
        if not 4 <= length <= len(body) - at:
            break
        with contextlib.suppress(struct.error):  # shorter than its kind is: not told
            seen = _with(seen, kind, body[at + 4 : at + length])
        at += (length + 3) & ~3
    return seen


def _with(seen: SocketSeen, kind: int, value: bytes) -> SocketSeen:
    if kind == _INFO:
        ifindex, queue = struct.unpack_from("=II", value)
        return replace(seen, ifindex=ifindex, queue=queue)
    if kind == _UID:
        return replace(seen, uid=struct.unpack_from("=I", value)[0])
    if kind in _RINGS:
        return replace(seen, **{_RINGS[kind]: struct.unpack_from("=I", value)[0]})
    if kind == _UMEM:
        size, number, _, chunk, headroom, _, _, flags, refs = struct.unpack_from("=Q8I", value)
        umem = UmemSeen(number, size, chunk, headroom, refs)
        return replace(seen, umem=umem, zero_copy=bool(flags & _UMEM_ZEROCOPY))
    if kind == _STATS:
        dropped, invalid, full, fill_empty, tx_invalid, tx_empty = struct.unpack_from("=6Q", value)
        return replace(seen, stats=KernelStats(dropped, invalid, tx_invalid, full, fill_empty, tx_empty))
    return seen


def is_xdp(path: str) -> bool:
    """Whether the descriptor behind `path`, such as ``"/proc/7/fd/12"``, is an AF_XDP socket."""
    try:
        return os.getxattr(path, "system.sockprotoname").rstrip(b"\0") == b"XDP"
    except OSError:
        return False


@dataclass(frozen=True)
class Asked:
    """What a socket tells itself: the inode of its network namespace, its mode, the kernel's counters."""

    netns: int | None
    zero_copy: bool | None
    stats: KernelStats | None


def ask(pid: int, fd: int) -> Asked | None:
    """Ask the socket behind descriptor `fd` of process `pid`; None when it is gone, or may not be asked (ptrace)."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return None
    try:
        ours = int(lib.syscall(_PIDFD_GETFD, ffi.cast("int", process), ffi.cast("int", fd), ffi.cast("unsigned", 0)))
    finally:
        os.close(process)
    if ours < 0:
        return None
    if not is_xdp(f"/proc/self/fd/{ours}"):  # it was closed meanwhile, and its number is another's
        os.close(ours)
        return None
    with socket.socket(AF_XDP, socket.SOCK_RAW, 0, fileno=ours) as copy:
        return Asked(_netns_of(copy), _zero_copy(copy), _statistics(copy))


def _netns_of(of: socket.socket) -> int | None:
    try:
        fd = fcntl.ioctl(of.fileno(), _SIOCGSKNS)
    except OSError:
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


def _zero_copy(of: socket.socket) -> bool | None:
    try:
        (flags,) = struct.unpack("=I", of.getsockopt(SOL_XDP, _XDP_OPTIONS, 4))
    except OSError:
        return None
    return bool(flags & _OPTIONS_ZEROCOPY)


def _statistics(of: socket.socket) -> KernelStats | None:
    try:
        data = of.getsockopt(SOL_XDP, _XDP_STATISTICS, 48)
    except OSError:
        return None
    return KernelStats(*struct.unpack("=6Q", data.ljust(48, b"\0")))
