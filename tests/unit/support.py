"""What the tests of pools, ports and forwarders share: a Umem that must be whole again, and small ports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from afxdp_pool import Batch, FramePool, Port, PortConfig, Umem

T = TypeVar("T")

SMALL = PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32)


@contextmanager
def conserved(
    frames: int = 512, *, frame_size: int = 4096, headroom: int = 0, unaligned: bool = False
) -> Iterator[Umem]:
    """A Umem whose every frame is at home, and accounted for, when the test is over."""
    with Umem(frames, frame_size=frame_size, headroom=headroom, unaligned=unaligned) as umem:
        yield umem
        for port in list(umem._ports):
            port.close()
        umem.audit().check(idle=True)


def elsewhere(call: Callable[[], T]) -> T:
    """Run `call` in another thread, and wait for it."""
    result: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            result.append(call())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def until(condition: Callable[[], bool], within: float = 20.0) -> None:
    """Wait for `condition`, or fail after `within` seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"


def join(*batches: Batch) -> Batch:
    """One batch of several, in order."""
    import numpy as np

    return Batch(np.concatenate([batch.descs for batch in batches]), batches[0].data)


def identities(pool: FramePool, taken: int, given: int) -> None:
    """The two identities of page_pool's counters, with nothing in the inbox."""
    stats = pool.stats()
    assert stats.alloc_fast + stats.alloc_refill + stats.alloc_slow == taken
    assert stats.recycle_cached + stats.recycle_ring + stats.recycle_ring_full == given
    assert stats.alloc_slow_high_order == stats.alloc_waive == stats.recycle_released_refcnt == 0


def small_port(pool: FramePool, config: PortConfig = SMALL) -> Port:
    """A port in memory with rings of 64."""
    return Port.in_memory(pool, config)
