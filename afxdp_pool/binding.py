"""Where a port is bound: what can be wrong with the place, and the XDP program that the ports of one netdev share.

It owns the programs borrowed by this process's ports, one a netdev, from the first port on it to the last.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from afxdp_pool import netdev as netdevs
from afxdp_pool._native import ffi, lib
from afxdp_pool.config import PortConfig, RxMetadataName
from afxdp_pool.errors import (
    AfXdpError,
    ConfigError,
    FrameSizeError,
    InterfaceDownError,
    LinkGoneError,
    MemoryLimitError,
    MetadataUnsupportedError,
    ModeUnsupportedError,
    NoSuchInterfaceError,
    PrivilegeError,
    QueueBusyError,
    QueueRangeError,
)
from afxdp_pool.filters import Rule
from afxdp_pool.program import XdpProgram

#: Fragments of a socket buffer, where the kernel does not tell (CONFIG_MAX_SKB_FRAGS).
MAX_SKB_FRAGS = 17
#: Drivers for which the kernel makes fragments of all of a packet's frames (IFF_TX_SKB_NO_LINEAR); it does not say so.
NO_HEAD = ("virtio_net",)

_names: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # of native_config()


def check_place(netdev: str, queue: int, netns: str | None) -> netdevs.Netdev:
    """Look the network device up and refuse what could never be bound: not there, down, no such queue."""
    place = netdevs.find(netdev, netns)
    where = f"{netdev} in namespace {netns}" if netns else netdev
    if not place.up:
        prefix = f"ip -n {netns}" if netns else "ip"
        raise InterfaceDownError(
            "the interface is down", subject=where, hint=f"bring it up: {prefix} link set {netdev} up"
        )
    queues = max(place.rx_queues, place.tx_queues)
    if not 0 <= queue < queues:
        raise QueueRangeError(
            f"there is no queue {queue}",
            subject=where,
            hint=f"it has {queues} queue{'s' if queues > 1 else ''}: choose "
            + (f"0 to {queues - 1}" if queues > 1 else "0")
            + f", or give it more (ethtool -L {netdev} combined N)",
        )
    return place


def native_config(netdev: str, queue: int, c: PortConfig) -> Any:
    """The C struct that describes a port to be opened. Ownership: keeps the name it points to alive."""
    room = lib.XDP_UMEM_TX_METADATA_LEN if c.transmit and c.tx_metadata else 0
    software = lib.XDP_UMEM_TX_SW_CSUM if room and "software_checksum" in c.tx_metadata else 0
    flags = {"auto": 0, "copy": lib.XDP_COPY, "zero-copy": lib.XDP_ZEROCOPY}[c.mode]
    name = ffi.new("char[]", netdev.encode())
    native = ffi.new(
        "struct afp_port_config *",
        {
            "netdev": name,
            "queue": queue,
            "fill_size": c.fill_size,
            "comp_size": c.comp_size,
            "rx_size": c.rx_size if c.receive else 0,
            "tx_size": c.tx_size if c.transmit else 0,
            "bind_flags": flags
            | (lib.XDP_USE_NEED_WAKEUP if c.need_wakeup else 0)
            | (lib.XDP_USE_SG if c.multi_buffer else 0),
            "umem_flags": room | software,
            "tx_budget": c.tx_budget,
            "busy_poll_us": c.busy_poll_us,
            "busy_poll_budget": c.busy_poll_budget,
        },
    )
    _names[native] = name
    return native


def max_frames(c: PortConfig, where: netdevs.Netdev | None, *, zero_copy: bool, unaligned: bool = False) -> int:
    """Most frames of a packet that the kernel, or the driver, sends: more would be dropped, and their frames kept.

    A socket that copies makes a socket buffer of the packet, with one frame as its head and the others as fragments
    (xsk_build_skb(), net/xdp/xsk.c), or for some drivers all as fragments (xsk_build_skb_zerocopy()), one a page: two
    for an unaligned frame. A driver tells its most segments in zero-copy (xdp-zc-max-segs, netdev.yaml).
    """
    if not c.multi_buffer:
        return 1
    if zero_copy and where is not None:
        return max(where.features.zc_max_segments if where.features else 1, 1)
    try:
        fragments = int(Path("/proc/sys/net/core/max_skb_frags").read_text())
    except (OSError, ValueError):  # another network namespace's /proc does not have it
        fragments = MAX_SKB_FRAGS
    if where is not None and where.driver in NO_HEAD:
        return fragments // 2 if unaligned else fragments
    return fragments + 1


def open_error(name: str, driver: str, config: PortConfig, code: int, stage: int) -> AfXdpError:
    """The named error for a socket that could not be made: errno `code`, in C's `stage`."""
    mode = config.mode
    doing = "registering the memory" if stage == lib.AFP_STAGE_UMEM else "binding the socket"
    kind: type[AfXdpError] = AfXdpError
    hint = ""
    if stage == lib.AFP_STAGE_BUSY_POLL:
        doing = "turning busy polling on"
        if code == errno.EPERM:
            kind, hint = PrivilegeError, "it needs CAP_NET_ADMIN; or leave busy_poll_us at 0"
        else:
            kind, hint = (
                ModeUnsupportedError,
                "it needs Linux 5.11 with CONFIG_NET_RX_BUSY_POLL; or leave it off",
            )
    elif code in (errno.EPERM, errno.EACCES):
        kind, hint = PrivilegeError, "run as root, or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF"
    elif code in (errno.ENOBUFS, errno.ENOMEM):
        kind = MemoryLimitError
        hint = (
            "the locked-memory limit is too low: raise it (ulimit -l unlimited), give the process "
            "CAP_IPC_LOCK, or use fewer frames"
        )
    elif code == errno.EAFNOSUPPORT:
        kind, hint = (
            ModeUnsupportedError,
            "this kernel is built without AF_XDP (CONFIG_XDP_SOCKETS); use one that has it",
        )
    elif code == errno.EBUSY:
        kind = QueueBusyError
        hint = "another AF_XDP socket has this queue: end its program (ss --xdp -p shows it) or use another queue"
    elif code == errno.ENODEV:
        kind, hint = NoSuchInterfaceError, "the interface went away while it was opened"
    elif code == errno.ENETDOWN:
        kind, hint = InterfaceDownError, f"bring it up: ip link set {name.split()[0]} up"
    elif code == errno.EINVAL and stage == lib.AFP_STAGE_UMEM and config.tx_metadata:
        kind, hint = MetadataUnsupportedError, "tx_metadata takes Linux 6.11"
    elif code == errno.EINVAL and stage == lib.AFP_STAGE_UMEM:
        kind, hint = FrameSizeError, "this kernel does not take this frame size with this headroom"
    elif config.multi_buffer and code in (errno.EOPNOTSUPP, errno.EINVAL):
        kind = ModeUnsupportedError
        hint = (
            f"multi_buffer needs Linux 6.6, and zero-copy {driver or 'a driver'} with more than one segment a packet: "
            'use mode "copy", or leave it off'
        )
    elif mode == "zero-copy" and code in (errno.EOPNOTSUPP, errno.EINVAL):
        kind = ModeUnsupportedError
        hint = f"the driver {driver or 'of this interface'} has no zero-copy for this queue: use copy or auto"
    elif code == errno.EINVAL:
        kind, hint = (
            QueueRangeError,
            "the kernel says the queue or the mode does not exist on this device",
        )
    return kind(subject=name, doing=doing, errno=code, hint=hint)


