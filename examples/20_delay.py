"""A slow cable between two interfaces: asyncio holds each packet for a while, loses some, and sends the rest."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time

import common
import numpy as np

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair

random = np.random.default_rng()


async def slow(source: ap.Port, target: ap.Port, delay: float, loss: float) -> None:
    """What arrives at one port leaves by the other, `delay` seconds later."""
    held: asyncio.Queue[tuple[float, ap.Frames]] = asyncio.Queue()

    async def send() -> None:
        while True:
            due, frames = await held.get()
            with frames:
                await asyncio.sleep(due - time.monotonic())
                await target.atransmit(frames)

    sender = asyncio.create_task(send())
    try:
        async for batch in source:
            lucky = random.random(len(batch)) >= loss
            await held.put((time.monotonic() + delay, ap.Frames(batch[lucky])))  # the others go home by themselves
    finally:
        sender.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sender
        while not held.empty():
            held.get_nowait()[1].close()


async def run(a: ap.Port, b: ap.Port, here: common.Place) -> None:
    """Both ways at once, in one thread with whatever else the program awaits."""
    args = here.args
    async with contextlib.AsyncExitStack() as stack:
        for port in (a, b):
            await stack.enter_async_context(port)
        ways = [asyncio.create_task(slow(*ports, args.delay / 1000, args.loss / 100)) for ports in ((a, b), (b, a))]
        try:
            if here.pairs:
                await asyncio.to_thread(demo, args.loss, *here.pairs)
            else:
                print(f"running on {', '.join(here.names)}; Ctrl-C ends it", flush=True)
                await asyncio.wait(ways, timeout=here.seconds)
        finally:
            for way in ways:
                way.cancel()
            for ended in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended


def demo(loss: float, a: VethPair, b: VethPair) -> None:
    """Pings, and test packets, between two hosts."""
    common.wire(a, b)
    print("ping:", common.ping(a, "-c5", "-i0.2", b.far.ipv4))
    with Sink(b.far) as sink, Source(a.far, target_mac=b.far.mac) as source:
        source.send(5000, rate=10_000)
        seen = sink.wait(5000, timeout=1)
        print(
            f"{seen.unique} of 5000 packets at the far end, {seen.reordered} out of order; {loss:g} % were to be lost"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay", type=float, default=20, metavar="MS", help="milliseconds a packet is held")
    parser.add_argument("--loss", type=float, default=10, metavar="PERCENT", help="packets to lose")
    with common.place(__doc__, "a", "b", hosts=True, parser=parser) as here, ap.Umem(16384) as umem:
        netns = here.options.netns
        with ap.FramePool(umem) as pool:
            a, b = (ap.Port(pool, name, netns=netns) for name in here.names)
            with contextlib.suppress(KeyboardInterrupt):
                asyncio.run(run(a, b, here))
        print(umem.audit().check(idle=True))
