"""`Runner`: what the ready-made paths return, whether one loop does the work (`Forwarder`) or several (`Workers`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from afxdp_pool.audit import Audit
from afxdp_pool.info import Info
from afxdp_pool.report import Report
from afxdp_pool.single import Single

if TYPE_CHECKING:
    from afxdp_pool.pool import FramePool
    from afxdp_pool.port import Port
    from afxdp_pool.umem import Umem


class Runner(Single, ABC):
    """Ports on one Umem, and what becomes of their packets while it runs.

    Attributes:
        umem: the Umem.
        ports: all ports, those of the first worker first.

    Concurrency: `stop` and `snapshot`: any thread. All else: one thread at a time.
    """

    umem: Umem
    ports: list[Port]

    @property
    def pools(self) -> list[FramePool]:
        """The pools its ports fill from."""
        return list(dict.fromkeys(port.pool for port in self.ports))

    @abstractmethod
    def run(
        self,
        duration: float | None = None,
        *,
        packets: int | None = None,
        on_tick: Callable[[Any], None] | None = None,
    ) -> Report:
        """Move packets until `duration` seconds are over, `packets` are received, or `stop()`."""

    @abstractmethod
    def start(self, duration: float | None = None, *, on_tick: Callable[[Any], None] | None = None) -> None:
        """Run in the background until `stop()`; `join()` gives the report, or raises what the run raised."""

    @abstractmethod
    def stop(self) -> None:
        """End the run, soon. Concurrency: any thread, and signal handlers."""

    @abstractmethod
    def join(self) -> Report:
        """Wait for what `start()` began to end; its report, or its error."""

    @abstractmethod
    def snapshot(self) -> Report:
        """What happened so far: every counter, and where the frames are. Concurrency: any thread."""

    @abstractmethod
    def info(self) -> Info:
        """What was granted: ports, XDP programs, memory, loops, versions. Concurrency: any thread."""

    @abstractmethod
    def close(self) -> None:
        """Stop, and close what it made: ports, pools, Umem. Idempotent. What was given to it stays open."""

    def audit(self) -> Audit:
        """Prove that every frame is accounted for. Concurrency: not while it runs."""
        return self.umem.audit()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.umem.failing(error)
        self.close()
