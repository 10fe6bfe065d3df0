"""How many packets a second an engine moves when there are always more: drop, forward, reflect, tx."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from afxdp_pool.testing import Sink, Source
from benchmarks.suite.beds import Bed
from benchmarks.suite.children import Child, CpuTime, EngineError
from benchmarks.suite.engines import Engine

SETTLE = 0.2  # seconds for what is under way to come to rest; it is not counted
TORN = 0.001  # share of the packets that may arrive between two reads of one report
WARM_UP = 0.1  # seconds of sending before tx is counted


@dataclass(frozen=True)
class Cell:
    """One job with one size and number of flows."""

    job: str
    size: int
    flows: int = 1

    @property
    def brief(self) -> bool:
        """Whether engines measured briefly take part."""
        return self.size == 64 and self.flows == 1


def measure(bed: Bed, engine: Engine, cell: Cell, seconds: float, rate: float | None = None) -> dict[str, Any]:
    """One engine, one cell, once; with a `rate`, at so many packets a second offered, which a sleeping source sends.

    Raises:
        EngineError: it failed, or packets are missing that nobody counted.
    """
    if cell.job == "tx":
        return _measure_tx(bed, engine, cell, seconds)
    with (
        Sink(bed.far_end(cell.job), verify=False) as sink,
        Source(bed.left.far, size=cell.size, flows=cell.flows, cpu=bed.source_cpu) as source,
        Child(engine.command(bed, cell.job, cell.size), bed.engine_cpu) as child,
    ):
        before = child.cpu()
        sent = source.send(seconds=seconds, rate=rate)
        used = child.cpu().since(before)
        seen = sink.report()
        time.sleep(SETTLE)
        report = child.stop()
        late = sink.report().packets
    dropped = int(report["kernel_dropped"])  # by whatever of the kernel took them off the wire
    received = int(report["received"])
    if sent.delivered != received + dropped:
        raise EngineError(
            f"{engine.name}, {cell}: of {sent.delivered} packets {received} were received and {dropped} counted as "
            f"dropped, {sent.delivered - received - dropped} are missing"
        )
    if late > received:
        raise EngineError(f"{engine.name}, {cell}: {late} packets arrived, of {received} received")
    got = received if cell.job == "drop" else seen.packets
    return _result(got, sent.seconds, used) | {
        "offered_pps": sent.rate,
        "received": received,
        "dropped_by_kernel": dropped,
        "arrived": late,
        "started_in": child.started_in,
    }


def _measure_tx(bed: Bed, engine: Engine, cell: Cell, seconds: float) -> dict[str, Any]:
    with (
        Sink(bed.far_end("tx"), verify=False) as sink,
        Child(engine.command(bed, "tx", cell.size), bed.engine_cpu) as child,
    ):
        time.sleep(WARM_UP)
        before, first, start = child.cpu(), sink.report(), time.monotonic()
        time.sleep(seconds)
        last, took = sink.report(), time.monotonic() - start
        used = child.cpu().since(before)
        report = child.stop()
    got = last.packets - first.packets
    # Packets and bytes are not read at one instant: some may arrive in between.
    if got and abs(last.bytes - first.bytes - got * cell.size) > TORN * got * cell.size:
        raise EngineError(f"{engine.name}, {cell}: {last.bytes - first.bytes} bytes arrived in {got} packets")
    return _result(got, took, used) | {"sent": report["sent"], "started_in": child.started_in}


def _result(packets: int, seconds: float, used: CpuTime) -> dict[str, Any]:
    return {
        "packets": packets,
        "seconds": seconds,
        "pps": packets / seconds,
        "user_seconds": used.user,
        "system_seconds": used.system,
        "machine_seconds": used.machine,
    }
