"""A forked child and real sockets: it takes nothing from its parent, and keeps nothing when the parent is gone."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from typing import Any

import pytest
from live_lab import wait_for

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Source

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def opened(stack: ExitStack, netdev: str, netns: str, transmit: Any = "socket") -> ap.Port:
    memory = ap.BpfMemory(4096 * 4096) if transmit == "live" else None
    umem = stack.enter_context(ap.Umem(4096, memory=memory))
    pool = stack.enter_context(ap.FramePool(umem))
    config = ap.PortConfig(transmit=transmit, fill_level=512)
    return stack.enter_context(ap.Port(pool, netdev, netns=netns, config=config))


@pytest.mark.parametrize("transmit", ["socket", "live"])
def test_a_child_that_leaves_its_parents_blocks_takes_nothing_from_it(lab: Lab, transmit: str) -> None:
    pair = lab.veth("forked")
    with ExitStack() as stack, Source(pair.far) as source:
        port = opened(stack, pair.near.name, lab.engine_netns, transmit)
        umem = port.pool.umem

        def echo(count: int) -> None:
            assert source.send(count).delivered == count
            while count:
                assert port.poll(10)
                batch = port.receive(count)
                assert port.transmit(batch) == len(batch)
                count -= len(batch)

        echo(50)  # completions wait in the ring, and packets that the child could take
        assert source.send(20).delivered == 20
        assert wait_for(lambda: port.ring_levels()["rx"] == 20)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                signal.alarm(20)
                stack.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        port.pool.put(port.receive(64))
        assert port.stats().rx_packets == 70
        echo(50)
        assert wait_for(lambda: port.recycle() >= 0 and port.stats().tx_completed == 100)
        port.close()
        umem.audit().check()


def test_what_a_killed_process_had_is_free_though_its_child_lives(lab: Lab) -> None:
    pair = lab.veth("orphan")
    ready, told = os.pipe()
    stay, leave = os.pipe()
    parent = os.fork()
    if not parent:
        with ExitStack() as stack:
            opened(stack, pair.near.name, lab.engine_netns)
            os.close(leave)
            if not os.fork():
                os.write(told, b"x")
                os.read(stay, 1)  # until the test is over, or gone
                os._exit(0)
            signal.pause()
        os._exit(1)
    try:
        assert os.read(ready, 1) == b"x"
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        with ExitStack() as stack:  # the queue and the hook of the device are free
            umem = opened(stack, pair.near.name, lab.engine_netns).pool.umem
            umem.audit().check()
    finally:
        for fd in (ready, told, stay, leave):
            os.close(fd)
