"""A `Bed`: two cables between the engine's namespace and the traffic's, and the traffic that runs over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from afxdp_pool.testing import Lab, LabLink, VethPair, packets

SOURCE_CPU, ENGINE_CPU = 0, 1


@dataclass(frozen=True)
class Bed:
    """Packets come in over `left`. What forwards, or sends, sends them out over `right`; what reflects, over `left`."""

    left: VethPair
    right: VethPair
    netns: str
    source_cpu: int = SOURCE_CPU
    engine_cpu: int = ENGINE_CPU

    def far_end(self, job: str) -> LabLink:
        """Where the job's packets arrive."""
        return self.left.far if job == "reflect" else self.right.far

    def out(self, job: str) -> LabLink:
        """The link of the engine's that the job's packets leave by."""
        return self.left.near if job == "reflect" else self.right.near

    def template(self, size: int) -> bytes:
        """The packet an engine sends in the tx job: a test packet, which the far end counts."""
        near, far = self.right.near, self.right.far
        return packets.build(size, addresses=packets.Addresses(source_mac=near.mac, target_mac=far.mac))


@contextlib.contextmanager
def bed(source_cpu: int = SOURCE_CPU, engine_cpu: int = ENGINE_CPU) -> Iterator[Bed]:
    """A lab for as long as the block runs."""
    with Lab() as lab:
        yield Bed(lab.veth("left"), lab.veth("right"), lab.engine_netns, source_cpu, engine_cpu)
