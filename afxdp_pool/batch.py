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

from afxdp_pool._native import calls, ffi, lib
from afxdp_pool.access import HeaderAccess
from afxdp_pool.chain import Chain, Chained
from afxdp_pool.columns import Columns, Fields
from afxdp_pool.errors import ConfigError, FrameGoneError, InvalidDescriptorError
from afxdp_pool.metadata import RxColumns, rx_columns
from afxdp_pool.requests import RequestAccess

if TYPE_CHECKING:
    from afxdp_pool.frame import Frame
    from afxdp_pool.frames import Frames
    from afxdp_pool.port import Port
    from afxdp_pool.umem import Umem

#: One descriptor: `addr` bytes into the Umem, `len` bytes, the kernel's `options`, the frame's generation.
DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("options", "<u2"), ("gen", "<u2")])

_DESCS = ffi.typeof("struct afp_desc[]")

Bytes = npt.NDArray[np.uint8]


def need_batch(thing: object) -> None:
    """Raise if it is something else that was given where packets in frames belong.

    Raises:
        ConfigError: it is no batch.
    """
    if not isinstance(thing, Batch):
        instead = getattr(type(thing), "_instead_of_a_batch", "pool.write([...]) makes one of bytes")
        raise ConfigError(f"a {type(thing).__name__} is no batch", hint=instead)


