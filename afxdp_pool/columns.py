"""Header fields of a batch as numpy columns: what `Batch.load`, `store`, `swap_macs` and `five_tuple` work with.

It owns the arrays, made when a field is first asked for and used again by every batch they serve. C gathers and
scatters; no packet is copied. Invariant: nothing outside of a packet is read or written, whatever a descriptor says.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi, lib
from afxdp_pool.chain import Chain
from afxdp_pool.errors import ConfigError

#: Bytes from a packet's start that a field may begin at: more than any packet has.
MOST_OFFSET = 1 << 16


Named = TypeVar("Named")


class FiveTuple(NamedTuple):
    """Whose packets these are: one array a field, shape ``(n,)``, numbers in the machine's byte order.

    Attributes:
        src, dst: IPv4 addresses, uint32; 0 for IPv6.
        sport, dport: ports of TCP, UDP, UDP-Lite, SCTP and DCCP, uint16; 0 for other protocols, and for fragments but
            the first.
        proto: IPv4's protocol, or IPv6's last next header, uint8.
        version: 4, 6, or 0 where there is no whole IP header, uint8.
        valid: ``version != 0``, bool.
        l4: where the transport header starts, bytes into the packet; 0 when it is not there. uint32, and what `load`
            and `store` take as `base`.
        src6, dst6: IPv6 addresses, uint64, shape ``(n, 2)``, the high half first; 0 for IPv4.
    """

    src: npt.NDArray[np.uint32]
    dst: npt.NDArray[np.uint32]
    sport: npt.NDArray[np.uint16]
    dport: npt.NDArray[np.uint16]
    proto: npt.NDArray[np.uint8]
    version: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]
    l4: npt.NDArray[np.uint32]
    src6: npt.NDArray[np.uint64]
    dst6: npt.NDArray[np.uint64]


class Kind(NamedTuple):
    """A field's type: bytes, whether they are reversed, the dtype of its column."""

    width: int
    swap: bool
    native: np.dtype[Any]


class Column(NamedTuple):
    """One array, and what C needs to fill it."""

    kind: Kind
    array: npt.NDArray[Any]
    pointer: Any


def kind_of(dtype: npt.DTypeLike) -> Kind:
    """What a field of that dtype is.

    Raises:
        ConfigError: it is no integer of 1, 2, 4 or 8 bytes.
    """
    asked = np.dtype(dtype)
    if asked.kind not in "iu":
        raise ConfigError(f"a header field of dtype {asked} is not possible", hint='use integers, such as ">u2"')
    foreign = asked.byteorder == (">" if sys.byteorder == "little" else "<")
    return Kind(asked.itemsize, foreign, asked.newbyteorder("="))


_FIELDS = {
    "src": "u4",
    "dst": "u4",
    "sport": "u2",
    "dport": "u2",
    "proto": "u1",
    "version": "u1",
    "valid": "?",
    "l4": "u4",
    "src6": "u8",
    "dst6": "u8",
}


