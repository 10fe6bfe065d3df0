"""What ethtool reads and sets of a device's queues: channels, rings, receive-side scaling, flow rules.

It owns nothing. All is asked in the calling thread's network namespace, and raises OSError as the kernel does, where
there is one with the kernel's own sentence. Channels and rings are set by netlink, which gives that sentence. The rest
is by ioctl: netlink sets receive-side scaling only from Linux 6.17 on, and has no flow rules.
Source of the layouts: include/uapi/linux/ethtool.h, ethtool_netlink.h.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass

from afxdp_pool import netlink
from afxdp_pool.netdev import ethtool as ioctl

#: Bytes of a flow rule, struct ethtool_rx_flow_spec.
RULE_SIZE = 168
#: Hash fields by ethtool's letters (RXH_...), in its order.
HASH_FIELDS = {"m": 1 << 1, "v": 1 << 2, "t": 1 << 3, "s": 1 << 4, "d": 1 << 5, "f": 1 << 6, "n": 1 << 7}
#: Kinds of packets whose hash can be told apart (..._FLOW), by ethtool's names.
HASH_FLOWS = {"tcp4": 1, "udp4": 2, "sctp4": 3, "ah4": 4, "tcp6": 5, "udp6": 6, "sctp6": 7, "ah6": 8,
              "ip4": 0x10, "ip6": 0x11}  # fmt: skip
HASH_FUNCTIONS = {1: "toeplitz", 2: "xor", 4: "crc32"}

_GRINGPARAM, _GCHANNELS, _GFLAGS, _SFLAGS = 0x10, 0x3C, 0x25, 0x26
_GRXFH, _SRXFH, _GRXRINGS, _GRSSH, _SRSSH = 0x29, 0x2A, 0x2D, 0x46, 0x47
_RULE_COUNT, _RULE_GET, _RULE_ALL, _RULE_DELETE, _RULE_INSERT = 0x2E, 0x2F, 0x30, 0x31, 0x32
_FLAG_NTUPLE = 1 << 27
_INDIR_NO_CHANGE = 0xFFFFFFFF
_LOC_SPECIAL, _LOC_ANY = 0x80000000, 0xFFFFFFFF
_RXFH = struct.Struct("=IIIIBB2xI")  # command, context, entries of the table, bytes of the key, function, transform
_RXNFC = struct.Struct(f"=IIQ{RULE_SIZE}sI")  # command, flow, data, rule, count; the locations follow
_RXNFC_SIZE = 192
_RINGS_SET, _CHANNELS_SET = 16, 18
_HEADER, _DEV_NAME, _NESTED = 1, 2, 1 << 15
_RING_ATTRIBUTES = {"rx": 6, "tx": 9}
_CHANNEL_ATTRIBUTES = {"rx": 6, "tx": 7, "combined": 9}


@dataclass(frozen=True)
class Channels:
    """Queues in use, by kind: `combined` ones receive and send. `most_...` is what the device has."""

    rx: int
    tx: int
    combined: int
    most_rx: int
    most_tx: int
    most_combined: int


@dataclass(frozen=True)
class Rings:
    """Descriptors of each of the driver's rings, and the most it can have. Not those of AF_XDP sockets."""

    rx: int
    tx: int
    most_rx: int
    most_tx: int


