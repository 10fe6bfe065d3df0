"""Receive on a device, count, recycle: the frames never leave the pool's cache and the FILL ring."""

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Source

with Lab() as lab:
    pair = lab.veth("a")
    with ap.drop(pair.near.name, options=ap.Options(netns=lab.engine_netns)) as forwarder, Source(pair.far) as source:
        source.start(count=100_000, rate=100_000)
        report = forwarder.run(packets=100_000, duration=10)
        print(report)
        print("recycled directly:", report.pools[0].recycle_cached, "of", report.received)
        print(forwarder.audit().check())
