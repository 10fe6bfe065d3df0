"""`Batch`: up to N packets, as descriptors over memory the Umem owns.

A batch is a numpy structured array of descriptors and the Umem they point into; it copies no packet. Holding a batch
is holding its frames: who has it puts it, sends it, or keeps it. Descriptors carry their frame's generation, so that
a batch used after its frames went round again is recognised and refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi
from afxdp_pool.columns import Columns, Fields, FiveTuple
from afxdp_pool.errors import InvalidDescriptorError

if TYPE_CHECKING:
    from afxdp_pool.port import Port

#: One descriptor: `addr` bytes into the Umem, `len` bytes, the kernel's `options`, the frame's generation.
DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("options", "<u2"), ("gen", "<u2")])

_DESCS = ffi.typeof("struct afp_desc[]")

Bytes = npt.NDArray[np.uint8]


class Batch:
    """Packets in frames: ``len(batch)`` of them.

    Attributes:
        data: the whole Umem as uint8, shape ``(bytes,)``.
        port: the port the packets came from, or None.
        frame_size: bytes a frame of the Umem has, 0 when not known.

    Ownership: whoever holds the batch holds one reference to each of its frames. A batch given to a handler lends
    them for the call only, and is used again for the next call, with its arrays; ``copy()`` it before keeping packets
    beyond the call.
    Concurrency: any one thread at a time.
    """

    __slots__ = (
        "_address",
        "_count",
        "_descs",
        "_fields",
        "_pointer",
        "_verdicts",
        "_views",
        "data",
        "frame_size",
        "port",
    )

    def __init__(self, descs: npt.NDArray[Any], data: Bytes, port: Port | None = None, *, frame_size: int = 0) -> None:
        if descs.ndim != 1:
            raise InvalidDescriptorError(f"descriptors of shape {descs.shape}, not a list of them")
        self._descs = descs
        self._count = len(descs)
        self._pointer: Any = None
        self._address = 0  # what _pointer points at
        self._fields: Fields | None = None
        self._verdicts: Bytes | None = None
        self._views: tuple[Any, Any] | None = None
        self.data = data
        self.port = port
        self.frame_size = frame_size

    @property
    def descs(self) -> npt.NDArray[Any]:
        """The descriptors: structured array of dtype `DESC`, shape ``(n,)``; the holder may change `addr` and `len`."""
        return self._descs

    @property
    def pointer(self) -> Any:
        """The descriptors as C reads them, for the modules that call C: ``struct afp_desc[n]``.

        Raises:
            InvalidDescriptorError: the array is not of dtype `DESC`, or has another shape by now.
        """
        if self._pointer is not None:
            return self._pointer
        if self._descs.dtype != DESC:
            raise InvalidDescriptorError(f"descriptors of dtype {self._descs.dtype}, not {DESC}")
        if self._descs.shape != (self._count,):
            raise InvalidDescriptorError(f"the array of {self._count} descriptors has got shape {self._descs.shape}")
        if not self._descs.flags.c_contiguous:
            return ffi.from_buffer(_DESCS, np.ascontiguousarray(self._descs))  # a copy: good for one call
        pointer = ffi.from_buffer(_DESCS, self._descs)
        if self._descs.flags.writeable:
            self._pointer, self._address = pointer, int(ffi.cast("uintptr_t", pointer))
        return pointer

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, key: int) -> Bytes: ...
    @overload
    def __getitem__(self, key: slice | npt.NDArray[Any]) -> Batch: ...
    def __getitem__(self, key: int | slice | npt.NDArray[Any]) -> Bytes | Batch:
        """``batch[i]`` is packet i, a writable uint8 view; a slice, mask or index array gives a smaller batch."""
        if isinstance(key, (int, np.integer)):
            desc = self._descs[int(key)]
            start = int(desc["addr"])
            return self.data[start : start + int(desc["len"])]
        return Batch(self._descs[key], self.data, self.port, frame_size=self.frame_size)

    def __iter__(self) -> Iterator[Bytes]:
        """Each packet in turn, as ``batch[i]``."""
        for addr, length in zip(self.addr.tolist(), self.len.tolist(), strict=True):
            yield self.data[addr : addr + length]

    def __repr__(self) -> str:
        return f"<Batch of {len(self)} packets, {int(self.len.sum())} bytes>"

    @property
    def addr(self) -> npt.NDArray[np.uint64]:
        """Where each packet starts, bytes into the Umem; shape ``(n,)``, uint64, writable."""
        return self._descs["addr"] if self._views is None else self._views[0]

    @property
    def len(self) -> npt.NDArray[np.uint32]:
        """The length of each packet in bytes; shape ``(n,)``, uint32, writable."""
        return self._descs["len"] if self._views is None else self._views[1]

    @property
    def verdicts(self) -> Bytes:
        """Room for a verdict a packet: shape ``(n,)``, uint8, all DROP at first.

        In a handler it is the engine's own array: to fill it and return it costs no copy and no check of its form.
        """
        if self._verdicts is None:
            self._verdicts = np.zeros(self._count, np.uint8)
        return self._verdicts

    # Header fields --------------------------------------------------------------------------------------------------

    def load(
        self,
        offset: int,
        dtype: npt.DTypeLike = np.uint8,
        *,
        base: npt.NDArray[Any] | None = None,
        out: npt.NDArray[Any] | None = None,
    ) -> npt.NDArray[Any]:
        """One header field of every packet, as numbers in the machine's byte order; shape ``(n,)``.

        A field that does not lie wholly within its packet reads as 0.

        Args:
            offset: where it starts, bytes from the start of the packet.
            dtype: what it is in the packet: an integer of 1, 2, 4 or 8 bytes, such as ``">u2"``.
            base: count from here in each packet instead of from its start; shape ``(n,)``, such as `FiveTuple.l4`.
            out: where to write it; contiguous, shape ``(n,)``, of that dtype in the machine's byte order.

        Without `base` and `out` the array is the batch's own, and the next `load` of that field fills it anew.

        Raises:
            ConfigError: no such dtype; an offset of 65536 or more; an `out` that does not fit.

        >>> batch = Batch(np.array([(0, 3, 0, 0), (4, 1, 0, 0)], DESC), np.arange(8, dtype=np.uint8))
        >>> batch.load(1, ">u2").tolist()
        [258, 0]
        """
        return (self._fields or self._make_fields()).load(offset, dtype, base, out)

    def store(
        self,
        offset: int,
        dtype: npt.DTypeLike,
        values: Any,
        *,
        base: npt.NDArray[Any] | None = None,
        where: npt.NDArray[np.bool_] | None = None,
    ) -> int:
        """Write one header field of every packet; how many it was written to.

        A field that does not lie wholly within its packet is not written.

        Args:
            offset, dtype, base: as for `load`.
            values: one number, or one a packet.
            where: write only to these packets; bool, shape ``(n,)``.

        Raises:
            ConfigError: as `load`; or `where` is no mask.
        """
        return (self._fields or self._make_fields()).store(offset, dtype, values, base, where)

    def swap_macs(self, where: npt.NDArray[np.bool_] | None = None) -> int:
        """Exchange source and destination MAC address of every packet, or those of the mask `where`; how many."""
        return (self._fields or self._make_fields()).swap_macs(where)

    def five_tuple(self) -> FiveTuple:
        """Addresses, ports and protocol of every packet, as columns: IPv4 and IPv6, behind up to two VLAN tags.

        The arrays are the batch's own, and the next call fills them anew.
        """
        return (self._fields or self._make_fields()).five_tuple()

    def lend(self, pointer: Any, verdicts: Bytes, columns: Columns) -> None:
        """Make this batch one over memory that stays where it is, for the loop that lends it again and again."""
        self._pointer = pointer
        self._verdicts = verdicts
        self._views = self._descs["addr"], self._descs["len"]
        self._fields = Fields(columns, pointer, self._count)

    def _make_fields(self) -> Fields:
        if self.data.dtype != np.uint8 or not self.data.flags.c_contiguous or not self.data.flags.writeable:
            raise InvalidDescriptorError("the batch's memory is not plain writable bytes")
        made = Fields(Columns(self.data, self._count), self.pointer, self._count)
        if self._pointer is not None:  # else it is a copy of descriptors that may change
            self._fields = made
        return made

    def frames(self, frame_size: int) -> list[int]:
        """The number of the frame each packet lies in, given the Umem's frame size."""
        return [addr // frame_size for addr in self.addr.tolist()]

    def copy(self) -> Batch:
        """The same packets under descriptors of their own: the frames are not copied, no reference is taken."""
        return Batch(self._descs.copy(), self.data, self.port, frame_size=self.frame_size)

    def write(self, index: int, packet: bytes | bytearray | memoryview | Bytes) -> None:
        """Write `packet` into frame `index`, at its address, and set its length.

        A fragment ends before its frame does: what fits it says its `len` when it was allocated.

        Raises:
            InvalidDescriptorError: the packet would reach beyond its frame (where the batch knows the frame size, which
                every batch of a pool or port does) or beyond the Umem.
        """
        content = np.frombuffer(packet, np.uint8)
        start = int(self._descs["addr"][index])
        end = start + len(content)
        if end > len(self.data) or (self.frame_size and start % self.frame_size + len(content) > self.frame_size):
            raise InvalidDescriptorError(f"{len(content)} bytes at {start:#x} reach beyond their frame")
        self.data[start : start + len(content)] = content
        self._descs["len"][index] = len(content)
