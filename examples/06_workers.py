"""Two queues, a worker for each; then packets that two workers keep, sent by a thread of the application's own."""

import queue

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

with Lab() as lab:
    left, right = lab.veth("left", queues=2), lab.veth("right", queues=2)
    options = ap.Options(netns=lab.engine_netns, queues=(0, 1), workers="queues")

    # Packets redirected on CPU n arrive on queue n.
    with (
        Sink(right.far, verify=False) as sink,
        Source(left.far, cpu=0) as first,
        Source(left.far, cpu=1) as second,
        ap.forward(left.near.name, right.near.name, options=options) as workers,
    ):
        workers.start()
        for source in (first, second):
            source.start(count=10_000, rate=20_000)
        for source in (first, second):
            source.wait(10)
        seen = sink.wait(20_000).packets
        workers.stop()
        report = workers.join()
        for worker in report.workers:
            print(f"{worker.name}: received {worker.received}, completed {worker.completed}")
        print(f"far end: {seen} packets")
        print(workers.audit().check())

with Lab() as lab:
    left, right = lab.veth("left", queues=2), lab.veth("right")
    options = ap.Options(netns=lab.engine_netns, queues=(0, 1), workers="queues", frames=16384)
    kept: queue.SimpleQueue[ap.Batch] = queue.SimpleQueue()

    def keep(batch: ap.Batch) -> int:
        """Called from both workers' threads; a SimpleQueue may be used from any."""
        kept.put(batch.copy())
        return ap.KEEP

    send_only = ap.PortConfig(receive=False)
    with (
        ap.handle([left.near.name], keep, options=options) as workers,
        ap.FramePool(workers.umem) as pool,
        ap.Port(pool, right.near.name, config=send_only, netns=lab.engine_netns) as port,
        Sink(right.far, verify=False) as sink,
        Source(left.far, cpu=0) as first,
        Source(left.far, cpu=1) as second,
    ):
        workers.start()
        for source in (first, second):
            source.start(count=5000, rate=20_000)
        sent = 0
        while sent < 10_000 or port.stats().tx_completed < sent:
            port.complete()
            if sent < 10_000:
                batch = kept.get(timeout=10)
                sent += len(batch)
                while len(batch):
                    batch = batch[port.transmit(batch) :]
                    port.complete()
        for source in (first, second):
            source.wait(10)
        seen = sink.wait(10_000).packets
        workers.stop()
        report = workers.join()
        home = [stats.remote_frames for stats in report.pools]
        print(f"kept {report.engine.kept}, far end {seen}; came home to their own pools: {sum(home)}")
        print(workers.audit().check())
