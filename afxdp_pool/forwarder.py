"""`Forwarder`: ports, what becomes of their packets, and the loop that moves them, in one worker thread.

It owns the loop; the ports and pools too when one of its ready-made paths made them (`drop`, `forward`, `reflect`,
`transmit`, `handle`). The loop runs in C with the interpreter lock released; Python sees batches only if a handler is
given. Invariant: a packet is received only when every port it may leave by has room, so nothing is dropped in here for
want of room, and order is kept.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from afxdp_pool._native import ffi, lib
from afxdp_pool.audit import Audit
from afxdp_pool.batch import DESC, Batch
from afxdp_pool.binding import link_gone
from afxdp_pool.config import check_batch
from afxdp_pool.errors import AfXdpError, ConfigError, PoolClosedError, VerdictError, WrongThreadError
from afxdp_pool.handlers import DROP, FORWARD, TX, Handler, write_verdicts
from afxdp_pool.pool import FramePool
from afxdp_pool.port import Port
from afxdp_pool.report import Report, make_report
from afxdp_pool.stats import engine_stats

#: Rounds without work before the worker sleeps, about 50 us: long enough to bridge the gaps between batches under load.
SPIN = 1024
#: The longest the loop stays in C: signals and `on_tick` wait so long.
SLICE = 0.1
#: How long packets under way may take to be sent and completed at the end of a run.
DRAIN_WITHIN = 1.0
_MAC_LENGTH = 6


def mac(text: str | bytes) -> bytes:
    """A MAC address as 6 bytes, from ``"02:00:00:00:00:01"`` or 6 bytes.

    Raises:
        ConfigError: it is neither.
    """
    try:
        raw = (
            bytes.fromhex(text.replace(":", "").replace("-", "")) if isinstance(text, str) else bytes(memoryview(text))
        )
    except (ValueError, TypeError):
        raw = b""
    if len(raw) != _MAC_LENGTH:
        raise ConfigError(f"{text!r} is not a MAC address", hint="write it as 02:00:00:00:00:01")
    return raw


@dataclass(frozen=True)
class Rewrite:
    """What to change in the Ethernet header of a packet that is sent on.

    Attributes:
        swap: exchange source and destination address.
        dst, src: set the destination, the source; 6 bytes or ``"02:00:00:00:00:01"``.
    """

    swap: bool = False
    dst: str | bytes | None = None
    src: str | bytes | None = None


@dataclass(frozen=True)
class Route:
    """What the built-in loop does with one port's packets: a verdict, and a rewrite before they are sent."""

    verdict: int = DROP
    rewrite: Rewrite = field(default_factory=Rewrite)


@dataclass(frozen=True)
class Template:
    """Packets for the tx path.

    Attributes:
        packets: sent in turn.
        sequence_at: offset in bytes of a 64-bit big-endian number to count up in each packet; 0 for none.
            With several packets each counts its own.
        checksum_at: offset of the UDP checksum that covers it, right for number 0; kept right (RFC 1624). 0 for none.
    """

    packets: Sequence[bytes]
    sequence_at: int = 0
    checksum_at: int = 0

    def __post_init__(self) -> None:
        # Nobody can change them once they are checked.
        object.__setattr__(self, "packets", tuple(memoryview(packet).tobytes() for packet in self.packets))
        if not self.packets or not all(self.packets):
            raise ConfigError("there is nothing to send", hint="give one packet or more, none of them empty")
        shortest = min(map(len, self.packets))
        ends = [at + size for at, size in ((self.sequence_at, 8), (self.checksum_at, 2)) if at]
        if min(self.sequence_at, self.checksum_at) < 0 or max(ends, default=0) > shortest:
            raise ConfigError(f"the sequence number or checksum lies beyond the packet of {shortest} bytes")
        if self.sequence_at and self.checksum_at and (self.sequence_at - self.checksum_at) % 2:
            raise ConfigError("sequence number and checksum do not share 16-bit words", hint="move one by a byte")


