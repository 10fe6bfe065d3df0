"""From one device to another and back: a frame received on the one comes home by itself when the other has sent it."""

from __future__ import annotations

import common

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair


def demo(left: VethPair, right: VethPair) -> None:
    """Proven traffic from left to right."""
    with Sink(right.far) as sink, Source(left.far, flows=4) as source:
        source.send(50_000, rate=50_000)
        seen = sink.wait(50_000)
        print(f"far end: {seen.unique} packets of {len(seen.flows)} flows, ", end="")
        print(f"{seen.lost} lost, {seen.reordered} reordered")


if __name__ == "__main__":
    with (
        common.place(__doc__, "left", "right") as here,
        ap.forward(*here.names, both_ways=True, options=here.options) as forwarder,
    ):
        here.run(forwarder, demo)
