"""What a user may choose, as frozen dataclasses that refuse at construction what could never work.

Nothing here touches the system. The limits are the kernel's and are named in the messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from afxdp_pool.errors import ConfigError, FrameSizeError, RingSizeError

FRAME_SIZES = (2048, 4096)
#: Unaligned frames are cut out of blocks of this size, a huge page's.
BLOCK = 2 << 20
#: Room the kernel puts in front of every received packet (XDP_PACKET_HEADROOM, include/uapi/linux/bpf.h).
PACKET_HEADROOM = 256
#: What a frame must leave for a packet beside its headroom: skb_shared_info and a smallest Ethernet frame
#: (xdp_umem_reg() in net/xdp/xdp_umem.c of recent kernels; older ones allow more headroom).
FRAME_RESERVE = 320 + 128
MAX_RING = 1 << 20
MAX_BATCH = 1024
MAX_COUNT = (1 << 31) - 1
#: Least size of a ring where one packet may be in many frames: the kernel's 18 or more at once, to a power of two.
PACKET_FRAMES = 32
#: The pool moves frames in bulks of this size (PP_ALLOC_CACHE_REFILL).
BULK = 64

Mode = Literal["auto", "copy", "zero-copy"]
Transmit = Literal["auto", "socket", "live"]
RxMetadataName = Literal["hash", "timestamp", "vlan", "arrival"]
#: What may be known of a received packet beside its bytes; bit i of C's `present` is the i-th (bpf/rx_metadata.h).
RX_METADATA: tuple[RxMetadataName, ...] = ("hash", "timestamp", "vlan", "arrival")
TxMetadataName = Literal["checksum", "timestamp", "launch_time", "software_checksum"]
#: What can be asked of who sends a packet.
TX_METADATA: tuple[TxMetadataName, ...] = ("checksum", "timestamp", "launch_time", "software_checksum")
#: Bytes before a packet that its request takes (AFP_TX_ROOM in afxdp_pool.h).
TX_ROOM = 32
Name = TypeVar("Name", bound=str)


def is_power_of_two(value: int) -> bool:
    """Whether `value` is 1, 2, 4, 8, ..."""
    return value > 0 and value & (value - 1) == 0


@dataclass(frozen=True)
class UmemConfig:
    """The memory: how many frames of which size, and what it is made of.

    Attributes:
        frames: number of frames.
        frame_size: bytes a frame, 2048 or 4096; unaligned, any number from 2048 to 4096.
        headroom: bytes kept free at the start of each frame, before the kernel's own 256.
        huge_pages: ask for 2 MB pages; falls back to 4 KB pages with a warning when there are too few.
        prefault: touch the memory now, not when the first port registers it.
        unaligned: frames that are no power of two (XDP_UMEM_UNALIGNED_CHUNK_FLAG); see docs/large-packets.md.

    Raises:
        FrameSizeError: the kernel would refuse the frame size or headroom.
        ConfigError: no frames, or more than 2^32 - 1.
    """

    frames: int = 8192
    frame_size: int = 4096
    headroom: int = 0
    huge_pages: bool = False
    prefault: bool = False
    unaligned: bool = False

    def __post_init__(self) -> None:
        least, most = FRAME_SIZES
        if not (least <= self.frame_size <= most if self.unaligned else self.frame_size in FRAME_SIZES):
            hint = f"the kernel takes aligned frames of {least} or {most} bytes"
            if least < self.frame_size < most:
                hint += ", and with unaligned=True any size between"
            raise FrameSizeError(f"a frame of {self.frame_size} bytes is not possible", hint=hint)
        limit = self.frame_size - PACKET_HEADROOM - FRAME_RESERVE
        if not 0 <= self.headroom <= limit:
            raise FrameSizeError(
                f"headroom {self.headroom} does not fit frames of {self.frame_size} bytes",
                hint=f"choose 0 to {limit}: the kernel keeps {PACKET_HEADROOM} bytes for itself "
                f"and {FRAME_RESERVE} for a packet",
            )
        if not 1 <= self.frames < 1 << 32:
            raise ConfigError(f"{self.frames} frames are not possible", hint="choose 1 to 2^32 - 1 frames")

    @property
    def size(self) -> int:
        """Bytes of the memory. Unaligned frames begin anew every 2 MB, so that none crosses a huge page's end."""
        blocks, rest = divmod(self.frames, self._in_block)
        return blocks * BLOCK + rest * self.frame_size if self.unaligned else self.frames * self.frame_size

    @property
    def _in_block(self) -> int:
        return BLOCK // self.frame_size

    def frame_at(self, addr: Any) -> Any:
        """The number of the frame that these bytes of the memory lie in: an int, or an array of them."""
        return self._place(addr)[0]

    def offset_in_frame(self, addr: int) -> int:
        """How far that byte is from its frame's first."""
        return int(self._place(addr)[1])

    def _place(self, addr: Any) -> tuple[Any, Any]:
        if not self.unaligned:
            return addr // self.frame_size, addr % self.frame_size
        within = addr % BLOCK
        return addr // BLOCK * self._in_block + within // self.frame_size, within % self.frame_size

    def start_of(self, frame: Any) -> Any:
        """Where that frame begins, bytes into the memory: of an int, or an array of them."""
        if not self.unaligned:
            return frame * self.frame_size
        return frame // self._in_block * BLOCK + frame % self._in_block * self.frame_size

    @property
    def max_packet(self) -> int:
        """The longest packet, in bytes, that fits a frame when received."""
        return self.frame_size - self.headroom - PACKET_HEADROOM


