"""What is known of received packets beside their bytes: as columns of a batch, and how an XDP program comes to tell it.

`Batch.rx_metadata` gives `RxColumns`. It owns nothing: the Umem keeps the records, one a frame, and the columns are the
batch's. Invariant: a record is that of the descriptor's own packet, or there is none.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi, lib
from afxdp_pool.bpf import BpfObject
from afxdp_pool.columns import Fields
from afxdp_pool.config import RX_METADATA, RxMetadataName, to_bits
from afxdp_pool.errors import ConfigError, InvalidDescriptorError, MetadataUnsupportedError
from afxdp_pool.netdev import Netdev, RxMetadata, flag_names

if TYPE_CHECKING:
    from afxdp_pool.umem import Umem

#: What the device's driver must tell; the rest the kernel knows by itself.
_OF_DRIVER = {"hash": RxMetadata.HASH, "timestamp": RxMetadata.TIMESTAMP, "vlan": RxMetadata.VLAN_TAG}
_ANYWHERE = '"arrival", the kernel\'s time, is to be had of every device'


class RxHashType(IntFlag):
    """Over what a device computed its hash (`enum xdp_rss_hash_type`, include/net/xdp.h); 0: it does not tell."""

    L3_IPV4 = 1
    L3_IPV6 = 2
    L3_EXTENSIONS = 4
    L4 = 8
    L4_TCP = 16
    L4_UDP = 32
    L4_SCTP = 64
    L4_IPSEC = 128
    L4_ICMP = 256


class RxColumns(NamedTuple):
    """What is known of the packets of a batch: one array a fact, shape ``(n,)``; 0 where it is not known.

    Attributes:
        hash: the device's hash of the packet's flow, uint32.
        hash_type: over what, uint16; see `RxHashType`.
        timestamp: when the device received it, by the device's own clock: ns, uint64.
        arrival: when the XDP program saw it, CLOCK_TAI: ns, uint64; `utc` makes dates of it.
        vlan_tci: the VLAN tag that the device took off: priority in 3 bits, DEI in 1, VLAN in 12; uint16.
        vlan_proto: that tag's EtherType, 0x8100 or 0x88a8, uint16.
        has_hash, has_timestamp, has_arrival, has_vlan: of which packets that is known, bool.
    """

    hash: npt.NDArray[np.uint32]
    hash_type: npt.NDArray[np.uint16]
    timestamp: npt.NDArray[np.uint64]
    arrival: npt.NDArray[np.uint64]
    vlan_tci: npt.NDArray[np.uint16]
    vlan_proto: npt.NDArray[np.uint16]
    has_hash: npt.NDArray[np.bool_]
    has_timestamp: npt.NDArray[np.bool_]
    has_arrival: npt.NDArray[np.bool_]
    has_vlan: npt.NDArray[np.bool_]


_DTYPES = {
    "hash": "u4",
    "hash_type": "u2",
    "timestamp": "u8",
    "arrival": "u8",
    "vlan_tci": "u2",
    "vlan_proto": "u2",
    "has_hash": "?",
    "has_timestamp": "?",
    "has_arrival": "?",
    "has_vlan": "?",
}


def rx_columns(umem: Umem | None, fields: Fields) -> RxColumns:
    """See `Batch.rx_metadata`."""
    if umem is None:
        raise InvalidDescriptorError("these descriptors were made by hand, of no Umem that could tell")
    made = fields.own.get(RxColumns)
    if made is None:
        if not umem.table.known:
            raise ConfigError(
                "no port of this Umem learns of its packets more than their bytes",
                hint='open it with PortConfig(rx_metadata=("hash", "arrival")), say',
            )
        columns = {name: fields.columns.column(("rx", name), dtype) for name, dtype in _DTYPES.items()}
        native = ffi.new("struct afp_rx_columns *", {name: column.pointer for name, column in columns.items()})
        cut = RxColumns(*(columns[name].array[: fields.n] for name in RxColumns._fields))
        made = fields.own[RxColumns] = native, cut
    lib.afp_rx_columns(umem.table, fields.packets.descs, fields.n, made[0])
    return made[1]


def utc(tai_ns: npt.ArrayLike) -> npt.NDArray[np.datetime64]:
    """Dates, ``datetime64[ns]`` in UTC, of CLOCK_TAI in ns, as `RxColumns.arrival` is; of the same shape.

    The difference of the two clocks is the kernel's, now: whole seconds, 0 where nobody has set it.

    >>> import time
    >>> now = utc(time.clock_gettime_ns(time.CLOCK_TAI))
    >>> bool(abs(now - np.datetime64(time.time_ns(), "ns")) < np.timedelta64(10, "s"))
    True
    """
    return (np.asarray(tai_ns, np.int64) - tai_ahead_ns()).view("datetime64[ns]")


def tai_ahead_ns() -> int:
    """How much CLOCK_TAI is ahead of CLOCK_REALTIME now, ns: whole seconds."""
    return round(time.clock_gettime(time.CLOCK_TAI) - time.time()) * 1_000_000_000


_RECORD = struct.Struct("<QQIHHHHI")  # struct rx_metadata in bpf/rx_metadata.h
_MAGIC = int.from_bytes(b"xrm1", "little")


def pack_record(facts: Mapping[str, int]) -> bytes:
    """The record that an XDP program writes in front of a packet, for tests.

    Args:
        facts: by the names of `RxColumns`: `hash`, `hash_type`, `timestamp`, `arrival`, `vlan_tci`, `vlan_proto`.

    Raises:
        ConfigError: it has another name, or a number that does not fit.
    """
    named = {name: ("vlan" if name.startswith("vlan") else name.partition("_")[0]) for name in _RECORD_FIELDS}
    if strange := set(facts) - set(named):
        raise ConfigError(f"{', '.join(sorted(strange))}: no such fact", hint=f"give {', '.join(_RECORD_FIELDS)}")
    present = to_bits((named[name] for name in facts), RX_METADATA)
    try:
        return _RECORD.pack(*(facts.get(name, 0) for name in _RECORD_FIELDS), present, _MAGIC)
    except struct.error as error:
        raise ConfigError(f"{dict(facts)} is not possible: {error}") from None


_RECORD_FIELDS = ("timestamp", "arrival", "hash", "hash_type", "vlan_tci", "vlan_proto")


# The program that tells it -------------------------------------------------------------------------------------------


def of_driver(wanted: Sequence[RxMetadataName]) -> tuple[RxMetadataName, ...]:
    """What of it only the device's driver knows."""
    return tuple(name for name in wanted if name in _OF_DRIVER)


