"""Logic of your own: a function that sees a batch, or, for convenience, one that sees a packet."""

from __future__ import annotations

import argparse
from functools import partial

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair


def every_second_flow(batch: ap.Batch) -> npt.NDArray[np.uint8]:
    """Forward packets with an even UDP source port, drop the others; one numpy expression a batch."""
    return np.where(batch.udp.valid & (batch.udp.sport % 2 == 0), ap.FORWARD(1), ap.DROP).astype(np.uint8)


def first_flow_only(packet: memoryview) -> int:
    """Forward source port 40000 alone; it lies at byte 34, behind 14 of Ethernet and 20 of IPv4."""
    return ap.FORWARD(1) if packet[34:36] == (40000).to_bytes(2, "big") else ap.DROP


def demo(expected: int, left: VethPair, right: VethPair) -> None:
    """Four flows, of which some arrive."""
    with Sink(right.far) as sink, Source(left.far, flows=4) as source:
        source.send(20_000, rate=20_000)
        seen = sink.wait(expected)
        print(f"far end: {seen.unique} packets of flows {list(seen.flows)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--packet", action="store_true", help="the function that sees a packet; else one of a batch")
    with common.place(__doc__, "left", "right", parser=parser) as here:
        handler = ap.per_packet(first_flow_only) if here.args.packet else every_second_flow
        with ap.handle(here.names, handler, options=here.options) as forwarder:
            done = here.run(forwarder, partial(demo, 5000 if here.args.packet else 10_000), packets=20_000).engine
            print(f"{done.forwarded} forwarded, {done.dropped} dropped")
