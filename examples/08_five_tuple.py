"""A filter by 5-tuple that also rewrites: header fields as numpy columns, without a copy of any packet."""

import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

UDP, DISCARD = 17, 9
TTL = 22  # 14 bytes of Ethernet, 8 of IPv4
OUT = np.uint8(ap.FORWARD(1))


def two_flows(batch: ap.Batch) -> npt.NDArray[np.uint8]:
    """Forward UDP to port 9 from source ports 40001 and 40002, their MAC addresses swapped; drop the rest."""
    flow = batch.five_tuple()
    wanted = (flow.proto == UDP) & (flow.dport == DISCARD) & ((flow.sport == 40001) | (flow.sport == 40002))
    wanted &= batch.load(TTL) > 1
    batch.swap_macs(where=wanted)
    np.multiply(wanted, OUT, out=batch.verdicts)  # DROP is 0
    return batch.verdicts


with Lab() as lab:
    left, right = lab.veth("left"), lab.veth("right")
    names = [left.near.name, right.near.name]
    with (
        Sink(right.far) as sink,
        Source(left.far, flows=4) as source,
        ap.handle(names, two_flows, options=ap.Options(netns=lab.engine_netns, batch=256)) as forwarder,
    ):
        source.start(count=20_000, rate=20_000)
        report = forwarder.run(packets=20_000, duration=10)
        seen = sink.wait(report.engine.forwarded)
        done = report.engine
        print(f"{done.forwarded} forwarded, {done.dropped} dropped; flows {list(seen.flows)}, {seen.corrupt} corrupt")
        print(forwarder.audit().check())
