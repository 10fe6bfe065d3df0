"""A NIC whose ethtool is played: layouts by ctypes, from include/uapi/linux/ethtool.h, apart from the library's own."""

from __future__ import annotations

import ctypes as c
import errno
import os
import struct

U8, U16, U32, U64 = c.c_uint8, c.c_uint16, c.c_uint32, c.c_uint64


class FlowExt(c.Structure):
    _fields_ = (("padding", U8 * 2), ("h_dest", U8 * 6), ("vlan_etype", U16), ("vlan_tci", U16), ("data", U32 * 2))


class FlowSpec(c.Structure):
    _fields_ = (("flow_type", U32), ("h_u", U8 * 52), ("h_ext", FlowExt), ("m_u", U8 * 52), ("m_ext", FlowExt),
                ("ring_cookie", U64), ("location", U32))  # fmt: skip


class Rxnfc(c.Structure):
    _fields_ = (("cmd", U32), ("flow_type", U32), ("data", U64), ("fs", FlowSpec), ("rule_cnt", U32))


class Rxfh(c.Structure):
    _fields_ = (("cmd", U32), ("rss_context", U32), ("indir_size", U32), ("key_size", U32), ("hfunc", U8),
                ("input_xfrm", U8), ("rsvd8", U8 * 2), ("rsvd32", U32))  # fmt: skip


LOCATIONS = 188  # offset of rule_locs in struct ethtool_rxnfc


class FakeNic:
    """What an ice or mlx5 would do, as far as it is asked here.

    Args:
        queues: at first, and at most.
        places: of the table of rules; 0: the driver chooses them by itself.
        choosy: rules with a MAC address and fields of IP are refused.
    """

    def __init__(self, queues: int = 8, places: int = 16, table: int = 16, *, choosy: bool = False) -> None:
        self.most = self.combined = queues
        self.places, self.choosy = places, choosy
        self.rx_ring = self.tx_ring = 512
        self.table = [at % queues for at in range(table)]
        self.configured = False  # whether somebody has set the table
        self.key = bytes(range(40))
        self.transform = 1
        self.hash = {flow: 0x30 for flow in (1, 2, 5, 6, 0x10, 0x11)}
        self.flags = 1 << 15
        self.rules: dict[int, bytes] = {}
        self.log: list[str] = []

    def ioctl(self, _name: str, request: bytes) -> bytes:
        (command,) = struct.unpack_from("=I", request)
        answer = {0x10: self._rings, 0x3C: self._channels, 0x25: self._flags, 0x26: self._set_flags,
                  0x46: self._rxfh, 0x47: self._set_rxfh}.get(command, self._nfc)  # fmt: skip
        return bytes(answer(bytearray(request)))

    def act(self, family: str, command: int, attributes: bytes) -> None:
        """Netlink: RINGS_SET and CHANNELS_SET."""
        found, at = {}, 0
        while at < len(attributes):
            size, kind = struct.unpack_from("=HH", attributes, at)
            found[kind & 0x7FFF] = attributes[at + 4 : at + size]
            at += (size + 3) & ~3
        values = {kind: struct.unpack("=I", raw)[0] for kind, raw in found.items() if kind != 1}
        assert family == "ethtool"
        assert b"lo\0" in found[1]
        if command == 16:
            self.rx_ring, self.tx_ring = values.get(6, self.rx_ring), values.get(9, self.tx_ring)
            self.rx_ring = -(-self.rx_ring // 64) * 64  # as drivers do
            return
        assert command == 18
        if self.configured and max(self.table) >= values[9]:
            raise OSError(errno.EINVAL, "requested channel counts are too low for existing indirection table")
        self.log.append(f"channels {values[9]}")
        self.combined = values[9]
        if not self.configured:
            self.table = [place % self.combined for place in range(len(self.table))]

    def _rings(self, _: bytearray) -> bytes:
        return struct.pack("=9I", 0x10, 4096, 0, 0, 4096, self.rx_ring, 0, 0, self.tx_ring)

    def _channels(self, _: bytearray) -> bytes:
        return struct.pack("=9I", 0x3C, 0, 0, 1, self.most, 0, 0, 1, self.combined)

    def _flags(self, _: bytearray) -> bytes:
        return struct.pack("=II", 0x25, self.flags)

    def _set_flags(self, request: bytearray) -> bytearray:
        (self.flags,) = struct.unpack_from("=I", request, 4)
        return request

    def _rxfh(self, request: bytearray) -> bytes:
        head = Rxfh.from_buffer(request)
        rest = struct.pack(f"={len(self.table)}I", *self.table) + self.key
        if head.indir_size or head.key_size:
            assert len(request) == 24 + len(rest)
            request[24:] = rest
        told = Rxfh.from_buffer_copy(request[:24])
        told.indir_size, told.key_size, told.hfunc, told.input_xfrm = len(self.table), len(self.key), 1, self.transform
        return bytes(told) + bytes(request[24:])

    def _set_rxfh(self, request: bytearray) -> bytearray:
        head = Rxfh.from_buffer_copy(request[:24])
        self.transform = head.input_xfrm
        entries = 0 if head.indir_size == 0xFFFFFFFF else head.indir_size
        if head.indir_size == 0:
            self.table, self.configured = [at % self.combined for at in range(len(self.table))], False
        elif entries:
            table = list(struct.unpack_from(f"={entries}I", request, 24))
            if entries != len(self.table) or max(table) >= self.combined:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self.table, self.configured = table, True
        if head.key_size:
            self.key = bytes(request[24 + 4 * entries :])
        self.log.append("table" if head.key_size == 0 else "key")
        return request

    def _nfc(self, request: bytearray) -> bytearray:
        told = Rxnfc.from_buffer(request)
        if told.cmd == 0x29:
            told.data = self.hash.get(told.flow_type, 0)
        elif told.cmd == 0x2A:
            self.hash[told.flow_type] = told.data
        elif told.cmd == 0x2D:
            told.data = self.combined
        elif told.cmd in (0x2E, 0x30):
            told.data = self.places or 1 << 31
            told.rule_cnt = len(self.rules)
            if told.cmd == 0x30:
                struct.pack_into(f"={len(self.rules)}I", request, LOCATIONS, *self.rules)
        elif told.cmd == 0x32:
            self._insert(told)
        elif told.fs.location not in self.rules:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        elif told.cmd == 0x2F:
            told.fs = FlowSpec.from_buffer_copy(self.rules[told.fs.location])
        elif told.cmd == 0x31:
            del self.rules[told.fs.location]
        return request

    def _insert(self, told: Rxnfc) -> None:
        assert self.flags & 1 << 27, "flow rules are off"
        if self.choosy and told.fs.flow_type & 1 << 30:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if told.fs.location == 0xFFFFFFFF:
            assert not self.places
            told.fs.location = 100 + len(self.rules)
        self.log.append(f"rule {told.fs.location}")
        self.rules[told.fs.location] = bytes(told.fs)
