"""What the tests of the real kernel share: ports on a veth pair, and rings seen behind the library's back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from live_lab import until

import afxdp_pool as ap
from afxdp_pool._native import ffi
from afxdp_pool.testing import Source, VethPair, packets

SMALL = ap.PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32)


class Bench:
    """A veth pair, and what is needed for ports on it; all of its frames must be home at the end."""

    def __init__(self, pair: VethPair, frames: int, headroom: int) -> None:
        self.pair = pair
        self.umem = ap.Umem(frames, headroom=headroom)
        self.pool = ap.FramePool(self.umem)
        self.program = ap.XdpProgram(pair.near.name, netns=pair.near.netns)
        self._ends = ExitStack()

    def port(self, **config: Any) -> ap.Port:
        changed = replace(SMALL, **config)
        return self._ends.enter_context(
            ap.Port(self.pool, self.pair.near.name, config=changed, netns=self.pair.near.netns, program=self.program)
        )

    def source(self, **options: Any) -> Source:
        return self._ends.enter_context(Source(self.pair.far, **options))

    def close(self) -> None:
        self._ends.close()
        self.program.close()
        self.pool.collect()
        self.umem.audit().check(idle=True)
        self.umem.close()


@contextmanager
def bench_on(pair: VethPair, frames: int = 1024, headroom: int = 0) -> Iterator[Bench]:
    made = Bench(pair, frames, headroom)
    try:
        yield made
        made.umem.audit().check()
    finally:
        made.close()


class Raw:
    """One ring of a port, as it lies in memory: struct xsk_ring_prod and _cons of libxdp are one layout."""

    class _Ring(ctypes.Structure):
        _fields_ = [
            *((name, ctypes.c_uint32) for name in ("cached_prod", "cached_cons", "mask", "size")),
            *((name, ctypes.POINTER(ctypes.c_uint32)) for name in ("producer", "consumer")),
            ("entries", ctypes.c_void_p),
            ("flags", ctypes.POINTER(ctypes.c_uint32)),
        ]

    def __init__(self, port: ap.Port, name: str) -> None:
        self.ring = self._Ring.from_address(int(ffi.cast("uintptr_t", ffi.addressof(port.native, name))))
        kind = (
            np.dtype("<u8")
            if name in ("fill", "comp")
            else np.dtype([("addr", "<u8"), ("len", "<u4"), ("options", "<u4")])
        )
        memory = (ctypes.c_char * (self.ring.size * kind.itemsize)).from_address(self.ring.entries)
        self.entries: Any = np.frombuffer(memory, kind)

    @property
    def producer(self) -> int:
        return int(self.ring.producer[0])

    @property
    def consumer(self) -> int:
        return int(self.ring.consumer[0])

    @property
    def wants_wakeup(self) -> bool:
        """XDP_RING_NEED_WAKEUP, of a ring that the application fills."""
        return bool(self.ring.flags[0] & 1)

    def at(self, index: int) -> int:
        """Where the entry of that free-running index is."""
        return index & int(self.ring.mask)


def receive(port: ap.Port, count: int) -> ap.Batch:
    """So many packets, or fail."""
    got: list[Any] = []

    def enough() -> bool:
        batch = port.receive(64)
        got.extend(batch.descs)
        return len(got) >= count

    until(enough)
    assert len(got) == count
    return ap.Batch(np.array(got, ap.DESC), port.pool.umem.data, port)


def filled(pool: ap.FramePool, count: int, size: int = 64) -> ap.Batch:
    """Frames of `pool` with test packets in them."""
    batch = pool.alloc(count)
    for i in range(count):
        batch.write(i, packets.build(size, seq=i))
    return batch


def completed(port: ap.Port, count: int) -> None:
    """Kick and take completions until so many have come in all."""

    def done() -> bool:
        port.kick()
        port.complete(64)
        return port.stats().tx_completed >= count

    until(done)
    assert port.stats().tx_completed == count
