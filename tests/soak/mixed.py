"""The engine that is soaked: every way a packet can go, at once, on two workers; and the links it goes over."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

import afxdp_pool as ap
from afxdp_pool.errors import AfXdpError
from afxdp_pool.testing import Lab, Sink, Source

INS, OUTS, MIRROR = ("in0", "in1"), ("out0", "out1"), "mirror"
QUEUES = 2
FRAMES = 16384
#: A pool may own so many frames: two of them leave some, so that a hoard meets its quota before the Umem is empty.
QUOTA = FRAMES // 2 - 1024
PORT = ap.PortConfig(fill_size=2048, comp_size=1024, rx_size=1024, tx_size=1024, fill_level=1024)
#: Of a hundred packets so many are dropped, kept, forwarded; of those forwarded, some are mirrored or held meanwhile.
DROPPED, KEPT = 20, 15
MIRRORED, HELD = 15, 10
#: What a thread that gives frames back may be behind before a handler keeps nothing more.
BEHIND = 200


class Returners:
    """Threads that give back what handlers kept, in an order and at times of their own."""

    def __init__(self, count: int = 3) -> None:
        self._queue: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.returned = Counter[str]()
        self.failure: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def give(self, put: Callable[[], object]) -> None:
        self._queue.put(put)

    @property
    def busy(self) -> bool:
        return self._queue.qsize() > BEHIND

    def _work(self) -> None:
        while (put := self._queue.get()) is not None:
            try:
                put()
            except BaseException as error:
                self.failure = error

    def close(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        if self.failure is not None:
            raise self.failure


class Mixed:
    """The handler of one worker. What it says it did is compared with what the engine counted."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        dice = np.random.default_rng(seed).integers(0, 100, (64, 1024))
        self._kept = (dice >= DROPPED) & (dice < DROPPED + KEPT)
        self._mirrored = dice >= 100 - MIRRORED
        self._held = (dice >= 100 - MIRRORED - HELD) & ~self._mirrored
        self._dropped = dice < DROPPED
        self._turn = 0
        self.did = Counter[str]()

    def __call__(self, batch: ap.Batch) -> Any:
        engine, n, row = self.engine, len(batch), self._turn % 64
        self._turn += 1
        if engine.slow:
            time.sleep(0.02)
        if engine.hoarding:
            engine.hoard.append(batch.copy())
            self.did["kept"] += n
            return ap.KEEP
        ports = batch.ports
        assert ports is not None
        # Ports of a worker: those of in0, in1, out0, out1, the mirror, a queue each.
        verdicts = batch.verdicts
        verdicts[:] = ap.FORWARD(2 if batch.port is ports[0] else 3)
        verdicts[self._dropped[row, :n]] = ap.DROP
        calm = not engine.returners.busy
        if calm and (kept := self._kept[row, :n]).any():
            verdicts[kept] = ap.KEEP
            engine.returners.give(partial(engine.umem.put, batch[kept].copy()))
        if calm and (held := self._held[row, :n]).any():
            engine.returners.give(batch.keep(held).close)
        if (mirrored := self._mirrored[row, :n]).any():
            part, mirror = batch[mirrored], ports[4]
            mirror.pool.ref(part)
            sent = mirror.transmit(part)
            mirror.pool.put(part[sent:])
            self.did["mirrored"] += sent
        self.did["dropped"] += int((verdicts == ap.DROP).sum())
        self.did["kept"] += int((verdicts == ap.KEEP).sum())
        return verdicts


