"""Netlink as the engine asks it: one request with one answer, one with many, and generic netlink's families by name.

It owns nothing; every call has a socket of its own, in the calling thread's network namespace. Messages are classes of
pyroute2, or bytes.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any

#: NETLINK_GENERIC (include/uapi/linux/netlink.h).
GENERIC = 16
_ERROR, _DONE = 2, 3  # NLMSG_ERROR, NLMSG_DONE


def ask(protocol: int, kind: int, message_class: Any, cmd: int = 0, **attributes: object) -> Any:
    """One request with one answer, a message of the same class.

    Raises:
        OSError: as the kernel says.
    """
    from pyroute2.netlink import NLM_F_REQUEST, NLMSG_ERROR, nlmsgerr

    request = message_class()
    request.update(header={"type": kind, "flags": NLM_F_REQUEST}, cmd=cmd, attrs=list(attributes.items()))
    request.encode()
    # A socket of pyroute2's (from 0.9) brings an asyncio loop, and fails in a thread that already runs one.
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as link:
        link.settimeout(5)
        link.send(request.data)
        reply = link.recv(65536)
    failed = int.from_bytes(reply[4:6], sys.byteorder) == NLMSG_ERROR
    answer = _decoded(nlmsgerr if failed else message_class, reply)
    if failed:
        raise OSError(-answer["error"], os.strerror(-answer["error"]))
    return answer


def ask_all(protocol: int, kind: int, message_class: Any, cmd: int, **attributes: object) -> list[Any]:
    """One request for everything: all answers.

    Raises:
        OSError: as the kernel says.
    """
    from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST

    request = message_class()
    flags = NLM_F_REQUEST | NLM_F_DUMP
    request.update(header={"type": kind, "flags": flags}, cmd=cmd, attrs=list(attributes.items()))
    request.encode()
    return [_decoded(message_class, reply) for reply in dump(protocol, request.data)]


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


@functools.cache
def family(name: str) -> int:
    """The number of a family of generic netlink, which the kernel gives once, for all namespaces.

    Raises:
        OSError: the kernel has none of that name.
    """
    from pyroute2.netlink import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, ctrlmsg

    told = ask(GENERIC, GENL_ID_CTRL, ctrlmsg, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME=name)
    return int(told.get_attr("CTRL_ATTR_FAMILY_ID"))


def _decoded(message_class: Any, reply: bytes) -> Any:
    answer = message_class(reply)
    answer.decode()
    return answer
