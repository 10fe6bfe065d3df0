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
    """Swap addresses and ports of what is UDP to `PORT` in plain IPv4; drop the rest."""
    flow = batch.five_tuple()
    ours = (flow.version == 4) & (flow.dport == PORT) & (flow.sport != PORT) & (flow.l4 == 34)  # no echo of an echo
    batch.swap_macs(where=ours)
    batch.store(26, ">u4", flow.dst, where=ours)
    batch.store(30, ">u4", flow.src, where=ours)
    batch.store(34, ">u2", flow.dport, where=ours)
    batch.store(36, ">u2", flow.sport, where=ours)
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
