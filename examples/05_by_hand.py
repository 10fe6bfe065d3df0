"""Pool and ports without a forwarder: every packet received on A leaves by B and by C, from one and the same frame."""

import time

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

COUNT = 1000

with Lab() as lab:
    a, b, c = lab.veth("a"), lab.veth("b"), lab.veth("c")
    send_only = ap.PortConfig(receive=False)
    with (
        ap.Umem(frames=8192) as umem,
        ap.FramePool(umem) as pool,
        ap.Port(pool, a.near.name, netns=lab.engine_netns) as port_a,
        ap.Port(pool, b.near.name, netns=lab.engine_netns, config=send_only) as port_b,
        ap.Port(pool, c.near.name, netns=lab.engine_netns, config=send_only) as port_c,
        Sink(b.far) as sink_b,
        Sink(c.far) as sink_c,
        Source(a.far) as source,
    ):
        source.start(count=COUNT, rate=10_000)
        received = 0
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and (received < COUNT or umem.count_states()["tx"]):
            port_a.fill()
            batch = port_a.receive()
            received += len(batch)
            pool.ref(batch)  # a second reference to each frame: one for B, one for C
            for port in (port_b, port_c):
                sent = port.transmit(batch)
                pool.put(batch[sent:])  # for want of room in the ring, if ever
            port_b.complete()
            port_c.complete()
        print(f"{received} received; far ends: {sink_b.wait(COUNT).unique} and {sink_c.wait(COUNT).unique}")
        print(umem.audit().check())
