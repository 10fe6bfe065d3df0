"""From one device to another: what is received on `left` leaves by `right`, and the frame comes home by itself."""

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

with Lab() as lab:
    left, right = lab.veth("left"), lab.veth("right")
    options = ap.Options(netns=lab.engine_netns)
    with (
        Sink(right.far) as sink,
        Source(left.far, flows=4) as source,
        ap.forward(
            left.near.name, right.near.name, rewrite=ap.Rewrite(dst=right.far.mac), options=options
        ) as forwarder,
    ):
        source.start(count=50_000, rate=50_000)
        print(forwarder.run(packets=50_000, duration=10))
        seen = sink.wait(50_000)
        print(
            f"far end: {seen.unique} packets of {len(seen.flows)} flows, {seen.lost} lost, {seen.reordered} reordered"
        )
        print(forwarder.audit().check())