class Forwarder:
    """A worker's loop over ports.

    Args:
        ports: numbered 0, 1, ... as given; on one Umem.
        routes: what becomes of each port's packets, by port number. A port with no route only sends: it
            receives nothing. Not with a handler, which gets the packets of every port that receives.
        handler: ``def handle(batch) -> verdicts``, called for each batch; see `afxdp_pool.handlers`.
        batch: most packets in a round, 1 to 1024.
        spin: rounds without work before the worker sleeps.

    Raises:
        ConfigError: no ports, ports on different Umems, routes to ports that do not exist.

    Concurrency: `run` in one thread at a time, which owns the ports' pools while it runs. `stop` and `snapshot`: any.
    """

    def __init__(
        self,
        ports: Iterable[Port],
        routes: Mapping[int, Route] | None = None,
        *,
        handler: Handler | None = None,
        batch: int = 64,
        spin: int = SPIN,
    ) -> None:
        self.ports = list(ports)
        self.handler = handler
        self.batch = check_batch(batch)
        if not 0 <= spin < 1 << 32:
            raise ConfigError(f"{spin} rounds of spinning are not possible", hint="choose 0 to 2^32 - 1")
        if not self.ports:
            raise ConfigError("a forwarder needs a port")
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
        self._running = threading.Lock()
        self._runner = 0  # the thread that is in run()
        self._failure: BaseException | None = None
        self._started = self._stopped = 0.0
        try:
            for port in self.ports:
                self._keep.append(port.native)  # should it be closed before the engine is
                if lib.afp_engine_add(self._engine, port.native) < 0:
                    raise ConfigError("a forwarder can have 64 ports")
            self._set_routes(routes or {})
        except BaseException:
            self.close()
            raise

    def _set_routes(self, routes: Mapping[int, Route]) -> None:
        if not set(routes) <= set(range(len(self.ports))):
            raise ConfigError(f"there are routes for ports {sorted(routes)}, and ports 0 to {len(self.ports) - 1}")
        for index, port in enumerate(self.ports):
            native = self._engine.route[index]
            route = routes.get(index)
            native.receive = port.config.receive and (self.handler is not None or route is not None)
            if route is None:
                continue
            if route.verdict != DROP and route.verdict != TX and not FORWARD(0) <= route.verdict <= FORWARD(63):
                raise ConfigError(
                    f"the route of port {index} has verdict {route.verdict}; use DROP, TX or FORWARD(port)"
                )
            target = index if route.verdict == TX else route.verdict & 0x7F
            if route.verdict != DROP and (target >= len(self.ports) or not self.ports[target].config.transmit):
                raise ConfigError(f"the route of port {index} leads to port {target}, which cannot send")
            native.verdict = route.verdict
            native.rewrite = (
                route.rewrite.swap | 2 * (route.rewrite.dst is not None) | 4 * (route.rewrite.src is not None)
            )
            if route.rewrite.dst is not None:
                native.dst = list(mac(route.rewrite.dst))
            if route.rewrite.src is not None:
                native.src = list(mac(route.rewrite.src))

    def _generate(self, template: Template, count: int, rate: float) -> None:
        """Give the engine packets to send from port 0."""
        longest = max(map(len, template.packets))
        room = self.umem.frame_size - self.umem.config.headroom
        if longest > room:
            raise ConfigError(
                f"a packet of {longest} bytes does not fit a frame", hint=f"frames here take {room} bytes"
            )
        if count < 0 or rate < 0:
            raise ConfigError("count and rate are not negative", hint="0 means without end, as fast as can be")
        data = ffi.new("uint8_t[]", b"".join(template.packets))
        offsets = ffi.new("uint32_t[]", [0, *np.cumsum([len(packet) for packet in template.packets]).tolist()])
        generator = ffi.new(
            "struct afp_generator *",
            {
                "pool": self.ports[0].pool.native,
                "port": 0,
                "templates": len(template.packets),
                "data": data,
                "offset": offsets,
                "count": count,
                "rate": rate,
                "sequence_at": template.sequence_at,
                "checksum_at": template.checksum_at,
            },
        )
        self._keep += [data, offsets, generator]
        self._engine.generator = generator

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def native(self) -> Any:
        """The C engine, for the modules that call C.

        Raises:
            PoolClosedError: the forwarder is closed.
        """
        if self._engine is None:
            raise PoolClosedError("the forwarder is closed")
        return self._engine

    @property
    def pools(self) -> list[FramePool]:
        """The pools its ports fill from."""
        return list(dict.fromkeys(port.pool for port in self.ports))

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
            LinkGoneError: a network device went down or away. WrongThreadError: another thread owns a pool.
            VerdictError: the handler returned no verdicts; its packets were dropped. Whatever the handler raises.
            PoolClosedError: a port, its pool or its Umem was closed, before or meanwhile.
            ConfigError: it is running already, or the numbers mean nothing.
        """
        if (duration is not None and math.isnan(duration)) or not 0 <= (packets or 0) < 1 << 62:
            raise ConfigError(f"a run of {duration} seconds, {packets} packets is not possible")
        if not self._running.acquire(blocking=False):
            raise ConfigError("the forwarder is running already")
        try:
            self._runner = threading.get_ident()
            return self._run(duration, packets, on_tick)
        finally:
            self._runner = 0
            self._running.release()

    def _run(self, duration: float | None, packets: int | None, on_tick: Callable[[Forwarder], None] | None) -> Report:
        engine = self.native
        self._require_ports()
        mine = [pool for pool in self.pools if not pool.owner_tid]
        end = lib.afp_now_ns() + int(min(max(duration, 0.0), 1e9) * 1e9) if duration is not None else 1 << 62
        engine.packet_limit = engine.received + packets if packets else 0
        one_slice = self._run_handler if self.handler else lib.afp_engine_run
        for pool in mine:
            pool.bind()
        self._started, self._stopped = time.monotonic(), 0.0
        try:
            while True:
                why = one_slice(engine, min(end, lib.afp_now_ns() + int(SLICE * 1e9)))
                if why != lib.AFP_RAN_DEADLINE:
                    break
                self.umem.reap()
                for port in self.ports:
                    port.look_for_trouble()
                if on_tick is not None:
                    on_tick(self)
                    self._require_ports()
                if lib.afp_now_ns() >= end:
                    break
            self._raise_for(why)
        finally:
            lib.afp_engine_drain(engine, lib.afp_now_ns() + int(DRAIN_WITHIN * 1e9))
            lib.afp_engine_clear_stop(engine)
            for pool in mine:
                if pool.state == "open" and pool.owner_tid == threading.get_native_id():
                    pool.collect()
                    pool.unbind()
            self._stopped = time.monotonic()
        return self.snapshot()

    def _run_handler(self, engine: Any, end_ns: int) -> int:
        handler = self.handler
        assert handler is not None
        # Views of the engine's memory; they keep it alive, should a handler keep one of them.
        memory = ffi.buffer(engine)
        descs = np.frombuffer(memory, DESC, lib.AFP_BATCH_MAX, ffi.offsetof("struct afp_engine", "descs"))
        verdicts = np.frombuffer(memory, np.uint8, lib.AFP_BATCH_MAX, ffi.offsetof("struct afp_engine", "verdicts"))
        data, ports, frame_size = self.umem.data, self.ports, self.umem.frame_size
        while (why := lib.afp_engine_poll(engine, end_ns)) == lib.AFP_RAN_BATCH:
            n = engine.busy_n
            batch = Batch(descs[:n], data, ports[engine.busy_port], frame_size=frame_size)
            write_verdicts(handler(batch), verdicts[:n])  # or it raises, and the drain drops the batch
            self._require_ports()
            bad = lib.afp_engine_dispatch(engine)
            if bad:
                raise VerdictError(
                    f"the handler returned {bad} verdicts that lead to no port that sends; their packets were dropped",
                    hint=f"this forwarder's ports are 0 to {len(ports) - 1}",
                )
            if engine.packet_limit and engine.received >= engine.packet_limit:
                return int(lib.AFP_RAN_COUNT)
            if lib.afp_now_ns() >= end_ns:
                return int(lib.AFP_RAN_DEADLINE)
        return int(why)

    def _require_ports(self) -> None:
        for port in self.ports:
            _ = port.native  # raises when it was closed

    def _raise_for(self, why: int) -> None:
        engine = self.native
        if why == lib.AFP_RAN_ERROR:
            failed = self.ports[engine.failed_port]
            raise link_gone(failed.name, int(failed.native.error))
        if why == lib.AFP_RAN_WRONG_THREAD:
            for pool in self.pools:
                _ = pool.native  # raises when it was closed
            raise WrongThreadError(
                "run: another thread owns a pool of these ports", hint="let it call pool.unbind() first"
            )

    def start(self, duration: float | None = None) -> None:
        """Run in a thread of its own until `stop()`; `join()` gives the report, or raises what the run raised."""
        if self._thread is not None:
            raise ConfigError("the forwarder is running already")

        def work() -> None:
            try:
                self.run(duration)
            except BaseException as error:  # handed over by join()
                self._failure = error

        self._thread = threading.Thread(target=work, name="afxdp-pool", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the run, soon. Concurrency: any thread, and signal handlers."""
        if self._engine is not None:
            lib.afp_engine_stop(self._engine)

    def join(self) -> Report:
        """Wait for the thread of `start()` to end; its report, or its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            lib.afp_engine_clear_stop(self.native)
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self.snapshot()

    # Looking ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Report:
        """What happened so far: every counter, and where the frames are. Concurrency: any thread."""
        seconds = (self._stopped or time.monotonic()) - self._started if self._started else 0.0
        return make_report(seconds, self.umem, self.ports, self.pools, engine_stats(self.native))

    def audit(self) -> Audit:
        """Prove that every frame is accounted for. Concurrency: not while it runs."""
        return self.umem.audit()

    def close(self) -> None:
        """Stop, and close what it made: ports, pools, Umem. Idempotent. What was given to it stays open.

        Raises:
            ConfigError: a handler or `on_tick` calls it: `stop()` is what they may do.
        """
        if self._engine is None:
            return
        if self._runner == threading.get_ident():
            raise ConfigError("a forwarder is not closed by its own handler", hint="call stop(), and close() after it")
        if self._thread is not None:
            self.stop()
            self._thread.join()
            self._thread = None
        self.stop()  # a run() in another thread
        with self._running:
            lib.afp_engine_fini(self._engine)
            self._engine = None
        for thing in reversed(self._owned):
            thing.close()
