"""Pool and ports without a forwarder: what comes in by one device leaves by two others, from one and the same frame."""

from __future__ import annotations

import contextlib
import time

import common

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source

COUNT = 1000

with common.place(__doc__, "a", "b", "c") as here, contextlib.ExitStack() as stack:
    umem = stack.enter_context(ap.Umem(frames=8192))
    pool = stack.enter_context(ap.FramePool(umem))
    configs = ap.PortConfig(), ap.PortConfig(receive=False), ap.PortConfig(receive=False)
    source, *targets = (
        stack.enter_context(ap.Port(pool, name, netns=here.options.netns, config=config))
        for name, config in zip(here.names, configs, strict=True)
    )
    sinks = [stack.enter_context(Sink(pair.far)) for pair in here.pairs[1:]]
    if here.pairs:
        stack.enter_context(Source(here.pairs[0].far)).start(count=COUNT, rate=10_000)

    received = 0
    deadline = time.monotonic() + (here.seconds or 10)
    while time.monotonic() < deadline and (not sinks or received < COUNT or umem.count_states()["tx"]):
        source.fill()
        batch = source.receive()
        received += len(batch)
        pool.ref(batch)  # a second reference to each frame: one for each target
        for target in targets:
            sent = target.transmit(batch)
            pool.put(batch[sent:])  # for want of room in the ring, if ever
            target.complete()
    print(received, "received")
    if sinks:
        print("far ends:", " and ".join(str(sink.wait(COUNT).unique) for sink in sinks))
    print(umem.audit().check())
