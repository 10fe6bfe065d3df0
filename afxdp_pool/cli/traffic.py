"""What `tx` sends: the test packet of `afxdp_pool.testing`, which a sink can verify, or a capture file's packets."""

from __future__ import annotations

import argparse
import struct
from pathlib import Path

from afxdp_pool import Template
from afxdp_pool import netdev as netdevs
from afxdp_pool.errors import ConfigError, NoSuchInterfaceError, need_extra
from afxdp_pool.testing import packets

_ETHERNET_HEADER = 14
_VLAN_TAG = 4
_UDP_AT = packets.HEADERS - 8
_DLT_EN10MB = 1
_TEST_FLAGS = ("size", "dst_mac", "src_mac", "dst_ip", "src_ip", "dst_port", "src_port")


def template(args: argparse.Namespace) -> tuple[Template, int]:
    """What to send, and how many of it (0: no end).

    Raises:
        ConfigError: sizes the interface cannot send, an unreadable file. NoSuchInterfaceError. MissingExtraError.
        OSError: the file cannot be opened.
    """
    try:
        place = netdevs.find(args.interface, args.netns)
    except NoSuchInterfaceError:
        if not args.via:
            raise
        # The broker's, in another namespace: its address and MTU are not to be seen from here.
        place = netdevs.Netdev(args.interface, 0, b"", packets.LONGEST, True, "", 1, 1)
    if args.pcap:
        given = [f"--{name.replace('_', '-')}" for name in _TEST_FLAGS if getattr(args, name) is not None]
        if given:
            raise ConfigError(f"{given[0]} does not go with --pcap", hint="packets of a file are sent as they are")
        made = Template(read_capture(Path(args.pcap)))
        number = len(made.packets) if args.count is None else args.count
    else:
        made, number = test_template(args, place.mac), args.count or 0
    longest, most = max(map(len, made.packets)), place.mtu + _ETHERNET_HEADER + _VLAN_TAG
    if longest > most:
        raise ConfigError(
            f"a packet of {longest} bytes is too long for an MTU of {place.mtu}",
            subject=args.interface,
            hint=f"send at most {place.mtu + _ETHERNET_HEADER} bytes, or raise the MTU: "
            f"ip link set {args.interface} mtu {longest - _ETHERNET_HEADER}",
        )
    return made, number


def test_template(args: argparse.Namespace, own_mac: bytes) -> Template:
    """The test packet with the addresses asked for, numbered from 0 by whoever sends it."""
    nowhere = packets.NOWHERE
    addresses = packets.Addresses(
        source_mac=args.src_mac or (own_mac if len(own_mac) == 6 else nowhere.source_mac),
        target_mac=args.dst_mac or nowhere.target_mac,
        source_ip=args.src_ip or nowhere.source_ip,
        target_ip=args.dst_ip or nowhere.target_ip,
    )
    frame = bytearray(packets.build(packets.MIN_SIZE if args.size is None else args.size, addresses=addresses))
    if args.src_port is not None or args.dst_port is not None:
        source = packets.SOURCE_PORT if args.src_port is None else args.src_port
        target = packets.PORT if args.dst_port is None else args.dst_port
        struct.pack_into("!HH", frame, _UDP_AT, source, target)
        struct.pack_into("!H", frame, packets.CHECKSUM_AT, 0)
        pseudo = addresses.source_ip + addresses.target_ip + struct.pack("!BBH", 0, 17, len(frame) - _UDP_AT)
        sum_ = ~packets.ones_sum(bytes(frame[_UDP_AT:]), packets.ones_sum(pseudo)) & 0xFFFF
        struct.pack_into("!H", frame, packets.CHECKSUM_AT, sum_ or 0xFFFF)
    return Template((bytes(frame),), sequence_at=packets.SEQUENCE_AT, checksum_at=packets.CHECKSUM_AT)


def read_capture(path: Path) -> tuple[bytes, ...]:
    """All packets of a pcap or pcapng file.

    Raises:
        MissingExtraError: dpkt is not installed. OSError: it cannot be opened.
        ConfigError: it is no capture, not of Ethernet, or without packets.
    """
    try:
        import dpkt
    except ImportError:
        raise need_extra("pcap", "dpkt") from None
    with path.open("rb") as file:
        try:
            reader = dpkt.pcap.UniversalReader(file)
            link_type = reader.datalink()
            read = tuple(bytes(frame) for _, frame in reader)
        except (ValueError, struct.error, dpkt.dpkt.Error) as error:
            raise ConfigError(
                "it is not a readable capture file", subject=str(path), hint="give a pcap or pcapng file"
            ) from error
    if link_type != _DLT_EN10MB:
        raise ConfigError(
            f"its packets are not Ethernet (link type {link_type})",
            subject=str(path),
            hint="capture on an Ethernet interface",
        )
    if not any(read):
        raise ConfigError("there are no packets in it", subject=str(path), hint="give a capture with packets")
    return tuple(filter(None, read))
