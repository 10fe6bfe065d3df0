"""Logic of your own in machine code: the C loop calls it itself, without the interpreter. Needs the extra `jit`."""

from __future__ import annotations

from typing import Any

import common
import numpy as np

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair

UDP = 17
OUT = ap.FORWARD(1)
counts = np.zeros(65536, np.int64)  # packets by UDP source port: the handler writes them, anybody may read


@ap.compiled(user=counts)
def even_flows(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
    """Count every flow; forward those with an even source port. What gets no verdict is dropped."""
    for i in range(len(descs)):
        at = descs[i].addr
        if descs[i].len < 42 or ap.be16(umem, at + 12) != 0x0800 or umem[at + 23] != UDP:
            continue
        source_port = ap.be16(umem, at + 34)
        user[source_port] += 1
        if source_port % 2 == 0:
            verdicts[i] = OUT


def demo(left: VethPair, right: VethPair) -> None:
    """Four flows, of which two arrive."""
    with Sink(right.far) as sink, Source(left.far, flows=4) as source:
        source.send(20_000, rate=20_000)
        seen = sink.wait(10_000)
        print(f"far end: {seen.unique} packets of flows {list(seen.flows)}")


if __name__ == "__main__":
    with (
        common.place(__doc__, "left", "right") as here,
        ap.handle(here.names, even_flows, options=here.options) as forwarder,
    ):
        here.run(forwarder, demo, packets=20_000)
        print("by source port:", {int(port): int(counts[port]) for port in counts.nonzero()[0]})
