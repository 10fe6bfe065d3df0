"""Two ports in memory, their kernels, and a forwarder over them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from support import conserved, small_port

import afxdp_pool.forwarder as forwarder_module
from afxdp_pool import (
    Forwarder,
    FramePool,
    Route,
    Umem,
)
from afxdp_pool.handlers import Handler
from afxdp_pool.testing import packets as test_packets
from afxdp_pool.testing.rings import FakeKernel

START = (1 << 32) - 100  # indices wrap within the test
DEADLINE = 20.0  # nothing takes that long; a loop that hangs ends there


class Bench:
    """Two ports, their kernels, and what each was asked to send."""

    def __init__(self, umem: Umem) -> None:
        self.umem = umem
        self.pool = FramePool(umem)
        self.ports = [small_port(self.pool), small_port(self.pool)]
        self.kernels = [FakeKernel(port, first_index=START) for port in self.ports]
        self.sent: list[list[bytes]] = [[], []]

    def forwarder(
        self, routes: Mapping[int, Route] | None = None, *, handler: Handler | None = None, batch: int = 16
    ) -> Forwarder:
        return Forwarder(self.ports, routes, handler=handler, batch=batch, spin=0)

    def turn(self, forwarder: Forwarder, packets: list[bytes], source: int = 0) -> None:
        """Bring packets to a port a few at a time, run until all are received, send what is to be sent."""
        at = 0
        while at < len(packets):
            self.ports[source].fill()
            n = self.kernels[source].deliver(packets[at : at + 25])
            assert n
            forwarder.run(DEADLINE, packets=n)
            at += n
            self.finish(forwarder)

    def finish(self, forwarder: Forwarder) -> None:
        for sent, kernel in zip(self.sent, self.kernels, strict=True):
            sent.extend(kernel.send())
        forwarder.run(0.0)


def numbered(n: int) -> list[bytes]:
    return [test_packets.build(64 + i % 100, seq=i) for i in range(n)]


@contextmanager
def forwarding() -> Iterator[Bench]:
    """A bench whose forwarders run in short slices, on a Umem that must be whole at the end."""
    slices = forwarder_module.SLICE, forwarder_module.DRAIN_WITHIN
    forwarder_module.SLICE, forwarder_module.DRAIN_WITHIN = 0.001, 0.0
    try:
        with conserved() as umem:
            made = Bench(umem)
            yield made
            made.pool.collect()
    finally:
        forwarder_module.SLICE, forwarder_module.DRAIN_WITHIN = slices
