"""What becomes of packets without a handler: a `Route` for those of a port, a `Template` for those made here.

Both are plain values; the functions at the end tell them to the C engine, which belongs to the forwarder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from afxdp_pool._native import ffi, lib
from afxdp_pool.chain import spread
from afxdp_pool.errors import ConfigError
from afxdp_pool.handlers import DROP, FORWARD, TX

if TYPE_CHECKING:
    from afxdp_pool.port import Port

_MAC_LENGTH = 6
#: Of packets made here one in so long asks when it is sent: `Port` keeps some 8000 answers until they are taken.
STAMP_EVERY_NS = 100_000


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


def set_routes(engine: Any, ports: Sequence[Port], routes: Mapping[int, Route], *, asked: bool) -> None:
    """Tell the C engine what becomes of each port's packets, or which ports receive where a handler is `asked`.

    Raises:
        ConfigError: a verdict that is none, a port that does not exist or cannot send.
    """
    if not set(routes) <= set(range(len(ports))):
        raise ConfigError(f"there are routes for ports {sorted(routes)}, and ports 0 to {len(ports) - 1}")
    for index, port in enumerate(ports):
        native = engine.route[index]
        route = routes.get(index)
        native.receive = port.config.receive and (asked or route is not None)
        if route is None:
            continue
        if route.verdict != DROP and route.verdict != TX and not FORWARD(0) <= route.verdict <= FORWARD(63):
            raise ConfigError(f"the route of port {index} has verdict {route.verdict}; use DROP, TX or FORWARD(port)")
        target = index if route.verdict == TX else route.verdict & 0x7F
        if route.verdict != DROP and (target >= len(ports) or not ports[target].config.transmit):
            raise ConfigError(f"the route of port {index} leads to port {target}, which cannot send")
        native.verdict = route.verdict
        native.rewrite = route.rewrite.swap | 2 * (route.rewrite.dst is not None) | 4 * (route.rewrite.src is not None)
        if route.rewrite.dst is not None:
            native.dst = list(mac(route.rewrite.dst))
        if route.rewrite.src is not None:
            native.src = list(mac(route.rewrite.src))


def make_generator(port: Port, template: Template, count: int, rate: float) -> tuple[Any, list[Any]]:
    """A C generator that sends `count` packets a run from port 0, and the memory that it needs as long as it is used.

    Raises:
        ConfigError: a packet does not fit a frame, or as many as the port sends it in; a negative number.
    """
    if count < 0 or rate < 0:
        raise ConfigError("count and rate are not negative", hint="0 means without end, as fast as can be")
    umem = port.pool.umem
    sizes, options = spread([len(packet) for packet in template.packets], umem.frame_size - umem.config.headroom)
    first = np.concatenate(([0], np.flatnonzero(np.array(options) == 0) + 1))  # parts of each template
    _check_parts(port, template, sizes, int(np.diff(first).max()))
    data = ffi.new("uint8_t[]", b"".join(template.packets))
    offsets = ffi.new("uint32_t[]", [0, *np.cumsum(sizes).tolist()])
    written = ffi.new("uint32_t[]", umem.frames)
    wanted = port.config.tx_metadata
    plain = len(sizes) == len(template.packets) and not wanted
    firsts = ffi.NULL if plain else ffi.new("uint32_t[]", first.tolist())
    requests = ffi.new("struct afp_tx_metadata[]", len(template.packets)) if wanted else ffi.NULL
    if {"checksum", "software_checksum"} & set(wanted):
        _ask_for_checksums(requests, data, template, max(sizes))
    generator = ffi.new(
        "struct afp_generator *",
        {
            "pool": port.pool.native,
            "port": 0,
            "templates": len(template.packets),
            "data": data,
            "offset": offsets,
            "first": firsts,
            "request": requests,
            "stamp_every_ns": STAMP_EVERY_NS if "timestamp" in wanted else 0,
            "count": count,
            "rate": rate,
            "sequence_at": template.sequence_at,
            "checksum_at": template.checksum_at,
            "written": written,
        },
    )
    return generator, [data, offsets, written, firsts, requests]


def _check_parts(port: Port, template: Template, sizes: Sequence[int], most: int) -> None:
    """Refuse packets that are cut into more parts than the port sends in one, or in the wrong place."""
    longest, room = max(map(len, template.packets)), max(sizes)
    if most > 1 and not port.config.multi_buffer:
        raise ConfigError(
            f"a packet of {longest} bytes does not fit a frame",
            hint=f"frames here take {room} bytes; PortConfig(multi_buffer=True) sends it in several",
        )
    limit = min(int(port.native.max_frames), port.config.tx_size, port.config.comp_size)
    if most > limit:
        raise ConfigError(
            f"a packet of {longest} bytes takes {most} frames, and {port.name} sends at most {limit} together",
            hint="use larger frames or rings, or shorter packets",
        )
    if most > 1 and max(template.sequence_at + 8, template.checksum_at + 2) > room:
        raise ConfigError(f"the sequence number or checksum lies beyond the first frame's {room} bytes")
    if "launch_time" in port.config.tx_metadata:
        raise ConfigError(
            "at which time of the device's clock packets are to be sent is not known here",
            subject=port.name,
            hint='leave "launch_time" out, and pace them by rate',
        )


def _ask_for_checksums(requests: Any, data: Any, template: Template, room: int) -> None:
    """Let each packet ask for its checksum, where it has one that a device fills in.

    In `data` the sum of the pseudo-header takes the checksum's place then.
    """
    at = 0
    for request, packet in zip(requests, template.packets, strict=True):
        here = min(len(packet), room)
        frames = ffi.new(
            "struct afp_desc[2]", [{"addr": at, "len": here}, {"addr": at + here, "len": len(packet) - here}]
        )
        starts = ffi.new("int64_t[2]", [0, 1 + (here < len(packet))])
        packets = ffi.new(
            "struct afp_packets *",
            {"descs": frames, "area": data, "size": len(data), "n": 1, "frames": frames, "starts": starts},
        )
        start, offset = ffi.new("uint16_t *"), ffi.new("uint16_t *")
        if lib.afp_checksum_begin(packets, 0, start, offset):
            request.flags = lib.AFP_ASK_CHECKSUM
            request.checksum_start, request.checksum_offset = start[0], offset[0]
        at += len(packet)
