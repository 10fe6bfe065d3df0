"""`Forwarder`: ports, what becomes of their packets, and the loop that moves them, in one worker thread.

It owns the loop; the ports and pools too when one of its ready-made paths made them (`drop`, `forward`, `reflect`,
`transmit`, `handle`). The loop runs in C with the interpreter lock released; Python sees batches only if a handler is
given. Invariant: a packet is received only when every port it may leave by has room, so nothing is dropped in here for
want of room, and order is kept.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from afxdp_pool import numa
from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import Batch, need_batch
from afxdp_pool.beacon import Beacon
from afxdp_pool.binding import link_gone
from afxdp_pool.chain import packets_of
from afxdp_pool.config import check_batch, need
from afxdp_pool.errors import (
    AfXdpError,
    ConfigError,
    ForeignFrameError,
    LinkGoneError,
    PoolClosedError,
    PoolError,
    WrongThreadError,
)
from afxdp_pool.frames import Frames
from afxdp_pool.handlers import Handler, check_handler
from afxdp_pool.handling import bad_verdicts, slices
from afxdp_pool.info import Info, handler_name, make_info
from afxdp_pool.port import Port
from afxdp_pool.refusals import frames_call
from afxdp_pool.report import Report, make_report
from afxdp_pool.routes import Route, Template, make_generator, set_routes
from afxdp_pool.runner import Runner
from afxdp_pool.stats import EngineStats, engine_stats
from afxdp_pool.tuning import pinned
from afxdp_pool.watch import Watch

log = logging.getLogger("afxdp_pool")
#: Rounds without work before the worker sleeps, about 50 us: long enough to bridge the gaps between batches under load.
SPIN = 1024
#: The longest the loop stays in C: signals and `on_tick` wait so long.
SLICE = 0.1
#: How long packets under way may take to be sent and completed at the end of a run.
DRAIN_WITHIN = 1.0
#: The same while batches that were handed over wait for room in a TX ring.
SLICE_HANDING = 0.0005


class Forwarder(Runner):
    """A worker's loop over ports.

    Args:
        ports: numbered 0, 1, ... as given; on one Umem.
        routes: what becomes of each port's packets, by port number. A port with no route only sends: it
            receives nothing. Not with a handler, which gets the packets of every port that receives.
        handler: ``def handle(batch) -> verdicts``, called for each batch; see `afxdp_pool.handlers`.
        batch: most packets in a round, 1 to 1024.
        spin: rounds without work before the worker sleeps.
        cpu: the CPU that the thread is pinned to while it runs; None: anywhere.

    Raises:
        ConfigError: no ports, ports on different Umems, routes to ports that do not exist; no handler.

    Concurrency: `run` in one thread at a time, which owns the ports' pools while it runs. `stop`, `snapshot` and
    `hand_over`: any.
    """

    def __init__(
        self,
        ports: Iterable[Port],
        routes: Mapping[int, Route] | None = None,
        *,
        handler: Handler | None = None,
        batch: int = 64,
        spin: int = SPIN,
        cpu: int | None = None,
    ) -> None:
        if handler is not None:
            check_handler(handler)
        self.ports = list(ports)
        self.handler = handler
        self.batch = check_batch(batch)
        self.spin = spin
        self.cpu = cpu
        if not 0 <= spin < 1 << 32:
            raise ConfigError(f"{spin} rounds of spinning are not possible", hint="choose 0 to 2^32 - 1")
        if not self.ports:
            raise ConfigError("a forwarder needs a port")
        for port in self.ports:
            need(port, Port)
        self.umem = self.ports[0].pool.umem
        if any(port.pool.umem is not self.umem for port in self.ports):
            raise ConfigError("the ports of a forwarder share one Umem", hint="make their pools on the same Umem")
        self._engine = ffi.new("struct afp_engine *")
        failed = lib.afp_engine_init(self._engine, self.umem.table, self.batch, spin)
        if failed:
            raise AfXdpError(doing="making an event descriptor", errno=-failed)
        self._owned: list[Any] = []
        self._keep: list[Any] = []
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._running = threading.Lock()
        self._runner = 0  # the thread that is in run()
        self._failure: BaseException | None = None
        self._stopping = False
        self._taken: Port | None = None  # another thread closes it
        self._told: set[str] = set()
        self._handed: deque[tuple[Batch, Port, Any]] = deque()  # and where C writes how many frames of it were sent
        self._started = self._stopped = 0.0
        try:
            for port in self.ports:
                self._keep.append(port.native)  # should it be closed before the engine is
                if lib.afp_engine_add(self._engine, port.native) < 0:
                    raise ConfigError("a forwarder can have 64 ports")
            set_routes(self._engine, self.ports, routes or {}, asked=handler is not None)
        except BaseException:
            self.close()
            raise

    def _generate(self, template: Template, count: int, rate: float) -> None:
        """Give the engine packets to send from port 0."""
        generator, needed = make_generator(self.ports[0], template, count, rate)
        self._keep += [*needed, generator]
        self._engine.generator = generator

    @property
    def native(self) -> Any:
        """The C engine, for the modules that call C.

        Raises:
            PoolClosedError: the forwarder is closed.
        """
        if self._engine is None:
            raise PoolClosedError("the forwarder is closed")
        return self._engine

    # Running ----------------------------------------------------------------------------------------------------

    def run(
        self,
        duration: float | None = None,
        *,
        packets: int | None = None,
        on_tick: Callable[[Forwarder], None] | None = None,
    ) -> Report:
        """Move packets in this thread until `duration` seconds, `packets` received, the last one sent, or `stop()`.

        `on_tick` is called about ten times a second. At the end packets under way are sent and completed; then the
        pools are unbound, unless this thread had bound them before.

        Raises:
            LinkGoneError: a network device went away, or went down while there was something to send.
            ProgramGoneError: somebody took the XDP program off. WrongThreadError: another thread owns a pool.
            VerdictError: the handler returned no verdicts; its packets were dropped. Whatever the handler raises.
            PoolClosedError: a port, its pool or its Umem was closed, before or meanwhile.
            ConfigError: it is running already, or the numbers mean nothing.
        """
        if (duration is not None and math.isnan(duration)) or not 0 <= (packets or 0) < 1 << 62:
            raise ConfigError(f"a run of {duration} seconds, {packets} packets is not possible")
        if self._running.locked():
            raise ConfigError("the forwarder is running already")
        # Not acquire() and try: what a signal's handler raises could come between them, and nobody would release.
        with self._running:
            try:
                self._runner = threading.get_ident()
                self._taken = None
                for port in self.ports:
                    port._user = self._leave
                name = handler_name(self.handler)
                with (
                    Watch(self.ports) as watch,  # before this thread is pinned: its own is not to be on that CPU
                    pinned(self.cpu, self.ports[0].name),
                    Beacon(self.ports, self.cpu, name) as beacon,
                ):
                    self._look_at_nodes()
                    return self._run(duration, packets, on_tick, beacon, watch)
            finally:
                for port in self.ports:
                    port._user = None
                self._runner = 0

    def _run(
        self,
        duration: float | None,
        packets: int | None,
        on_tick: Callable[[Forwarder], None] | None,
        beacon: Beacon,
        watch: Watch,
    ) -> Report:
        engine = self.native
        self._require_ports()
        mine = [pool for pool in self.pools if not pool.owner_tid]
        end = lib.afp_now_ns() + int(min(max(duration, 0.0), 1e9) * 1e9) if duration is not None else 1 << 62
        engine.packet_limit = engine.received + packets if packets else 0
        one_slice = slices(self.handler, engine, self.umem, self.ports) if self.handler else lib.afp_engine_run
        self._started, self._stopped = time.monotonic(), 0.0
        try:
            for pool in mine:
                pool.bind()
            while True:
                longest = SLICE_HANDING if self._handed else SLICE
                why = one_slice(engine, min(end, lib.afp_now_ns() + int(longest * 1e9)))
                if why == lib.AFP_RAN_STOP and not self._stopping:
                    lib.afp_engine_clear_stop(engine)  # first: what is handed over after this wakes it again
                    if not self._stopping:
                        why = lib.AFP_RAN_DEADLINE
                if self._handed:
                    self._send_handed()
                if why != lib.AFP_RAN_DEADLINE:
                    break
                self.umem.reap()
                for port in self.ports:
                    port.look_for_trouble()
                watch.check()
                if beacon.due:
                    beacon.tell(self.engine_stats())
                if on_tick is not None:
                    on_tick(self)
                    self._require_ports()
                if lib.afp_now_ns() >= end:
                    break
            self._raise_for(why)
        finally:
            try:
                lib.afp_engine_drain(engine, lib.afp_now_ns() + int(DRAIN_WITHIN * 1e9))
            finally:  # a second Ctrl-C may end the wait
                self._forget_stop()
                for pool in mine:
                    if pool.state == "open" and pool.owner_tid == threading.get_native_id():
                        pool.collect()
                        pool.unbind()
                self._stopped = time.monotonic()
        return self.snapshot()

    def _leave(self, port: Port) -> None:
        """A port is being closed: by another thread, which waits for the end of the run, or by a handler."""
        if self._runner != threading.get_ident():
            self._taken = port
            self.stop()
            with self._running:
                pass

    def _look_at_nodes(self) -> None:
        """Say in the log, once each, what of NICs, frames and this thread is not on one NUMA node."""
        if len(numa.nodes()) < 2:
            return
        devices = {port.netdev: port.place.numa_node for port in self.ports if port.place is not None}
        thread = numa.node_of_cpus(os.sched_getaffinity(0))
        for told in numa.differences(devices, self.umem.numa_nodes, thread):
            if told not in self._told:
                self._told.add(told)
                log.warning("%s: packets cross from node to node; see docs/nic-setup.md", told)

    def hand_over(self, batch: Batch, port: Port) -> None:
        """Let this worker send `batch` out of `port`, one of its own. Batches go in the order they were handed over.

        For packets that another worker received and its handler keeps: it returns KEEP. It costs a wake-up a batch.
        What the TX ring has no room for goes as soon as it has; what a run's end finds unsent waits for the next run,
        or is put by `close()`.

        Raises:
            ConfigError: the port is not one of this forwarder that sends. ForeignFrameError: a batch of another Umem.
            FrameGoneError: `Frames`, of which some were given away already. PoolClosedError: the forwarder is closed.

        Concurrency: any thread. Ownership: the frames are the worker's; they come home to their own pool when sent.
        A bad descriptor (see `Port.transmit`) ends the run with its error.
        """
        need_batch(batch)
        if port not in self.ports or not port.config.transmit:
            raise ConfigError(f"{getattr(port, 'name', port)} is no port of this forwarder that sends")
        if batch.data is not self.umem.data:
            raise ForeignFrameError("the batch is of another Umem")
        engine = self.native
        # Nothing that the caller may still change, close or, if it was lent, get back with other packets in it.
        held = isinstance(batch, Frames) or batch._owner is not None
        ours = Frames(batch, lent=True) if held else batch.copy()
        self._handed.append((ours, port, ffi.new("uint32_t *")))
        lib.afp_engine_stop(engine)
        if self._engine is None:  # closed meanwhile
            self._put_handed()

    def _send_handed(self) -> None:
        """Send what was handed over, as far as there is room."""
        while self._handed:
            rest, port, done = self._unsent()
            try:
                sent = port._send(rest, done)
            except (PoolError, LinkGoneError) as error:
                bad = isinstance(error, PoolError)  # one descriptor, which is given up
                self._handed[0] = rest[error.done + bad :], port, ffi.new("uint32_t *")
                raise
            if sent < len(rest):
                return
            self._handed.popleft()

    def _unsent(self) -> tuple[Batch, Port, Any]:
        """The first that was handed over, less what was sent of it, be it that an exception ended the call that did."""
        batch, port, done = self._handed[0]
        rest = batch[packets_of(batch._chain, done[0]) :]
        self._handed[0] = first = rest, port, ffi.new("uint32_t *")
        return first

    def _put_handed(self) -> None:
        """Nobody will send what was handed over."""
        with contextlib.suppress(IndexError):
            while self.umem._open:
                rest, _, done = self._unsent()
                with contextlib.suppress(PoolError):  # of a bad descriptor; the good ones are put
                    frames_call(lib.afp_put_all, self.umem.table, self.umem.data, rest, "put", done)
                self._handed.popleft()

    def _forget_stop(self) -> None:
        """A stop was obeyed, or came too late for a run that has ended."""
        self._stopping = False
        lib.afp_engine_clear_stop(self.native)

    def _require_ports(self) -> None:
        for port in self.ports:
            _ = port.native  # raises when it was closed

    def _raise_for(self, why: int) -> None:
        engine = self.native
        if self._taken is not None:
            _ = self._taken.native  # raises
        if why == lib.AFP_RAN_ERROR:
            failed = self.ports[engine.failed_port]
            raise link_gone(failed.name, int(failed.native.error))
        if why == lib.AFP_RAN_VERDICT:
            raise bad_verdicts(engine.bad_verdicts, len(self.ports))
        if why == lib.AFP_RAN_WRONG_THREAD:
            for pool in self.pools:
                _ = pool.native  # raises when it was closed
            raise WrongThreadError(
                "run: another thread owns a pool of these ports", hint="let it call pool.unbind() first"
            )

    def start(self, duration: float | None = None, *, on_tick: Callable[[Forwarder], None] | None = None) -> None:
        """Run in a thread of its own until `stop()`; `join()` gives the report, or raises what the run raised.

        `on_tick` is called in that thread, about ten times a second.

        Raises:
            ConfigError: it is running already.
        """
        if self._thread is not None:
            raise ConfigError("the forwarder is running already")

        def work() -> None:
            try:
                self.run(duration, on_tick=on_tick)
            except BaseException as error:  # handed over by join()
                self._failure = error

        self._thread = threading.Thread(target=work, name="afxdp-pool", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the run, soon. Concurrency: any thread, and signal handlers."""
        self._stopping = True
        if self._engine is not None:
            lib.afp_engine_stop(self._engine)

    def join(self) -> Report:
        """Wait for the thread of `start()` to end, and return its report.

        Raises:
            What the run raised; see `run`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            self._forget_stop()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self.snapshot()

    # Looking ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Report:
        """What happened so far: every counter, and where the frames are. Concurrency: any thread."""
        return make_report(self.seconds, self.umem, self.ports, self.pools, self.engine_stats())

    def info(self) -> Info:
        """What was granted: ports, XDP programs, memory, the loop, versions. Concurrency: any thread."""
        return make_info(self.umem, self.ports, [self])

    @property
    def seconds(self) -> float:
        """How long the last run took, or this one has. Concurrency: any thread."""
        return (self._stopped or time.monotonic()) - self._started if self._started else 0.0

    def engine_stats(self) -> EngineStats:
        """What the loop did so far. Concurrency: any thread."""
        return engine_stats(self.native)

    def close(self) -> None:
        """Stop, and close what it made: ports, pools, Umem. Idempotent. What was given to it stays open.

        Raises:
            ConfigError: a handler or `on_tick` calls it: `stop()` is what they may do.
        """
        if self._engine is None:
            return
        if self._runner == threading.get_ident():
            raise ConfigError("a forwarder is not closed by its own handler", hint="call stop(), and close() after it")
        if os.getpid() != self._process:  # a forked child: the loop that may run, and all it uses, are its parent's
            lib.afp_engine_fini(self._engine)
            self._engine = None
            return
        if self._thread is not None:
            self.stop()
            self._thread.join()
            self._thread = None
        self.stop()  # a run() in another thread
        with self._running:
            engine, self._engine = self._engine, None
            if engine is not None:
                lib.afp_engine_fini(engine)
        self._put_handed()
        for thing in reversed(self._owned):
            thing.close()
