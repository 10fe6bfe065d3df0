"""Packets of 9000 bytes between two hosts: each lies in three frames, and the handler decides about all of it."""

from __future__ import annotations

from collections import Counter

import common

import afxdp_pool as ap
from afxdp_pool.testing import VethPair

PORT = ap.PortConfig(multi_buffer=True)
lengths: Counter[int] = Counter()


def handle(batch: ap.Batch) -> int:
    """Out of the other port. Header fields are those of a packet's first frame, `lengths` those of the whole packet."""
    lengths.update(batch.lengths.tolist())
    return ap.FORWARD(1 if batch.port is batch.ports[0] else 0)


def demo(a: VethPair, b: VethPair) -> None:
    """Pings that must not be cut into fragments."""
    common.wire(a, b)
    for size in (56, 3800, 3900, 8972):
        print(f"{size} bytes: {common.ping(a, '-c1', '-Mdo', f'-s{size}', b.far.ipv4)}")


if __name__ == "__main__":
    with (
        common.place(__doc__, "a", "b", hosts=True, mtu=9000, port=PORT) as here,
        ap.handle(here.names, handle, options=here.options) as forwarder,
    ):
        report = here.run(forwarder, demo)
        parts = sum(port.stats.rx_parts for port in report.ports)
        print(f"{lengths[9014]} packets of 9014 bytes; {parts} frames more than packets")
