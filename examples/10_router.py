"""An IPv4 router by the kernel's own tables: it forwards what is plain, and the kernel does the rest.

Routes and neighbours are followed as they change, so `ip route`, ARP and routing daemons go on as ever; ARP packets
never come here. Packets for this machine, those without a neighbour yet, with options, too long, or with a TTL that
ends go to the kernel through a TUN device: it resolves, answers, or sends the ICMP error. It has to forward as well
(sysctl net.ipv4.ip_forward=1, no strict rp_filter), and its filters see only what goes that way.
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import NETLINK_ROUTE
from typing import Any, NamedTuple

import common
import numpy as np
import numpy.typing as npt
from pyroute2 import IPRoute

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Sink, Source, VethPair

CHANGES = 0x1 | 0x4 | 0x40  # RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_ROUTE
UNICAST, MAIN, LOCAL = 1, 254, 255  # a route's type; tables
NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80  # its MAC address may be used
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x1, 0x1000
IPV4 = Path("/proc/sys/net/ipv4")  # of the namespace that looks
HOP = np.dtype([("verdict", "u1"), ("port", "u8"), ("mtu", "u4"), ("mac", "u8"), ("gateway", "u8")])


class Tables(NamedTuple):
    """The kernel's tables as arrays. Routes cut the addresses into intervals: the longest prefix is one search."""

    starts: npt.NDArray[np.uint64]  # where each interval starts, and
    hops: npt.NDArray[Any]  # where its packets go: dtype HOP, of which verdict DROP says that the kernel knows
    neighbours: npt.NDArray[np.uint64]  # port << 32 | address, sorted, and
    macs: npt.NDArray[np.uint64]

    @classmethod
    def read(cls, ip: IPRoute, names: list[str]) -> Tables:
        """Ask the kernel for all of it."""
        links = {link["index"]: link for link in ip.get_links() if link.get("ifname") in names}
        port = {index: names.index(link.get("ifname")) for index, link in links.items()}
        painted = []
        for route in ip.get_routes(family=socket.AF_INET):
            first, bits, out = number(route.get("dst")), route["dst_len"], route.get("oif")
            hop = np.zeros((), HOP)
            if route["type"] == UNICAST and out in port and not route.get("via"):
                gateway = number(route.get("gateway"))
                hop[()] = (
                    ap.FORWARD(port[out]),
                    port[out],
                    links[out].get("mtu"),
                    mac(links[out].get("address")),
                    gateway,
                )
            if route.get("table") in (MAIN, LOCAL):
                order = route.get("table") == LOCAL, bits, -(route.get("priority") or 0)
                painted.append((order, first, first + (1 << 32 - bits), hop))
        starts = np.unique([0, *(edge for _, first, end, _ in painted for edge in (first, end))]).astype(np.uint64)
        hops = np.zeros(len(starts), HOP)
        for _, first, end, hop in sorted(painted, key=lambda paint: paint[0]):  # the longest prefix last
            hops[np.searchsorted(starts, first) : np.searchsorted(starts, end)] = hop
        known = sorted(
            (port[entry["ifindex"]] << 32 | number(entry.get("dst")), mac(entry.get("lladdr")))
            for entry in ip.get_neighbours(family=socket.AF_INET)
            if entry["ifindex"] in port and entry["state"] & NUD_VALID and entry.get("lladdr")
        )
        known.append((2**64 - 1, 0))  # so that a search always ends at one
        return cls(starts, hops, *np.array(known, np.uint64).T.copy())


def number(address: str | None) -> int:
    return int.from_bytes(socket.inet_aton(address or "0.0.0.0"), "big")


def mac(address: str) -> int:
    return int(address.replace(":", ""), 16)


