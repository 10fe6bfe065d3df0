"""The filter's rules: a `Rule` names the packets the engine wants, by header fields.

Within a rule every field given must match; of several rules one is enough. No rules at all means every
packet. What no rule wants goes to the kernel's stack. bpf/filter.h matches the structures packed here.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from afxdp_pool.errors import ConfigError

MAX_RULES = 16

_TCP, _UDP = 6, 17
_IPV4, _IPV6 = 0x0800, 0x86DD
_VLAN_TAGS = (0x8100, 0x88A8)
_HAS_IPV4, _HAS_IPV6, _HAS_PORTS, _HAS_PROTOCOL = 1, 2, 4, 8
# present, then as in the packet: ethertype, protocol, unused, source port, destination port, addresses
_PRESENT, _REST = struct.Struct("=I"), struct.Struct("!HBxHH16s16s")
KEY_SIZE = _PRESENT.size + _REST.size
RULES_SIZE = 4 + MAX_RULES * 2 * KEY_SIZE


@dataclass(frozen=True)
class Rule:
    """Packets that have all the fields given here; None means "whatever it is".

    Attributes:
        ethertype: the type behind up to two VLAN tags, e.g. 0x0806 for ARP.
        protocol: the IP protocol, e.g. 17 for UDP. In IPv6 it is what follows a hop-by-hop header, if there
            is one; behind any other extension header it is that header's number.
        port: the UDP or TCP destination port.
        network: the destination address lies in it, e.g. ``"10.0.0.0/8"``, ``"fd00::/8"`` or one address.
        source_port: the UDP or TCP source port.
        source_network: the source address lies in it.

    A fragment of an IPv4 packet has no ports, not even the first, so that all of them go the same way. A tag
    the device takes off by itself (receive VLAN offload) is not there to be seen.

    Raises:
        ConfigError: a number out of range, an unreadable network, host bits set, or fields that exclude
            each other.
    """

    ethertype: int | None = None
    protocol: int | None = None
    port: int | None = None
    network: str | None = None
    source_port: int | None = None
    source_network: str | None = None

    def __post_init__(self) -> None:
        for field, most in (
            ("ethertype", 0xFFFF),
            ("protocol", 255),
            ("port", 65535),
            ("source_port", 65535),
        ):
            value = getattr(self, field)
            if value is not None and not 0 <= value <= most:
                raise ConfigError(f"{field} is 0 to {most}, not {value}", subject="filter rule")
        if self.ethertype in _VLAN_TAGS:
            raise ConfigError(
                "VLAN tags are skipped, never matched",
                subject="filter rule",
                hint="give the type behind them",
            )
        if self._has_ports and self.protocol not in (None, _TCP, _UDP):
            raise ConfigError(
                f"only TCP (6) and UDP (17) have ports here, not protocol {self.protocol}",
                subject="filter rule",
            )
        versions = {net.version for net in (self._network(), self._source_network()) if net}
        if len(versions) == 2:
            raise ConfigError("one network is IPv4, the other IPv6", subject="filter rule")
        if self.ethertype is not None:
            needs_ip = bool(versions) or self._has_ports or self.protocol is not None
            fitting = {_IPV4 if version == 4 else _IPV6 for version in versions} or {_IPV4, _IPV6}
            if needs_ip and self.ethertype not in fitting:
                raise ConfigError(f"ethertype {self.ethertype:#06x} excludes the other fields", subject="filter rule")

    @property
    def _has_ports(self) -> bool:
        return self.port is not None or self.source_port is not None

    def _network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        return _parse(self.network)

    def _source_network(self) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
        return _parse(self.source_network)

    def pack(self) -> bytes:
        """The rule as bpf/filter.h has it: value, then mask."""
        dest, source = self._network(), self._source_network()
        network = dest or source
        present = _HAS_PORTS if self._has_ports else 0
        if self.protocol is not None:
            present |= _HAS_PROTOCOL
        if network:
            present |= _HAS_IPV4 if network.version == 4 else _HAS_IPV6
        value = _REST.pack(
            self.ethertype or 0,
            self.protocol or 0,
            self.source_port or 0,
            self.port or 0,
            source.network_address.packed if source else b"",
            dest.network_address.packed if dest else b"",
        )
        mask = _REST.pack(
            0 if self.ethertype is None else 0xFFFF,
            0 if self.protocol is None else 0xFF,
            0 if self.source_port is None else 0xFFFF,
            0 if self.port is None else 0xFFFF,
            source.netmask.packed if source else b"",
            dest.netmask.packed if dest else b"",
        )
        return _PRESENT.pack(present) + value + _PRESENT.pack(present) + mask


def pack_rules(rules: Sequence[Rule]) -> bytes:
    """All rules as the one value of the filter's map.

    Raises:
        ConfigError: more than 16 rules.
    """
    if len(rules) > MAX_RULES:
        raise ConfigError(f"a filter has at most {MAX_RULES} rules, not {len(rules)}", subject="filter")
    return (struct.pack("=I", len(rules)) + b"".join(rule.pack() for rule in rules)).ljust(RULES_SIZE, b"\0")


def _parse(text: str | None) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    if text is None:
        return None
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise ConfigError(str(error), subject="filter rule", hint="write networks as 10.0.0.0/8 or fd00::/8") from None
