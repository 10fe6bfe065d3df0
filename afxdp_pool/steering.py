"""`Steering`: how a NIC chooses the queue of a packet, changed from its making to its closing.

It owns what it changed: the number of queues, the rings' sizes, receive-side scaling (table, key, fields of the hash)
and flow rules. Each is written down before (`afxdp_pool.knobs`), and put back at the end, in the reverse order; what a
killed process left is put back by the next one that uses the device. Invariant: what somebody else changed meanwhile is
left alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, Self

from afxdp_pool import ethtool
from afxdp_pool import netdev as netdevs
from afxdp_pool.errors import AfXdpError, ConfigError, ModeUnsupportedError, PrivilegeError
from afxdp_pool.ethtool import Channels, Rings, Rss
from afxdp_pool.flows import FlowRule
from afxdp_pool.knobs import Kind, Knobs
from afxdp_pool.single import Single

_KIND = "steering"
_LACKS = {
    "channels": "has a fixed number of queues",
    "rings": "has rings of a fixed size",
    "rss": "has no table to set: use fewer queues (set_channels), or a port on each",
    "hash": "does not let the hash's fields be chosen",
    "rule": "steers no flows: let a Rule choose in the XDP program, or have the packets on one queue",
}


@dataclass(frozen=True)
class SteeringState:
    """How a device chooses queues now. None: its driver does not tell, or has no such thing.

    Attributes:
        channels, rings, rss: see there.
        hash_fields: by kind of packet (``"udp4"``), what the hash is made of, as ethtool's letters: ``s``, ``d``
            addresses, ``f``, ``n`` ports, ``v`` VLAN, ``t`` protocol, ``m`` MAC address.
        ntuple: whether flow rules are on.
        rules: those it can say in our words.
        other_rules: places of rules that choose by something else.
    """

    channels: Channels | None
    rings: Rings | None
    rss: Rss | None
    hash_fields: dict[str, str]
    ntuple: bool | None
    rules: tuple[FlowRule, ...]
    other_rules: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """All of it as nested dicts and lists of plain values."""
        told = asdict(self)
        if self.rss is not None:
            told["rss"]["key"] = self.rss.key.hex()
        return told


def steering_state(netdev: str, netns: str | None = None) -> SteeringState:
    """How a device chooses queues now.

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError: there is no such device.

    Concurrency: any thread.
    """
    netdevs.find(netdev, netns)
    with netdevs.in_netns(netns):
        fields = {flow: _told(ethtool.hash_fields, netdev, flow) for flow in ethtool.HASH_FLOWS}
        places = _told(ethtool.rule_places, netdev)
        rules = {place: ethtool.rule(netdev, place) for place in (places[0] if places else ())}
        known = {place: FlowRule.unpack(spec) for place, spec in rules.items() if spec is not None}
        rss = _told(ethtool.rss, netdev)
        return SteeringState(
            _told(ethtool.channels, netdev),
            _told(ethtool.rings, netdev),
            rss if rss and (rss.table or rss.key) else None,
            {flow: letters for flow, letters in fields.items() if letters},
            _told(ethtool.has_ntuple, netdev),
            tuple(rule for rule in known.values() if rule is not None),
            tuple(place for place, rule in known.items() if rule is None),
        )


def _told(ask: Any, *arguments: str) -> Any:
    try:
        return ask(*arguments)
    except OSError:
        return None


def spread_table(
    size: int, queues: int | None = None, *, weights: Sequence[int] | None = None, first: int = 0
) -> tuple[int, ...]:
    """A table of `size` places: `queues` of them in turn, or by `weights`, a number a queue, from queue `first` on.

    Raises:
        ConfigError: neither or both are given, or no queue gets anything.
    """
    if (queues is None) == (weights is None):
        raise ConfigError("give a number of queues, or a weight for each")
    if weights is None:
        if not 1 <= (queues or 0) <= size:
            raise ConfigError(f"packets cannot be spread over {queues} queues", hint=f"choose 1 to {size}")
        return tuple(first + place % (queues or 1) for place in range(size))
    if not weights or min(weights) < 0 or not 0 < sum(weights) <= size:
        raise ConfigError(f"weights {list(weights)} are not possible", hint=f"give numbers whose sum is 1 to {size}")
    ends = list(accumulate(weights))
    return tuple(first + bisect_right(ends, place * ends[-1] // size) for place in range(size))


class Steering(Single):
    """What is changed of how a device chooses queues, until `close()` puts it back.

    Args:
        netdev, netns: the device.
        kept: leave it so at the end, and when this process is gone: until `put_back`, of this or a later one that
            keeps, or ``afxdp-pool steer --restore``.

    Many drivers restart the NIC when queues or rings change, so the link is down for some seconds. Change these before
    ports are opened on it: a queue that a zero-copy socket has cannot be taken away.

    Raises:
        NoSuchInterfaceError, NoSuchNamespaceError: there is no such device.

    Each method raises:
        PrivilegeError: it needs CAP_NET_ADMIN. ModeUnsupportedError: the driver has no such thing.
        ConfigError: the device cannot take that. AfXdpError: the kernel refused.

    Concurrency: any one thread at a time. A forked child has none of it: closing there puts nothing back.
    Source of the rules: Documentation/networking/scaling.rst, ethtool-netlink.rst, include/uapi/linux/ethtool.h.
    """

    def __init__(self, netdev: str, netns: str | None = None, *, kept: bool = False) -> None:
        self.netdev, self.netns = netdev, netns
        self._driver = netdevs.find(netdev, netns).driver or "of this device"
        self._knobs = Knobs(netdev, netns, kept=kept)

    def state(self) -> SteeringState:
        """How it is now. Concurrency: any thread."""
        return steering_state(self.netdev, self.netns)

    def set_channels(self, combined: int | None = None, *, rx: int | None = None, tx: int | None = None) -> Channels:
        """So many queues: `combined` ones receive and send; some drivers have them apart. Returns what there is now.

        Raises:
            ConfigError: it has fewer queues than that. Else as the class says.
        """
        asked = {"rx": rx, "tx": tx, "combined": combined}
        wanted = {kind: count for kind, count in asked.items() if count is not None}
        with self._doing(f"setting {_listed(wanted)} queues", "channels"):
            now = ethtool.channels(self.netdev)
            for kind, count in wanted.items():
                if not 0 <= count <= (most := getattr(now, f"most_{kind}")):
                    raise ConfigError(f"{kind} queues cannot be {count}", subject=self.netdev, hint=f"it has {most}")
            value = {kind: getattr(now, kind) for kind in ("rx", "tx", "combined")} | wanted
            self._knobs.set(_KIND, "channels", value)
            return ethtool.channels(self.netdev)

    def set_rings(self, *, rx: int | None = None, tx: int | None = None) -> Rings:
        """Descriptors of the driver's rings, of every queue. Returns what there is now: drivers round them up.

        Raises:
            ConfigError: its rings are not as long. Else as the class says.
        """
        wanted = {kind: size for kind, size in {"rx": rx, "tx": tx}.items() if size is not None}
        with self._doing(f"setting rings of {_listed(wanted)}", "rings"):
            now = ethtool.rings(self.netdev)
            for kind, size in wanted.items():
                if not 0 < size <= (most := getattr(now, f"most_{kind}")):
                    raise ConfigError(
                        f"a {kind} ring of {size} is not possible", subject=self.netdev, hint=f"choose 1 to {most}"
                    )
            self._knobs.set(_KIND, "rings", {"rx": now.rx, "tx": now.tx} | wanted)
            return ethtool.rings(self.netdev)

    def spread(
        self,
        queues: int | None = None,
        *,
        weights: Sequence[int] | None = None,
        first: int = 0,
        table: Sequence[int] | None = None,
    ) -> Rss:
        """Spread packets by their hash over `queues` queues from `first` on, or by `weights`, or as `table` says.

        What no rule steers elsewhere goes to these queues only; the others are free for rules.

        Args:
            weights: a number for each queue from `first` on; 0 leaves it out.
            table: a queue for each place; as long as the device's.

        Raises:
            ConfigError: no such queues; weights or a table that do not fit. Else as the class says.
        """
        with self._doing("setting the table of receive-side scaling", "rss"):
            now = ethtool.rss(self.netdev)
            if not now.table:
                raise OSError(errno.EOPNOTSUPP, "it has no table")
            size = len(now.table)
            wanted = tuple(table) if table is not None else spread_table(size, queues, weights=weights, first=first)
            if len(wanted) != size:
                raise ConfigError(f"the table has {size} places, not {len(wanted)}", subject=self.netdev)
            if not 0 <= min(wanted) <= max(wanted) < now.queues:
                raise ConfigError(
                    f"there is no queue {max(wanted)}",
                    subject=self.netdev,
                    hint=f"it spreads over {now.queues}; have more first: set_channels",
                )
            self._knobs.set(_KIND, "rss table", None if replace(now, table=wanted).is_default else list(wanted))
            return ethtool.rss(self.netdev)

    def set_key(self, key: bytes) -> Rss:
        """The hash's key, such as `RSS_KEY_SYMMETRIC`; cut to the length that the device has.

        Raises:
            ConfigError: the key is too short. Else as the class says.
        """
        with self._doing("setting the key of receive-side scaling", "rss"):
            size = len(ethtool.rss(self.netdev).key)
            if not 0 < size <= len(key):
                raise ConfigError(f"the key has {size} bytes, not {len(key)}", subject=self.netdev)
            self._knobs.set(_KIND, "rss key", bytes(key[:size]).hex())
            return ethtool.rss(self.netdev)

    def set_hash(self, flow: str, fields: str) -> None:
        """What the hash of such packets is made of.

        Args:
            flow: ``"tcp4"``, ``"udp4"``, ``"sctp4"``, ``"ah4"``, ``"ip4"``, or the same with 6.
            fields: ethtool's letters: ``"sd"`` for the addresses, ``"sdfn"`` for addresses and ports.

        Raises:
            ConfigError: no such packets or fields. Else as the class says.
        """
        if flow not in ethtool.HASH_FLOWS:
            raise ConfigError(f"no packets are called {flow!r}", hint=f"choose {', '.join(ethtool.HASH_FLOWS)}")
        if strange := set(fields) - set(ethtool.HASH_FIELDS):
            raise ConfigError(f"no field is {''.join(sorted(strange))!r}", hint="s, d addresses; f, n ports; v VLAN")
        with self._doing(f"setting the hash of {flow} to {fields}", "hash"):
            letters = "".join(letter for letter in ethtool.HASH_FIELDS if letter in fields)
            self._knobs.set(_KIND, f"hash {flow}", letters)

    def add(self, rule: FlowRule) -> FlowRule:
        """Have the NIC send these packets to a queue, or drop them. Returns the rule with its place.

        Turns flow rules on, where they are off.

        Raises:
            ConfigError: such a rule is not possible; the place is taken. Else as the class says.
        """
        if rule.queue != "drop" and (there := netdevs.find(self.netdev, self.netns).rx_queues) <= rule.queue:
            raise ConfigError(
                f"there is no queue {rule.queue}", subject=self.netdev, hint=f"it has {there}; see set_channels"
            )
        with self._doing(f"steering {rule}", "rule"):
            if not ethtool.has_ntuple(self.netdev):
                self._knobs.set(_KIND, "ntuple", True)
            places, size, chooses = ethtool.rule_places(self.netdev)
            place = rule.location
            if place is None and size:
                place = next((free for free in reversed(range(size)) if free not in places), None)
                if place is None:
                    raise OSError(errno.ENOSPC, f"all {size} places of the NIC's table are taken")
            elif place is not None and place in places:
                raise ConfigError(f"place {place} has a rule", subject=self.netdev, hint="delete it, or leave it open")
            elif place is None and not chooses:
                place = max(places, default=-1) + 1
            spec = rule.pack().hex()
            which = f"like {spec}" if place is None else str(place)
            self._knobs.set(_KIND, f"rule {which}", spec)
            return replace(rule, location=_place(self.netdev, which))

    def delete(self, location: int) -> None:
        """Take the rule at that place away, whoever made it. It comes back at the end if it was there before.

        Raises:
            ConfigError: there is no rule. Else as the class says.
        """
        with self._doing(f"deleting rule {location}", "rule"):
            if ethtool.rule(self.netdev, location) is None:
                raise ConfigError(f"there is no rule at {location}", subject=self.netdev)
            self._knobs.set(_KIND, f"rule {location}", None)

    def put_back(self) -> list[str]:
        """Put everything back, and go on; a sentence for each change. What is refused goes to the log."""
        with self._doing("putting back what was changed", "rule"):
            return self._knobs.put_back()

    def close(self) -> None:
        """Put everything back, unless it is kept. Idempotent; a device that has gone needs nothing.

        What is refused goes to the log.
        """
        self._knobs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _doing(self, what: str, thing: str) -> Iterator[None]:
        """In the device's namespace, with the kernel's errors in our words."""
        subject = f"{self.netdev} in namespace {self.netns}" if self.netns else self.netdev
        with netdevs.in_netns(self.netns):
            try:
                yield
            except OSError as error:
                code, kind = error.errno or 0, AfXdpError
                hint = "the device takes other values; `afxdp-pool steer -i` shows what it has"
                if code in (errno.EPERM, errno.EACCES):
                    kind, hint = PrivilegeError, "run as root, or with CAP_NET_ADMIN"
                elif code == errno.EOPNOTSUPP:
                    kind, hint = ModeUnsupportedError, f"the driver {self._driver} {_LACKS[thing]}"
                elif thing == "rule" and code == errno.EINVAL:
                    hint = f"the driver {self._driver} has no filter for these fields together, or for this queue"
                elif code == errno.EBUSY:
                    hint = "something uses it: close the sockets on it, and try again"
                raise kind(_own(error), subject=subject, doing=what, errno=code, hint=hint) from None


def _own(error: OSError) -> str:
    """The kernel's own sentence, if the error has one."""
    return "" if error.strerror in (None, os.strerror(error.errno or 0)) else str(error.strerror)


