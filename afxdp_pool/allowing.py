"""`Allowed`: which users a broker admits, by what the kernel says about who connected; it owns nothing.

SO_PEERCRED and SO_PEERGROUPS (unix(7), socket(7)) tell who called connect(), as this process's user namespace sees
them. A client cannot choose them, and what it says of itself is not asked.
"""

from __future__ import annotations

import errno
import grp
import pwd
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from afxdp_pool.errors import ConfigError

_SO_PEERGROUPS = 59
_MAX_GROUPS = 65536  # NGROUPS_MAX


@dataclass(frozen=True)
class Peer:
    """Who is at the other end of a UNIX socket: its process, user and groups when it connected."""

    pid: int
    uid: int
    gids: frozenset[int]


def peer_of(sock: socket.socket) -> Peer:
    """The peer of a connected UNIX socket."""
    pid, uid, gid = struct.unpack("=iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    size = 64
    while True:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * size)
            break
        except OSError as error:
            if error.errno != errno.ERANGE or size >= _MAX_GROUPS:
                raw = b""
                break
            size *= 8
    return Peer(pid, uid, frozenset((gid, *struct.unpack(f"={len(raw) // 4}I", raw))))


@dataclass(frozen=True)
class Allowed:
    """Users and groups, by number.

    >>> Allowed.parse(["1000", "@27"]).admits(Peer(1, 5, frozenset({27})))
    True
    """

    uids: frozenset[int]
    gids: frozenset[int]

    @classmethod
    def parse(cls, names: Iterable[str]) -> Self:
        """From users and, with an @ before them, groups: each a name or a number.

        Raises:
            ConfigError: there is none of that name, or none at all are given.
        """
        uids, gids = set(), set()
        for name in names:
            if name.startswith("@"):
                gids.add(group(name[1:]))
            else:
                uids.add(user(name))
        if not uids and not gids:
            raise ConfigError("nobody is allowed", hint="name a user, or @ and a group")
        return cls(frozenset(uids), frozenset(gids))

    def admits(self, peer: Peer) -> bool:
        """Whether this peer may."""
        return peer.uid in self.uids or not self.gids.isdisjoint(peer.gids)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and int(text) < (1 << 32) - 1 else None


def user(name: str) -> int:
    """The number of a user given by name or number.

    Raises:
        ConfigError: there is none.
    """
    if (number := _number(name)) is not None:
        return number
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise ConfigError(f"there is no user {name!r}") from None


def group(name: str) -> int:
    """The number of a group given by name or number.

    Raises:
        ConfigError: there is none.
    """
    if (number := _number(name)) is not None:
        return number
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {name!r}") from None