@dataclass(frozen=True)
class PortConfig:
    """A port's rings and mode.

    Attributes:
        fill_size, comp_size, rx_size, tx_size: entries of the four rings, each a power of two. FILL twice RX: the
            kernel publishes received packets before it frees their FILL entries.
        fill_level: frames to keep with the kernel for receiving. More than a few thousand cost cache misses.
        mode: ``"zero-copy"`` and ``"copy"`` demand, ``"auto"`` takes the best the driver has.
        need_wakeup: let the kernel say when it must be woken, instead of waking it always.
        tx_budget: packets one kick may send in copy mode, where the kernel can be told (Linux >= 6.17); 0: its own 32.
        receive: attach to the netdev's queue for receiving. A port that only sends takes no packets from the kernel;
            it still keeps a few frames in FILL, since some drivers stall without.
        transmit: how the port sends, if it does. ``"socket"``: by its AF_XDP socket. ``"live"``: by live frames, with
            no socket buffer a packet; packets over 3300 bytes go by the socket. ``"auto"`` (or True): live frames for
            batches that are large enough to pay, where the socket would have to copy and live frames are possible;
            see docs/live-transmit.md. False: not at all.
        bind_timeout: seconds to go on trying while the queue is busy. A queue stays busy for some milliseconds after
            its last socket was closed, because the kernel releases it asynchronously (net/xdp/xsk_buff_pool.c).
        busy_poll_us: above 0: the worker itself runs the driver's NAPI, by a system call in every round
            (SO_PREFER_BUSY_POLL, SO_BUSY_POLL in microseconds; the calls never wait). Of use with
            `Options.napi_defer_hard_irqs` and `gro_flush_timeout`, which keep the interrupts off; see docs/workers.md.
        busy_poll_budget: packets one such call may handle (SO_BUSY_POLL_BUDGET).
        rx_metadata: what to learn of each packet from its device, for `Batch.rx_metadata`: ``"hash"``, ``"timestamp"``
            (by the device's clock), ``"vlan"`` (a tag that the device took off); and ``"arrival"``, the kernel's time
            at which the XDP program saw the packet, which every device has. See docs/metadata.md.
        multi_buffer: receive and send packets longer than a frame, in several frames each (XDP_USE_SG, Linux 6.6): for
            MTUs beyond some 3800 bytes. See docs/large-packets.md. Packets go by the socket then, none of them live.
        tx_metadata: what may be asked of the device for each packet (Linux 6.11): ``"checksum"``, ``"timestamp"``,
            ``"launch_time"`` (Linux 6.15); or ``"software_checksum"``, which the kernel computes, in copy mode,
            whatever the device could do, and not with `multi_buffer`. Such a port sends by its socket, and the Umem has
            a headroom of 32 bytes or more. See `Batch.offload_checksums`, `Batch.request_timestamps`,
            `Batch.launch_at`.

    Raises:
        RingSizeError: a ring size the kernel would refuse, or a fill level that does not fit the ring.
    """

    fill_size: int = 4096
    comp_size: int = 2048
    rx_size: int = 2048
    tx_size: int = 2048
    fill_level: int = 2048
    mode: Mode = "auto"
    need_wakeup: bool = True
    tx_budget: int = 256
    receive: bool = True
    transmit: Transmit | bool = "auto"
    bind_timeout: float = 1.0
    busy_poll_us: int = 0
    busy_poll_budget: int = 64
    rx_metadata: tuple[RxMetadataName, ...] = ()
    multi_buffer: bool = False
    tx_metadata: tuple[TxMetadataName, ...] = ()

    def __post_init__(self) -> None:
        for name in ("fill_size", "comp_size", "rx_size", "tx_size"):
            value = getattr(self, name)
            if not is_power_of_two(value) or not 2 <= value <= MAX_RING:
                raise RingSizeError(
                    f"{name} {value} is not possible",
                    hint=f"the kernel takes powers of two; choose one from 2 to {MAX_RING}, such as 2048",
                )
        if not 1 <= self.fill_level <= self.fill_size:
            raise RingSizeError(
                f"fill_level {self.fill_level} does not fit a FILL ring of {self.fill_size}",
                hint="choose 1 to fill_size",
            )
        if self.mode not in ("auto", "copy", "zero-copy"):
            raise ConfigError(f"mode {self.mode!r} is unknown", hint='choose "auto", "copy" or "zero-copy"')
        if not 0 <= self.tx_budget < 1 << 31 or not self.bind_timeout >= 0:
            raise ConfigError(f"tx_budget {self.tx_budget} or bind_timeout {self.bind_timeout} is not possible")
        if not 0 <= self.busy_poll_us < 1 << 31 or not 1 <= self.busy_poll_budget < 1 << 16:
            raise ConfigError(
                f"busy polling for {self.busy_poll_us} us with a budget of {self.busy_poll_budget} is not possible",
                hint="choose 0 (off) or more microseconds, and a budget of 1 to 65535 packets",
            )
        if self.multi_buffer:
            self._check_multi_buffer()
        if self.transmit is True:
            object.__setattr__(self, "transmit", "auto")
        if self.transmit not in ("auto", "socket", "live", False):
            raise ConfigError(f"transmit {self.transmit!r} is unknown", hint='choose "auto", "socket", "live" or False')
        if not (self.receive or self.transmit):
            raise ConfigError("a port that neither receives nor sends is of no use", hint="set receive or transmit")
        object.__setattr__(self, "rx_metadata", check_rx_metadata(self.rx_metadata))
        object.__setattr__(self, "tx_metadata", _check_names("tx_metadata", self.tx_metadata, TX_METADATA))
        if self.tx_metadata and self.transmit == "live":
            raise ConfigError("live frames carry no tx_metadata", hint='choose transmit="socket", or leave it "auto"')
        if "software_checksum" in self.tx_metadata and ("checksum" in self.tx_metadata or self.mode == "zero-copy"):
            raise ConfigError(
                "the kernel computes checksums in copy mode only, and instead of the device",
                hint='choose "checksum" or "software_checksum"',
            )

    @property
    def tx_room(self) -> int:
        """Bytes before each packet to be sent that must be free in its frame."""
        return TX_ROOM if self.transmit and self.tx_metadata else 0

    def _check_multi_buffer(self) -> None:
        used: tuple[str, ...] = ("fill_size", "rx_size", "fill_level") if self.receive else ()
        used += ("comp_size", "tx_size") if self.transmit else ()
        for name in used:
            if getattr(self, name) < PACKET_FRAMES:
                raise RingSizeError(
                    f"{name} {getattr(self, name)} has no room for one packet of many frames",
                    hint=f"choose {PACKET_FRAMES} or more with multi_buffer",
                )
        if "software_checksum" in self.tx_metadata:
            raise ConfigError(
                "the kernel's software_checksum is of a packet's first frame alone (xsk_skb_metadata(), net/xdp/xsk.c)",
                hint='ask for "checksum": in copy mode the kernel computes that of whole packets if the device cannot',
            )
        if self.transmit == "live":
            raise ConfigError(
                "packets of several frames cannot go live", hint='leave multi_buffer off, or transmit at "auto"'
            )

    @property
    def frames_needed(self) -> int:
        """Frames this port needs to run: those it keeps in FILL, and a bulk to work with."""
        return (self.fill_level if self.receive else min(self.fill_level, BULK)) + BULK


