"""A learning switch: looks addresses up with numpy, floods what it does not know by references to one frame."""

from __future__ import annotations

import time
from functools import partial

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.testing import Sink, Source, VethPair

GROUP = np.uint64(1 << 40)  # the bit of a MAC address that says multicast; broadcast has it too
RESERVED = np.uint64(0x0180C2000000 >> 4)  # 01:80:c2:00:00:0x is for the neighbour alone (IEEE 802.1Q, 8.6.3)


MOST = 1 << 16  # addresses, so that nobody can fill the memory with them
NOBODY = np.uint64(2**64 - 1)  # the table's last entry, so that a search always ends at one


class Switch:
    """Which port each MAC address was last seen at: three arrays, sorted by address.

    Attributes:
        age: seconds without a packet from an address until it is forgotten.
    """

    def __init__(self, age: float = 300.0) -> None:
        self.age = age
        self.flooded = 0
        self.macs, self.places, self.seen = np.array([NOBODY]), np.array([0], np.uint8), np.array([np.inf])

    def __call__(self, batch: ap.Batch) -> npt.NDArray[np.uint8]:
        """The handler: learn the sources, look the targets up."""
        assert batch.port is not None
        here, now = batch.ports.index(batch.port), time.monotonic()
        self.learn(batch.eth.src, here, now)
        target = batch.eth.dst
        index, known = self.find(target)
        known &= self.seen[index] > now - self.age
        where = self.places[index]
        np.copyto(batch.verdicts, np.where(known & (where != here), ap.FORWARD(0) | where, ap.DROP))
        self.flood(batch[~known & (target >> np.uint64(4) != RESERVED)], here)
        return batch.verdicts

    def find(self, macs: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Where in the table each address is or would be, and whether it is there."""
        index = np.searchsorted(self.macs, macs)
        return index, self.macs[index] == macs

    def learn(self, sources: npt.NDArray[np.uint64], here: int, now: float) -> None:
        """An address that is known has been seen again, perhaps elsewhere; a new one makes a new table."""
        index, known = self.find(sources)
        self.seen[index[known]] = now
        self.places[index[known]] = here
        strange = sources[~known]
        new = np.unique(strange[(strange & GROUP) == 0])
        if len(new) and len(self.macs) < MOST:
            young = self.seen > now - self.age
            macs = np.concatenate([self.macs[young], new])
            places = np.concatenate([self.places[young], np.full(len(new), here, np.uint8)])
            seen = np.concatenate([self.seen[young], np.full(len(new), now)])
            order = np.argsort(macs)
            self.macs, self.places, self.seen = macs[order], places[order], seen[order]

    def flood(self, batch: ap.Batch, here: int) -> None:
        """Out of every port but this one, from one frame each: whoever has sent it last brings it home."""
        for port in batch.ports[:here] + batch.ports[here + 1 :]:
            port.pool.ref(batch)
            sent = port.transmit(batch)
            port.pool.put(batch[sent:])  # no room in its TX ring
        self.flooded += len(batch)

    def report(self, ports: list[ap.Port]) -> str:
        """What it did and learned, in words."""
        table = zip(self.macs[:-1], self.places, strict=False)
        rows = [f"  {int(mac).to_bytes(6, 'big').hex(':')} is at {ports[place].netdev}" for mac, place in table]
        return "\n".join([f"{self.flooded} packets flooded; learned:", *rows])


def demo(switch: Switch, *pairs: VethPair) -> None:
    """Three hosts talk. Whose packets arrive where is counted by the kernel at the far ends."""
    a, b, c = (pair.far for pair in pairs)
    with Sink(a) as at_a, Sink(b) as at_b, Sink(c) as at_c:
        with Source(a, target_mac=b.mac, flows=2) as source, Source(b, target_mac=a.mac) as answer:
            source.send(500, rate=20_000)
            print(f"a to b, unknown yet: {at_b.wait(500).packets} at b, {at_c.wait(500).packets} at c")
            answer.send(1, rate=1000)
            print(f"b answers:           {at_a.wait(1).packets} at a, {at_c.report().packets - 500} at c")
            source.send(500, rate=20_000)
            print(f"a to b, known:       {at_b.wait(1000).packets - 500} at b, {at_c.report().packets - 500} at c")
            age, switch.age = switch.age, 0.0  # as if all had been silent for long
            source.send(500, rate=20_000)
            print(f"a to b, forgotten:   {at_b.wait(1500).packets - 1000} at b, {at_c.wait(1000).packets - 500} at c")
            switch.age = age
        with Source(c, target_mac=b"\xff" * 6) as everybody:
            everybody.send(100, rate=20_000)
            print(f"c to all:            {at_a.wait(101).packets - 1} at a, {at_b.wait(1600).packets - 1500} at b")


if __name__ == "__main__":
    switch = Switch()
    with (
        common.place(__doc__, "a", "b", "c", many=True) as here,
        ap.handle(here.names, switch, options=here.options) as forwarder,
    ):
        here.run(forwarder, partial(demo, switch))
        print(switch.report(forwarder.ports))
