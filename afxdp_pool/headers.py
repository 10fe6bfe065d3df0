"""Headers of a batch by name: ``batch.ipv4.ttl`` is a column, ``batch.ipv4[i]`` one packet's header where it lies.

A `Header` finds its header in each packet, behind VLAN tags, IPv4 options and IPv6 extension headers, each time it is
asked: what a handler did to the packets meanwhile is seen. It owns nothing; columns belong to the batch. Invariant: a
packet without the header is neither read nor written, whatever its descriptor says.

The wire's layout is public: `ETH`, `VLAN`, `ARP`, `IPV4`, `IPV6`, `TCP`, `UDP`, `ICMP` are big-endian dtypes.
"""

from __future__ import annotations

import operator
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import lib
from afxdp_pool.columns import Fields
from afxdp_pool.errors import ConfigError, NoHeaderError


def _wire(fields: str) -> np.dtype[Any]:
    """The dtype of fields in network order, ``name:type`` each."""
    return np.dtype([(name, code) for name, code in (field.split(":") for field in fields.split())])


ETH = _wire("dst:6u1 src:6u1 type:>u2")
#: The outer tag: where an untagged packet has its EtherType.
VLAN = _wire("tpid:>u2 tci:>u2")
#: For IPv4 on Ethernet.
ARP = _wire("htype:>u2 ptype:>u2 hlen:u1 plen:u1 op:>u2 sha:6u1 spa:>u4 tha:6u1 tpa:>u4")
#: `frag`: three flags and the fragment's offset.
IPV4 = _wire("version_ihl:u1 tos:u1 len:>u2 id:>u2 frag:>u2 ttl:u1 proto:u1 checksum:>u2 src:>u4 dst:>u4")
#: Addresses are two numbers, the high one first.
IPV6 = _wire("version_class_flow:>u4 len:>u2 next:u1 hop_limit:u1 src:2>u8 dst:2>u8")
#: `offset`: the header's length in words of 4 bytes, in the upper half of the byte.
TCP = _wire("sport:>u2 dport:>u2 seq:>u4 ack:>u4 offset:u1 flags:u1 window:>u2 checksum:>u2 urgent:>u2")
UDP = _wire("sport:>u2 dport:>u2 len:>u2 checksum:>u2")
#: And ICMPv6. `id` and `seq` are those of an echo.
ICMP = _wire("type:u1 code:u1 checksum:>u2 id:>u2 seq:>u2")

Number = TypeVar("Number", bound=np.generic)


class Field(Generic[Number]):
    """One field of a `Header`: read, a column; assigned, scattered into the packets that have the header."""

    __slots__ = ("_dtype", "_kind", "_offset", "_shape", "_width")

    def __set_name__(self, owner: type[Header], name: str) -> None:
        fields = owner.dtype.fields
        assert fields is not None
        wire, self._offset = fields[name][:2]
        self._kind = owner.kind
        self._width = wire.itemsize
        self._shape = (2,) if self._width == 16 else ()
        self._dtype = np.dtype(f"u{min(self._width, 8) if self._width != 6 else 8}")

    @overload
    def __get__(self, header: None, owner: type[Header]) -> Self: ...
    @overload
    def __get__(self, header: Header, owner: type[Header]) -> npt.NDArray[Number]: ...
    def __get__(self, header: Header | None, owner: type[Header]) -> Any:
        if header is None:
            return self
        fields = header._fields
        column, pointer = fields.own.get(self) or fields.scratch(self, self._dtype, self._shape)
        lib.afp_header_load(fields.packets, self._kind, self._offset, self._width, pointer)
        return column

    def __set__(self, header: Header, values: npt.ArrayLike) -> None:
        fields = header._fields
        if isinstance(values, bytes):
            if len(values) != self._width:
                raise ConfigError(f"{len(values)} bytes are no value of a field of {self._width}")
            whole = int.from_bytes(values, "big")
            values = [whole >> 64, whole & 0xFFFFFFFFFFFFFFFF] if self._shape else whole
        new, pointer = fields.scratch(("values", self._dtype, self._shape), self._dtype, self._shape)
        new[:] = values
        lib.afp_header_store(fields.packets, self._kind, self._offset, self._width, pointer, fields.mask(header._mask))


class U8(Field[np.uint8]):
    """A byte; uint8, shape ``(n,)``."""

    __slots__ = ()


class U16(Field[np.uint16]):
    """Two bytes; uint16 in the machine's byte order, shape ``(n,)``."""

    __slots__ = ()


class U32(Field[np.uint32]):
    """Four bytes, as IPv4 addresses are; uint32 in the machine's byte order, shape ``(n,)``."""

    __slots__ = ()


class Mac(Field[np.uint64]):
    """A MAC address as a number: uint64, of which the low 48 bits count, shape ``(n,)``."""

    __slots__ = ()


class Address6(Field[np.uint64]):
    """An IPv6 address as two numbers, the high one first: uint64, shape ``(n, 2)``."""

    __slots__ = ()


