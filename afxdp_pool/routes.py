"""What becomes of packets without a handler: a `Route` for those of a port, a `Template` for those made here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from afxdp_pool.errors import ConfigError
from afxdp_pool.handlers import DROP

_MAC_LENGTH = 6


def mac(text: str | bytes) -> bytes:
    """A MAC address as 6 bytes, from ``"02:00:00:00:00:01"`` or 6 bytes.

    Raises:
        ConfigError: it is neither.
    """
    try:
        raw = (
            bytes.fromhex(text.replace(":", "").replace("-", "")) if isinstance(text, str) else bytes(memoryview(text))
        )
    except (ValueError, TypeError):
        raw = b""
    if len(raw) != _MAC_LENGTH:
        raise ConfigError(f"{text!r} is not a MAC address", hint="write it as 02:00:00:00:00:01")
    return raw


@dataclass(frozen=True)
class Rewrite:
    """What to change in the Ethernet header of a packet that is sent on.

    Attributes:
        swap: exchange source and destination address.
        dst, src: set the destination, the source; 6 bytes or ``"02:00:00:00:00:01"``.
    """

    swap: bool = False
    dst: str | bytes | None = None
    src: str | bytes | None = None


@dataclass(frozen=True)
class Route:
    """What the built-in loop does with one port's packets: a verdict, and a rewrite before they are sent."""

    verdict: int = DROP
    rewrite: Rewrite = field(default_factory=Rewrite)


@dataclass(frozen=True)
class Template:
    """Packets for the tx path.

    Attributes:
        packets: sent in turn.
        sequence_at: offset in bytes of a 64-bit big-endian number to count up in each packet; 0 for none.
            With several packets each counts its own.
        checksum_at: offset of the UDP checksum that covers it, right for number 0; kept right (RFC 1624). 0 for none.
    """

    packets: Sequence[bytes]
    sequence_at: int = 0
    checksum_at: int = 0

    def __post_init__(self) -> None:
        # Nobody can change them once they are checked.
        object.__setattr__(self, "packets", tuple(memoryview(packet).tobytes() for packet in self.packets))
        if not self.packets or not all(self.packets):
            raise ConfigError("there is nothing to send", hint="give one packet or more, none of them empty")
        shortest = min(map(len, self.packets))
        ends = [at + size for at, size in ((self.sequence_at, 8), (self.checksum_at, 2)) if at]
        if min(self.sequence_at, self.checksum_at) < 0 or max(ends, default=0) > shortest:
            raise ConfigError(f"the sequence number or checksum lies beyond the packet of {shortest} bytes")
        if self.sequence_at and self.checksum_at and (self.sequence_at - self.checksum_at) % 2:
            raise ConfigError("sequence number and checksum do not share 16-bit words", hint="move one by a byte")
