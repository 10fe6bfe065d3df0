"""Rings that run dry or full, and packets that get stuck: the engine goes on, or says why not; no frame is lost."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from faulty import Flow, Record
from live_lab import audited, wait_for

import afxdp_pool as ap
from afxdp_pool.testing import Lab, Sink, Source

FEW = ap.PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=64)


def test_fill_empty(lab: Lab, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that keeps everything, until it is told of, and gives it back."""
    pair = lab.veth("a")
    kept: list[ap.Batch] = []
    keeping = True

    def handler(batch: ap.Batch) -> Any:
        if not keeping:
            return ap.DROP
        kept.append(batch.copy())
        return ap.KEEP

    options = ap.Options(netns=lab.engine_netns, frames=256, port=FEW)
    engine = ap.handle([pair.near.name], handler, options=options)
    engine.start()

    def received(goal: int) -> bool:
        return engine.snapshot().received > goal

    with Source(pair.far) as source:
        source.start(rate=5000, seconds=60)
        for _ in range(3):
            caplog.clear()
            keeping = True
            assert wait_for(lambda: "the FILL ring is empty" in caplog.text, 15)
            text = next(r.getMessage() for r in caplog.records if "FILL ring" in r.getMessage())
            keeping = False
            before = engine.snapshot().received
            for batch in kept:
                engine.umem.put(batch)
            kept.clear()
            assert wait_for(partial(received, before + 500), 10)
            record.tried()
    engine.stop()
    engine.join()
    audited(engine)
    record.of(
        "FILL empty: all frames kept",
        "goes on when frames come home; the log says who has them",
        text.partition(": ")[2],
    )


def arrived(sink: Sink, goal: int) -> bool:
    return sink.report().foreign == goal


def test_completion_full(lab: Lab, record: Record) -> None:
    """A loop of one's own that takes no completions: the kernel stops, loses nothing, and goes on."""
    pair = lab.veth("a")
    with ap.Umem(512) as umem, ap.FramePool(umem) as pool, Sink(pair.far) as sink:
        with ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=FEW) as port:
            for _ in range(3):
                before = sink.report().foreign
                sent = 0
                for _ in range(20):
                    batch = pool.write([bytes(60)] * 8)
                    done = port.transmit(batch)
                    pool.put(batch[done:])
                    sent += done
                said = ap.why_stuck(port)
                assert said == "the COMPLETION ring is full: call complete()"
                assert wait_for(lambda: bool(port.complete()) or not port.ring_levels()["tx"])

                def all_home() -> bool:
                    port.kick()
                    port.complete()
                    stats = port.stats()
                    return stats.tx_completed == stats.tx_packets

                assert wait_for(all_home)
                assert wait_for(partial(arrived, sink, before + sent))
                umem.audit().check()
                record.tried()
        umem.audit().check(idle=True)
    record.of("COMPLETION full", "`transmit` takes less, and `why_stuck` says why; goes on at `complete()`", said)


def test_rx_full(flow: Flow, record: Record) -> None:
    """A handler that is far too slow."""
    slow = True

    def handler(batch: ap.Batch) -> Any:
        if slow:
            time.sleep(0.05)
        return np.full(len(batch), ap.FORWARD(1), np.uint8)

    options = flow.options(port=ap.PortConfig(rx_size=64, fill_level=128))
    flow.engine = engine = ap.handle([flow.left.near.name], handler, outputs=[flow.right.near.name], options=options)
    engine.start()
    flow.send()

    def lost() -> int:
        kernel = engine.snapshot().ports[0].kernel
        return kernel.rx_ring_full + kernel.rx_dropped

    assert wait_for(lambda: lost() > 1000)
    slow = False
    record.tried(flow.flows())
    flow.intact()
    flow.stopped()
    record.of("RX full: a handler too slow", "goes on; the kernel drops and counts", "rx_ring_full, rx_dropped")