def check_driver(netdev: Netdev, wanted: Sequence[RxMetadataName], mode: str, attach: str) -> None:
    """Refuse what this device's driver does not tell, or not to a program attached so.

    Raises:
        MetadataUnsupportedError: it names the driver, and what it tells.
    """
    asked = of_driver(wanted)
    if not asked:
        return
    told = netdev.features.rx_metadata if netdev.features else RxMetadata(0)
    lacking = [name for name in asked if not _OF_DRIVER[name] & told]
    why, hint = "", _ANYWHERE
    if netdev.features is None:
        why = "this kernel asks no driver for metadata"
        hint = f"it takes Linux 6.3; {_ANYWHERE}"
    elif lacking:
        has = f"only {', '.join(flag_names(told))}" if told else "none at all"
        why = f"the driver {netdev.driver or 'of this interface'} tells no {' and no '.join(lacking)}: it has {has}"
    elif mode == "generic":
        why = f"generic XDP has no {' and no '.join(asked)}: the driver tells that to native programs only"
    elif attach == "libxdp":
        why = "a program in libxdp's dispatcher cannot ask the driver, since the dispatcher is tied to no device"
        hint = f'attach it by a link (attach="link"); {_ANYWHERE}'
    if why:
        raise MetadataUnsupportedError(why, subject=netdev.name, hint=hint)


def redirect_object(wanted: Sequence[RxMetadataName], program: str, ifindex: int) -> BpfObject:
    """The redirecting program that tells this of each packet. Ownership: close it."""
    if not wanted:
        return BpfObject("xdp_redirect")
    made = BpfObject("xdp_redirect_metadata" if of_driver(wanted) else "xdp_redirect_arrival")
    try:
        if of_driver(wanted):
            made.bind_to(program, ifindex)
            made.section(".rodata")[-4:] = to_bits(wanted, RX_METADATA).to_bytes(4, "little")
    except BaseException:
        made.close()
        raise
    return made