class Batch(calls.Descs, HeaderAccess, RequestAccess, Chained):
    """Packets in frames: ``len(batch)`` of them.

    Attributes:
        data: the whole Umem as uint8, shape ``(bytes,)``.
        port: the port the packets came from, or None.
        ports: in a handler, the ports of the forwarder that asks: `FORWARD(n)` leads out of ``ports[n]``. Else empty.
        frame_size: bytes a frame of the Umem has, 0 when not known.
        umem: the Umem, or None: then what its frames are doing is not known.

    Of a packet that lies in several frames (multi-buffer; docs/large-packets.md) the descriptor, `addr`, `len`, header
    fields and ``batch[i]`` are those of its first frame. The others move with it: what is put, sent, kept or cut out of
    a batch are whole packets.

    Ownership: whoever holds the batch holds one reference to each of its frames. A batch given to a handler lends
    them for the call only, and is used again for the next call, with its arrays; ``keep()`` packets, or ``copy()`` it,
    to have them beyond the call.
    Concurrency: any one thread at a time.
    """

    __slots__ = (
        "_chain",
        "_descs",
        "_fields",
        "_owner",
        "_pointer",
        "_verdicts",
        "_views",
        "frame_size",
        "port",
        "ports",
        "umem",
    )

    #: Whether the pool may take frames straight from the descriptors: not where somebody keeps count of them.
    _direct = True

    def __init__(
        self,
        descs: npt.NDArray[Any],
        data: Bytes,
        port: Port | None = None,
        *,
        frame_size: int = 0,
        umem: Umem | None = None,
    ) -> None:
        if descs.ndim != 1:
            raise InvalidDescriptorError(f"descriptors of shape {descs.shape}, not a list of them")
        self._descs = descs
        self._count = len(descs)
        self._chain: Chain | None = None  # where packets of several frames are among them
        self._pointer: Any = None
        self._fields: Fields | None = None
        self._verdicts: Bytes | None = None
        self._views: tuple[Any, Any] | None = None
        self._owner: tuple[Frames, npt.NDArray[np.intp]] | None = None  # whose packets these are, and which
        self.data = data
        self.port = port
        self.ports: tuple[Port, ...] = ()
        self.frame_size = frame_size
        self.umem = umem

    @classmethod
    def of_frames(cls, frames: npt.NDArray[Any], data: Bytes, port: Port | None = None, *, umem: Umem) -> Batch:
        """The packets that these frames are, in order: of descriptors whose `options` may say that one goes on."""
        chain = Chain.of(frames)
        descs = frames if chain is None else chain.heads
        batch = Batch(descs, data, port, frame_size=umem.frame_size, umem=umem)
        batch._chain = chain
        return batch

    @property
    def descs(self) -> npt.NDArray[Any]:
        """The descriptors: structured array of dtype `DESC`, shape ``(n,)``; the holder may change `addr` and `len`."""
        return self._descs

    @property
    def parts(self) -> Batch:
        """Every frame as if it were a packet: those of packet i are ``parts[starts[i]:starts[i + 1]]``.

        To look at, and to write to. Ownership: unchanged; who puts or sends the packets does it with their own batch.
        """
        if self._chain is None:
            return self.copy()
        frames = self._chain.sync(self._descs).copy()
        frames["options"] = 0
        made = Batch(frames, self.data, self.port, frame_size=self.frame_size, umem=self.umem)
        made.ports = self.ports
        return made

    def _moving(self) -> tuple[Any, int]:
        """All frames as C reads them, and how many: for who moves frames, where `pointer` is for who looks at packets.

        Raises:
            InvalidDescriptorError: as `pointer`.
        """
        pointer = self.pointer
        if self._chain is None:
            return pointer, self._count
        frames = np.ascontiguousarray(self._chain.sync(self._descs))
        return ffi.from_buffer(_DESCS, frames), len(frames)

    def _take_chain(self, chain: Chain | None) -> None:
        """These packets' frames are those of a copy of `chain`."""
        self._chain = None if chain is None else Chain(chain.frames.copy(), chain.starts)

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
            self._pointer = pointer
            if self._direct and self._owner is None and self._chain is None:
                self._hold(self._descs)
        return pointer

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, key: int) -> Bytes: ...
    @overload
    def __getitem__(self, key: slice | npt.NDArray[Any]) -> Batch: ...
    def __getitem__(self, key: int | slice | npt.NDArray[Any]) -> Bytes | Batch:
        """``batch[i]`` is packet i, a writable uint8 view; a slice, mask or index array gives a smaller batch.

        The descriptors of a slice are the batch's own; those of a mask or array, and in a handler all, are copies.

        Raises:
            FrameGoneError: packet i was given back, or its frame has gone round since. A view taken before that cannot
                be taken away: it shows what the frame holds now.
        """
        if isinstance(key, (int, np.integer)):
            desc = self._descs[int(key)]
            self._look(int(key) % self._count, 1)
            start = int(desc["addr"])
            return self.data[start : start + int(desc["len"])]
        return self._part(key)

    def _part(self, key: Any) -> Batch:
        descs = self._descs[key]
        if self._views is not None and descs.base is not None:
            descs = descs.copy()  # the loop's memory describes other packets after the call
        part = Batch(descs, self.data, self.port, frame_size=self.frame_size, umem=self.umem)
        part.ports = self.ports
        if self._chain is not None:
            self._chain.sync(self._descs)
            part._chain = self._chain.part(key)
        if self._owner is not None:
            part._owner = self._owner[0], self._owner[1][key]
        return part

    def __iter__(self) -> Iterator[Bytes]:
        """Each packet in turn, as ``batch[i]``."""
        self._look(0, self._count)
        for addr, length in zip(self.addr.tolist(), self.len.tolist(), strict=True):
            yield self.data[addr : addr + length]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} packets, {int(self.len.sum())} bytes>"

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

    # Holding --------------------------------------------------------------------------------------------------------

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """Which packets are still out, in the life of their frame that this batch knows; bool, shape ``(n,)``.

        False for what was given back, or went home once sent. Concurrency: any thread; true at that moment.

        Raises:
            InvalidDescriptorError: the batch knows no Umem. PoolClosedError: the Umem is closed.
        """
        if self.umem is None:
            raise InvalidDescriptorError("these descriptors were made by hand, of no Umem that could tell")
        out = np.empty(self._count, np.bool_)
        lib.afp_held(self.umem.table, self.pointer, self._count, ffi.from_buffer("uint8_t[]", out))
        return out

    @overload
    def keep(self, key: int) -> Frame: ...
    @overload
    def keep(self, key: slice | npt.NDArray[Any] = ...) -> Frames: ...
    def keep(self, key: int | slice | npt.NDArray[Any] = slice(None)) -> Frame | Frames:
        """Take one more reference to packet `key`, as a `Frame`; or to those of a slice, mask or array, as `Frames`.

        What becomes of the batch is decided as before: put, sent, or in a handler by its verdicts. The packets kept
        stay until they are closed, however that was decided.

        Raises:
            FrameGoneError, DoubleFreeError: a packet is not the caller's to keep any more; none is kept then.
            PoolError: a fragment, which has one reference only, that ``Frames(batch)`` takes over; or 4095 references.

        Concurrency: any thread that holds the batch; in a handler, during the call.
        Ownership: the new references are the Frame's.
        """
        from afxdp_pool.frame import keep  # it builds on this module

        kept: Frame | Frames = keep(self, key)
        return kept

    def require(self) -> None:
        """For a part of `Frames`: these packets must not have been given away already, and none be in it twice.

        Raises:
            FrameGoneError: some have, or one is.
        """
        if self._owner is not None:
            self._owner[0]._require(self._owner[1])

    def giving(self, done: Any = None) -> Any:
        """These packets are about to be given away: where C is to write how many were; `done`, or None for nowhere.

        For the modules that call C. `Frames`, of which this may be a part, look there when they are next asked: whether
        the call returned, or an exception came right behind it, is the same to them.
        """
        return done if self._owner is None else self._owner[0]._giving(self._owner[1], self._chain, done)

    def _look(self, at: int, n: int) -> None:
        """Somebody looks at `n` packets from `at` on. Of a closed Umem nobody else has them: the memory is theirs."""
        if self.umem is None or self._views is not None or not self.umem._open:
            return
        pointer = self.pointer  # a copy, if so, must live until C has looked
        good = lib.afp_held(self.umem.table, pointer + at, n, ffi.NULL)
        if good < n:
            raise FrameGoneError(
                f"packet {at + good} of the batch is not its holder's any more: it was given back",
                hint="keep() packets that are needed longer",
            )

    # Columns ----------------------------------------------------------------------------------------------------------

    def rx_metadata(self) -> RxColumns:
        """What is known of every packet beside its bytes, as columns: see `PortConfig.rx_metadata`.

        It is that of the packet as it was received, wherever `addr` points by now, for as long as the packet is held.
        Nothing is known of packets of a port that did not ask for it. The arrays are the batch's own, and the next call
        fills them anew.

        Raises:
            ConfigError: no port of the Umem asked for any. InvalidDescriptorError: the batch knows no Umem.
        """
        return rx_columns(self.umem, self._header_fields())

    def lend(self, pointer: Any, verdicts: Bytes, columns: Columns, ports: tuple[Port, ...]) -> None:
        """Make this batch one over memory that stays where it is, for the loop that lends it again and again."""
        self.ports = ports
        self._pointer = pointer
        self._verdicts = verdicts
        self._views = self._descs["addr"], self._descs["len"]
        self._fields = Fields(columns, pointer, self._count)

    def lend_again(self) -> Batch:
        """Another batch of the same, with the same arrays: the loop lends it instead of this one."""
        made = Batch(self._descs, self.data, self.port, frame_size=self.frame_size, umem=self.umem)
        made._pointer, made._verdicts = self._pointer, self._verdicts
        made._views, made._fields = self._views, self._fields
        made.ports = self.ports
        return made

    def _header_fields(self) -> Fields:
        if self.umem is not None and self.umem.tracer is not None:
            self._look(0, self._count)  # it costs as much as a column: only for who looks for mistakes
        fields = self._fields or self._make_fields()
        if fields.chain is not self._chain:
            fields.show(self._chain)
        return fields

    def _make_fields(self) -> Fields:
        if self.data.dtype != np.uint8 or not self.data.flags.c_contiguous or not self.data.flags.writeable:
            raise InvalidDescriptorError("the batch's memory is not plain writable bytes")
        made = Fields(Columns(self.data, self._count), self.pointer, self._count)
        if self._pointer is not None:  # else it is a copy of descriptors that may change
            self._fields = made
        return made

    def frames(self, frame_size: int) -> list[int]:
        """The number of the frame each packet lies in, given the Umem's frame size."""
        if self.umem is not None and self.umem.config.unaligned:
            return [self.umem.config.frame_at(addr) for addr in self.addr.tolist()]
        return [addr // frame_size for addr in self.addr.tolist()]

    def copy(self) -> Batch:
        """The same packets under descriptors of their own: the frames are not copied, no reference is taken."""
        made = Batch(self._descs.copy(), self.data, self.port, frame_size=self.frame_size, umem=self.umem)
        made._owner, made.ports = self._owner, self.ports
        made._take_chain(self._chain)
        return made

    def write(self, index: int, packet: bytes | bytearray | memoryview | Bytes) -> None:
        """Write `packet` into frame `index`, at its address, and set its length.

        A fragment ends before its frame does: what fits it says its `len` when it was allocated.

        Raises:
            InvalidDescriptorError: the packet would reach beyond its frame (where the batch knows the frame size, which
                every batch of a pool or port does) or beyond the Umem.
            FrameGoneError: the frame is no longer the batch's.
        """
        content = np.frombuffer(packet, np.uint8)
        _ = self._descs[index]  # or IndexError
        self._look(index % self._count, 1)
        start = int(self._descs["addr"][index])
        end = start + len(content)
        offset = start % self.frame_size if self.frame_size else 0
        if self.umem is not None and self.umem.config.unaligned:
            offset = self.umem.config.offset_in_frame(start)
        if end > len(self.data) or (self.frame_size and offset + len(content) > self.frame_size):
            raise InvalidDescriptorError(f"{len(content)} bytes at {start:#x} reach beyond their frame")
        self.data[start : start + len(content)] = content
        self._descs["len"][index] = len(content)
