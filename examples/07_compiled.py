"""Logic of your own in machine code: the C loop calls it itself, without the interpreter. Needs the extra `numba`."""

from typing import Any

import numpy as np

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

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


with Lab() as lab:
    left, right = lab.veth("left"), lab.veth("right")
    names = [left.near.name, right.near.name]
    with (
        Sink(right.far) as sink,
        Source(left.far, flows=4) as source,
        ap.handle(names, even_flows, options=ap.Options(netns=lab.engine_netns)) as forwarder,
    ):
        source.start(count=20_000, rate=20_000)
        report = forwarder.run(packets=20_000, duration=10)
        seen = sink.wait(report.engine.forwarded)
        print(f"{report.engine.forwarded} forwarded; far end: {seen.unique} packets of flows {list(seen.flows)}")
        print("by source port:", {int(port): int(counts[port]) for port in counts.nonzero()[0]})
        print(forwarder.audit().check())
