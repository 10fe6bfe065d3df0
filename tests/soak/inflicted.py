"""What is soaked: the lab's roads, both engines, and the faults that are inflicted on them.

It owns the engines, and the accounts of what was taken from whom: `told` by engines closed since the leg began, and
links that are `excused`, for a fault may have taken packets there. A fault's name is the first line of its method.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from faulty import ip, ip_done
from live_lab import wait_for
from mixed import INS, MIRROR, OUTS, QUEUES, Engine, Road

import afxdp_pool as ap
from afxdp_pool import hook as xdp
from afxdp_pool.errors import AfXdpError
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, Source

WITHIN = 60.0
NAPI = {"gro_flush_timeout": 20_000, "napi_defer_hard_irqs": 2}


class Bed:
    """The lab and both engines. `rate` is packets a second of each source; None is all it can."""

    def __init__(self, lab: Lab, seed: int, rate: float | None = None) -> None:
        self.lab, self.seed, self.rate = lab, seed, rate
        self.chance = random.Random(seed)
        self.roads = {name: Road(lab, name) for name in (*INS, *OUTS, MIRROR)}
        for number, road in enumerate(self.roads.values()):
            road.open(number % QUEUES)
        self.kin, self.kout = lab.veth("kin"), lab.veth("kout")
        self.far_sink = Sink(self.kout.far)
        self.far_source = Source(self.kin.far, size=128)
        self.pids = {os.getpid()}
        self.engine: Engine | None = None
        self.forwarder: subprocess.Popen[str] | None = None
        self.audits = self.opened = 0
        self.excused: defaultdict[str, list[str]] = defaultdict(list)
        self.told: Counter[str] = Counter()

    def open_engine(self) -> None:
        self.engine = Engine(self.lab, self.seed + self.opened)
        self.engine.start()
        self.opened += 1

    def close_engine(self) -> None:
        """Close it, with what its counters say to be remembered."""
        engine, self.engine = self.engine, None
        if engine is None:
            return
        if engine.workers.forwarders[0]._running.locked():
            engine.stop()
        for port in engine.ports:
            port.close()  # it finds sent what the end of the run did not wait for
        for name in self.roads:
            self.told[name] += engine.accounted(name) if name in INS else engine.delivered(name)
        engine.close()
        self.audits += 2

    # The second engine ----------------------------------------------------------------------------------------------

    def start_forwarder(self) -> None:
        words = ["forward", "-i", self.kin.near.name, "-o", self.kout.near.name, "--netns", self.lab.engine_netns]
        words += ["--json", "--quiet", "--threaded-napi"]
        words += [word for name, value in NAPI.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        self.forwarder = subprocess.Popen(
            [sys.executable, "-m", "afxdp_pool.cli", *words], stdout=subprocess.PIPE, text=True, preexec_fn=die_with_us
        )
        self.pids.add(self.forwarder.pid)

    def kill_forwarder(self) -> None:
        process, self.forwarder = self.forwarder, None
        assert process is not None
        process.kill()
        process.communicate(timeout=WITHIN)

    def end_forwarder(self) -> None:
        """End it as a user does; its frames must be at home, and its device as it was."""
        process = self.forwarder
        assert process is not None
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=WITHIN)
        told = json.loads(out)
        assert process.returncode == 0
        assert told["audit"]["ok"], told["audit"]
        self.forwarder = None

    def close(self) -> None:
        """Everything, whatever state it is in."""
        if self.forwarder is not None:
            self.kill_forwarder()
        for road in self.roads.values():
            road.pause()
        if self.engine is not None:
            self.engine.workers.close()
        self.far_source.close()
        self.far_sink.close()
        for road in self.roads.values():
            if road.sink is not None:
                road.sink.close()
            if road.source is not None:
                road.source.close()


class Faults(Bed):
    """What is done to it, one at a time."""

    def faults(self) -> Iterator[Callable[[], None]]:
        """Each of them once, in any order, again and again. What a fault is called is its first line."""
        every = [getattr(self, name) for name in dir(self) if name.startswith("fault_")]
        while True:
            self.chance.shuffle(every)
            yield from every

    def for_a_while(self) -> None:
        time.sleep(self.chance.uniform(0.05, 0.5))

    def link_of(self, names: tuple[str, ...]) -> Any:
        return self.lab.pairs[self.chance.choice(names)]

    def excuse(self, fault: Callable[[], None], *names: str) -> None:
        for name in names:
            self.excused[name].append(fault.__doc__ or "")

    def down_and_up(self, link: Any) -> None:
        ip_done(link.netns, "link", "set", link.name, "down")
        self.for_a_while()
        ip_done(link.netns, "link", "set", link.name, "up")
        assert wait_for(lambda: "state UP" in ip(link.netns, "link", "show", link.name).stdout, WITHIN)

    def engine_ends(self, fault: Callable[[], None], kind: type[AfXdpError]) -> None:
        """It has to end with that error, its frames accounted for; what comes in until it is open again, nobody has."""
        assert self.engine is not None
        self.engine.ended_by(kind)
        self.excuse(fault, *INS)
        self.close_engine()

    def fault_receiving_link_down(self) -> None:
        """receiving link down and up"""
        pair = self.link_of(INS)
        self.excuse(self.fault_receiving_link_down, pair.near.name.removesuffix("-near"))
        self.down_and_up(pair.near)

    def fault_far_end_down(self) -> None:
        """far end of a sending link down and up"""
        name = self.chance.choice(OUTS)
        self.excuse(self.fault_far_end_down, name)
        self.down_and_up(self.lab.pairs[name].far)

    def fault_sending_link_down(self) -> None:
        """sending link down and up"""
        name = self.chance.choice(OUTS)
        self.excuse(self.fault_sending_link_down, *OUTS, MIRROR)
        link = self.lab.pairs[name].near
        ip_done(link.netns, "link", "set", link.name, "down")
        self.engine_ends(self.fault_sending_link_down, ap.LinkGoneError)
        ip_done(link.netns, "link", "set", link.name, "up")
        assert wait_for(lambda: "state UP" in ip(link.netns, "link", "show", link.name).stdout, WITHIN)
        self.open_engine()

    def fault_peer_deleted(self) -> None:
        """peer of a sending link deleted, and both made again"""
        name = self.chance.choice(OUTS)
        self.excuse(self.fault_peer_deleted, *OUTS, MIRROR)
        road, far = self.roads[name], self.lab.pairs[name].far
        self.told[name] -= road.dropped_by_link()
        ip_done(far.netns, "link", "del", far.name)
        self.engine_ends(self.fault_peer_deleted, ap.LinkGoneError)
        road.close()
        road.open()
        self.open_engine()

    def fault_receiving_link_deleted(self) -> None:
        """receiving link deleted, and made again"""
        name = self.chance.choice(INS)
        self.excuse(self.fault_receiving_link_deleted, *OUTS, MIRROR)
        near = self.lab.pairs[name].near
        ip_done(near.netns, "link", "del", near.name)
        self.engine_ends(self.fault_receiving_link_deleted, ap.LinkGoneError)
        self.roads[name].close()
        self.roads[name].open(self.chance.randrange(QUEUES))
        self.open_engine()
        self.roads[name].send(self.rate)

    def fault_program_detached(self) -> None:
        """XDP program detached by somebody else"""
        near = self.link_of(INS).near
        with in_netns(near.netns):
            xdp.remove(xdp.look(near.ifindex))
        self.engine_ends(self.fault_program_detached, ap.ProgramGoneError)
        self.open_engine()

    def fault_mtu(self) -> None:
        """MTU changed, there and back"""
        link = self.link_of((*INS, *OUTS)).near
        for mtu in (self.chance.randint(576, 1499), 1500):
            ip_done(link.netns, "link", "set", link.name, "mtu", str(mtu))
            self.for_a_while()

    def fault_quota(self) -> None:
        """handlers keep everything, up to the pool's quota"""
        assert self.engine is not None
        before = sum(pool.stats().alloc_quota for pool in self.engine.pools)
        self.engine.hoarding = True
        pools = self.engine.pools
        assert wait_for(lambda: sum(pool.stats().alloc_quota for pool in pools) > before, WITHIN)
        self.for_a_while()
        self.engine.give_back()

    def fault_umem_empty(self) -> None:
        """all free frames taken by another pool, so FILL runs dry"""
        assert self.engine is not None
        umem, engine = self.engine.umem, self.engine
        with ap.FramePool(umem) as thief:
            stolen = [thief.alloc(1024)]
            engine.hoarding = True  # or those in use would go round for ever

            def starved() -> bool:
                before = sum(engine.received(name) for name in INS)
                stolen.append(thief.alloc(1024))
                time.sleep(0.1)
                return umem.count_states()["umem"] == 0 and sum(engine.received(name) for name in INS) == before

            assert wait_for(starved, WITHIN), umem.count_states()
            for batch in stolen:
                thief.put(batch)
        engine.give_back()

    def fault_slow(self) -> None:
        """handlers far too slow, so RX runs full"""
        assert self.engine is not None
        self.engine.slow = True
        self.for_a_while()
        self.engine.slow = False

    def fault_killed(self) -> None:
        """second engine killed (SIGKILL), and started again"""
        self.kill_forwarder()
        self.start_forwarder()

    def fault_stopped(self) -> None:
        """second engine stopped for a while (SIGSTOP)"""
        assert self.forwarder is not None
        self.forwarder.send_signal(signal.SIGSTOP)
        self.for_a_while()
        self.forwarder.send_signal(signal.SIGCONT)

    def fault_forked(self) -> None:
        """forked child closes all it has inherited"""
        assert self.engine is not None
        child = os.fork()
        if child == 0:
            try:
                for port in self.engine.ports:
                    port.close()
                for pool in self.engine.pools:
                    pool.close()
                self.engine.umem.close()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0


def die_with_us() -> None:
    """The second engine goes when this process is killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
