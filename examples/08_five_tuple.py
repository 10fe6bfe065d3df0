"""A filter by 5-tuple that also rewrites: header fields as numpy columns, without a copy of any packet."""

from __future__ import annotations

from dataclasses import replace

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair

UDP, DISCARD = 17, 9
OUT = np.uint8(ap.FORWARD(1))


def two_flows(batch: ap.Batch) -> npt.NDArray[np.uint8]:
    """Forward UDP to port 9 from source ports 40001 and 40002, one hop on, MAC addresses swapped; drop the rest."""
    flow = batch.five_tuple()
    wanted = (flow.proto == UDP) & (flow.dport == DISCARD) & ((flow.sport == 40001) | (flow.sport == 40002))
    wanted &= ~batch.decrement_ttl(where=wanted)
    batch.swap_macs(where=wanted)
    np.multiply(wanted, OUT, out=batch.verdicts)  # DROP is 0
    return batch.verdicts


def demo(left: VethPair, right: VethPair) -> None:
    """Four flows, of which two arrive, whole."""
    with Sink(right.far) as sink, Source(left.far, flows=4) as source:
        source.send(20_000, rate=20_000)
        seen = sink.wait(10_000)
        print(f"far end: {seen.unique} packets of flows {list(seen.flows)}, {seen.corrupt} corrupt")


if __name__ == "__main__":
    with common.place(__doc__, "left", "right") as here:
        options = replace(here.options, batch=256)
        with ap.handle(here.names, two_flows, options=options) as forwarder:
            done = here.run(forwarder, demo, packets=20_000).engine
            print(f"{done.forwarded} forwarded, {done.dropped} dropped")
