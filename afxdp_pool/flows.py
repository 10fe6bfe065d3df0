"""`FlowRule`: what a NIC does with packets of one kind before any software sees them: to a queue, or nowhere.

It owns nothing. `pack` makes of it what ethtool takes (struct ethtool_rx_flow_spec), `unpack` reads that. Invariant:
what was packed is unpacked the same.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Any, Literal

from afxdp_pool.errors import ConfigError

_PORTS = {6: "TCP", 17: "UDP", 132: "SCTP"}
#: Flow types (include/uapi/linux/ethtool.h) by IP version: those with ports by protocol, and any other protocol.
_FLOWS = {4: {6: 1, 17: 2, 132: 3, None: 0x0D}, 6: {6: 5, 17: 6, 132: 7, None: 0x0E}}
_ETHER = 0x12
_EXT, _MAC_EXT, _RSS = 1 << 31, 1 << 30, 1 << 29
_DISCARD = (1 << 64) - 1
_ANY = 0xFFFFFFFF
_SPEC = struct.Struct("=I52s20s52s20s4xQI4x")
_EXTENSION = struct.Struct("!2x6sHH8x")
_IPV4_PORTS, _IPV4_OTHER = struct.Struct("!4s4sHHB"), struct.Struct("!4s4sIBBB")
_IPV6_PORTS, _IPV6_OTHER = struct.Struct("!16s16sHHB"), struct.Struct("!16s16sIBB")
_ETHERNET = struct.Struct("!6s6sH")
#: What packets are chosen by.
_FIELDS = ("ip", "protocol", "port", "source_port", "network", "source_network", "ethertype", "mac", "source_mac",
           "vlan", "vlan_priority")  # fmt: skip
_VLAN_ID, _VLAN_PRIORITY = 0x0FFF, 0xE000


@dataclass(frozen=True)
class FlowRule:
    """Packets that have all the fields given here go to `queue`. None means "whatever it is".

    Attributes:
        queue: the receive queue, or ``"drop"``: the NIC drops them.
        protocol: the IP protocol, e.g. 17 for UDP.
        port, source_port: destination and source port, of TCP (6), UDP (17) or SCTP (132), which is to be given.
        network, source_network: the destination or source address lies in it, e.g. ``"10.0.0.0/8"``, ``"fd00::/8"``.
        ip: the version of IP, 4 or 6; None: that of the networks, else 4 if there is a protocol,
            and it is set to that.
        ethertype: of packets that are chosen by no field of IP, e.g. 0x88F7.
        mac: the destination MAC address, e.g. ``"02:00:00:00:00:01"``.
        source_mac: the source MAC address; only where no field of IP is given.
        vlan: the VLAN's number, 0 to 4095.
        vlan_priority: the VLAN tag's priority, 0 to 7.
        location: its place in the NIC's table; the lowest place that matches decides. None: a free one.

    What a NIC can choose by differs very much: most refuse a combination of fields they have no filter for.

    Raises:
        ConfigError: a number out of range, an unreadable address, or fields that exclude each other.
    """

    queue: int | Literal["drop"]
    protocol: int | None = None
    port: int | None = None
    source_port: int | None = None
    network: str | None = None
    source_network: str | None = None
    ip: Literal[4, 6] | None = None
    ethertype: int | None = None
    mac: str | None = None
    source_mac: str | None = None
    vlan: int | None = None
    vlan_priority: int | None = None
    location: int | None = None

    def __post_init__(self) -> None:
        for field, most in (("protocol", 255), ("port", 65535), ("source_port", 65535), ("ethertype", 65535),
                            ("vlan", 4095), ("vlan_priority", 7), ("location", 0x7FFFFFFF)):  # fmt: skip
            value = getattr(self, field)
            if value is not None and not 0 <= value <= most:
                raise _refuse(f"{field} is 0 to {most}, not {value}")
        if self.queue != "drop" and not (isinstance(self.queue, int) and 0 <= self.queue < 1 << 32):
            raise _refuse(f"there is no queue {self.queue!r}", "give a queue's number, or 'drop'")
        if self.ip not in (None, 4, 6):
            raise _refuse(f"there is no IP version {self.ip}")
        versions = {self.ip} - {None}
        for field in ("network", "source_network"):
            if (net := self._net(field)) is not None:
                object.__setattr__(self, field, str(net))
                versions.add(net.version)
        if len(versions) > 1:
            raise _refuse("IPv4 and IPv6 exclude each other", "make a rule of each")
        object.__setattr__(self, "ip", versions.pop() if versions else None if self.protocol is None else 4)
        if (self.port is not None or self.source_port is not None) and self.protocol not in _PORTS:
            raise _refuse("ports are those of a protocol", "give protocol 6 (TCP), 17 (UDP) or 132 (SCTP)")
        for field in ("mac", "source_mac"):
            if (text := getattr(self, field)) is not None:
                object.__setattr__(self, field, _mac(text).hex(":"))
        if self.ip and (self.ethertype is not None or self.source_mac is not None):
            raise _refuse("ethertype and source_mac do not go with fields of IP", "leave one or the other out")
        if all(getattr(self, field) is None for field in _FIELDS):
            raise _refuse("it names no field, so it would take every packet", "give a field, or spread over one queue")

    def __str__(self) -> str:
        names = (*_FIELDS, "queue", "location")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.ethertype is not None:
            given["ethertype"] = f"{self.ethertype:#06x}"
        return ",".join(f"{name}={value}" for name, value in given.items())

    def _net(self, field: str) -> Any:
        text = getattr(self, field)
        if text is None:
            return None
        try:
            return ipaddress.ip_network(text)
        except ValueError as error:
            raise _refuse(f"{field}: {error}") from None

    def pack(self) -> bytes:
        """As ethtool takes it, struct ethtool_rx_flow_spec."""
        flow, fields, masks = self._layers()
        ext, ext_mask = self._extension(flow)
        if self.vlan is not None or self.vlan_priority is not None:
            flow |= _EXT
        if self.mac is not None and flow & 0xFF != _ETHER:
            flow |= _MAC_EXT
        cookie = _DISCARD if self.queue == "drop" else self.queue
        location = _ANY if self.location is None else self.location
        return _SPEC.pack(flow, fields, ext, masks, ext_mask, cookie, location)

    def _layers(self) -> tuple[int, bytes, bytes]:
        if self.ip is None:
            mac, mac_mask = _both(self.mac and _mac(self.mac), 6)
            source, source_mask = _both(self.source_mac and _mac(self.source_mac), 6)
            type_mask = 0 if self.ethertype is None else 0xFFFF
            return (
                _ETHER,
                _ETHERNET.pack(mac, source, self.ethertype or 0),
                _ETHERNET.pack(mac_mask, source_mask, type_mask),
            )
        length = 4 if self.ip == 4 else 16
        values: list[Any] = []
        for field in ("source_network", "network"):
            net = self._net(field)
            values.append((net.network_address.packed, net.netmask.packed) if net else (bytes(length), bytes(length)))
        if self.protocol in _PORTS:
            values += [(value or 0, 0 if value is None else 0xFFFF) for value in (self.source_port, self.port)]
            values.append((0, 0))  # TOS
            layout = _IPV4_PORTS if self.ip == 4 else _IPV6_PORTS
            flow = _FLOWS[self.ip][self.protocol]
        else:
            values += [(0, 0), (0, 0), (self.protocol or 0, 0 if self.protocol is None else 0xFF)]
            if self.ip == 4:
                values.insert(4, (1, 0))  # ETH_RX_NFC_IP4, which has no mask
            layout = _IPV4_OTHER if self.ip == 4 else _IPV6_OTHER
            flow = _FLOWS[self.ip][None]
        return flow, layout.pack(*(value[0] for value in values)), layout.pack(*(value[1] for value in values))

    def _extension(self, flow: int) -> tuple[bytes, bytes]:
        tag = (self.vlan or 0) | (self.vlan_priority or 0) << 13
        mask = (0 if self.vlan is None else _VLAN_ID) | (0 if self.vlan_priority is None else _VLAN_PRIORITY)
        mac, mac_mask = _both(self.mac and flow != _ETHER and _mac(self.mac), 6)
        return _EXTENSION.pack(mac, 0, tag), _EXTENSION.pack(mac_mask, 0, mask)

    @classmethod
    def unpack(cls, spec: bytes) -> FlowRule | None:
        """The rule that ethtool tells of; None: it chooses by something that has no field here.

        Raises:
            Nothing: whatever the bytes are.
        """
        flow, fields, ext, masks, ext_mask, cookie, location = _SPEC.unpack(spec)
        kind = flow & ~(_EXT | _MAC_EXT)
        given: dict[str, Any] = {"queue": "drop" if cookie == _DISCARD else cookie}
        given["location"] = None if location > 0x7FFFFFFF else location
        mac, _, tag = _EXTENSION.unpack(ext)
        mac_mask, _, tag_mask = _EXTENSION.unpack(ext_mask)
        if flow & _EXT and tag_mask & _VLAN_ID:
            given["vlan"] = tag & _VLAN_ID
        if flow & _EXT and tag_mask & _VLAN_PRIORITY:
            given["vlan_priority"] = tag >> 13
        if flow & _MAC_EXT and any(mac_mask):
            given["mac"] = mac.hex(":")
        try:
            given |= _fields(kind, fields, masks)
            made = cls(**given)
        except (ConfigError, ValueError):
            return None
        return made if _same(made.pack(), spec) else None


def _fields(kind: int, fields: bytes, masks: bytes) -> dict[str, Any]:
    if kind == _ETHER:
        (mac, source, ethertype), (mac_mask, source_mask, type_mask) = _read(_ETHERNET, fields, masks)
        found = {"mac": mac.hex(":") if any(mac_mask) else None, "ethertype": ethertype if type_mask else None}
        return found | {"source_mac": source.hex(":") if any(source_mask) else None}
    version, protocol = next(
        ((version, protocol) for version, flows in _FLOWS.items() for protocol, flow in flows.items() if flow == kind),
        (0, None),
    )
    if not version:
        raise ValueError(f"flow type {kind:#x}")
    given: dict[str, Any] = {"ip": version, "protocol": protocol}
    if protocol is not None:
        values, bits = _read(_IPV4_PORTS if version == 4 else _IPV6_PORTS, fields, masks)
        given |= {"source_port": values[2] if bits[2] else None, "port": values[3] if bits[3] else None}
    else:
        values, bits = _read(_IPV4_OTHER if version == 4 else _IPV6_OTHER, fields, masks)
        given["protocol"] = values[-1] if bits[-1] else None
    for at, field in enumerate(("source_network", "network")):
        if any(bits[at]):
            mask = int.from_bytes(bits[at], "big")
            given[field] = f"{ipaddress.ip_address(values[at])}/{mask.bit_count()}"
    return given


def _read(layout: struct.Struct, fields: bytes, masks: bytes) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    return layout.unpack_from(fields), layout.unpack_from(masks)


def _same(ours: bytes, theirs: bytes) -> bool:
    """Whether two rules choose the same packets: fields that a mask leaves out may be anything."""

    def chosen(spec: bytes) -> tuple[int, bytes, bytes, int]:
        flow, fields, ext, masks, ext_mask, cookie, _ = _SPEC.unpack(spec)
        ext_mask = ext_mask if flow & (_EXT | _MAC_EXT) else bytes(len(ext_mask))
        used = bytes(a & b for a, b in zip(fields + ext, masks + ext_mask, strict=True))
        return flow & ~(_EXT | _MAC_EXT), used, masks + ext_mask, cookie

    return chosen(ours) == chosen(theirs)


def _both(raw: Any, length: int) -> tuple[bytes, bytes]:
    """A field and its mask: all of it, or nothing."""
    return (raw, b"\xff" * length) if raw else (bytes(length), bytes(length))


def _mac(text: str) -> bytes:
    try:
        raw = bytes.fromhex(text.replace(":", "").replace("-", ""))
    except (ValueError, AttributeError):
        raw = b""
    if len(raw) != 6:
        raise _refuse(f"{text!r} is not a MAC address", "write it as 02:00:00:00:00:01")
    return raw


def _refuse(message: str, hint: str = "") -> ConfigError:
    return ConfigError(message, subject="flow rule", hint=hint)