def check_rx_metadata(names: Iterable[str]) -> tuple[RxMetadataName, ...]:
    """Return these kinds of metadata, each once and in one order, or raise ConfigError."""
    return _check_names("rx_metadata", names, RX_METADATA)


def _check_names(what: str, names: Iterable[str], known: tuple[Name, ...]) -> tuple[Name, ...]:
    asked = set(names)
    if isinstance(names, str) or not asked <= set(known):
        raise ConfigError(f"{what} {names!r} is not possible", hint=f"name some of {', '.join(known)}, in a tuple")
    return tuple(name for name in known if name in asked)


def to_bits(names: Iterable[str], known: tuple[str, ...]) -> int:
    """Some of these names as a number: RX_METADATA's as C and BPF have it."""
    asked = set(names)
    return sum(1 << at for at, name in enumerate(known) if name in asked)


def from_bits(number: int, known: tuple[Name, ...]) -> tuple[Name, ...]:
    """The reverse of `to_bits`."""
    return tuple(name for at, name in enumerate(known) if number >> at & 1)


def check_batch(batch: int) -> int:
    """Return `batch`, the packets handled in one round, or raise ConfigError."""
    if not 1 <= batch <= MAX_BATCH:
        raise ConfigError(f"a batch of {batch} packets is not possible", hint=f"choose 1 to {MAX_BATCH}")
    return batch


def need(thing: object, kind: type, *, hint: str = "") -> None:
    """Raise ConfigError if it is something else that was given."""
    if not isinstance(thing, kind):
        raise ConfigError(f"a {type(thing).__name__} is no {kind.__name__}", hint=hint)


def check_count(n: int) -> int:
    """Return `n`, the frames a call may move, or raise ConfigError: not negative, and no more than C can count."""
    if not 0 <= n <= MAX_COUNT:
        raise ConfigError(f"{n} frames are not possible", hint="ask for 0 or more")
    return n
