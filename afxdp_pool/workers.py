"""`Workers`: several forwarders over one Umem, each a loop in a thread of its own; one queue, or a few, for each.

It owns the threads; the forwarders too when a ready-made path made them. Every worker has a pool of its own, so that
the cache and the refill are never shared. A frame that another worker, or any other thread, gives back comes home to
its pool as a remote return. Invariant: the workers end together: the first one that fails stops the others, and
`join()` raises its error.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from afxdp_pool.errors import ConfigError
from afxdp_pool.forwarder import SLICE, Forwarder
from afxdp_pool.info import Info, make_info
from afxdp_pool.report import Report, WorkerReport, make_report
from afxdp_pool.runner import Runner
from afxdp_pool.stats import EngineStats

log = logging.getLogger("afxdp_pool")
_LOOK_EVERY = 0.002  # seconds between two looks at how many packets have come, when that ends the run


class Workers(Runner):
    """Forwarders that run side by side.

    Args:
        forwarders: one a worker; their ports are on one Umem, and no port or pool serves two of them. A forwarder's
            `cpu` is where its thread runs.

    A handler is called from its worker's thread: one handler given to several forwarders is called from several
    threads, at any time, for different batches. What it keeps between calls needs a lock, or be the worker's own.

    Raises:
        ConfigError: no forwarders, forwarders on different Umems, a port or pool in two of them.

    Concurrency: `stop`, `snapshot` and `hand_over` of its forwarders: any thread. All else: one thread at a time, which
    is none of the workers.
    """

    def __init__(self, forwarders: Iterable[Forwarder]) -> None:
        self.forwarders = list(forwarders)
        if not self.forwarders:
            raise ConfigError("there are no workers", hint="give one forwarder or more")
        self.umem = self.forwarders[0].umem
        if any(forwarder.umem is not self.umem for forwarder in self.forwarders):
            raise ConfigError("workers share one Umem", hint="make their pools on the same Umem")
        self.ports = [port for forwarder in self.forwarders for port in forwarder.ports]
        if len(set(self.ports)) != len(self.ports):
            raise ConfigError("a port is used by one worker at a time", hint="give each worker ports of its own")
        if sum(len(forwarder.pools) for forwarder in self.forwarders) != len(self.pools):
            raise ConfigError("a pool belongs to one worker", hint="give each worker a pool of its own")
        self._owned: list[Any] = []
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._left = 0

    def run(
        self,
        duration: float | None = None,
        *,
        packets: int | None = None,
        on_tick: Callable[[Any], None] | None = None,
    ) -> Report:
        """Move packets in the workers' threads; this one waits until `duration` seconds are over, or `stop()`.

        With `packets` it stops once they have received so many together: a few more by then. `on_tick` is called in
        this thread about ten times a second.

        Raises:
            What the first worker to fail raised; see `Forwarder.run`. Whatever `on_tick` raises.
        """
        if packets is not None and packets < 0:
            raise ConfigError(f"a run of {packets} packets is not possible")
        wanted = self._received() + packets if packets else 0
        self.start(duration)
        tick = time.monotonic() + SLICE
        try:
            while not self._ended.wait(_LOOK_EVERY if wanted else max(0.0, tick - time.monotonic())):
                if wanted and self._received() >= wanted:
                    self.stop()
                    break
                if time.monotonic() >= tick:
                    tick += SLICE
                    if on_tick is not None:
                        on_tick(self)
        except BaseException:
            self.stop()
            for thread in self._threads:
                thread.join()
            self._forget()
            raise
        return self.join()

    def start(self, duration: float | None = None, *, on_tick: Callable[[Any], None] | None = None) -> None:
        """Start a thread for each forwarder. `on_tick` is called in the first one's, about ten times a second.

        Raises:
            ConfigError: they are running already.
        """
        if self._threads:
            raise ConfigError("the workers are running already")
        for forwarder in self.forwarders:
            _ = forwarder.native  # raises when it was closed
        self._ended.clear()
        self._left = len(self.forwarders)
        for number, forwarder in enumerate(self.forwarders):
            tick = on_tick if number == 0 else None
            work = threading.Thread(
                target=self._work, args=(number, forwarder, duration, tick), name=f"afxdp-pool {number}", daemon=True
            )
            self._threads.append(work)
        for thread in self._threads:
            thread.start()

    def _work(
        self, number: int, forwarder: Forwarder, duration: float | None, on_tick: Callable[[Any], None] | None
    ) -> None:
        try:
            forwarder.run(duration, on_tick=on_tick and (lambda _: on_tick(self)))
        except BaseException as error:  # handed over by join()
            error.add_note(f"in worker {number}: {', '.join(port.name for port in forwarder.ports)}")
            with self._lock:
                self._failures.append(error)
            self.stop()
        finally:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._ended.set()

    def stop(self) -> None:
        """End the run, soon. Concurrency: any thread, and signal handlers."""
        for forwarder in self.forwarders:
            forwarder.stop()

    def join(self) -> Report:
        """Wait for all workers to end, and return their report.

        Raises:
            What the first worker to fail raised. The errors of others that failed after it are said in the log.
        """
        for thread in self._threads:
            thread.join()
        failures = self._forget()
        if failures:
            for other in failures[1:]:
                log.warning("%s: %s", "; ".join(other.__notes__), other)
            raise failures[0]
        return self.snapshot()

    def _forget(self) -> list[BaseException]:
        """No worker runs any more: what they raised, in order, and nothing of this run is left for the next."""
        failures, self._failures = self._failures, []
        if self._threads:
            self._threads = []
            for forwarder in self.forwarders:
                forwarder._forget_stop()
        return failures

    def snapshot(self) -> Report:
        """What happened so far, summed over the workers, and for each in `Report.workers`. Concurrency: any thread."""
        parts = []
        for number, forwarder in enumerate(self.forwarders):
            stats = [port.stats() for port in forwarder.ports]
            parts.append(
                WorkerReport(
                    f"worker {number}",
                    forwarder.cpu,
                    tuple(port.name for port in forwarder.ports),
                    forwarder.seconds,
                    sum(port.rx_packets for port in stats),
                    sum(port.tx_packets for port in stats),
                    sum(port.tx_completed for port in stats),
                    forwarder.engine_stats(),
                )
            )
        total = EngineStats.sum(part.engine for part in parts)
        seconds = max(part.seconds for part in parts)
        return make_report(seconds, self.umem, self.ports, self.pools, total, tuple(parts))

    def info(self) -> Info:
        """What was granted: ports, XDP programs, memory, a loop a worker, versions. Concurrency: any thread."""
        return make_info(self.umem, self.ports, self.forwarders)

    def _received(self) -> int:
        return sum(port.stats().rx_packets for port in self.ports)

    def close(self) -> None:
        """Stop, wait for the workers, and close what it made: forwarders, ports, pools, Umem. Idempotent.

        Forwarders that were given to it, and what they use, stay open.

        Raises:
            ConfigError: a handler calls it: `stop()` is what it may do.
        """
        if threading.current_thread() in self._threads:
            raise ConfigError("workers are not closed by their own handler", hint="call stop(), and close() after it")
        if self._threads:
            self.stop()
            for thread in self._threads:
                thread.join()
            self._forget()
        for thing in reversed(self._owned):
            thing.close()
        self._owned.clear()
