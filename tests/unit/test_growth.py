"""Made and closed again and again, nothing is left of pools, frames, loops and captures, nor on a Umem that stays.

The test runs this file as a program, in a process where what is left behind can be told to the byte; see holding.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt
import pytest
from bench import DEADLINE, Bench, forwarding, numbered
from holding import grown, growth, in_a_process
from support import SMALL, conserved, elsewhere

from afxdp_pool import (
    DROP,
    FORWARD,
    Batch,
    DoubleFreeError,
    ForeignFrameError,
    Forwarder,
    FramePool,
    Port,
    Route,
    Umem,
    Workers,
)
from afxdp_pool.capture import Capture

PACKETS, CYCLES = numbered(20), 60


def pools() -> None:
    """All that is done with frames; some come home by another thread, some when their pool is closed."""
    with conserved() as umem:
        on(umem)


def on(umem: Umem) -> None:
    """The same on a Umem that stays."""
    with FramePool(umem, init_callback=len, on_event=lambda name, frames: len(frames)) as pool:
        batch = pool.write([b"packet"] * 40)
        pool.ref(batch)
        kept = batch.keep()
        pool.put(batch)
        elsewhere(lambda: umem.put(batch))
        kept.close()
        pool.put(pool.alloc_fragments(20, 100))
        with contextlib.suppress(DoubleFreeError):
            pool.put(batch)
        with contextlib.suppress(ForeignFrameError):
            batch.descs["addr"] = 1 << 40
            pool.put(batch)
        late = pool.alloc(8)
    elsewhere(lambda: umem.put(late))
    umem.audit().check(idle=True)


def looped(made: Bench, runner: Forwarder | Workers) -> None:
    made.ports[0].fill()
    made.pool.unbind()
    made.kernels[0].deliver(PACKETS)
    runner.run(DEADLINE, packets=len(PACKETS))
    made.kernels[1].send()
    runner.run(0.0)
    made.umem.audit().check()


def loops() -> None:
    """The loop in C, and a capture of what it moves."""
    with (
        TemporaryDirectory() as place,
        forwarding() as made,
        closing(made.forwarder({0: Route(FORWARD(1))})) as one,
        Capture(Path(place) / "packets.pcapng", one, room=1 << 17),
    ):
        looped(made, one)


def handlers() -> None:
    """Handlers in a worker's thread: one that decides, one that fails."""
    with forwarding() as made:
        with closing(made.forwarder(handler=dropping)) as one, Workers([one]) as workers:
            looped(made, workers)
        failure = contextlib.suppress(ZeroDivisionError)
        with closing(made.forwarder(handler=failing)) as one, Workers([one]) as workers, failure:
            looped(made, workers)


def dropping(batch: Batch) -> npt.NDArray[Any]:
    return batch.udp.dport * 0 + DROP


def failing(batch: Batch) -> int:
    return 1 // 0


def ports_of(umem: Umem, pool: FramePool) -> None:
    """Ports that go while the Umem and their pool stay."""
    with Port.in_memory(pool, SMALL) as port, Forwarder([port], handler=lambda batch: DROP) as one:
        one.run(0.0)
    umem.audit().check()


def main() -> None:
    """Every cycle's growth."""
    logging.disable(logging.CRITICAL)
    found = {cycle.__name__: growth(cycle, CYCLES) for cycle in (pools, loops, handlers)}
    with conserved() as umem:
        found["on"] = growth(lambda: on(umem), CYCLES)
        with FramePool(umem) as pool:
            found["ports_of"] = growth(lambda: ports_of(umem, pool), CYCLES)
    print(json.dumps(found))


@pytest.mark.timeout(200)
def test_nothing_is_left_behind() -> None:
    found = in_a_process(__file__)
    assert {name: grown(left) for name, left in found.items() if grown(left)} == {}


def test_a_leak_of_any_kind_is_found() -> None:
    found = in_a_process(Path(__file__).with_name("leaking.py"))
    assert grown(found.pop("nothing")) == []
    assert found
    for kind, left in found.items():
        assert kind in " ".join(grown(left)), left


if __name__ == "__main__":
    main()
