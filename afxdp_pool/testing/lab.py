"""Veth pairs and network namespaces for tests and demos, taken down whatever happens.

A `Lab` owns network namespaces made for it: `engine_netns` holds the near end of every pair, where the code
under test has its ports (so that it can forward between pairs), `traffic_netns` the far ends, where traffic comes
from and goes to. A far end that is to be a host of its own, with a kernel's stack that answers and asks, gets a
namespace for itself. Links are made inside these and nowhere else.

Invariant: nothing is made or set in a namespace that shows a link this lab did not make. Whatever a lab made
goes away on `close()`, at the end of its `with`, at interpreter exit, or, when its process was killed, when
the next lab starts (`Lab.clean_stale`).

    >>> with Lab() as lab:                                              # doctest: +SKIP
    ...     pair = lab.veth("a", queues=2)
    ...     print(pair.near.name, pair.near.netns, pair.far.counters()["tx_packets"])
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import re
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from afxdp_pool.errors import AfXdpError, ConfigError, LabError, PrivilegeError
from afxdp_pool.netdev import ethtool, in_netns, new_netns
from afxdp_pool.single import Single

NETNS_DIR = Path("/run/netns")
PREFIX = "afxp"
OWN_NETNS = Path("/proc/thread-self/ns/net")
# Links the kernel itself puts into every new namespace once the module is there; none can reach a real
# network.
KERNEL_LINKS = {
    *("lo", "tunl0", "gre0", "gretap0", "erspan0", "sit0", "ip_vti0"),
    *("ip6tnl0", "ip6_vti0", "ip6gre0", "ip6gretap0", "ip6erspan0", "teql0"),
}
UP_WITHIN = 20.0  # seconds

_MS_BIND, _MS_REC, _MS_SHARED, _MNT_DETACH = 0x1000, 0x4000, 1 << 20, 2
_NUD_PERMANENT = 0x80
_GDRVINFO, _GSTRINGS, _GSTATS = 0x03, 0x1B, 0x1D
# Checksums, segmentation and receive offloads: with them on, packets that the kernel itself sends over a veth
# carry no checksum, or several segments in one, and AF_XDP sees them as they are.
_OFFLOADS = {
    "tx checksum": 0x17,
    "rx checksum": 0x15,
    "scatter-gather": 0x19,
    "TSO": 0x1F,
    "GSO": 0x24,
    "GRO": 0x2C,
}
_numbers = itertools.count()
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class LabLink:
    """One end of a pair, and whom it is wired to. MACs are 6 bytes; `ipv4` is "" without addresses."""

    name: str
    netns: str
    mac: bytes
    ipv4: str
    ifindex: int
    queues: int
    mtu: int
    peer_mac: bytes
    peer_ipv4: str

    def counters(self) -> dict[str, int]:
        """What the kernel counted on this link since it was made: all of rtnetlink's and ethtool's figures.

        Per-queue figures (``tx_queue_0_xdp_xmit_errors``) also come summed over the queues, without the
        number (``tx_xdp_xmit_errors``).

        Raises:
            LabError: the link is gone.
        Concurrency: any thread.
        """
        with _netlink(self.netns) as ip:
            (link,) = ip.get_links(self.ifindex)
            counters = {str(name): int(value) for name, value in link.get_attr("IFLA_STATS64").items()}
            per_queue = _ethtool_stats(self.name)
        for name, value in per_queue.items():
            summed = re.sub(r"^(rx|tx)_queue_\d+_", r"\1_", name)
            if summed != name:
                counters[summed] = counters.get(summed, 0) + value
        return counters | per_queue


@dataclass(frozen=True)
class VethPair:
    """Two ends of one cable: `near` for the code under test, `far` for the traffic."""

    near: LabLink
    far: LabLink


class Lab(Single):
    """Namespaces and veth pairs, made at construction and by `veth()`, removed by `close()`.

    Raises:
        PrivilegeError: namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN.
        LabError: the kernel refused, or a namespace shows a link that is not this lab's.
    Concurrency: one thread at a time.
    """

    def __init__(self) -> None:
        self.clean_stale()
        base = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
        self._base = base
        self.engine_netns = f"{base}-engine"
        self.traffic_netns = f"{base}-traffic"
        self.pairs: dict[str, VethPair] = {}
        self._given: dict[str, int] = {}
        self._pid = os.getpid()
        self._inodes: dict[str, int] = {}
        self._links: set[tuple[str, int]] = set()
        atexit.register(self.close)
        try:
            for name in (self.engine_netns, self.traffic_netns):
                self._make_netns(name)
        except BaseException:
            self.close()
            raise

    def veth(
        self, name: str, queues: int = 1, mtu: int = 1500, *, addresses: bool = True, host: bool = False
    ) -> VethPair:
        """Make a pair of links, `NAME-near` and `NAME-far`, and return when both are up.

        Both ends have `queues` receive and as many transmit queues, fixed MACs, no IPv6 and no offloads. With
        `addresses`, near is 198.18.N.1/24 and far 198.18.N.2/24 (N numbers the pairs), each knowing the
        other's MAC.

        With `host` the far end lies in a namespace of its own, ``pair.far.netns``, whose default route is near's
        address: two such hosts reach each other only through what forwards between their near ends. Programs run
        there by `afxdp_pool.netdev.in_netns`, or ``ip netns exec``.

        Packets that XDP redirects out of one end arrive only if the other end has an XDP program (a port, a
        sink): with none, veth drops them uncounted. A host's end takes them without, for it has GRO on.

        Raises:
            ConfigError: a bad name, or a size the kernel does not have.
            LabError: see the class.
        """
        if not re.fullmatch(r"[a-z][a-z0-9]{0,9}", name) or name in self.pairs:
            raise ConfigError(f"pair name {name!r}: 1 to 10 of a-z and 0-9, a letter first, and not used yet")
        if not 1 <= queues <= 4096 or not 68 <= mtu <= 65535 or len(self.pairs) > 255:
            raise ConfigError("a pair has 1 to 4096 queues and an MTU of 68 to 65535, and a lab at most 256 pairs")
        if host and name in ("engine", "traffic"):
            raise ConfigError(f"a host is not named {name!r}: a namespace of the lab is", hint="choose another name")
        far_netns = f"{self._base}-{name}" if host else self.traffic_netns
        if host and far_netns not in self._inodes:
            self._make_netns(far_netns)
        number = next(n for n in itertools.count() if n not in self._given.values())
        ends = [(self.engine_netns, f"{name}-near", 1), (far_netns, f"{name}-far", 2)]
        macs = [bytes((0x02, 0xAF, 0x58, 0, number, end)) for *_, end in ends]
        self._create([link for _, link, _ in ends], far_netns, macs, queues, mtu)
        made = []
        for (netns, link, end), mac, peer_mac in zip(ends, macs, reversed(macs), strict=True):
            own, peer = (f"198.18.{number}.{last}" if addresses else "" for last in (end, 3 - end))
            with self._inside(netns) as ip:
                index = ip.link_lookup(ifname=link)[0]
                for command in _OFFLOADS.values():
                    _ethtool_set(link, command, on=False)
                if addresses:
                    ip.addr("add", index=index, address=own, prefixlen=24)
                ip.link("set", index=index, state="up")
                if host and end == 2:  # once it is up: else its peer does not learn that frames may be redirected
                    _ethtool_set(link, _OFFLOADS["GRO"], on=True)
                if addresses:
                    ip.neigh("replace", dst=peer, lladdr=_text(peer_mac), ifindex=index, state=_NUD_PERMANENT)
                    if host and end == 2:
                        ip.route("add", dst="default", gateway=peer)
            made.append(LabLink(link, netns, mac, own, index, queues, mtu, peer_mac, peer))
        for done in made:
            self._wait_up(done)
        self._given[name] = number
        self.pairs[name] = VethPair(*made)
        return self.pairs[name]

    def remove(self, name: str) -> None:
        """Take a pair away, unless somebody has deleted its links already; its name can be used again.

        Raises:
            ConfigError: there is no such pair.
        """
        if name not in self.pairs:
            raise ConfigError(f"there is no pair {name!r}")
        pair = self.pairs.pop(name)
        del self._given[name]
        for link in (pair.near, pair.far):  # one takes the other with it, but not always when the call returns
            with contextlib.suppress(LabError), self._inside(link.netns) as ip:
                ip.link("del", index=link.ifindex)
            self._links.discard((link.netns, link.ifindex))

    def close(self) -> None:
        """Remove links and namespaces. Idempotent. A forked child does nothing: they are its parent's."""
        if self._pid != os.getpid():
            return
        atexit.unregister(self.close)
        for netns, index in list(self._links):
            # One by one, because a namespace that some descriptor still holds outlives its name.
            with contextlib.suppress(AfXdpError), self._inside(netns) as ip:
                ip.link("del", index=index)
        self._links.clear()
        for name in (self.engine_netns, self.traffic_netns, *self._inodes):
            _remove_netns(name)
        self._inodes.clear()
        self.pairs.clear()
        self._given.clear()

    @staticmethod
    def clean_stale() -> list[str]:
        """Remove the namespaces of labs whose process is gone, and return their names."""
        removed = []
        for path in sorted(NETNS_DIR.glob(f"{PREFIX}-*")) if NETNS_DIR.is_dir() else ():
            match = re.fullmatch(rf"{PREFIX}-(\d+)-\d+-[a-z][a-z0-9]{{0,9}}", path.name)
            if match and not Path("/proc", match[1]).exists():
                with contextlib.suppress(OSError):  # busy: mounted in a way that is not to be seen from here
                    _remove_netns(path.name)
                    removed.append(path.name)
        return removed

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_netns(self, name: str) -> None:
        """A namespace of this lab, without IPv6 and with its loopback up."""
        self._inodes[name] = _make_netns(name)
        with self._inside(name) as ip:
            _quiet()
            ip.link("set", index=1, state="up")

    def _create(self, names: list[str], far_netns: str, macs: list[bytes], queues: int, mtu: int) -> None:
        """The pair itself; each end is born in its own namespace, whatever the caller's is."""
        with self._inside(far_netns):
            pass  # only for its check
        peer_netns = os.open(NETNS_DIR / far_netns, os.O_RDONLY | os.O_CLOEXEC)
        shape = {"num_tx_queues": queues, "num_rx_queues": queues, "mtu": mtu}
        try:
            with self._inside(self.engine_netns) as ip:
                peer = {"ifname": names[1], "address": _text(macs[1]), "net_ns_fd": peer_netns, **shape}
                ip.link("add", kind="veth", ifname=names[0], address=_text(macs[0]), peer=peer, **shape)
                self._links.add((self.engine_netns, ip.link_lookup(ifname=names[0])[0]))
        finally:
            os.close(peer_netns)
        with _netlink(far_netns) as ip:
            self._links.add((far_netns, ip.link_lookup(ifname=names[1])[0]))

    @contextlib.contextmanager
    def _inside(self, netns: str) -> Iterator[Any]:
        """This thread in that namespace, with a netlink socket, once it is proven that all links are ours."""
        if netns not in self._inodes:
            raise LabError("the lab is closed", subject=f"namespace {netns}")
        with _netlink(netns) as ip:
            if OWN_NETNS.stat().st_ino != self._inodes[netns]:
                raise LabError("it is not the namespace this lab made", subject=f"namespace {netns}")
            for link in ip.get_links():
                name, known = link.get_attr("IFLA_IFNAME"), (netns, link["index"]) in self._links
                if not known and name not in KERNEL_LINKS:
                    raise LabError(
                        f"it shows the link {name}, which this lab did not make",
                        subject=f"namespace {netns}",
                        hint="a lab changes nothing beside links of others; remove the link or use a new lab",
                    )
            yield ip

    def _wait_up(self, link: LabLink) -> None:
        deadline = time.monotonic() + UP_WITHIN
        with self._inside(link.netns) as ip:
            while (state := ip.get_links(link.ifindex)[0].get_attr("IFLA_OPERSTATE")) != "UP":
                if time.monotonic() > deadline:
                    raise LabError(f"still {state} after {UP_WITHIN:.0f} s", subject=f"link {link.name}")
                time.sleep(0.001)


