"""Netlink as the engine asks it: one request with one answer, one with many, and generic netlink's families by name.

It owns nothing; every call has a socket of its own, in the calling thread's network namespace. Messages are bytes:
pyroute2, which knows them all, takes longer to import than the engine to start. Invariant: what the kernel says is read
within its bounds.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
import sys
from collections.abc import Iterator

#: NETLINK_GENERIC (include/uapi/linux/netlink.h).
GENERIC = 16
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE
_REQUEST, _ACK, _DUMP = 1, 4, 0x300  # NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP
_HEAD = struct.Struct("=IHHII")
_GENERIC_HEAD = 4
_CONTROL, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2  # GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_*
_CAPPED, _ACK_TLVS = 0x100, 0x200  # NLM_F_CAPPED, NLM_F_ACK_TLVS
_SOL_NETLINK, _EXT_ACK, _ATTR_MSG = 270, 11, 1


def message(kind: int, payload: bytes, flags: int = 0) -> bytes:
    """A request with its head."""
    return _HEAD.pack(_HEAD.size + len(payload), kind, _REQUEST | flags, 0, 0) + payload


def attribute(kind: int, value: int | bytes) -> bytes:
    """An attribute with its padding: a u32, or bytes as they are. Of a nest, the bytes of the attributes in it."""
    payload = struct.pack("=I", value) if isinstance(value, int) else value
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by their numbers, without the flags for nests and byte order."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if not 4 <= length <= len(data) - at:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def number(value: bytes | None, default: int = 0) -> int:
    """An attribute that is an unsigned number, of whatever width; `default` for one that is not there."""
    return default if value is None else int.from_bytes(value, sys.byteorder)


def ask(protocol: int, kind: int, payload: bytes) -> bytes:
    """One request with one answer: what comes behind the answer's head.

    Raises:
        OSError: as the kernel says.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        link.settimeout(5)
        return ask_on(link, kind, payload)


def ask_on(link: socket.socket, kind: int, payload: bytes) -> bytes:
    """As `ask`, on a socket of the caller's."""
    link.send(message(kind, payload))
    reply = link.recv(1 << 16)
    if len(reply) < _HEAD.size + 4:
        raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
    if _HEAD.unpack_from(reply)[1] == _ERROR:
        code = -struct.unpack_from("=i", reply, _HEAD.size)[0]
        raise OSError(code, os.strerror(code))
    return reply[_HEAD.size :]


def dump(protocol: int, request: bytes) -> Iterator[bytes]:
    """Send a request for a dump; each message of the answer, with its head.

    Raises:
        OSError: as the kernel says.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        link.settimeout(5)
        link.send(request)
        while True:
            data, at = link.recv(1 << 18), 0
            while at + 16 <= len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if not 16 <= length <= len(data) - at:
                    raise OSError(errno.EBADMSG, os.strerror(errno.EBADMSG))
                if kind in (_ERROR, _DONE):
                    code = struct.unpack_from("=i", data, at + 16)[0] if length >= 20 else 0
                    if code < 0:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield data[at : at + length]
                at += (length + 3) & ~3


def generic(name: str, cmd: int, more: bytes = b"") -> dict[int, bytes]:
    """Ask a family of generic netlink; the attributes of its answer.

    Raises:
        OSError: as the kernel says; ENOENT when it has no such family.
    """
    return attributes(ask(GENERIC, family(name), _generic(cmd, more))[_GENERIC_HEAD:])


def generic_dump(name: str, cmd: int) -> Iterator[dict[int, bytes]]:
    """Ask a family of generic netlink for everything; the attributes of each message of its answer.

    Raises:
        OSError: as `generic`.
    """
    for reply in dump(GENERIC, message(family(name), _generic(cmd), _DUMP)):
        yield attributes(reply[_HEAD.size + _GENERIC_HEAD :])


@functools.cache
def family(name: str) -> int:
    """The number of a family of generic netlink, which the kernel gives once, for all namespaces.

    Raises:
        OSError: the kernel has none of that name.
    """
    wanted = _generic(_GET_FAMILY, attribute(_FAMILY_NAME, name.encode() + b"\0"))
    return number(attributes(ask(GENERIC, _CONTROL, wanted)[_GENERIC_HEAD:])[_FAMILY_ID])


def act(name: str, cmd: int, more: bytes) -> None:
    """Have a family of generic netlink do something, which it only acknowledges.

    Raises:
        OSError: as the kernel says; its text is the kernel's own sentence, where it has one (NLMSGERR_ATTR_MSG).
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, GENERIC) as link:
        link.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        link.settimeout(30)  # a driver may take its time over it
        link.send(message(family(name), _generic(cmd, more), _ACK))
        reply = link.recv(1 << 16)
        while _HEAD.unpack_from(reply)[1] != _ERROR:  # some commands give an answer as well
            reply = link.recv(1 << 16)
    code = -struct.unpack_from("=i", reply, _HEAD.size)[0]
    if code:
        raise OSError(code, said(reply) or os.strerror(code))


def said(reply: bytes) -> str:
    """The kernel's sentence in an error message, or ``""``."""
    flags = _HEAD.unpack_from(reply)[2]
    if not flags & _ACK_TLVS:
        return ""
    # Behind the error comes the head of the request, or all of the request.
    at = _HEAD.size + 4
    (length,) = struct.unpack_from("=I", reply, at)
    at += _HEAD.size if flags & _CAPPED else (length + 3) & ~3
    return attributes(reply[at:]).get(_ATTR_MSG, b"").rstrip(b"\0").decode(errors="replace")


def _generic(cmd: int, more: bytes = b"") -> bytes:
    return struct.pack("=BBH", cmd, 1, 0) + more
