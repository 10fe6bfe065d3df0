"""UDP echo: every datagram back to where it came from. Checksums stay right, since a sum does not mind the order."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import VethPair

PORT = 7  # echo (RFC 862)


def echo(batch: ap.Batch) -> npt.NDArray[np.uint8]:
    """Exchange the addresses and ports of what is UDP to `PORT` over IPv4; drop the rest."""
    ours = batch.ipv4.valid & (batch.udp.dport == PORT) & (batch.udp.sport != PORT)  # no echo of an echo
    ip, udp = batch.ipv4.where(ours), batch.udp.where(ours)
    batch.swap_macs(where=ours)
    ip.src, ip.dst = ip.dst, ip.src
    udp.sport, udp.dport = udp.dport, udp.sport
    np.multiply(ours, np.uint8(ap.TX), out=batch.verdicts)  # DROP is 0
    return batch.verdicts


def demo(count: int, pair: VethPair) -> None:
    """A host sends datagrams by an ordinary socket, and compares what comes back."""
    with in_netns(pair.far.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(2)
        client.connect((pair.near.ipv4, PORT))
        same = 0
        for number in range(count):
            said = b"datagram %d" % number
            client.send(said)
            same += client.recv(100) == said
        print(f"a host sent {count} datagrams, and {same} came back as they were")


if __name__ == "__main__":
    with common.place(__doc__, "wire", hosts=True) as here:
        options = replace(here.options, rules=[ap.Rule(protocol=17, port=PORT)])  # the rest is the kernel's
        with ap.handle(here.names, echo, options=options) as forwarder:
            here.run(forwarder, partial(demo, 1000))
