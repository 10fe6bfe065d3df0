"""What one word of the command line may be: each function here reads one, for a flag's `type`.

They own nothing, ask the machine nothing but the names of protocols, and return what the library takes. Invariant: a
word that can never mean anything ends in `argparse.ArgumentTypeError`, whose text says what to write instead, and in no
other exception.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
from collections.abc import Callable
from typing import Literal

from afxdp_pool import Rule
from afxdp_pool.config import RX_METADATA, TX_METADATA, Name, RxMetadataName, TxMetadataName
from afxdp_pool.errors import ConfigError
from afxdp_pool.routes import mac

_PROTOCOLS = {"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "icmpv6": 58, "ospf": 89, "sctp": 132}
_ETHERTYPES = {"ipv4": 0x0800, "arp": 0x0806, "ipv6": 0x86DD, "mpls": 0x8847, "lldp": 0x88CC, "ptp": 0x88F7}
_SUFFIXES = {"k": 1e3, "m": 1e6, "g": 1e9}


def number(text: str) -> float:
    """A number not negative, with k, M or G behind it or not."""
    factor = _SUFFIXES.get(text[-1:].lower(), 0.0)
    try:
        value = float(text[:-1]) * factor if factor else float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 100, 1.5k or 2M")
    return value


def count(text: str) -> int:
    """A whole number not negative, as `number` reads it."""
    value = number(text)
    if value != int(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(value)


def some(text: str) -> int:
    """A whole number above 0."""
    value = count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("0 of them is nothing to do: leave it away for no end")
    return value


def ring_size(text: str) -> int:
    """Entries of a ring."""
    value = count(text)
    if value & (value - 1) or value == 0:
        more = 1 << value.bit_length() if value else 2048
        raise argparse.ArgumentTypeError(f"a ring has a power of two of entries, such as {more}, not {text}")
    return value


def queue(text: str) -> int | Literal["all"]:
    """One queue, or ``"all"``."""
    return "all" if text == "all" else queue_number(text)


def queue_number(text: str) -> int:
    """One queue."""
    if not text.isascii() or not text.isdigit():
        parts = " ".join(f"-q {part}" for part in text.split(",")) if text.replace(",", "").isdigit() else "-q 0 -q 1"
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a queue; write several as {parts}")
    return int(text)


def seconds(text: str) -> float:
    """A duration above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, such as 10 or 0.5")
    return value


def _named(names: dict[str, int], what: str, ask: Callable[[str], int] | None = None) -> Callable[[str], int]:
    def read(text: str) -> int:
        if text.lower() in names:
            return names[text.lower()]
        try:
            return int(text, 0)
        except ValueError:
            pass
        try:
            if ask is not None:
                return ask(text.lower())
        except (OSError, UnicodeError):
            pass
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}: give a number, or one of {', '.join(names)}")

    return read


protocol = _named(_PROTOCOLS, "IP protocol", socket.getprotobyname)
ethertype = _named(_ETHERTYPES, "ethertype")


def mac_address(text: str) -> bytes:
    """A MAC address as 6 bytes."""
    try:
        return mac(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def ipv4(text: str) -> bytes:
    """An IPv4 address as 4 bytes."""
    try:
        return ipaddress.IPv4Address(text).packed
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an IPv4 address") from None


def port_number(text: str) -> int:
    """A UDP or TCP port."""
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, 0 to 65535")
    return int(text)


def ending(*known: str) -> Callable[[str], str]:
    """A file whose name ends in one of these."""

    def read(text: str) -> str:
        if not text.lower().endswith(known):
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {', '.join(known[:-1])} or {known[-1]}")
        return text

    return read


def listening(text: str) -> tuple[str, int]:
    """An address and a port of TCP from ``"9400"``, ``"0.0.0.0:9400"`` or ``"[::1]:9400"``."""
    address, _, port = text.rpartition(":")
    bare = address.removeprefix("[").removesuffix("]") if address.startswith("[") else address
    if (":" in bare) != address.startswith("["):
        raise argparse.ArgumentTypeError(f"{text!r}: write an IPv6 address as [::1]:9400")
    return bare or "127.0.0.1", port_number(port)


Reader = Callable[[str], int | str]
_FIELDS: dict[str, Reader] = {
    "ethertype": ethertype,
    "protocol": protocol,
    "port": port_number,
    "network": str,
    "source_port": port_number,
    "source_network": str,
}


def rule(text: str) -> Rule:
    """A rule from ``"protocol=udp,port=53"``: the fields of `Rule`, with - or _ in their names."""
    return rule_of(**fields_of(text, _FIELDS))


def fields_of(text: str, readers: dict[str, Reader]) -> dict[str, int | str]:
    """Fields from ``"protocol=udp,port=53"``, each as its reader reads it."""
    fields: dict[str, int | str] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        key = name.strip().replace("-", "_")
        if not equals or key not in readers or key in fields:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no part of a rule: write protocol=udp,port=53, each of {', '.join(readers)} at most once"
            )
        fields[key] = readers[key](value.strip())
    return fields


def cpu_list(text: str) -> tuple[int, ...]:
    """CPUs from ``"0,2,4-7"``."""
    cpus: list[int] = []
    for part in text.split(","):
        first, to, last = part.partition("-")
        try:
            start, end = int(first), int(last if to else first)
        except ValueError:
            start, end = 0, -1
        if not 0 <= start <= end < 1 << 16:
            raise argparse.ArgumentTypeError(f"{text!r} is no list of CPUs such as 0,2 or 0-3")
        cpus += range(start, end + 1)
    return tuple(cpus)


def metadata_names(text: str) -> tuple[RxMetadataName, ...]:
    """Kinds of metadata from ``"hash,arrival"``."""
    return _names(text, RX_METADATA)


def request_names(text: str) -> tuple[TxMetadataName, ...]:
    """What is asked of a device, from ``"checksum,timestamp"``."""
    return _names(text, TX_METADATA)


def _names(text: str, known: tuple[Name, ...]) -> tuple[Name, ...]:
    asked = {name.strip() for name in text.split(",")}
    if not asked <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r}: write some of {','.join(known)}")
    return tuple(name for name in known if name in asked)


def worker_count(text: str) -> int | Literal["queues"]:
    """A number of workers, or ``"queues"``."""
    return "queues" if text == "queues" else count(text)


def rule_of(**fields: int | str | None) -> Rule:
    """The rule of these fields."""
    try:
        return Rule(**fields)  # type: ignore[arg-type]
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
