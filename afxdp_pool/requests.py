"""What a device is asked to do for packets it sends: fill in checksums, say when it sent them, send them at a time.

`RequestAccess` is that part of `Batch`, `TxStamps` what comes back. A request lies in the frame before its packet,
where the kernel looks for it, and goes with its descriptor. Invariant: only what a port's driver does, or the kernel in
its place, can be asked for; a request that the kernel would not take is refused with its packet.

Source: Documentation/networking/xsk-tx-metadata.rst.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi, lib
from afxdp_pool.columns import Fields
from afxdp_pool.config import PortConfig
from afxdp_pool.errors import ConfigError, InvalidDescriptorError, MetadataUnsupportedError
from afxdp_pool.netdev import Netdev, XdpFeature, XskFeature, flag_names

if TYPE_CHECKING:
    from afxdp_pool.umem import Umem

Mask = npt.NDArray[np.bool_]

_OF_DRIVER = {
    "checksum": XskFeature.TX_CHECKSUM,
    "timestamp": XskFeature.TX_TIMESTAMP,
    "launch_time": XskFeature.TX_LAUNCH_TIME_FIFO,
}
_STAMP = np.dtype([("number", "<u8"), ("timestamp", "<u8")])


class TxStamps(NamedTuple):
    """When packets were sent: one entry a packet, in the order in which they were completed.

    Attributes:
        number: what `Batch.request_timestamps` was given for it, uint64.
        timestamp: when it was sent, in ns, uint64: by the device's clock in zero-copy; in copy mode the kernel's,
            CLOCK_TAI, when the driver was done with it.
        lost: timestamps that nobody had taken in time, since the port was opened.
    """

    number: npt.NDArray[np.uint64]
    timestamp: npt.NDArray[np.uint64]
    lost: int


class RequestAccess:
    """What a `Batch` offers to ask of the device that will send it. Each asks in addition to what was asked before.

    They write to the 32 bytes before each packet, of one in several frames before the first. Packets cannot be asked
    for that lie nearer to the start of their frame, are fragments, or are not held any more. All return which packets
    were asked for: bool, shape ``(n,)``, the batch's own. Send them by a port with `PortConfig.tx_metadata`; others
    refuse them.
    """

    __slots__ = ()

    umem: Umem | None
    _descs: npt.NDArray[Any]

    def _header_fields(self) -> Fields:
        raise NotImplementedError

    def offload_checksums(self, where: Mask | None = None) -> Mask:
        """Have TCP's and UDP's checksums filled in by who sends them; the sum of the pseudo-header is written there.

        Left alone are other protocols, fragments, and packets with bytes behind their datagram. IPv4's own checksum is
        not the device's. So ``batch.fill_checksums(~batch.offload_checksums())`` does what is left, and
        ``batch.ipv4.fill_checksum()`` the headers.

        Args:
            where: only of these packets; bool, shape ``(n,)``.
        """
        return self._ask(lib.AFP_ASK_CHECKSUM, None, where)

    def request_timestamps(self, number: npt.ArrayLike = 0, where: Mask | None = None) -> Mask:
        """Have it said when they were sent: by `Port.take_timestamps`, when they are completed.

        Args:
            number: comes back with the timestamp; one, or one a packet. uint64.
            where: only of these packets; bool, shape ``(n,)``.
        """
        return self._ask(lib.AFP_ASK_TIMESTAMP, number, where)

    def launch_at(self, time_ns: npt.ArrayLike, where: Mask | None = None) -> Mask:
        """Have them held back by the device until that time of its own clock. What is behind them in its queue waits.

        Args:
            time_ns: one, or one a packet. uint64.
            where: only of these packets; bool, shape ``(n,)``.
        """
        return self._ask(lib.AFP_ASK_LAUNCH, time_ns, where)

    def _ask(self, what: int, values: npt.ArrayLike | None, where: Mask | None) -> Mask:
        if self.umem is None:
            raise InvalidDescriptorError("these descriptors were made by hand, of no Umem")
        fields = self._header_fields()
        given, pointer = None, ffi.NULL
        if what != lib.AFP_ASK_CHECKSUM:
            given, pointer = fields.scratch("asked values", "u8")
            given[:] = values
        done, out = fields.scratch(("asked", what), "?")
        lib.afp_tx_ask(self.umem.table, fields.packets, what, pointer, fields.mask(where), out)
        self._descs["options"] |= done * np.uint16(lib.AFP_TX_OPTION)
        return done  # type: ignore[no-any-return]


def take_stamps(native: Any, n: int) -> TxStamps:
    """See `Port.take_timestamps`."""
    out, lost = np.empty(min(n, lib.AFP_STAMPS), _STAMP), ffi.new("uint64_t *")
    got = lib.afp_port_take_stamps(native, ffi.from_buffer("struct afp_stamp[]", out), len(out), lost)
    return TxStamps(out["number"][:got], out["timestamp"][:got], int(lost[0]))


def check_room(name: str, umem: Umem, config: PortConfig) -> None:
    """Refuse a Umem whose frames, as a pool hands them out, have no room for requests.

    Raises:
        ConfigError: the headroom is too small.
    """
    if umem.config.headroom < config.tx_room:
        raise ConfigError(
            f"with tx_metadata {config.tx_room} bytes before each packet that is sent must be free",
            subject=name,
            hint=f"use Umem({umem.frames}, headroom={config.tx_room}) or more",
        )


def for_requests(netdev: Netdev, config: PortConfig) -> PortConfig:
    """The configuration to open the port with: in copy mode where the kernel does what the driver does not.

    Raises:
        MetadataUnsupportedError: neither does it.
    """
    if not (config.transmit and config.tx_metadata):
        return config
    driver = f"the driver {netdev.driver or 'of this interface'}"
    does = netdev.features.xsk if netdev.features else XskFeature(0)
    has = f"it does {', '.join(flag_names(does)) or 'nothing of the kind'}"
    lacking = [name for name in config.tx_metadata if not _OF_DRIVER.get(name, does) & does]
    if "launch_time" in lacking:
        raise MetadataUnsupportedError(
            f"{driver} sends at no time that it is told: {has}",
            subject=netdev.name,
            hint='leave "launch_time" out, and send when it is time',
        )
    if "software_checksum" in config.tx_metadata:
        return replace(config, mode="copy")
    if lacking and config.mode == "zero-copy":
        raise MetadataUnsupportedError(
            f"{driver} does no {' and no '.join(lacking)} in zero-copy: {has}",
            subject=netdev.name,
            hint="in copy mode the kernel does it in its place",
        )
    zero_copy = netdev.features is None or bool(netdev.features.flags & XdpFeature.XSK_ZEROCOPY)
    return replace(config, mode="copy") if lacking and zero_copy and config.mode == "auto" else config
