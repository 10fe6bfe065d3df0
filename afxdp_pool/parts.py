"""Packets of several frames in compiled handlers: `packet_parts` says how many frames there are, `packet_part` is one.

A handler in machine code gets a packet's first frame. Which the others are stands in the bytes before it (struct
afp_parts in ``afxdp_pool.h``). It owns nothing: what is told is good for the call.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from afxdp_pool.batch import Bytes

#: AFP_PARTS_ROOM of afxdp_pool.h, and the size of a descriptor.
_BEFORE, _DESC = 48, 16


class PacketParts(NamedTuple):
    """All of a packet: its bytes, and in how many frames they are."""

    length: int
    frames: int


def packet_parts(packet: Any) -> PacketParts:
    """How long a packet is, and in how many frames it lies: `packet` as a compiled handler gets it.

    In a batch's handler it is ``umem[addr : addr + length]``. It is read from the bytes in front of the packet: only of
    packets of a port with `PortConfig.multi_buffer`, and before `addr` is changed. In Python `Batch.lengths` and
    `Batch.parts` are the way.
    """
    _, counts = _words(packet)
    return PacketParts(counts >> 32, counts & 0xFFFFFFFF)


def packet_part(packet: Any, index: int) -> Bytes:
    """Frame `index` of a packet, 0 the first: uint8, its bytes, which may be written to. See `packet_parts`.

    Whether there is such a frame is not checked, as nothing is in machine code.
    """
    import ctypes

    frames, _ = _words(packet)
    start, first = (int.from_bytes(ctypes.string_at(frames + _DESC * at, 8), "little") for at in (index, 0))
    length = int.from_bytes(ctypes.string_at(frames + _DESC * index + 8, 4), "little")
    return np.ctypeslib.as_array((ctypes.c_uint8 * length).from_address(packet.ctypes.data + start - first))


def _words(packet: Any) -> tuple[int, int]:
    """Where the frames' descriptors are; and their number, with the whole length above."""
    import ctypes

    record = ctypes.string_at(packet.ctypes.data - _BEFORE, 16)
    return int.from_bytes(record[:8], "little"), int.from_bytes(record[8:], "little")


def teach() -> None:
    """Tell numba of these functions."""
    from numba.core import cgutils
    from numba.extending import intrinsic, overload

    numba: Any = import_module("numba")
    types = numba.types

    @intrinsic
    def load_word(_context: Any, address: Any) -> Any:
        """The 64-bit number at that address."""

        def load(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], cgutils.intp_t.as_pointer()), align=1)

        return types.int64(types.int64), load

    @intrinsic
    def to_pointer(_context: Any, address: Any) -> Any:
        """That address as a pointer."""

        def point(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(types.uint8)(types.int64), point

    # As numba sees them: without the context.
    word: Any = load_word
    octets: Any = to_pointer
    carray = numba.carray

    def parts(packet: Any) -> Callable[[Any], PacketParts]:
        def told(packet: Any) -> PacketParts:
            counts = word(np.int64(packet.ctypes.data) - _BEFORE + 8)
            return PacketParts(counts >> 32, counts & 0xFFFFFFFF)

        return told

    def part(packet: Any, index: Any) -> Callable[[Any, Any], Any]:
        def one(packet: Any, index: Any) -> Any:
            here = np.int64(packet.ctypes.data)
            frames = word(here - _BEFORE)
            at = frames + _DESC * np.int64(index)
            return carray(octets(here + word(at) - word(frames)), word(at + 8) & 0xFFFFFFFF)

        return one

    overload(packet_parts)(parts)
    overload(packet_part)(part)