def _listed(wanted: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in wanted.items())


# As knobs -----------------------------------------------------------------------------------------------------------


def _read(netdev: str, key: str) -> Any:
    kind, _, which = key.partition(" ")
    if kind == "channels":
        now = ethtool.channels(netdev)
        return {"rx": now.rx, "tx": now.tx, "combined": now.combined}
    if kind == "rings":
        rings = ethtool.rings(netdev)
        return {"rx": rings.rx, "tx": rings.tx}
    if key == "rss table":
        rss = ethtool.rss(netdev)
        return None if rss.is_default else list(rss.table)
    if key == "rss key":
        return ethtool.rss(netdev).key.hex()
    if kind == "hash":
        return ethtool.hash_fields(netdev, which)
    if kind == "ntuple":
        return ethtool.has_ntuple(netdev)
    place = _place(netdev, which)
    spec = None if place is None else ethtool.rule(netdev, place)
    return None if spec is None else spec.hex()


def _write(netdev: str, key: str, value: Any) -> None:
    kind, _, which = key.partition(" ")
    if kind in ("channels", "rings"):
        now = _read(netdev, key)
        changed = {name: count for name, count in value.items() if count != now[name]}
        (ethtool.set_channels if kind == "channels" else ethtool.set_rings)(netdev, **changed)
    elif key == "rss table":
        ethtool.set_rss(netdev, None if value is None else tuple(value), reset=value is None)
    elif key == "rss key":
        ethtool.set_rss(netdev, key=bytes.fromhex(value))
    elif kind == "hash":
        ethtool.set_hash_fields(netdev, which, value)
    elif kind == "ntuple":
        ethtool.set_ntuple(netdev, value)
    elif value is not None:
        ethtool.insert_rule(netdev, bytes.fromhex(value), int(which) if which.isdecimal() else None)
    elif (place := _place(netdev, which)) is not None:
        ethtool.delete_rule(netdev, place)


def in_words(key: str, value: Any) -> str:
    """A knob's value for people."""
    if key.startswith("rule"):
        rule = None if value is None else FlowRule.unpack(bytes.fromhex(value))
        return str(rule) if rule else "none" if value is None else "a rule with fields that have no name here"
    if key == "rss table":
        return "the driver's own" if value is None else f"queues {sorted(set(value))}"
    return ", ".join(f"{count} {name}" for name, count in value.items()) if isinstance(value, dict) else str(value)


def _place(netdev: str, which: str) -> int | None:
    """A rule's place, from its number, or for ``"like BYTES"`` where such a rule is."""
    if which.isdecimal():
        return int(which)
    wanted = FlowRule.unpack(bytes.fromhex(which.removeprefix("like ")))
    for place in ethtool.rule_places(netdev)[0] if wanted else ():
        there = ethtool.rule(netdev, place)
        rule = None if there is None else FlowRule.unpack(there)
        if wanted and rule and replace(rule, location=None) == replace(wanted, location=None):
            return place
    return None


#: How a device chooses queues, by what it is: "channels", "rings", "rss table", "rss key", "hash FLOW", "ntuple",
#: "rule PLACE", and where only the driver chooses the place "rule like BYTES".
STEERING = Kind(_read, _write)
