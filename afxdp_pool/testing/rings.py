"""`FakeKernel`: plays the kernel's side of a port whose rings lie in plain memory, for tests without root or network.

It takes what a port made by `Port.in_memory` hands over in FILL and TX and gives it back through RX and COMPLETION, as
net/xdp/xsk.c would, or in ways the kernel never should. It owns nothing: a frame it has taken is the kernel's in the
frame table until it is returned, or until the port closes. Invariant: it never writes to a frame the port did not hand
over, except where a method says that it is hostile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi
from afxdp_pool.chain import CONTD, spread
from afxdp_pool.config import PACKET_HEADROOM
from afxdp_pool.errors import ConfigError, ForeignFrameError
from afxdp_pool.metadata import pack_record
from afxdp_pool.port import Port
from afxdp_pool.testing import packets as test_packets

_XDP_DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("options", "<u4")])
_U32: Final = 0xFFFFFFFF
_FILL, _COMP, _RX, _TX = range(4)


@dataclass(frozen=True)
class Sent:
    """One packet taken out of a TX ring: its descriptor, and its bytes at that moment."""

    addr: int
    len: int
    options: int
    data: bytes


class FakeKernel:
    """The kernel's side of one port in memory.

    Args:
        port: made by `Port.in_memory`.
        first_index: where the free-running 32-bit indices of all four rings start. Close to ``2**32`` they wrap during
            the test. Only before the port has moved anything.

    Attributes:
        rx_dropped: packets `deliver` had no frame for (nothing in FILL, or too long), as in XDP_STATISTICS.
        rx_ring_full: packets `deliver` had no room in RX for.

    Raises:
        ConfigError: the port has a socket, or has moved frames already.

    Concurrency: the thread that runs the port, or between its calls. Stores are plain.

    >>> from afxdp_pool import FramePool, Port, PortConfig, Umem
    >>> with Umem(frames=256) as umem, FramePool(umem) as pool:
    ...     port = Port.in_memory(pool, PortConfig(fill_level=64))
    ...     kernel = FakeKernel(port)
    ...     _ = port.fill()
    ...     _ = kernel.deliver([b"a packet of the test's own"])
    ...     batch = port.receive()
    ...     print(bytes(batch[0]), port.transmit(batch))
    ...     print(kernel.send(), port.complete())
    b"a packet of the test's own" 1
    [b"a packet of the test's own"] 1
    """

    def __init__(self, port: Port, *, first_index: int = 0) -> None:
        native = port.native
        if native.fd >= 0 or native.mock[_FILL].entries == ffi.NULL:
            raise ConfigError("the port has a socket", hint="make it with Port.in_memory")
        self.port = port
        self.umem = port.pool.umem
        self.rx_dropped = 0
        self.rx_ring_full = 0
        self._serial = 0
        self._begun: list[Sent] = []  # of a packet whose last frame was not there
        if first_index:
            self._preset(first_index & _U32)

    def _preset(self, index: int) -> None:
        native = self.port.native
        if any(native.mock[ring].producer or native.mock[ring].consumer for ring in range(4)):
            raise ConfigError("the port has moved frames already", hint="preset the indices of a new port")
        for ring in range(4):
            native.mock[ring].producer = native.mock[ring].consumer = index
        for producer, ring in ((native.fill, _FILL), (native.tx, _TX)):
            producer.cached_prod = index
            producer.cached_cons = (index + native.mock[ring].size) & _U32  # libxdp keeps it one ring size ahead
        for consumer in (native.rx, native.comp):
            consumer.cached_prod = consumer.cached_cons = index

    # The rings ------------------------------------------------------------------------------------------------------

    def _ring(self, which: int) -> tuple[Any, npt.NDArray[Any]]:
        """A ring's indices and entries. Asked for anew each time: closing the port takes the memory away."""
        ring = self.port.native.mock[which]
        dtype = np.dtype("<u8") if which in (_FILL, _COMP) else _XDP_DESC
        if ring.size == 0:
            return ring, np.empty(0, dtype)
        return ring, np.frombuffer(ffi.buffer(ring.entries, ring.size * dtype.itemsize), dtype)

    def _consume(self, which: int, n: int | None) -> list[Any]:
        ring, entries = self._ring(which)
        waiting = (ring.producer - ring.consumer) & _U32
        n = waiting if n is None else min(n, waiting)
        out = [entries[(ring.consumer + i) & (ring.size - 1)].item() for i in range(n)]
        ring.consumer = (ring.consumer + n) & _U32
        return out

    def _produce(self, which: int, values: Sequence[Any]) -> int:
        ring, entries = self._ring(which)
        n = min(len(values), self._room(which))
        for i, value in enumerate(values[:n]):
            entries[(ring.producer + i) & (ring.size - 1)] = value
        ring.producer = (ring.producer + n) & _U32
        return n

    def _room(self, which: int) -> int:
        ring = self.port.native.mock[which]
        return int(ring.size - ((ring.producer - ring.consumer) & _U32))

    def filled(self) -> int:
        """Frames waiting in FILL."""
        ring = self.port.native.mock[_FILL]
        return int((ring.producer - ring.consumer) & _U32)

    def waiting(self) -> int:
        """Packets waiting in TX."""
        ring = self.port.native.mock[_TX]
        return int((ring.producer - ring.consumer) & _U32)

    # Receiving ------------------------------------------------------------------------------------------------------

    def take_fill(self, n: int | None = None) -> list[int]:
        """Take up to `n` frames (None: all) out of FILL; returns their addresses, in order.

        The kernel has them then: give them back with `push_rx`, or keep them, as a driver parks frames.
        """
        return self._consume(_FILL, n)

    def deliver(
        self,
        packets: int | Sequence[bytes],
        headroom: int = PACKET_HEADROOM,
        *,
        metadata: Mapping[str, int] | None = None,
    ) -> int:
        """Receive packets, or so many test packets of 64 bytes, numbered on (see `afxdp_pool.testing.packets`).

        Each takes one frame from FILL and is written at the Umem's headroom + `headroom` bytes; of a port with
        `PortConfig.multi_buffer` as many frames as it needs. Without frames, or without room in RX, it is dropped and
        counted, as the kernel does. Returns how many were delivered.

        With `metadata` the XDP program has told that of each, by the names of `RxColumns`, such as ``{"hash": 7}``; for
        a port whose `PortConfig.rx_metadata` asks for it.
        """
        record = np.frombuffer(b"" if metadata is None else pack_record(metadata), np.uint8)
        if isinstance(packets, int):
            numbers = range(self._serial, self._serial + packets)
            self._serial += packets
            packets = [test_packets.build(seq=number) for number in numbers]
        delivered = 0
        for packet in packets:
            start = self.umem.config.headroom + headroom
            sizes, options = spread([len(packet)], self.umem.frame_size - start)
            if self.filled() < len(sizes) or (len(sizes) > 1 and not self.port.config.multi_buffer):
                self.rx_dropped += 1
            elif self._room(_RX) < len(sizes):
                self.rx_ring_full += 1
            else:
                at = 0
                for addr, size, option in zip(self.take_fill(len(sizes)), sizes, options, strict=True):
                    part = np.frombuffer(packet[at : at + size], np.uint8)
                    if not at:
                        self.umem.data[addr + start - len(record) : addr + start] = record
                    self.umem.data[addr + start : addr + start + size] = part
                    self.push_rx(addr + (start << 48 if self.umem.config.unaligned else start), size, option)
                    at += size
                delivered += 1
        return delivered

    def push_rx(self, addr: int, length: int, options: int = 0) -> bool:
        """Put a descriptor into RX, whatever it says: hostile if it is not a frame from FILL. False when RX is full."""
        return self._produce(_RX, [(addr, length, options)]) == 1

    # Sending --------------------------------------------------------------------------------------------------------

    def take_tx(self, n: int | None = None) -> list[Sent]:
        """Take up to `n` packets (None: all) out of TX, in order. Their frames stay the kernel's until `complete`.

        Raises:
            ForeignFrameError: a descriptor leaves the Umem, which no port should let happen.
        """
        out = []
        for addr, length, options in self._consume(_TX, n):
            if addr + length > len(self.umem.data):
                raise ForeignFrameError(f"TX holds a descriptor of {length} bytes at {addr:#x}")
            out.append(Sent(addr, length, options, self.umem.data[addr : addr + length].tobytes()))
        return out

    def complete(self, sent: Iterable[Sent | int]) -> int:
        """Complete packets of `take_tx`, or addresses, in the order given. Returns how many COMPLETION had room for."""
        return self._produce(_COMP, [item.addr if isinstance(item, Sent) else item for item in sent])

    def push_comp(self, addr: int) -> bool:
        """Put an address into COMPLETION, whatever it is: hostile if it was not sent. False when it is full."""
        return self._produce(_COMP, [addr]) == 1

    def send(self, n: int | None = None) -> list[bytes]:
        """Send up to `n` packets (None: all) and complete them, as far as COMPLETION has room; returns their bytes."""
        if self.port.config.multi_buffer:
            return self._send_parts(n)
        room = self._room(_COMP)
        sent = self.take_tx(room if n is None else min(n, room))
        self.complete(sent)
        return [packet.data for packet in sent]

    def _send_parts(self, n: int | None) -> list[bytes]:
        """`send`, of packets in several frames: those of one are completed together, once it is whole."""
        out: list[bytes] = []
        while (n is None or len(out) < n) and self.waiting() and self._room(_COMP) > len(self._begun):
            self._begun += self.take_tx(1)
            if not self._begun[-1].options & CONTD:
                out.append(b"".join(part.data for part in self._begun))
                self.complete(self._begun)
                self._begun = []
        return out
