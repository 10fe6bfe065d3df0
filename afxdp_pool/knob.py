"""`Knob`: a value of a network device that is not as it was, and where that is written down.

A device has one file below /run/afxdp-pool, named by its namespace and its number there. In it stand its knobs: what
each was before, and who set it since, in order. It owns those files. Invariant: who changes a knob holds the lock from
before the device is touched until the file says what then is (`noted`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from afxdp_pool.errors import NoSuchInterfaceError
from afxdp_pool.hook import Owner
from afxdp_pool.netdev import netns_path
from afxdp_pool.statedir import StateDirectory

log = logging.getLogger("afxdp_pool")
#: Where each kind of knob is described: a module, and the name of its `Kind` there; imported when first needed.
KINDS = {"napi": ("afxdp_pool.tuning", "NAPI"), "steering": ("afxdp_pool.steering", "STEERING")}
#: The network namespace the thread is in.
OWN_NETNS = "/proc/thread-self/ns/net"
_SO_NETNS_COOKIE = 71  # since Linux 5.14; a namespace's number that is never given again


@dataclass(frozen=True)
class Kind:
    """How knobs of one kind are read and written. Both are called in the device's network namespace.

    Attributes:
        read: (netdev, key) to the value there is now.
        write: (netdev, key, value): set it.

    Both raise OSError as the kernel does. What cannot be put back now (EBUSY, EOPNOTSUPP, ...) is tried again at the
    next `restore`.
    """

    read: Callable[[str, str], Any]
    write: Callable[[str, str, Any], None]


@dataclass
class Holder:
    """One owner's value of a knob. Without an owner: it closed, and the device did not take the value back."""

    owner: Owner | None
    number: int
    value: Any

    @property
    def alive(self) -> bool:
        """Whether its process still runs."""
        return self.owner is not None and self.owner.alive


@dataclass
class Knob:
    """A knob that is not as it was `before`: the last of its holders is the one whose value is there."""

    kind: str
    key: str
    before: Any
    holders: list[Holder] = field(default_factory=list)

    @classmethod
    def read(cls, note: Any) -> Knob:
        """From a file. Raises KeyError, TypeError, ValueError, OverflowError, when it is something else."""
        holders = [
            Holder(Owner(*map(int, holder["owner"])) if holder["owner"] else None, int(holder["n"]), holder["value"])
            for holder in note["holders"]
        ]
        if note["kind"] not in KINDS or not isinstance(note["key"], str) or not holders:
            raise ValueError(f"there is no knob {note['kind']} {note['key']}")
        return cls(note["kind"], note["key"], note["before"], holders)

    def note(self) -> dict[str, Any]:
        """As it stands in the file."""
        holders = [
            {
                "owner": [one.owner.pid, one.owner.start_time, one.owner.pid_namespace] if one.owner else None,
                "n": one.number,
                "value": one.value,
            }
            for one in self.holders
        ]
        return {"kind": self.kind, "key": self.key, "before": self.before, "holders": holders}


def kind_of(name: str) -> Kind:
    """The kind of knob of this name."""
    module, attribute = KINDS[name]
    found = getattr(import_module(module), attribute)
    assert isinstance(found, Kind)
    return found


def plain(value: Any) -> Any:
    """A value as it comes back from a file."""
    return json.loads(json.dumps(value))


# The files ----------------------------------------------------------------------------------------------------------

_files = StateDirectory("/run/afxdp-pool")


@dataclass(frozen=True)
class Place:
    """A device: the number of its namespace, the name that was found by, and the device's number in it."""

    number: str
    netns: str | None
    index: int

    @property
    def page(self) -> str:
        """The name of its file."""
        return f"{self.number}-{self.index}.json"


def find_place(netdev: str, netns: str | None) -> Place:
    """The device of this name in the namespace the thread is in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as there:
        try:
            number = f"c{int.from_bytes(there.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)}"
        except OSError:
            number = f"i{os.stat(OWN_NETNS).st_ino}"
    try:
        return Place(number, netns, socket.if_nametoindex(netdev))
    except OSError as error:
        subject = f"{netdev} in namespace {netns}" if netns else netdev
        raise NoSuchInterfaceError("there is no such interface", subject=subject, errno=error.errno or 0) from None


def read_page(page: str) -> list[Knob]:
    """The knobs in a file."""
    try:
        return [Knob.read(note) for note in (_files.read(page) or {"knobs": ()})["knobs"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        log.warning("%s is not understood, and left out of account: %s", _files.path(page), error)
        return []


def note_down(place: Place, knobs: list[Knob]) -> None:
    """Write down what a device's knobs are; the lock is held."""
    _files.write(place.page, {"netns": place.netns, "knobs": [knob.note() for knob in knobs]} if knobs else None)


def is_noted(place: Place) -> bool:
    """Whether anything is written down of a device that this process may change."""
    return place.page in _files.names() and _files.writable


@contextlib.contextmanager
def noted(place: Place) -> Iterator[list[Knob]]:
    """The knobs of a device, alone with them; at the end they are written down as they then are."""
    with _files.locked():
        knobs = read_page(place.page)
        try:
            yield knobs
        finally:
            note_down(place, knobs)
            _prune(place)


def _prune(here: Place) -> None:
    """Forget devices that are gone, with their namespace or without, and that nobody who runs has changed."""
    for page in _files.names():
        number, _, index = page.removesuffix(".json").rpartition("-")
        if page == here.page or any(holder.alive for knob in read_page(page) for holder in knob.holders):
            continue
        netns = str((_files.read(page) or {}).get("netns") or "")
        gone = netns != "" and not os.path.exists(netns_path(netns))
        if number == here.number and index.isdigit():
            try:
                socket.if_indextoname(int(index))
            except OSError:
                gone = True
        if gone:
            _files.write(page, None)
