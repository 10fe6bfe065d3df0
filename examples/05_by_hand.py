"""Pool and ports without a forwarder: what comes in by one device leaves by two others, from one and the same frame."""

from __future__ import annotations

import argparse
import contextlib
import time

import common

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source

COUNT = 1000

parser = argparse.ArgumentParser()
parser.set_defaults(seconds=10.0)
with common.place(__doc__, "a", "b", "c", parser=parser) as here, contextlib.ExitStack() as stack:
    umem = stack.enter_context(ap.Umem(frames=8192))
    pool = stack.enter_context(ap.FramePool(umem))
    configs = ap.PortConfig(), ap.PortConfig(receive=False), ap.PortConfig(receive=False)
    source, *targets = (
        stack.enter_context(ap.Port(pool, name, netns=here.options.netns, config=config))
        for name, config in zip(here.names, configs, strict=True)
    )
    sinks = [stack.enter_context(Sink(pair.far)) for pair in here.pairs[1:]]
    traffic = [stack.enter_context(Source(pair.far)) for pair in here.pairs[:1]]
    for packets in traffic:
        packets.start(count=COUNT, rate=10_000)

    received = 0
    deadline = time.monotonic() + here.args.seconds
    while time.monotonic() < deadline and (not sinks or received < COUNT or umem.count_states()["tx"]):
        ap.wait([source, *targets], 0.01)  # sent frames come home, FILL is topped up, until packets arrive
        batch = source.receive()
        received += len(batch)
        pool.ref(batch)  # a second reference to each frame: one for each target
        for target in targets:
            sent = target.transmit(batch)
            pool.put(batch[sent:])  # for want of room in the ring, if ever
    print(received, "received")
    for packets in traffic:
        packets.wait(10)
        print("far ends:", " and ".join(str(sink.wait(COUNT).unique) for sink in sinks))
    print(umem.audit().check())