class Router:
    """The handler. Its tables are replaced whole whenever the kernel's change."""

    def __init__(self, names: list[str], netns: str | None) -> None:
        self.names, self.netns, self.to_kernel = names, netns, 0
        self.tables: Tables
        self.tun: int

    def __call__(self, batch: ap.Batch) -> npt.NDArray[np.uint8]:
        """Forward what is plain: one search for the routes of a batch, one for its neighbours."""
        tables, ip = self.tables, batch.ipv4
        target = ip.dst.astype(np.uint64)
        hop = tables.hops[np.searchsorted(tables.starts, target, side="right") - 1]
        wanted = hop["port"] << np.uint64(32) | np.where(hop["gateway"], hop["gateway"], target)
        found = np.searchsorted(tables.neighbours, wanted)

        untagged = ip.at == 14
        go = untagged & (hop["verdict"] != ap.DROP) & (tables.neighbours[found] == wanted)
        go &= (ip.version_ihl == 0x45) & (ip.ttl > 1) & ip.verify_checksum()
        go &= (ip.len <= hop["mtu"]) & (ip.len + 14 <= batch.len)
        batch.decrement_ttl(where=go)
        ethernet = batch.eth.where(go)
        ethernet.dst, ethernet.src = tables.macs[found], hop["mac"]
        for packet in batch[untagged & ~go]:
            with contextlib.suppress(OSError):  # no IPv4 after all
                os.write(self.tun, packet[14:])
            self.to_kernel += 1
        np.copyto(batch.verdicts, np.where(go, hop["verdict"], ap.DROP))
        return batch.verdicts

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Open the way to the kernel, and let another process follow its tables: here that would hold up packets."""
        with in_netns(self.netns), IPRoute() as ip:
            self.tun = os.open("/dev/net/tun", os.O_RDWR)
            granted = fcntl.ioctl(self.tun, TUNSETIFF, struct.pack("16sH22x", b"router%d", IFF_TUN | IFF_NO_PI))
            name = granted[:16].rstrip(b"\0").decode()
            (IPV4 / "conf" / name / "rp_filter").write_text("0")  # who sent what comes from there lives elsewhere
            ip.link("set", index=socket.if_nametoindex(name), state="up")
        processes = multiprocessing.get_context("spawn")
        ours, theirs = processes.Pipe()
        process = processes.Process(target=follow, args=(theirs, self.names, self.netns))
        process.start()
        theirs.close()
        self.tables = ours.recv()

        def take() -> None:
            with contextlib.suppress(EOFError):
                while True:
                    self.tables = ours.recv()

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield
        finally:
            ours.send(None)
            process.join()
            thread.join()
            ours.close()
            os.close(self.tun)


def follow(router: Connection, names: list[str], netns: str | None) -> None:
    """Read the kernel's tables whenever it says that they change, until the router sends something."""
    with in_netns(netns), IPRoute() as ip, socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as bell:
        bell.bind((0, CHANGES))
        while not router.poll():
            router.send(Tables.read(ip, names))
            wait([bell, router])
            with contextlib.suppress(OSError):  # that was all, or more than its buffer holds
                while bell.recv(65536, socket.MSG_DONTWAIT):
                    pass
        router.recv()


def demo(router: Router, a: VethPair, b: VethPair) -> None:
    """Two hosts, each in a network of its own, and this router between them."""

    def learnt(hosts: list[VethPair]) -> None:
        """Wait until the router's tables, which come a little after the kernel's, have these hosts alone."""
        wanted = {number(host.far.ipv4) for host in hosts}
        deadline = time.monotonic() + 20
        while {int(known) & 0xFFFFFFFF for known in router.tables.neighbours[:-1]} != wanted:
            if time.monotonic() > deadline:
                raise TimeoutError("the router does not learn what the kernel knows")
            time.sleep(0.01)

    with in_netns(router.netns), IPRoute() as ip:
        ip.neigh("del", dst=b.far.ipv4, ifindex=b.near.ifindex)  # so that ARP is needed
        learnt([a])
        print("first ping, ARP by the kernel:", common.ping(a, "-c1", b.far.ipv4))
        learnt([a, b])
        slow, answer = router.to_kernel, common.ping(a, "-c1", b.far.ipv4)
        print("second, forwarded here:       ", answer, f"({router.to_kernel - slow} packets to the kernel)")
        print("a TTL of 1:                   ", common.ping(a, "-c1", "-t1", b.far.ipv4))
        print("to the router itself:         ", common.ping(a, "-c1", a.near.ipv4))
        print("without a route:              ", common.ping(a, "-c1", "203.0.113.1"))
        ip.route("add", dst="203.0.113.0/24", gateway=b.far.ipv4)
        with Sink(b.far) as sink, Source(a.far, target_mac=a.near.mac, target_ip="203.0.113.1", flows=4) as source:
            before = router.to_kernel
            source.send(5000, rate=20_000)
            seen = sink.wait(5000)
            print(f"with one, at once: {seen.unique} packets at the far end, {seen.corrupt} corrupt, ", end="")
            print(f"{router.to_kernel - before} of them by the kernel")


if __name__ == "__main__":
    with common.place(__doc__, "a", "b", many=True, hosts=True) as here:
        with in_netns(here.options.netns):
            forwards, strict = IPV4 / "ip_forward", IPV4 / "conf/all/rp_filter"
            if here.pairs:
                forwards.write_text("1")
                strict.write_text("0")
            elif forwards.read_text().strip() == "0" or strict.read_text().strip() == "1":
                print("the kernel will not do its part: set net.ipv4.ip_forward=1 and net.ipv4.conf.all.rp_filter=0")
        router = Router(here.names, here.options.netns)
        options = replace(here.options, rules=[ap.Rule(ethertype=0x0800)], batch=256)
        with router.following(), ap.handle(here.names, router, options=options) as forwarder:
            here.run(forwarder, partial(demo, router))
