"""Against SYN floods: a token bucket for each source of new TCP connections, emptied in machine code.

The C loop calls the compiled handler without the interpreter; ten times a second numpy refills all buckets at once.
Needs the extra `jit`.
"""

from __future__ import annotations

import argparse
import ipaddress
import socket
import struct
import time
from collections import Counter
from typing import Any

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import VethPair
from afxdp_pool.testing.packets import ones_sum

TCP, SYN, ACK = 6, 0x02, 0x10
SLOTS, PROBES = 1 << 16, 8
ACROSS = ap.FORWARD(0)  # or 1: with two ports, the other one's number is 1 - port

#: Who opens connections: a hash table, where a source is in one of `PROBES` places. A free place is full of tokens.
BUCKET = np.dtype([("source", "i8"), ("tokens", "f8"), ("passed", "i8"), ("dropped", "i8")])
buckets = np.zeros(SLOTS, BUCKET)


@ap.compiled(user=buckets)
def limit(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
    """Forward all but the SYNs of sources that have no token left, or no bucket because all are in use."""
    for i in range(len(descs)):
        at = descs[i].addr
        verdicts[i] = ACROSS + 1 - port
        if descs[i].len < 54 or ap.be16(umem, at + 12) != 0x0800 or umem[at + 23] != TCP:
            continue
        flags = umem[at + 14 + (umem[at + 14] & 15) * 4 + 13]
        if flags & (SYN | ACK) != SYN:
            continue
        source = ap.be32(umem, at + 26)
        mine = -1
        for probe in range(PROBES):
            slot = ((source * 2654435761 >> 16) + probe) % SLOTS
            if user[slot].source == source:
                mine = slot
                break
            if mine < 0 and user[slot].source == 0:
                mine = slot
        if mine < 0:
            verdicts[i] = ap.DROP
            continue
        user[mine].source = source
        if user[mine].tokens >= 1:
            user[mine].tokens -= 1
            user[mine].passed += 1
        else:
            user[mine].dropped += 1
            verdicts[i] = ap.DROP


class Refill:
    """Between two slices of the loop, ten times a second: `rate` tokens a second, up to `burst`."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.last = time.monotonic()
        self.offenders: Counter[int] = Counter()
        buckets["tokens"] = burst

    def __call__(self, _: object) -> None:
        """Refill all buckets, and forget the sources of those that are full."""
        now = time.monotonic()
        buckets["tokens"] += (now - self.last) * self.rate
        np.minimum(buckets["tokens"], self.burst, out=buckets["tokens"])
        self.last = now
        quiet = (buckets["source"] != 0) & (buckets["tokens"] == self.burst)
        self.note(quiet)
        buckets["source"][quiet] = 0

    def note(self, which: npt.NDArray[np.bool_]) -> None:
        """Remember what was dropped, and count on from 0."""
        for bucket in buckets[which & (buckets["dropped"] > 0)]:
            self.offenders[int(bucket["source"])] += int(bucket["dropped"])
        buckets["passed"][which] = buckets["dropped"][which] = 0

    def __str__(self) -> str:
        self.note(np.ones(SLOTS, bool))
        rows = [f"  {ipaddress.ip_address(source)}: {n} SYNs" for source, n in self.offenders.most_common(10)]
        return "\n".join(["dropped:", *rows])


def syn(source: str, target: str, mac: bytes) -> bytes:
    """The packet that opens a connection to port 8000, or pretends to."""
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    tcp = struct.pack("!HHIIBBHHH", 40000, 8000, 1, 0, 5 << 4, SYN, 65535, 0, 0)
    check = ~ones_sum(ends + struct.pack("!HH", TCP, len(tcp)) + tcp) & 0xFFFF
    ip = struct.pack("!HHIBBH", 0x4500, 40, 0x4000, 64, TCP, 0) + ends
    ip = ip[:10] + struct.pack("!H", ~ones_sum(ip) & 0xFFFF) + ip[12:]
    return mac + bytes(6) + b"\x08\0" + ip + tcp[:16] + struct.pack("!H", check) + tcp[18:]


def demo(a: VethPair, b: VethPair) -> None:
    """From a's wire somebody floods a server on b, while a's own programs connect to it."""
    common.wire(a, b)
    with in_netns(b.far.netns):
        server = socket.create_server((b.far.ipv4, 8000), backlog=64)
    before = b.far.counters()["rx_packets"]
    packet = syn("198.51.100.66", b.far.ipv4, b.far.mac)
    options = ap.Options(netns=a.far.netns)
    connected = 0
    with server, ap.transmit(a.far.name, [packet], count=20_000, rate=10_000, options=options) as flood:
        flood.start()
        with in_netns(a.far.netns):
            for _ in range(10):
                with socket.create_connection((b.far.ipv4, 8000), timeout=2), server.accept()[0]:
                    connected += 1
        sent = flood.join().sent
    print(f"{sent} SYNs from one source, and {connected} of 10 connections from another while they came")
    print(f"b's kernel saw {b.far.counters()['rx_packets'] - before} packets of both")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=10, help="new connections a second and source")
    parser.add_argument("--burst", type=int, default=20, help="so many at once")
    with common.place(__doc__, "a", "b", hosts=True, parser=parser) as here:
        refill = Refill(here.args.rate, here.args.burst)
        with ap.handle(here.names, limit, options=here.options) as forwarder:
            here.run(forwarder, demo, on_tick=refill)
            print(refill)
