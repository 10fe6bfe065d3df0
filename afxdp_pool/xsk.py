"""An AF_XDP socket known by its descriptor alone; it owns nothing.

The socket objects of Python cannot find out what such a descriptor is: AF_XDP has no getsockname(2).
"""

from __future__ import annotations

import errno
import socket

AF_XDP = 44
_SO_DOMAIN, _SO_COOKIE = 39, 57


def is_xdp_socket(fd: int) -> bool:
    """Whether `fd` is an AF_XDP socket."""
    try:
        return fd >= 0 and _option(fd, _SO_DOMAIN, 4) == AF_XDP
    except OSError:
        return False


def cookie(fd: int) -> int:
    """The kernel's number for the socket, never given twice while the machine runs."""
    return _option(fd, _SO_COOKIE, 8)


def device_gone(fd: int) -> bool:
    """Whether the socket's network device was deleted; told once (xsk_notifier() in net/xdp/xsk.c)."""
    return _option(fd, socket.SO_ERROR, 4) == errno.ENETDOWN


def _option(fd: int, name: int, size: int) -> int:
    sock = socket.socket(AF_XDP, socket.SOCK_RAW, 0, fileno=fd)
    try:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, name, size), "little")
    finally:
        sock.detach()
