"""The exception path: UDP is forwarded here, and everything else goes to the kernel's stack and comes from it.

The kernel gets an interface of its own, one end of a veth pair with the address and the MAC of the wire; the other end
is a port like any other. So a packet for the kernel is one more FORWARD, and what it sends leaves by the wire.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import struct
from collections.abc import Iterator

import common
import numpy as np
import numpy.typing as npt
from pyroute2 import IPRoute

import afxdp_pool as ap
from afxdp_pool import netdev
from afxdp_pool.testing import Sink, Source, VethPair

UDP = 17
WIRE, OUT, STACK = range(3)  # the ports
TX_CHECKSUM, GRO = 0x17, 0x2C  # ETHTOOL_STXCSUM, ETHTOOL_SGRO


def handle(batch: ap.Batch) -> npt.NDArray[np.uint8] | int:
    """From the wire UDP goes out, the rest to the stack. What comes from there goes to the wire."""
    if batch.port is not batch.ports[WIRE]:
        return ap.FORWARD(WIRE)
    return np.where(batch.five_tuple().proto == UDP, ap.FORWARD(OUT), ap.FORWARD(STACK)).astype(np.uint8)


@contextlib.contextmanager
def stack(wire: str, address: ipaddress.IPv4Interface | None, netns: str | None) -> Iterator[str]:
    """The kernel's interface `stack` with the wire's MAC and an address; yields the name of our end."""
    with netdev.in_netns(netns), IPRoute() as ip:
        (link,) = ip.get_links(ifname=wire)
        shape = {"num_tx_queues": 1, "num_rx_queues": 1, "mtu": link.get("mtu")}
        peer = {"ifname": "stack", "address": link.get("address"), **shape}
        ip.link("add", kind="veth", ifname="stack-port", peer=peer, **shape)
        try:
            ours, theirs = (ip.link_lookup(ifname=name)[0] for name in ("stack-port", "stack"))
            netdev.ethtool("stack", struct.pack("=II", TX_CHECKSUM, 0))  # nobody behind us would fill them in
            ip.link("set", index=ours, state="up")
            ip.link("set", index=theirs, state="up")
            netdev.ethtool("stack", struct.pack("=II", GRO, 1))  # so that it takes redirected frames
            if address:
                ip.addr("del", index=link["index"], address=str(address.ip), prefixlen=address.network.prefixlen)
                ip.addr("add", index=theirs, address=str(address.ip), prefixlen=address.network.prefixlen)
            yield "stack-port"
        finally:
            ip.link("del", ifname="stack-port")
            if address:
                ip.addr("add", index=link["index"], address=str(address.ip), prefixlen=address.network.prefixlen)


def demo(wire: VethPair, out: VethPair) -> None:
    """A host pings the kernel while its UDP is forwarded past it."""
    with Sink(out.far) as sink, Source(wire.far, target_mac=out.far.mac, target_ip=out.far.ipv4) as source:
        source.start(rate=10_000, count=10_000)
        print("ping meanwhile: ", common.ping(wire, "-c1", wire.near.ipv4))
        print("and a long one: ", common.ping(wire, "-c1", "-s4000", wire.near.ipv4))
        source.wait(10)
        print(f"{sink.wait(10_000).unique} packets of UDP at the far end of {out.near.name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--address", type=ipaddress.IPv4Interface, metavar="ADDRESS/BITS", help="moves to `stack`, and back at the end"
    )
    with common.place(__doc__, "wire", "out", hosts=True, parser=parser) as here:
        address = ipaddress.IPv4Interface(f"{here.pairs[0].near.ipv4}/24") if here.pairs else here.args.address
        with (
            stack(here.names[WIRE], address, here.options.netns) as port,
            ap.handle([*here.names, port], handle, options=here.options) as forwarder,
        ):
            report = here.run(forwarder, demo)
            to, back = report.ports[STACK].stats.tx_packets, report.ports[STACK].stats.rx_packets
            print(f"to the kernel {to} packets, from it {back}")
