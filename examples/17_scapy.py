"""Packets as scapy sees them, and back: whole networks that answer, for those who scan them.

Whoever pings an address of `--network` gets an answer, each TCP port says it is open, and UDP hears that nobody is
there. scapy takes a tenth of a millisecond a packet or more, so the XDP program lets it have nothing but that network.
Needs the extra `scapy`.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
from collections import Counter
from dataclasses import replace
from typing import Any

import common

import afxdp_pool as ap
from afxdp_pool.errors import need_extra
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import VethPair

try:
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.l2 import Ether
except ImportError as error:
    raise need_extra("scapy", "scapy") from error

seen: Counter[str] = Counter()


def answer(packet: Any) -> Any:
    """The packet that answers a packet; None: there is nothing to say."""
    seen[packet.sprintf("{TCP:TCP %TCP.flags%}{UDP:UDP}{ICMP:ICMP %ICMP.type%}")] += 1
    back = Ether(src=packet.dst, dst=packet.src) / IP(src=packet[IP].dst, dst=packet[IP].src)
    if ICMP in packet and packet[ICMP].type == 8:
        return back / ICMP(type=0, id=packet[ICMP].id, seq=packet[ICMP].seq) / packet[ICMP].payload
    if TCP in packet and packet[TCP].flags == "S":
        tcp = packet[TCP]
        return back / TCP(sport=tcp.dport, dport=tcp.sport, flags="SA", seq=1, ack=tcp.seq + 1)
    if UDP in packet:
        return back / ICMP(type=3, code=3) / bytes(packet[IP])[:28]
    return None


def handle(batch: ap.Batch) -> list[int]:
    """A packet to scapy, and its answer into the same frame."""
    verdicts = [ap.DROP] * len(batch)
    for i, content in enumerate(batch):
        packet = Ether(bytes(content))
        reply = answer(packet) if IP in packet else None
        if reply is not None:
            batch.write(i, bytes(reply))  # scapy fills in lengths and checksums
            verdicts[i] = ap.TX
    return verdicts


def demo(pair: VethPair) -> None:
    """A host looks around, by its kernel's own stack."""
    print("ping 203.0.113.77:", common.ping(pair, "-c1", "203.0.113.77"))
    with in_netns(pair.far.netns):
        for port in (22, 80):
            with socket.create_connection(("203.0.113.5", port), timeout=2):
                print(f"TCP port {port} of 203.0.113.5 is open")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, contextlib.suppress(ConnectionRefusedError):
            client.settimeout(2)
            client.connect(("203.0.113.6", 53))
            client.send(b"anybody?")
            client.recv(100)
            raise RuntimeError("an answer that nobody gave")
        print("UDP port 53 of 203.0.113.6: nobody there")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="203.0.113.0/24", help="whose packets scapy gets")
    with common.place(__doc__, "wire", hosts=True, parser=parser) as here:
        options = replace(here.options, rules=[ap.Rule(network=here.args.network)])
        with ap.handle(here.names, handle, options=options) as forwarder:
            here.run(forwarder, demo)
        print("seen:", ", ".join(f"{what} {n} times" for what, n in sorted(seen.items())))
