"""Filter rules applied to a batch: `matching` says which packets a filter with these rules would take."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from afxdp_pool.batch import Batch
from afxdp_pool.filters import Rule

Mask = npt.NDArray[np.bool_]

_TYPE_AT, _TAG = 12, 4
#: In IPv4 flags and offset of a fragment; in IPv6, in the first byte, the next header.
_FRAGMENT_AT, _FRAGMENT, _FRAGMENT_HEADER = 20, 0x3FFF, 44
_VLAN_TAGS = (0x8100, 0x88A8)
_WITH_PORTS = (6, 17)  # TCP, UDP


def matching(rules: Sequence[Rule], batch: Batch) -> Mask:
    """The packets of `batch` that one of `rules` wants, as the XDP program would; all of them without rules.

    In IPv6 a rule's `protocol` and ports are looked for behind all extension headers.

    Returns:
        A new bool array of shape ``(n,)``.

    Concurrency: as the batch's.
    """
    if not rules:
        return np.ones(len(batch), bool)
    headers = _Headers(batch)
    wanted = np.zeros(len(batch), bool)
    for rule in rules:
        wanted |= _wanted(rule, headers)
    return wanted


class _Headers:
    """What rules look at: `kind` is the ethertype behind up to two VLAN tags; a fragment has no ports."""

    def __init__(self, batch: Batch) -> None:
        self.five = batch.five_tuple()
        base = np.zeros(len(batch), np.uint32)
        self.kind = batch.load(_TYPE_AT, ">u2").copy()
        for _ in range(2):
            tagged = np.isin(self.kind, _VLAN_TAGS)
            base += np.where(tagged, np.uint32(_TAG), np.uint32(0))
            self.kind = batch.load(_TYPE_AT, ">u2", base=base).copy()
        fragments = batch.load(_FRAGMENT_AT, ">u2", base=base) & _FRAGMENT != 0
        first6 = batch.load(_FRAGMENT_AT, base=base) == _FRAGMENT_HEADER
        fragment = np.where(self.five.version == 4, fragments, first6)
        self.has_ports = (self.five.l4 != 0) & np.isin(self.five.proto, _WITH_PORTS) & ~fragment


def _wanted(rule: Rule, headers: _Headers) -> Mask:
    five = headers.five
    mask = np.ones(len(headers.kind), bool)
    if rule.ethertype is not None:
        mask &= headers.kind == rule.ethertype
    if rule.protocol is not None:
        mask &= five.valid & (five.proto == rule.protocol)
    for port, column in ((rule.port, five.dport), (rule.source_port, five.sport)):
        if port is not None:
            mask &= headers.has_ports & (column == port)
    for network, narrow, wide in (
        (rule.network, five.dst, five.dst6),
        (rule.source_network, five.src, five.src6),
    ):
        if network is not None:
            mask &= _inside(ipaddress.ip_network(network), five.version, narrow, wide)
    return mask


def _inside(network: ipaddress.IPv4Network | ipaddress.IPv6Network, version: Any, narrow: Any, wide: Any) -> Mask:
    want, bits = int(network.network_address), int(network.netmask)
    if network.version == 4:
        return np.asarray((version == 4) & (narrow & bits == want))
    low = (1 << 64) - 1
    high_fits = wide[:, 0] & np.uint64(bits >> 64) == np.uint64(want >> 64)
    return np.asarray((version == 6) & high_fits & (wide[:, 1] & np.uint64(bits & low) == np.uint64(want & low)))
