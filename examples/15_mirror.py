"""A cable that is listened to: every packet goes on, and by references to its frame out of each monitor as well."""

from __future__ import annotations

import common

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair


class Mirror:
    """The handler: between ports 0 and 1 both ways, a reference to each of the others.

    Attributes:
        missed: packets that a monitor had no room for in its TX ring. What goes on does not wait for it.
    """

    def __init__(self) -> None:
        self.missed = 0

    def __call__(self, batch: ap.Batch) -> int:
        """No packet is copied: the frame goes home when the last of its ports has sent it."""
        a, b, *monitors = batch.ports
        if batch.port not in (a, b):
            return ap.DROP  # a monitor only listens
        for monitor in monitors:
            monitor.pool.ref(batch)
            sent = monitor.transmit(batch)
            monitor.pool.put(batch[sent:])
            self.missed += len(batch) - sent
        return ap.FORWARD(1 if batch.port is a else 0)


def demo(a: VethPair, b: VethPair, *monitors: VethPair) -> None:
    """Packets both ways; the kernel counts at all far ends."""
    with Sink(a.far) as at_a, Sink(b.far) as at_b, Sink(monitors[0].far) as first, Sink(monitors[1].far) as second:
        with Source(a.far, flows=2) as there, Source(b.far, seq_start=10_000) as back:
            there.send(5000, rate=20_000)
            back.send(1000, rate=20_000)
        print(f"a to b: {at_b.wait(5000).unique}, b to a: {at_a.wait(1000).unique}, ", end="")
        print(f"at the monitors: {first.wait(6000).packets} and {second.wait(6000).packets}")


if __name__ == "__main__":
    mirror = Mirror()
    with (
        common.place(__doc__, "a", "b", "c", "d", many=True) as here,
        ap.handle(here.names, mirror, options=here.options) as forwarder,
    ):
        here.run(forwarder, demo)
        print(f"{mirror.missed} missed by the monitors")
