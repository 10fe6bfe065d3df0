"""Two queues, a worker for each. With `--thread` the workers keep their packets, and a thread of our own sends them."""

from __future__ import annotations

import argparse
import contextlib
import queue
import threading
from dataclasses import replace

import common

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair


class Sender(threading.Thread):
    """Sends what it is given out of a port of its own; the frames come home to the pools that they are of.

    Attributes:
        port: set once it is open, before the thread is started.
    """

    port: ap.Port

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._kept: queue.SimpleQueue[ap.Batch | None] = queue.SimpleQueue()

    def keep(self, batch: ap.Batch) -> int:
        """The handler. Called from all workers' threads: a SimpleQueue may be used from any."""
        self._kept.put(batch.copy())
        return ap.KEEP

    def run(self) -> None:
        """Until `stop()`, and all that was kept is sent."""
        while (batch := self._kept.get()) is not None:
            while len(batch):
                batch = batch[self.port.transmit(batch) :]
                self.port.complete()
        while self.port.stats().tx_completed < self.port.stats().tx_packets:
            self.port.complete()

    def stop(self) -> None:
        """End, soon."""
        self._kept.put(None)
        self.join()


def demo(left: VethPair, right: VethPair) -> None:
    """Packets redirected on CPU n arrive on queue n."""
    with Sink(right.far, verify=False) as sink, Source(left.far, cpu=0) as first, Source(left.far, cpu=1) as second:
        for source in (first, second):
            source.start(count=10_000, rate=20_000)
        for source in (first, second):
            source.wait(10)
        print(f"far end: {sink.wait(20_000).packets} packets")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--thread", action="store_true", help="a thread beside the workers sends")
    with common.place(__doc__, "left", "right", queues=2, parser=parser) as here, contextlib.ExitStack() as stack:
        options = replace(here.options, queues=(0, 1), workers="queues")
        if not here.args.thread:
            report = here.run(stack.enter_context(ap.forward(*here.names, options=options)), demo)
        else:
            sender = Sender()
            handling = ap.handle(here.names[:1], sender.keep, options=replace(options, frames=16384))
            workers = stack.enter_context(handling)
            pool = stack.enter_context(ap.FramePool(workers.umem))
            only_sends = ap.PortConfig(receive=False)
            sender.port = ap.Port(pool, here.names[1], config=only_sends, netns=options.netns)
            stack.enter_context(sender.port)
            sender.start()
            report = here.run(workers, demo, finish=sender.stop)
            print("came home to their own pools:", sum(stats.remote_frames for stats in report.pools))
        for worker in report.workers:
            print(f"{worker.name}: received {worker.received}, completed {worker.completed}")