def link_gone(name: str, code: int) -> LinkGoneError:
    """The error for a socket whose network device no longer takes packets."""
    if code == errno.EINVAL:
        hint = "its driver no longer sends zero-copy: is the XDP program gone from it? Open the port again"
    else:
        hint = f"it is down or was deleted; bring it up (ip link set {name.split()[0]} up) and open the port again"
    return LinkGoneError(subject=name, doing="sending", errno=code, hint=hint)


# One XDP program serves all queues of a netdev, so the ports of this process share it. ------------------------------

_programs: dict[tuple[int, str], tuple[XdpProgram, int]] = {}


def _place_key(netdev: str, netns: str | None) -> tuple[int, str]:
    path = netdevs.netns_path(netns) if netns else "/proc/thread-self/ns/net"
    return os.stat(path).st_ino, netdev


def borrow_program(
    netdev: str,
    netns: str | None,
    *,
    rules: tuple[Rule, ...] = (),
    rx_metadata: tuple[RxMetadataName, ...] = (),
    frags: bool = False,
    **options: Any,
) -> XdpProgram:
    """The program of `netdev`, attached with these options if no port of this process has done so yet.

    Raises:
        ConfigError: it is attached already, with other rules, tells less of the packets, or is without `frags`.
    """
    key = _place_key(netdev, netns)
    program, users = _programs.get(key, (None, 0))
    if program is None:
        program = XdpProgram(netdev, netns=netns, rules=rules, rx_metadata=rx_metadata, frags=frags, **options)
    elif rules and rules != program.rules:
        raise ConfigError(
            "another port of this process receives under other rules",
            subject=netdev,
            hint="use the same rules",
        )
    else:
        check_program(netdev, program, rx_metadata, frags)
    _programs[key] = (program, users + 1)
    return program


def check_program(name: str, program: XdpProgram, rx_metadata: Sequence[RxMetadataName], frags: bool) -> None:
    """Refuse to receive by an XDP program that is there already, and tells or gets less of packets than is wanted.

    Raises:
        ConfigError: it tells less, or was loaded without `frags`.
    """
    if lacking := [one for one in rx_metadata if one not in program.rx_metadata]:
        raise ConfigError(
            f"its XDP program tells no {' and no '.join(lacking)}",
            subject=name,
            hint="all ports of a device receive through one program: ask for the same rx_metadata first",
        )
    if frags and not program.frags:
        raise ConfigError(
            "its XDP program was loaded without multi_buffer, so it gets no packets in several buffers",
            subject=name,
            hint="a device has one program for all its ports: open one with multi_buffer first, or serve with it",
        )


def return_program(program: XdpProgram) -> None:
    """Give a borrowed program back; the last one detaches it."""
    for key, (known, users) in list(_programs.items()):
        if known is program:
            if users > 1:
                _programs[key] = (program, users - 1)
            else:
                del _programs[key]
                program.close()


os.register_at_fork(after_in_child=_programs.clear)  # they are closed there