def _make_netns(name: str) -> int:
    """A new namespace under a name, as `ip netns add` makes it; returns its inode."""
    path = NETNS_DIR / name
    fd = new_netns()
    try:
        NETNS_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        _share_netns_dir()
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        _call("mount", f"/proc/self/fd/{fd}".encode(), os.fsencode(path), b"none", _MS_BIND, None,
              doing=f"naming the network namespace {name}")  # fmt: skip
        return os.fstat(fd).st_ino
    except OSError as error:
        raise LabError(subject=str(path), doing="making it", errno=error.errno or 0) from error
    finally:
        os.close(fd)


def _share_netns_dir() -> None:
    """Make the directory a shared mount, as ``ip netns add`` does at its first run (iproute2, ip/ipnetns.c).

    Left to it, it would mount the directory over itself, and over the names a lab has there by then.
    """
    where = os.fsencode(NETNS_DIR)
    shared = None, where, None, _MS_SHARED | _MS_REC, None
    one_at_a_time = os.open(NETNS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if _libc.mount(*shared) != 0:
            _call("mount", where, where, b"none", _MS_BIND | _MS_REC, None, doing=f"making {NETNS_DIR} a mount")
            _call("mount", *shared, doing=f"sharing {NETNS_DIR}")
    finally:
        os.close(one_at_a_time)


def _remove_netns(name: str) -> None:
    path = NETNS_DIR / name
    _libc.umount2(os.fsencode(path), _MNT_DETACH)
    path.unlink(missing_ok=True)


def _call(function: str, *arguments: object, doing: str) -> None:
    if getattr(_libc, function)(*arguments) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.EPERM:
        raise PrivilegeError(doing=doing, errno=number, hint="run as root, or grant CAP_SYS_ADMIN and CAP_NET_ADMIN")
    raise LabError(doing=doing, errno=number)


@contextlib.contextmanager
def _netlink(netns: str) -> Iterator[Any]:
    """This thread in a namespace, with a netlink socket; what netlink refuses becomes a LabError."""
    from pyroute2 import IPRoute  # here, because importing it takes as long as making a lab
    from pyroute2.netlink.exceptions import NetlinkError

    with in_netns(netns):
        try:
            with IPRoute() as ip:
                yield ip
        except NetlinkError as error:
            raise LabError(subject=f"namespace {netns}", doing="netlink", errno=abs(error.code)) from error


def _quiet() -> None:
    """No IPv6 in this thread's namespace: its neighbour and router discovery would be packets nobody sent."""
    for which in ("all", "default"):
        path = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        if path.exists():
            path.write_text("1")


def _text(mac: bytes) -> str:
    return mac.hex(":")


def _ethtool_set(link: str, command: int, *, on: bool) -> None:
    try:
        ethtool(link, struct.pack("=II", command, on))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            which = next(name for name, number in _OFFLOADS.items() if number == command)
            raise LabError(
                subject=f"link {link}", doing=f"turning {which} {'on' if on else 'off'}", errno=error.errno or 0
            ) from error


def _ethtool_stats(link: str) -> dict[str, int]:
    try:
        (count,) = struct.unpack_from("=I", ethtool(link, struct.pack("=I192x", _GDRVINFO)), 180)
        names = ethtool(link, struct.pack(f"=III{32 * count}x", _GSTRINGS, 1, count))
        values = ethtool(link, struct.pack(f"=II{8 * count}x", _GSTATS, count))
    except OSError as error:
        raise LabError(subject=f"link {link}", doing="reading its counters", errno=error.errno or 0) from error
    texts = [names[12 + 32 * i : 44 + 32 * i].split(b"\0")[0].decode() for i in range(count)]
    return dict(zip(texts, struct.unpack_from(f"={count}Q", values, 8), strict=True))
