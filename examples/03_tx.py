"""Send packets made from a template, at a rate; COMPLETION brings the frames back to the pool."""

from __future__ import annotations

import argparse
import contextlib
from functools import partial

import common

import afxdp_pool as ap
from afxdp_pool import netdev
from afxdp_pool.testing import Sink, VethPair, packets


def demo(sinks: list[Sink], count: int, _: VethPair) -> None:
    """The far end proves every byte."""
    seen = sinks[0].wait(count)
    print(f"far end: {seen.unique} packets, {seen.lost} lost, {seen.corrupt} corrupt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=50_000, help="packets a second")
    parser.add_argument("--to", default="ff:ff:ff:ff:ff:ff", metavar="MAC", help="to whom, on INTERFACE")
    with common.place(__doc__, "wire", parser=parser) as here, contextlib.ExitStack() as stack:
        args, (name,) = here.args, here.names
        sinks = [stack.enter_context(Sink(pair.far)) for pair in here.pairs]
        source = netdev.find(name, here.options.netns).mac
        target = here.pairs[0].far.mac if here.pairs else bytes.fromhex(args.to.replace(":", ""))
        packet = packets.build(128, addresses=packets.Addresses(source, target))
        # A number counted up at byte 50 of each packet, and the UDP checksum at byte 40 that covers it.
        template = ap.Template((packet,), sequence_at=packets.SEQUENCE_AT, checksum_at=packets.CHECKSUM_AT)
        with ap.transmit(name, template, count=args.count, rate=args.rate, options=here.options) as tx:
            here.run(tx, partial(demo, sinks, args.count))