@dataclass(frozen=True)
class Rss:
    """Receive-side scaling: the hash of a packet, modulo the table's length, is the place of its queue in the table.

    Attributes:
        table: queues; empty when the device has none.
        key: of the hash; empty when the driver does not tell.
        function: ``"toeplitz"``, ``"xor"``, ``"crc32"``, or ``""``.
        queues: those it may spread over.
    """

    table: tuple[int, ...]
    key: bytes
    function: str
    queues: int

    @property
    def is_default(self) -> bool:
        """Whether the table is what a driver makes of itself: all queues in turn, or in runs of one length."""
        size, queues = len(self.table), max(1, self.queues)
        defaults = [at % queues for at in range(size)], [at * queues // size for at in range(size)]  # in runs: igb
        return list(self.table) in defaults


def channels(name: str) -> Channels:
    """How many queues. Raises OSError as the kernel says."""
    _, most_rx, most_tx, _, most, rx, tx, _, combined = struct.unpack("=9I", _get(name, "=9I", _GCHANNELS))
    return Channels(rx, tx, combined, most_rx, most_tx, most)


def set_channels(name: str, **counts: int) -> None:
    """Set `rx`, `tx` or `combined`. Raises OSError as the kernel says."""
    _set(name, _CHANNELS_SET, {_CHANNEL_ATTRIBUTES[kind]: count for kind, count in counts.items()})


def rings(name: str) -> Rings:
    """How many descriptors. Raises OSError as the kernel says."""
    _, most_rx, _, _, most_tx, rx, _, _, tx = struct.unpack("=9I", _get(name, "=9I", _GRINGPARAM))
    return Rings(rx, tx, most_rx, most_tx)


def set_rings(name: str, **sizes: int) -> None:
    """Set `rx` or `tx`. Raises OSError as the kernel says."""
    _set(name, _RINGS_SET, {_RING_ATTRIBUTES[kind]: size for kind, size in sizes.items()})


def rss(name: str) -> Rss:
    """The table, and the hash's key. Raises OSError as the kernel says."""
    _, _, entries, key_size, _, _, _ = _RXFH.unpack(ioctl(name, _RXFH.pack(_GRSSH, 0, 0, 0, 0, 0, 0)))
    request = _RXFH.pack(_GRSSH, 0, entries, key_size, 0, 0, 0) + bytes(4 * entries + key_size)
    reply = ioctl(name, request)
    _, _, entries, key_size, function, _, _ = _RXFH.unpack_from(reply)
    table = struct.unpack_from(f"={entries}I", reply, _RXFH.size)
    key = reply[_RXFH.size + 4 * entries :][:key_size]
    queues = _nfc(name, _GRXRINGS)[2]
    return Rss(table, key, HASH_FUNCTIONS.get(function, ""), queues)


def set_rss(name: str, table: tuple[int, ...] | None = None, key: bytes = b"", *, reset: bool = False) -> None:
    """Set the table (None: leave it alone; `reset`: to the driver's own), or the key. Raises OSError."""
    entries = 0 if reset else _INDIR_NO_CHANGE if table is None else len(table)
    before = _RXFH.unpack(ioctl(name, _RXFH.pack(_GRSSH, 0, 0, 0, 0, 0, 0)))
    transform = before[5]  # 0 would turn a symmetric hash off
    request = _RXFH.pack(_SRSSH, 0, entries, len(key), 0, transform, 0)
    ioctl(name, request + struct.pack(f"={len(table or ())}I", *(table or ())) + key)


def hash_fields(name: str, flow: str) -> str:
    """What the hash of such packets is made of, as ethtool's letters, such as ``"sdfn"``. Raises OSError."""
    bits = _nfc(name, _GRXFH, HASH_FLOWS[flow])[2]
    return "".join(letter for letter, bit in HASH_FIELDS.items() if bits & bit)


def set_hash_fields(name: str, flow: str, letters: str) -> None:
    """Set what the hash of such packets is made of. Raises OSError as the kernel says."""
    _nfc(name, _SRXFH, HASH_FLOWS[flow], sum(HASH_FIELDS[letter] for letter in set(letters)))


def has_ntuple(name: str) -> bool:
    """Whether flow rules are on. Raises OSError as the kernel says."""
    return bool(struct.unpack("=II", _get(name, "=II", _GFLAGS))[1] & _FLAG_NTUPLE)


def set_ntuple(name: str, on: bool) -> None:
    """Turn flow rules on or off. Raises OSError as the kernel says."""
    (flags,) = struct.unpack_from("=I", _get(name, "=II", _GFLAGS), 4)
    ioctl(name, struct.pack("=II", _SFLAGS, flags | _FLAG_NTUPLE if on else flags & ~_FLAG_NTUPLE))


def rule_places(name: str) -> tuple[tuple[int, ...], int, bool]:
    """Where rules are, how many places the table has (0: not told), and whether the driver chooses by itself.

    Raises OSError as the kernel says.
    """
    _, _, told, _, count = _nfc(name, _RULE_COUNT)
    request = _RXNFC.pack(_RULE_ALL, 0, 0, bytes(RULE_SIZE), count).ljust(_RXNFC_SIZE + 4 * count, b"\0")
    reply = ioctl(name, request)
    _, _, size, _, count = _RXNFC.unpack_from(reply)
    places = struct.unpack_from(f"={count}I", reply, _RXNFC.size)
    return tuple(sorted(places)), (size or told) & ~_LOC_SPECIAL, bool(told & _LOC_SPECIAL)


def rule(name: str, location: int) -> bytes | None:
    """The rule at a place, as struct ethtool_rx_flow_spec; None: there is none. Raises OSError."""
    try:
        return _nfc(name, _RULE_GET, rule=_at(bytes(RULE_SIZE), location))[3]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL):  # drivers say either
            return None
        raise


def insert_rule(name: str, spec: bytes, location: int | None) -> int:
    """Put a rule at a place, None: one of the driver's choice; where it is. Raises OSError as the kernel says."""
    spec = _at(spec, _LOC_ANY if location is None else location)
    return int(struct.unpack_from("=I", _nfc(name, _RULE_INSERT, rule=spec)[3], 160)[0])


def delete_rule(name: str, location: int) -> None:
    """Take the rule at that place away. Raises OSError as the kernel says."""
    _nfc(name, _RULE_DELETE, rule=_at(bytes(RULE_SIZE), location))


def _at(spec: bytes, location: int) -> bytes:
    return spec[:160] + struct.pack("=I", location) + spec[164:]


def _nfc(
    name: str, command: int, flow: int = 0, data: int = 0, rule: bytes = bytes(RULE_SIZE)
) -> tuple[int, int, int, bytes, int]:
    request = _RXNFC.pack(command, flow, data, rule, 0).ljust(_RXNFC_SIZE, b"\0")
    return _RXNFC.unpack_from(ioctl(name, request))


def _get(name: str, layout: str, command: int) -> bytes:
    return ioctl(name, struct.pack("=I", command).ljust(struct.calcsize(layout), b"\0"))


def _set(name: str, command: int, values: dict[int, int]) -> None:
    header = netlink.attribute(_HEADER | _NESTED, netlink.attribute(_DEV_NAME, name.encode() + b"\0"))
    try:
        netlink.act("ethtool", command, header + b"".join(netlink.attribute(*value) for value in values.items()))
    except FileNotFoundError:  # Linux 5.6 has netlink for it
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)) from None
