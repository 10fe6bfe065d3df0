"""`Report`: every counter of a forwarder at one moment, as plain data that goes into JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from afxdp_pool.stats import EngineStats, KernelStats, LiveStats, PoolStats, PortStats

if TYPE_CHECKING:
    from afxdp_pool.granted import PortInfo
    from afxdp_pool.pool import FramePool
    from afxdp_pool.port import Port
    from afxdp_pool.umem import Umem

_STEPS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class PortReport:
    """One port: what it was granted, what it moved, what the kernel counted, and the entries in its rings.

    `live` is None for a port that sends by its socket alone.
    """

    name: str
    info: PortInfo | None
    stats: PortStats
    kernel: KernelStats
    rings: dict[str, int]
    program: dict[str, int]
    live: LiveStats | None = None


@dataclass(frozen=True)
class WorkerReport:
    """One of several workers.

    Attributes:
        name: ``"worker 0"``, and so on.
        cpu: where its thread runs; None: anywhere.
        ports: the names of its ports.
        seconds: how long it ran.
        received, sent, completed: packets of its ports.
        engine: what its loop did.
    """

    name: str
    cpu: int | None
    ports: tuple[str, ...]
    seconds: float
    received: int
    sent: int
    completed: int
    engine: EngineStats


@dataclass(frozen=True)
class Report:
    """A forwarder's counters.

    Attributes:
        seconds: how long it ran.
        ports: one report a port.
        pools: one set of page_pool counters a pool.
        engine: what the loop did; of several workers, the sums.
        frames: frames in each state.
        workers: one report a worker; empty when there is one loop.
    """

    seconds: float
    ports: tuple[PortReport, ...]
    pools: tuple[PoolStats, ...]
    engine: EngineStats
    frames: dict[str, int]
    workers: tuple[WorkerReport, ...] = ()

    @property
    def received(self) -> int:
        """Packets received by all ports."""
        return sum(port.stats.rx_packets for port in self.ports)

    @property
    def sent(self) -> int:
        """Packets given to all TX rings."""
        return sum(port.stats.tx_packets for port in self.ports)

    @property
    def completed(self) -> int:
        """Packets whose frames came back through COMPLETION, or that were sent live."""
        return sum(port.stats.tx_completed for port in self.ports)

    def as_dict(self) -> dict[str, Any]:
        """All of it as nested dicts and lists of plain values."""
        out = asdict(self)
        out |= {"received": self.received, "sent": self.sent, "completed": self.completed}
        if self.seconds:
            out |= {"rx_pps": self.received / self.seconds, "tx_pps": self.sent / self.seconds}
        return out

    def __str__(self) -> str:
        rate = max(self.received, self.sent) / self.seconds if self.seconds else 0.0
        return (
            f"{self.seconds:.1f} s: received {self.received}, sent {self.sent}, completed {self.completed}, "
            f"{scaled(rate, 'pps')}"
        )


def scaled(value: float, unit: str) -> str:
    """A number of about four figures with its unit: ``1.234 Mpps``."""
    for step, letter in _STEPS:
        if value >= step * 0.99995:
            figures = value / step
            return f"{figures:.{3 if figures < 10 else 2 if figures < 100 else 1}f} {letter}{unit}"
    return f"{value:.0f} {unit}"


def make_report(
    seconds: float,
    umem: Umem,
    ports: Sequence[Port],
    pools: Sequence[FramePool],
    engine: EngineStats,
    workers: tuple[WorkerReport, ...] = (),
) -> Report:
    """Read all counters of a forwarder's parts. Concurrency: any thread."""
    return Report(
        seconds,
        tuple(
            PortReport(
                port.name,
                port.info if port.fileno() >= 0 else None,
                port.stats(),
                port.kernel_stats(),
                port.ring_levels(),
                asdict(port.program.counters()) if port.program is not None else {},
                port.live_stats(),
            )
            for port in ports
        ),
        tuple(pool.stats() for pool in pools),
        engine,
        umem.count_states(),
        workers,
    )