class Engine:
    """Umem, pools, ports and two workers over the lab's links, from opening to closing.

    `hoarding` and `slow` are faults of its handlers. Invariant: closed, every frame is at home, which `close` proves.
    """

    def __init__(self, lab: Lab, seed: int) -> None:
        self.hoarding = self.slow = False
        self.hoard: list[ap.Batch] = []
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self.umem = undo.enter_context(ap.Umem(FRAMES, memory=ap.BpfMemory(FRAMES * 4096)))
            self.pools = [undo.enter_context(ap.FramePool(self.umem, quota=QUOTA)) for _ in range(QUEUES)]
            self.returners = Returners()
            undo.callback(self.returners.close)
            self.handlers = [Mixed(self, seed + number) for number in range(QUEUES)]
            forwarders = []
            for number, pool in enumerate(self.pools):
                ports = []
                for name in (*INS, *OUTS, MIRROR):
                    config = PORT if name in INS else ap.PortConfig(receive=False, tx_size=1024, fill_level=64)
                    link = lab.pairs[name].near
                    port = ap.Port(pool, link.name, number, config=config, netns=lab.engine_netns)
                    ports.append(undo.enter_context(port))
                forwarders.append(undo.enter_context(ap.Forwarder(ports, handler=self.handlers[number])))
            self.workers = undo.enter_context(ap.Workers(forwarders))
            self.ports = self.workers.ports
            self._undo = undo.pop_all()

    def start(self) -> None:
        self.workers.start()

    def stop(self) -> None:
        """End the run, and count the frames; what returners still have comes home meanwhile."""
        self.workers.stop()
        self.workers.join()
        self.quiet()

    def ended_by(self, kind: type[AfXdpError]) -> AfXdpError:
        """The error that ended the run by itself."""
        try:
            self.workers.join()
        except kind as error:
            self.quiet()
            return error
        raise AssertionError(f"no {kind.__name__}")

    def quiet(self) -> None:
        """Nothing runs: every frame is accounted for, and handlers and engine agree on what was done."""
        self.give_back()
        self.umem.audit().check()
        engine = self.workers.snapshot().engine
        did = sum((handler.did for handler in self.handlers), Counter[str]())
        told = engine.dropped, engine.kept
        assert told == (did["dropped"], did["kept"]), f"the engine says {told}, its handlers {did}"

    def give_back(self) -> None:
        """Let the returners have what was hoarded."""
        self.hoarding = False
        for batch in self.hoard:
            self.returners.give(partial(self.umem.put, batch))
        self.hoard.clear()

    def close(self) -> None:
        """Close all of it; every frame must be at home."""
        self.give_back()
        self.workers.close()
        for forwarder in self.workers.forwarders:
            forwarder.close()
        for port in self.ports:
            port.close()
        self.returners.close()
        for pool in self.pools:
            pool.close()
        assert self.umem.audit().check(idle=True).umem == FRAMES
        self._undo.close()

    # What it says ---------------------------------------------------------------------------------------------------

    def of(self, name: str) -> list[ap.Port]:
        """Those of a link. Closed ports tell their last figures, with what was found to be sent as they were closed."""
        return [port for port in self.ports if port.netdev == f"{name}-near"]

    def received(self, name: str) -> int:
        return sum(port.stats().rx_packets for port in self.of(name))

    def accounted(self, name: str) -> int:
        """Packets that came in there: received, or lost by the kernel's own count."""
        out = 0
        for port in self.of(name):
            stats, kernel = port.stats(), port.kernel_stats()
            out += stats.rx_packets + stats.rx_bad + kernel.rx_dropped + kernel.rx_ring_full
        return out

    def delivered(self, name: str) -> int:
        """Packets that left there, taken or dropped by the link, which counts those it dropped.

        It has counted those, too, that were to go live, and that the socket sent again.
        """
        out = 0
        for port in self.of(name):
            live = port.live_stats() or ap.LiveStats()
            out += port.stats().tx_completed + live.resent
        return out


@dataclass
class Road:
    """A pair of the lab with what sends into it, or counts what comes out of it, at the far end.

    `arrived` are packets at sinks that went with earlier links of that name, `sent` those that sources' links took;
    `uncounted`: a link went away with its count. `next` is the number that a source's packets go on with.
    """

    lab: Lab
    name: str
    sink: Sink | None = None
    source: Source | None = None
    arrived: int = 0
    _sending: threading.Thread | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    sent: int = 0
    uncounted: bool = False
    next: int = 0

    def open(self, cpu: int | None = None) -> None:
        """Make the pair, and its source or sink."""
        pair = self.lab.veth(self.name, queues=QUEUES)
        if self.name in INS:
            self.source = Source(pair.far, size=128, flows=4, cpu=cpu, seq_start=self.next)
        else:
            self.sink = Sink(pair.far, verify=self.name in OUTS)

    def close(self) -> None:
        """Take it away, whether or not its links are there still."""
        self.pause()
        if self.sink is not None:
            self.intact()
            self.arrived += self.sink.seen()
            self.sink.close()
        if self.source is not None:
            self.next = self.source._position()[1] + 1
            self.source.close()
        self.sink = self.source = None
        self.lab.remove(self.name)

    def seen(self) -> int:
        return self.arrived + (self.sink.seen() if self.sink is not None else 0)

    def strays(self) -> int:
        """Packets that no source sent: the kernels at both ends send some when a link comes up.

        Into the engine: what left the far end otherwise than by a source. Out of it: what arrived and is no test
        packet, whether it was forwarded or is from the near end's kernel.
        """
        if self.sink is not None:
            return self.sink.report().foreign
        told = self.lab.pairs[self.name].far.counters()
        return told["tx_packets"] - told.get("tx_xdp_xmit", 0)

    def intact(self) -> None:
        """No packet that arrived was spoiled, or there twice, or out of order."""
        if self.sink is not None:
            seen = self.sink.report()
            wrong = seen.corrupt, seen.duplicate, seen.reordered, seen.stale
            assert not any(wrong), f"{self.name}: corrupt, duplicate, reordered, stale: {wrong}"

    def send(self, rate: float | None) -> None:
        """Send from now on, in a thread."""
        source = self.source
        assert source is not None
        self._stop.clear()

        def work() -> None:
            try:
                self.sent += source.send(rate=rate, stop=self._stop).delivered
            except AfXdpError:  # the link went away under it, with its counters
                self.uncounted = True

        self._sending = threading.Thread(target=work, name=f"source of {self.name}")
        self._sending.start()

    def pause(self) -> None:
        """Send no more."""
        self._stop.set()
        if self._sending is not None:
            self._sending.join()
            self._sending = None

    def dropped_by_link(self) -> int:
        """What the near link's own counters say it dropped, of live frames and others."""
        return self.lab.pairs[self.name].near.counters()["tx_dropped"]
