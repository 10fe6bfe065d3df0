"""What is changed on a network device is written down before, so that it is put back: at the end, and after `kill -9`.

A knob is a value of the device, not of a socket: it outlives the process that set it. A `Knobs` is one owner's changes
on one device. Each stands in a file below /run/afxdp-pool, one a device, before the device is touched, with what was
there before and whose change it is. `Knobs.close` puts it back; what a dead owner left is put back by `restore`, which
the next port opened on the device, the next `Knobs`, and `clean` call.

Several owners may set the same knob: the last one's value holds, and when it closes, that of the one before, in
whatever order they close. Invariant: a value that none of them set is never overwritten by putting back.

To have a knob of another kind, describe it by a `Kind` in the module it belongs to, name that in `knob.KINDS`, and set
it by ``Knobs(netdev, netns).set(kind, key, value)``. Knobs are put back in the reverse order of their setting, so what
rests on another (a steering rule on the number of queues) is set after it. A value is what JSON has: a number, a text,
a list, a dictionary; None is a thing that is not there. A thing that is added, such as a steering rule, is a knob whose
value was None, and which `write` deletes when it is given None; its key says where, so its place is chosen before.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from afxdp_pool.errors import AfXdpError, NoSuchInterfaceError
from afxdp_pool.hook import Owner
from afxdp_pool.knob import (
    OWN_NETNS,
    Holder,
    Kind,
    Knob,
    Place,
    find_place,
    is_noted,
    kind_of,
    note_down,
    noted,
    plain,
    read_page,
)
from afxdp_pool.netdev import in_netns

__all__ = ["Kind", "Knobs", "Left", "left", "restore", "shown"]

log = logging.getLogger("afxdp_pool")
_LONGEST_SHOWN = 60
_GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)


@dataclass(frozen=True)
class Left:
    """A knob that is not as it was: who set it last, and whether that process still runs."""

    kind: str
    key: str
    before: Any
    value: Any
    pid: int
    alive: bool


class Knobs:
    """One owner's changes on a network device, from the first `set` to `close`, which puts all of them back.

    At the end of the interpreter, whatever ends it but a signal's default action, what is still open is closed. A
    forked child has none of its parent's: closing there changes nothing.

    Args:
        netdev, netns: the device; it is followed if it is given another name.
        kept: the changes are the machine's: they stay when this is closed or its process ends, until `put_back`, of
            this or any later one that keeps.

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError: there is no such device.
        PrivilegeError: the namespace cannot be entered.

    Concurrency: any thread; of several processes, one at a time works on a machine's knobs.
    """

    def __init__(self, netdev: str, netns: str | None = None, *, kept: bool = False) -> None:
        self.netdev, self._number, self._kept = netdev, 0 if kept else next(_numbers), kept
        self._set: list[tuple[str, str]] = []
        with in_netns(netns):
            self._place = find_place(netdev, netns)
            self._netns = os.open(OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        _open.add(self)
        restore(netdev, netns)

    def set(self, kind: str, key: str, value: Any) -> Any:
        """Write down what is there, and set `value`. Returns what was there before.

        Raises:
            OSError: as the kernel says; then nothing has changed. AfXdpError: the file stayed locked for seconds.
        """
        ours = Holder(self.owner, self._number, plain(value))
        with self._inside() as (name, knobs):
            _put_back(name, knobs, lambda holder: not holder.alive)
            how = kind_of(kind)
            now = plain(how.read(name, key))
            knob = next((one for one in knobs if (one.kind, one.key) == (kind, key)), None)
            if knob is None and now == ours.value:
                return now
            if knob is None:
                knobs.append(knob := Knob(kind, key, now))
            elif now != knob.holders[-1].value:  # somebody else set it meanwhile: that is what to put back
                knob.before, knob.holders = now, []
            again = next((one for one in knob.holders if _is(one, self)), None)
            knob.holders = [*(one for one in knob.holders if one is not again), ours]
            note_down(self._place, knobs)
            try:
                how.write(name, key, value)
                ours.value = plain(how.read(name, key))
            except BaseException:
                knob.holders.remove(ours)
                if again is not None:
                    knob.holders.append(again)
                if not knob.holders:
                    knobs.remove(knob)
                raise
            if (kind, key) not in self._set:
                self._set.append((kind, key))
            return now

    @property
    def owner(self) -> Owner:
        """Whose the changes are."""
        return Owner.of(1) if self._kept else Owner.current()

    def put_back(self) -> list[str]:
        """Put back what was set, and go on; a sentence each. What is refused goes to the log, and stays written down.

        Raises:
            OSError, AfXdpError: the device has gone; the file stayed locked for seconds.
        """
        with self._inside() as (name, knobs):
            return _put_back(name, knobs, lambda holder: _is(holder, self), aloud=True)

    def close(self) -> None:
        """Put everything back, unless it is kept. Idempotent; a device that has gone needs nothing.

        What is refused goes to the log.
        """
        if self not in _open:
            return
        try:
            if self._set and not self._kept:
                self.put_back()
        except (OSError, AfXdpError) as error:
            if getattr(error, "errno", 0) not in _GONE:
                text = "%s: what was set could not be put back: %s; the next start does it, or afxdp-pool clean -i %s"
                log.warning(text, self.netdev, error, self.netdev)
        finally:
            self._forget()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[tuple[str, list[Knob]]]:
        """This thread in the device's namespace, alone with its file; the device's name, and the knobs to be kept."""
        here = os.fstat(self._netns).st_ino == os.stat(OWN_NETNS).st_ino  # then it needs no privilege
        with in_netns(None if here else f"/proc/self/fd/{self._netns}"), noted(self._place) as knobs:
            try:
                name = socket.if_indextoname(self._place.index)
            except OSError:
                knobs.clear()
                raise
            yield name, knobs

    def _forget(self) -> None:
        if self in _open:
            _open.discard(self)
            os.close(self._netns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def restore(netdev: str, netns: str | None = None) -> list[str]:
    """Put back what processes that are gone left changed on a device; a sentence each.

    What cannot be put back now stays written down. Without a device of that name, or privileges, nothing happens.

    Raises:
        NoSuchNamespaceError, PrivilegeError: the namespace cannot be entered.

    Concurrency: any thread.
    """
    with in_netns(netns):
        try:
            return _restore(netdev, find_place(netdev, netns))
        except (AfXdpError, OSError) as error:
            log.debug("%s: its knobs are not looked at: %s", netdev, error)
            return []


def _restore(netdev: str, place: Place) -> list[str]:
    if not is_noted(place):
        return []
    with noted(place) as knobs:
        return _put_back(netdev, knobs, lambda holder: not holder.alive)


def left(netdev: str, netns: str | None = None) -> list[Left]:
    """What is written down of a device: knobs of running processes, and of some that are gone. It changes nothing.

    Raises:
        NoSuchNamespaceError, PrivilegeError: the namespace cannot be entered.
    """
    with in_netns(netns), contextlib.suppress(OSError, NoSuchInterfaceError):
        tops = [(knob, knob.holders[-1]) for knob in read_page(find_place(netdev, netns).page)]
        return [
            Left(knob.kind, knob.key, knob.before, top.value, top.owner.pid if top.owner else 0, top.alive)
            for knob, top in tops
        ]
    return []


def _put_back(name: str, knobs: list[Knob], gone: Callable[[Holder], bool], *, aloud: bool = False) -> list[str]:
    """Take these holders off the knobs, each knob to the value of who is left, or to what was there before."""
    done = []
    for knob in reversed(list(knobs)):
        going = [holder for holder in knob.holders if gone(holder)]
        if not going:
            continue
        top = knob.holders[-1]
        staying = [holder for holder in knob.holders if holder not in going]
        target = staying[-1].value if staying else knob.before
        try:
            how = kind_of(knob.kind)
            now = plain(how.read(name, knob.key))
            if now == top.value != target:
                how.write(name, knob.key, target)
                whose = top.owner.pid if top.owner else 0
                was = f"left at {now} by process {whose}" if whose != 1 else f"kept at {now}"
                done.append(f"{name}: put {knob.key} back to {target}, {was}")
                log.log(logging.DEBUG if aloud else logging.INFO, "%s", done[-1])
            elif now not in (top.value, target):
                log.warning("%s: %s was set to %s meanwhile, and is left so", name, knob.key, shown(now))
        except OSError as error:
            if error.errno in _GONE:
                knobs.remove(knob)
                continue
            log.log(
                logging.WARNING if aloud else logging.INFO,
                "%s: %s could not be put back to %s: %s; it is tried again when the device is next used",
                name, knob.key, shown(target), error.strerror,
            )  # fmt: skip
            for holder in going:
                holder.owner = holder.owner if not holder.alive else None
            continue
        knob.holders = staying
        if not staying:
            knobs.remove(knob)
    return done


def shown(value: Any) -> str:
    """A knob's value for people: the start of a long one, ``unset`` for a thing that is not there."""
    text = "unset" if value is None else str(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is(holder: Holder, owner: Knobs) -> bool:
    return holder.owner == owner.owner and holder.number == owner._number


_numbers = itertools.count()
_open: set[Knobs] = set()


@atexit.register
def _close_all() -> None:
    for knobs in list(_open):
        knobs.close()


def _in_child() -> None:
    for knobs in list(_open):
        knobs._forget()


os.register_at_fork(after_in_child=_in_child)
