"""Opened and closed again and again, nothing is left: engines on real devices, what a fault ends, a broker's clients.

The test runs this file as a program, in a process where what is left behind can be told to the byte; see holding.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from holding import grown, growth, in_a_process
from live_lab import wait_for

import afxdp_pool as ap
from afxdp_pool import hook as xdp
from afxdp_pool import lease, watch
from afxdp_pool.allowing import Allowed
from afxdp_pool.broker import Broker
from afxdp_pool.listening import Listener
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing.lab import Lab, VethPair

FRAMES = 1024
SMALL = ap.PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32)
AT_ONCE = replace(SMALL, bind_timeout=0)
SENDS = ap.PortConfig(fill_size=64, comp_size=64, tx_size=64, fill_level=32, receive=False, transmit="live")


def drop(batch: ap.Batch) -> int:
    return ap.DROP


def engine(pair: VethPair) -> None:
    """Two workers with a port each that receives, one that sends live; a queue that is taken; a look at the devices."""
    near = pair.near
    with contextlib.ExitStack() as undo:
        umem = undo.enter_context(ap.Umem(FRAMES, memory=ap.BpfMemory(FRAMES * 4096)))
        forwarders = []
        for queue in range(2):
            pool = undo.enter_context(ap.FramePool(umem))
            port = undo.enter_context(ap.Port(pool, near.name, queue, config=SMALL, netns=near.netns))
            ports = [port]
            if queue:
                ports.append(undo.enter_context(ap.Port(pool, near.name, 2, config=SENDS, netns=near.netns)))
            with contextlib.suppress(ap.QueueBusyError):
                ap.Port(pool, near.name, queue, config=AT_ONCE, netns=near.netns)
            forwarders.append(undo.enter_context(ap.Forwarder(ports, handler=drop)))
        with ap.Workers(forwarders) as workers:
            workers.run(0.01)
            workers.info()
        umem.audit().check()


def detached(pair: VethPair) -> None:
    """An engine that ends because somebody took its XDP program off."""
    near = pair.near
    with ap.handle([near.name], drop, options=ap.Options(netns=near.netns, frames=FRAMES, port=SMALL)) as runner:
        runner.start()
        with in_netns(near.netns):
            xdp.remove(xdp.look(near.ifindex))
        with contextlib.suppress(ap.ProgramGoneError):
            runner.join()
        runner.umem.audit().check()


@contextlib.contextmanager
def broker(pair: VethPair, path: Path) -> Iterator[Broker]:
    allowed = Allowed.parse([str(os.geteuid())])
    with (
        in_netns(pair.near.netns),
        ap.XdpProgram(pair.near.name) as program,
        Listener(path, allowed) as listener,
        Broker({pair.near.name: program}, allowed) as served,
    ):
        thread = threading.Thread(target=served.run, args=(listener.socket,))
        thread.start()
        try:
            yield served
        finally:
            served.stop()
            thread.join()


def refused(served: Broker, path: Path) -> None:
    """Clients that say hello and go; some ask for what they do not get."""
    connection = lease.Connection(str(path))
    connection.ask("/socket,nothing,0").close()
    connection.close()
    lease.Connection(str(path)).abandon()
    assert wait_for(lambda: served.clients == 0)


def leased(served: Broker, pair: VethPair, path: Path) -> None:
    """A client that gets a socket."""
    with ap.Umem(256, memory=ap.SharedMemory(256 * 4096)) as umem, ap.FramePool(umem) as pool:
        with ap.Port(pool, pair.near.name, 0, config=SMALL, via=path):
            umem.audit().check()
        umem.audit().check()
    assert wait_for(lambda: served.clients == 0)


def main() -> None:
    """Every cycle's growth."""
    logging.disable(logging.CRITICAL)
    watch.EVERY = 0.05
    found: dict[str, dict[str, int]] = {}

    def measure(name: str, cycle: Callable[[], None], cycles: int) -> None:
        found[name] = growth(cycle, cycles, warm=3)

    with Lab() as lab, TemporaryDirectory(dir="/run") as place:
        pair, path = lab.veth("a", queues=4), Path(place) / "broker.sock"
        measure("engine", lambda: engine(pair), 6)
        measure("detached", lambda: detached(pair), 3)
        with broker(pair, path) as served:
            measure("refused", lambda: refused(served, path), 100)
            measure("leased", lambda: leased(served, pair, path), 10)
    json.dump(found, sys.stdout)


@pytest.mark.usefixtures("veth_machine")
@pytest.mark.timeout(300)
def test_nothing_is_left_behind() -> None:
    found = in_a_process(__file__, within=200)
    assert {name: grown(left) for name, left in found.items() if grown(left)} == {}


if __name__ == "__main__":
    main()
