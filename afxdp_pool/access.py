"""What a batch offers on its packets' headers: fields by place, headers by name, and C that works on all packets.

`HeaderAccess` is that part of `Batch`; the arrays it returns are the batch's own. Invariant: as of
`afxdp_pool.columns` and `afxdp_pool.headers`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi, lib
from afxdp_pool.columns import Fields, FiveTuple
from afxdp_pool.errors import ConfigError
from afxdp_pool.headers import Arp, Eth, Icmp, IcmpV6, IPv4, IPv6, Tcp, Udp, Vlan, verify

#: The key that Microsoft's specification of receive-side scaling verifies with, and many drivers have.
RSS_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
#: The key that gives both directions of a flow the same hash (Woo and Park, 2012).
RSS_KEY_SYMMETRIC = b"\x6d\x5a" * 20

_MOST_RSS_KEY = 256

_ALL_CHECKSUMS = sum(1 << one.kind for one in (IPv4, Tcp, Udp, Icmp, IcmpV6))


class HeaderAccess:
    """What a `Batch` offers on headers: by place, by name, and what is done to all packets at once, in C."""

    __slots__ = ()

    def _header_fields(self) -> Fields:
        raise NotImplementedError

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

        >>> from afxdp_pool import DESC, Batch
        >>> batch = Batch(np.array([(0, 3, 0, 0), (4, 1, 0, 0)], DESC), np.arange(8, dtype=np.uint8))
        >>> batch.load(1, ">u2").tolist()
        [258, 0]
        """
        return self._header_fields().load(offset, dtype, base, out)

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
        return self._header_fields().store(offset, dtype, values, base, where)

    def swap_macs(self, where: npt.NDArray[np.bool_] | None = None) -> int:
        """Exchange source and destination MAC address of every packet, or those of the mask `where`; how many."""
        return self._header_fields().swap_macs(where)

    def five_tuple(self) -> FiveTuple:
        """Addresses, ports and protocol of every packet, as columns: IPv4 and IPv6, behind up to two VLAN tags.

        The arrays are the batch's own, and the next call fills them anew.
        """
        return self._header_fields().five_tuple()

    @property
    def eth(self) -> Eth:
        """Ethernet headers."""
        return self._header_fields().header(Eth)

    @property
    def vlan(self) -> Vlan:
        """Outer VLAN tags."""
        return self._header_fields().header(Vlan)

    @property
    def arp(self) -> Arp:
        """ARP packets for IPv4."""
        return self._header_fields().header(Arp)

    @property
    def ipv4(self) -> IPv4:
        """IPv4 headers."""
        return self._header_fields().header(IPv4)

    @property
    def ipv6(self) -> IPv6:
        """IPv6 headers."""
        return self._header_fields().header(IPv6)

    @property
    def tcp(self) -> Tcp:
        """TCP headers, over IPv4 and IPv6."""
        return self._header_fields().header(Tcp)

    @property
    def udp(self) -> Udp:
        """UDP headers, over IPv4 and IPv6."""
        return self._header_fields().header(Udp)

    @property
    def icmp(self) -> Icmp:
        """ICMP headers, over IPv4."""
        return self._header_fields().header(Icmp)

    @property
    def icmpv6(self) -> IcmpV6:
        """ICMPv6 headers."""
        return self._header_fields().header(IcmpV6)

    def decrement_ttl(self, where: npt.NDArray[np.bool_] | None = None) -> npt.NDArray[np.bool_]:
        """Take one hop off IPv4's TTL, with its checksum (RFC 1624), and IPv6's hop limit.

        Args:
            where: only of these packets; bool, shape ``(n,)``.

        Returns which of them had none left; they are unchanged. bool, shape ``(n,)``, the batch's own.
        """
        fields = self._header_fields()
        expired, pointer = fields.scratch("expired", "?")
        lib.afp_decrement_ttl(fields.packets, fields.mask(where), pointer)
        return expired  # type: ignore[no-any-return]

    def fill_checksums(self, where: npt.NDArray[np.bool_] | None = None) -> int:
        """Compute and write IPv4's, TCP's, UDP's and ICMP's checksums, as far as a packet has them; into how many.

        See `Checksummed` for what is left alone.
        """
        fields = self._header_fields()
        return int(lib.afp_checksum_fill(fields.packets, _ALL_CHECKSUMS, fields.mask(where)))

    def verify_checksums(self) -> npt.NDArray[np.bool_]:
        """Which packets have one of those checksums, and none that is wrong; bool, shape ``(n,)``, the batch's own."""
        return verify(self._header_fields(), _ALL_CHECKSUMS)

    def flow_hash(self, *, symmetric: bool = False, seed: int = 0) -> npt.NDArray[np.uint64]:
        """A hash of each packet's addresses, ports and protocol, for tables; uint64, shape ``(n,)``, the batch's own.

        0 for what is not IP. Fragments are hashed without ports, so that those of a datagram agree.

        Args:
            symmetric: both directions of a flow give the same.
            seed: where others choose the packets, a random one: they cannot aim at one entry of your table.
        """
        fields = self._header_fields()
        out, pointer = fields.scratch("flow_hash", "u8")
        lib.afp_flow_hash(fields.packets, symmetric, seed, pointer)
        return out  # type: ignore[no-any-return]

    def rss_hash(self, key: bytes = RSS_KEY, *, ports: bool = True) -> npt.NDArray[np.uint32]:
        """The Toeplitz hash of receive-side scaling, as a NIC with that key has it; uint32, the batch's own.

        0 for what is not IP.

        Args:
            key: of 40 bytes or more, as ``ethtool -x`` shows; `RSS_KEY_SYMMETRIC` for both directions alike.
            ports: with the ports of packets that have some. ``ethtool -n eth1 rx-flow-hash udp4`` tells a NIC's way.

        Raises:
            ConfigError: a key of another length.
        """
        fields = self._header_fields()
        out, pointer = fields.scratch("rss_hash", "u4")
        lib.afp_rss_hash(fields.packets, _toeplitz(memoryview(key).tobytes()), ports, pointer)
        return out  # type: ignore[no-any-return]


@lru_cache(maxsize=8)
def _toeplitz(key: bytes) -> Any:
    """The key's table."""
    if not lib.AFP_RSS_KEY <= len(key) <= _MOST_RSS_KEY:
        raise ConfigError(f"an RSS key of {len(key)} bytes is not possible", hint="give 40 bytes, or more")
    made = ffi.new("struct afp_toeplitz *")
    lib.afp_toeplitz_init(made, key)
    return made
