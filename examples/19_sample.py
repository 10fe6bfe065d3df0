"""Every hundredth packet is kept for a slow thread to look at, while the packet itself goes on.

What the thread has is no copy but a reference to the same frame: it comes home when the packet is sent and the thread
has closed it. If the thread is behind, samples are left out, and nobody waits.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import threading
from collections import Counter
from collections.abc import Iterator

import common
import numpy as np

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair, packets


class Sampler:
    """The handler, and the thread behind it.

    Attributes:
        flows: packets by flow, as estimated from the samples.
        left_out: samples for which there was no room.
    """

    def __init__(self, every: int) -> None:
        self.every, self.left_out = every, 0
        self.flows: Counter[str] = Counter()
        self._seen = 0
        self._kept: queue.Queue[ap.Frames | None] = queue.Queue(maxsize=64)

    def __call__(self, batch: ap.Batch) -> int:
        """Keep the samples of a batch, and forward it whole."""
        numbers = np.arange(self._seen, self._seen + len(batch))
        self._seen += len(batch)
        kept = batch.keep(numbers % self.every == 0)
        try:
            self._kept.put_nowait(kept)
        except queue.Full:
            self.left_out += len(kept)
            kept.close()
        return ap.FORWARD(1)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Run the thread."""
        thread = threading.Thread(target=self._look)
        thread.start()
        try:
            yield
        finally:
            self._kept.put(None)
            thread.join()

    def _look(self) -> None:
        while (frames := self._kept.get()) is not None:
            with frames:
                for packet in frames:
                    if found := packets.parse(packet.data):  # in Python, byte by byte
                        self.flows[f"flow {found.flow}, {found.size} bytes"] += self.every
                    else:
                        self.flows["other"] += self.every


def demo(a: VethPair, b: VethPair) -> None:
    """Two sources of test packets, one three times the other."""
    with Sink(b.far) as sink:
        with Source(a.far, flows=3) as often, Source(a.far, size=256, seq_start=10_000) as seldom:
            often.send(9000, rate=20_000)
            seldom.send(3000, rate=20_000)
        print(f"{sink.wait(12_000).packets} packets at the far end")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=100, help="keep one packet of so many")
    with common.place(__doc__, "a", "b", parser=parser) as here:
        sampler = Sampler(here.args.every)
        with ap.handle(here.names, sampler, options=here.options) as forwarder:
            with contextlib.ExitStack() as looking:
                looking.enter_context(sampler.looking())
                here.run(forwarder, demo, finish=looking.close)
            print(f"estimated ({sampler.left_out} samples left out):")
            for flow, n in sampler.flows.most_common():
                print(f"  {flow}: {n}")
