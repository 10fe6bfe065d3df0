"""Drop with a filter: UDP is received, counted and recycled; the rest goes to the kernel's stack as ever."""

from __future__ import annotations

from dataclasses import replace

import common

import afxdp_pool as ap
from afxdp_pool.testing import Source, VethPair


def demo(pair: VethPair) -> None:
    """A host sends what is dropped, and pings meanwhile."""
    with Source(pair.far) as source:
        source.start(count=20_000, rate=20_000)
        print("ping:", common.ping(pair, "-c1", pair.near.ipv4))
        source.wait(60)


if __name__ == "__main__":
    with common.place(__doc__, "wire", hosts=True) as here:
        options = replace(here.options, rules=[ap.Rule(protocol=17)])
        with ap.drop(here.names[0], options=options) as forwarder:
            report = here.run(forwarder, demo, packets=20_000)
            print("recycled directly:", report.pools[0].recycle_cached, "of", report.received)
            print("left to the kernel:", report.ports[0].program["passed_filter"])