class Header:
    """One kind of header in the packets of a batch.

    Reading a field, ``batch.udp.dport``, gathers it from every packet into an array of numbers in the machine's byte
    order; 0 where there is no such header. The array is the batch's own, and the next reading fills it anew. Assigning,
    ``batch.udp.dport = 53``, writes one number, one a packet, or bytes as they are on the wire, into the packets that
    have the header. So ``batch.ipv4.ttl -= 1`` works as it reads; checksums are another matter: see `Batch`.

    Attributes:
        dtype: the header's fixed part as it is on the wire.

    Concurrency: as the batch. Ownership: none; good as long as the batch is.
    """

    __slots__ = ("_fields", "_mask")

    dtype: ClassVar[np.dtype[Any]]
    kind: ClassVar[int]

    def __init__(self, fields: Fields, mask: Any = None) -> None:
        self._fields = fields
        self._mask = mask

    def __repr__(self) -> str:
        return f"<{type(self).__name__} headers of {int(self.valid.sum())} of {self._fields.n} packets>"

    @property
    def valid(self) -> npt.NDArray[np.bool_]:
        """Which packets have this header, whole; bool, shape ``(n,)``."""
        self._find()
        valid: npt.NDArray[np.bool_] = self._fields.scratch(("valid", self.kind), "?")[0]
        return valid

    @property
    def at(self) -> npt.NDArray[np.uint32]:
        """Where it starts, bytes into the packet, 0 where it is not there; uint32, shape ``(n,)``: `base` of `load`."""
        return self._find()

    def _find(self) -> npt.NDArray[np.uint32]:
        at, at_pointer = self._fields.scratch(("at", self.kind), "u4")
        _, valid_pointer = self._fields.scratch(("valid", self.kind), "?")
        lib.afp_header_find(self._fields.packets, self.kind, at_pointer, valid_pointer)
        return at  # type: ignore[no-any-return]

    def where(self, mask: npt.NDArray[np.bool_]) -> Self:
        """The same, writing only to the packets of `mask` (bool, shape ``(n,)``): ``batch.udp.where(mask).dport = 53``.

        Reading still reads all.
        """
        return type(self)(self._fields, mask)

    def __getitem__(self, index: int) -> np.void:
        """The header of one packet, where it lies: ``batch.ipv4[i]["ttl"] -= 1`` writes into the frame.

        Raises:
            IndexError: there is no such packet. NoHeaderError: it has no such header.
        """
        fields, n = self._fields, self._fields.n
        i = operator.index(index)
        i += n if i < 0 else 0
        if not 0 <= i < n:
            raise IndexError(f"packet {index} of {n}")
        at = lib.afp_header_of(fields.packets, i, self.kind)
        if at < 0:
            name = type(self).__name__
            raise NoHeaderError(
                f"packet {index} has no {name} header", hint=f"batch.{name.lower()}.valid says which packets have one"
            )
        start = int(fields.packets.descs[i].addr) + at
        return fields.columns.data[start : start + self.dtype.itemsize].view(self.dtype)[0]  # type: ignore[no-any-return]


class Checksummed(Header):
    """A header with a checksum: IPv4's over its header, others' over the whole datagram.

    That of a fragment, or of an IPv6 datagram whose routing header has segments left, covers what is not there: it is
    neither written nor right.
    """

    __slots__ = ()

    def fill_checksum(self) -> int:
        """Compute and write the checksum of the packets that have it; into how many."""
        fields = self._fields
        return int(lib.afp_checksum_fill(fields.packets, 1 << self.kind, fields.mask(self._mask)))

    def verify_checksum(self) -> npt.NDArray[np.bool_]:
        """Whose checksum is there and right; bool, shape ``(n,)``. UDP's 0 over IPv4 is right: it was not computed."""
        return verify(self._fields, 1 << self.kind)


class Eth(Header):
    """The Ethernet header."""

    __slots__ = ()
    dtype, kind = ETH, lib.AFP_ETH
    dst, src, type = Mac(), Mac(), U16()


class Vlan(Header):
    """The outer VLAN tag."""

    __slots__ = ()
    dtype, kind = VLAN, lib.AFP_VLAN
    tpid, tci = U16(), U16()


class Arp(Header):
    """ARP for IPv4 on Ethernet."""

    __slots__ = ()
    dtype, kind = ARP, lib.AFP_ARP
    htype, ptype, hlen, plen, op = U16(), U16(), U8(), U8(), U16()
    sha, spa, tha, tpa = Mac(), U32(), Mac(), U32()


class IPv4(Checksummed):
    """The IPv4 header without its options."""

    __slots__ = ()
    dtype, kind = IPV4, lib.AFP_IPV4
    version_ihl, tos, len, id, frag = U8(), U8(), U16(), U16(), U16()
    ttl, proto, checksum, src, dst = U8(), U8(), U16(), U32(), U32()


class IPv6(Header):
    """The IPv6 header without extension headers."""

    __slots__ = ()
    dtype, kind = IPV6, lib.AFP_IPV6
    version_class_flow, len, next, hop_limit = U32(), U16(), U8(), U8()
    src, dst = Address6(), Address6()


class Tcp(Checksummed):
    """The TCP header without its options."""

    __slots__ = ()
    dtype, kind = TCP, lib.AFP_TCP
    sport, dport, seq, ack, offset, flags = U16(), U16(), U32(), U32(), U8(), U8()
    window, checksum, urgent = U16(), U16(), U16()


class Udp(Checksummed):
    """The UDP header."""

    __slots__ = ()
    dtype, kind = UDP, lib.AFP_UDP
    sport, dport, len, checksum = U16(), U16(), U16(), U16()


class Icmp(Checksummed):
    """The first 8 bytes of ICMP over IPv4."""

    __slots__ = ()
    dtype, kind = ICMP, lib.AFP_ICMP
    type, code, checksum, id, seq = U8(), U8(), U16(), U16(), U16()


class IcmpV6(Checksummed):
    """The first 8 bytes of ICMPv6."""

    __slots__ = ()
    dtype, kind = ICMP, lib.AFP_ICMPV6
    type, code, checksum, id, seq = U8(), U8(), U16(), U16(), U16()


def verify(fields: Fields, kinds: int) -> npt.NDArray[np.bool_]:
    """Which packets have one of the checksums of these kinds (bits ``1 << kind``), and none that is wrong."""
    good, pointer = fields.scratch(("good", kinds), "?")
    lib.afp_checksum_verify(fields.packets, kinds, pointer)
    return good  # type: ignore[no-any-return]
