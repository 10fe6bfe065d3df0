"""What an engine costs when there is nothing to do: CPU and memory."""

from __future__ import annotations

import time
from typing import Any

from afxdp_pool.testing import Sink
from benchmarks.suite.beds import Bed
from benchmarks.suite.children import Child, machine_seconds
from benchmarks.suite.engines import Engine

CALM = 0.5  # seconds after the start before anything is counted


def measure(bed: Bed, engine: Engine, seconds: float) -> dict[str, Any]:
    """An engine ready to forward, and no packet for so many seconds: shares of one core, and bytes resident.

    `frame_bytes` of them are packet memory, where the engine says so.

    Raises:
        EngineError: it failed.
    """
    with Sink(bed.right.far, verify=False), Child(engine.command(bed, "forward"), bed.engine_cpu) as child:
        time.sleep(CALM)
        before, start = child.cpu(), time.monotonic()
        time.sleep(seconds)
        used, took = child.cpu().since(before), time.monotonic() - start
        memory = child.memory()
        report = child.stop()
    return {
        "engine": (used.user + used.system) / took,
        "machine": used.machine / took,
        "memory": memory,
        "frame_bytes": int(report.get("frame_bytes", 0)),
    }


def machine_at_rest(seconds: float) -> float:
    """The share of one core that the machine uses with no engine at all."""
    before = machine_seconds()
    time.sleep(seconds)
    return (machine_seconds() - before) / seconds