class Columns:
    """Arrays for batches of up to `capacity` packets over one memory.

    Concurrency: as the batches they serve.
    """

    __slots__ = ("_columns", "_tuple", "area", "capacity", "data", "size")

    def __init__(self, data: npt.NDArray[np.uint8], capacity: int) -> None:
        self.data = data
        self.area = ffi.from_buffer("uint8_t[]", data)
        self.size = len(data)
        self.capacity = capacity
        self._columns: dict[Any, Column] = {}
        self._tuple: Any = None

    def packets(self, descs: Any, n: int) -> Any:
        """``struct afp_packets *`` of n descriptors; it does not keep them alive."""
        return ffi.new("struct afp_packets *", {"descs": descs, "area": self.area, "size": self.size, "n": n})

    def column(self, key: Any, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> Column:
        """The array for what `key` says, made at its first use."""
        found = self._columns.get(key)
        if found is None:
            native = np.dtype(dtype).newbyteorder("=")
            # Memory nobody can resize, not even through a view's base: C has its address.
            shape = (self.capacity, *shape)
            array = np.frombuffer(bytearray(math.prod(shape) * native.itemsize), native).reshape(shape)
            kind = kind_of(dtype) if native.kind in "iu" else Kind(native.itemsize, False, native)
            pointer = ffi.from_buffer(f"uint{8 * native.itemsize}_t[]", array)
            found = self._columns[key] = Column(kind, array, pointer)
        return found

    def five_tuple(self) -> Any:
        """``struct afp_five_tuple *`` over the columns of that name."""
        if self._tuple is None:
            columns = {
                name: self.column(("five_tuple", name), dtype, (2,) if name.endswith("6") else ())
                for name, dtype in _FIELDS.items()
            }
            made = ffi.new("struct afp_five_tuple *")
            for name, column in columns.items():
                setattr(made, name, column.pointer)
            self._tuple = made
        return self._tuple

    def cut_five_tuple(self, n: int) -> FiveTuple:
        """Views of the first n entries."""
        self.five_tuple()
        return FiveTuple(*(self._columns["five_tuple", name].array[:n] for name in FiveTuple._fields))


class Fields:
    """The columns as one batch sees them: views of its length, cut once.

    What `Batch` does with header fields is done here and in `afxdp_pool.headers`; the docstrings there say what.

    Attributes:
        n: of packets. packets: ``struct afp_packets *`` of them. own: what was cut, by what it is. chain: where packets
            of several frames are among them, as they were when it was last asked; see `show`.
    """

    __slots__ = ("_chained", "_pointer", "_tuple", "chain", "columns", "n", "own", "packets")

    def __init__(self, columns: Columns, pointer: Any, n: int) -> None:
        self.columns = columns
        self.n = n
        self._pointer = pointer  # kept: `packets` only points there
        self.packets = columns.packets(pointer, n)
        self.own: dict[Any, Any] = {}
        self._tuple: FiveTuple | None = None
        self.chain: Chain | None = None
        self._chained: Any = None

    def show(self, chain: Chain | None) -> None:
        """Which frames the packets have from now on: C sees those of a chain beside the first of each."""
        frames = starts = ffi.NULL
        if chain is not None:
            frames = ffi.from_buffer("struct afp_desc[]", np.ascontiguousarray(chain.frames))
            starts = ffi.from_buffer("int64_t[]", chain.starts)
        self.packets.frames, self.packets.starts = frames, starts
        self.chain, self._chained = chain, (frames, starts)

    def load(self, offset: int, dtype: npt.DTypeLike, base: Any, out: Any) -> npt.NDArray[Any]:
        """See `Batch.load`."""
        if base is None and out is None:
            cut = self.own.get((offset, dtype))
            if cut is None:
                cut = self._make(offset, dtype)
            view, kind, pointer = cut
            lib.afp_load(self.packets, ffi.NULL, offset, kind[0], kind[1], pointer)
            return view  # type: ignore[no-any-return]
        kind = self._kind(offset, dtype)
        if out is None:
            out = np.empty(self.n, kind.native)
        elif not isinstance(out, np.ndarray) or out.dtype != kind.native or out.shape != (self.n,):
            raise ConfigError(f"out is to be an array of {kind.native}, shape ({self.n},)")
        elif not out.flags.c_contiguous or not out.flags.writeable:
            raise ConfigError("out is to be contiguous and writable")
        lib.afp_load(self.packets, self._base(base), offset, kind.width, kind.swap, ffi.from_buffer(out))
        return out  # type: ignore[no-any-return]

    def store(self, offset: int, dtype: npt.DTypeLike, values: Any, base: Any, where: Any) -> int:
        """See `Batch.store`."""
        kind = self._kind(offset, dtype)
        scratch, pointer = self.scratch(("values", kind.native, ()), kind.native)
        scratch[:] = values
        mask = self.mask(where)
        return int(lib.afp_store(self.packets, self._base(base), offset, kind.width, kind.swap, pointer, mask))

    def swap_macs(self, where: Any) -> int:
        """See `Batch.swap_macs`."""
        return int(lib.afp_swap_macs(self.packets, self.mask(where)))

    def five_tuple(self) -> FiveTuple:
        """See `Batch.five_tuple`."""
        if self._tuple is None:
            self._tuple = self.columns.cut_five_tuple(self.n)
        lib.afp_five_tuples(self.packets, self.columns.five_tuple())
        return self._tuple

    def _make(self, offset: int, dtype: npt.DTypeLike) -> Any:
        kind = self._kind(offset, dtype)
        column = self.columns.column(("load", offset, kind), kind.native)
        cut = self.own[offset, dtype] = column.array[: self.n], kind, column.pointer
        return cut

    def _kind(self, offset: int, dtype: npt.DTypeLike) -> Kind:
        """The field's type, asked of numpy once."""
        kind: Kind | None = self.own.get(("kind", dtype))
        if kind is None:
            kind = self.own["kind", dtype] = kind_of(dtype)
        if not 0 <= offset < MOST_OFFSET:
            raise ConfigError(f"a field at byte {offset} is not possible", hint=f"count from 0 to {MOST_OFFSET - 1}")
        return kind

    def header(self, kind: type[Named]) -> Named:
        """The one `Header` of that class."""
        found = self.own.get(kind)
        if found is None:
            found = self.own[kind] = kind(self)  # type: ignore[call-arg]
        return found

    def scratch(self, key: Any, dtype: npt.DTypeLike, shape: tuple[int, ...] = ()) -> Any:
        """The array for what `key` says, cut to n, and its pointer."""
        found = self.own.get(key)
        if found is None:
            column = self.columns.column(key, dtype, shape)
            found = self.own[key] = column.array[: self.n], column.pointer
        return found

    def mask(self, where: Any) -> Any:
        """A pointer to that mask.

        Raises:
            ConfigError: it is none.
        """
        if where is None:
            return ffi.NULL
        if getattr(where, "dtype", None) != np.bool_:
            raise ConfigError("where is to be a mask", hint=f"give an array of bool, shape ({self.n},)")
        mask, pointer = self.scratch("where", "?")
        mask[:] = where
        return pointer

    def _base(self, base: Any) -> Any:
        if base is None:
            return ffi.NULL
        offsets, pointer = self.scratch("base", "u4")
        offsets[:] = base
        return pointer
