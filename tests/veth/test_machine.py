"""`afxdp-pool top` on real sockets: our engines', those of programs it knows nothing of, what a user sees."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from live_lab import audited, options, wait_for

import afxdp_pool as ap
from afxdp_pool.errors import NoSuchNamespaceError
from afxdp_pool.machine import Machine, Socket, Watcher
from afxdp_pool.testing import Lab, Source
from afxdp_pool.testing.lab import LabLink

pytestmark = pytest.mark.usefixtures("veth_machine")

#: A program with sockets and a loop of its own, as far as `top` can tell: it runs no forwarder.
STRANGER = """
import sys, afxdp_pool as ap
umem = ap.Umem(frames=8192)
pool = ap.FramePool(umem)
netdev, netns = sys.argv[1:3]
ports = [ap.Port(pool, netdev, int(queue), netns=netns) for queue in sys.argv[3:]]
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def stranger(link: LabLink, *queues: int) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", STRANGER, link.name, link.netns, *map(str, queues)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "open\n"
        try:
            yield child
        finally:
            child.stdin.close()
            child.wait(20)


def of(machine: Machine, pid: int) -> list[Socket]:
    return [one for one in machine.sockets if pid in [process.pid for process in one.processes]]


def test_a_forwarder_is_shown_with_what_it_does(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    watcher = Watcher()
    with ap.forward(left.near.name, right.near.name, options=options(lab)) as forwarder, Source(left.far) as source:
        forwarder.start()
        sent = source.send(1000, rate=50_000).delivered

        def told() -> bool:
            found = [one.engine for one in of(watcher.look(), os.getpid())]
            return any(engine is not None and engine.port["rx_packets"] == sent for engine in found)

        assert wait_for(told), watcher.look()
        machine = watcher.look()
        inodes = {os.fstat(port.fileno()).st_ino: port for port in forwarder.ports}
        mine = {one.seen.inode: one for one in of(machine, os.getpid())}
        assert mine.keys() == inodes.keys()
        for inode, port in inodes.items():
            one = mine[inode]
            assert (one.netns, one.netdev, one.queue) == (lab.engine_netns, port.netdev, 0)
            assert (one.seen.zero_copy, one.seen.stats) == (False, port.kernel_stats())
            assert one.engine is not None
            assert (one.engine.handler, one.engine.loop["forwarded"]) == ("built in", sent)
        (program,) = (one for one in machine.programs if one.netns == lab.engine_netns and one.netdev == left.near.name)
        assert forwarder.ports[0].program is not None
        assert (program.id, program.mode, program.owner) == (forwarder.ports[0].program.id, "native", os.getpid())
        assert watcher.look().as_dict()["sockets"]
        forwarder.stop()
        forwarder.join()
        assert all(one.engine is None for one in of(watcher.look(), os.getpid())), "only while it runs"
        audited(forwarder)
    assert of(watcher.look(), os.getpid()) == []


def test_a_stranger_s_sockets_are_placed_as_far_as_the_kernel_tells(lab: Lab) -> None:
    pair = lab.veth("a", queues=4)
    watcher = Watcher(lab.engine_netns)
    with stranger(pair.near, 2) as child:
        (one,) = of(watcher.look(), child.pid)
        assert one.seen.stats == ap.KernelStats()
        assert "-c" in one.processes[0].command
        if one.netdev is None:
            pytest.skip("the kernel has neither XDP_DIAG nor a queue's XSK attribute (Linux 6.14)")
        assert (one.netns, one.netdev, one.queue, one.engine) == (lab.engine_netns, pair.near.name, 2, None)
    assert of(watcher.look(), child.pid) == []
    with stranger(pair.near, 1, 3) as child:
        both = of(watcher.look(), child.pid)
        assert [one.netdev for one in both] == [pair.near.name] * 2
        assert {one.queue for one in both} in ({None}, {1, 3})


def test_one_namespace_alone(lab: Lab) -> None:
    pair = lab.veth("a")
    with stranger(pair.near, 0) as child:
        assert of(Watcher(lab.engine_netns).look(), child.pid)
        assert not of(Watcher(lab.traffic_netns).look(), child.pid)
        assert Watcher(lab.traffic_netns).look().namespaces == 1
    with pytest.raises(NoSuchNamespaceError):
        Watcher("afxp-none").look()


def test_an_ordinary_user_sees_less_and_is_told_so(lab: Lab) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv")
    pair = lab.veth("a")
    with stranger(pair.near, 0):
        words = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable, "-m", "afxdp_pool.cli"]
        done = subprocess.run([*words, "top", "--json"], capture_output=True, text=True, timeout=60, check=False)
    if "No module named" in done.stderr or "Permission denied" in done.stderr:
        pytest.skip("an ordinary user cannot read this Python or the package")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert any("run as root" in note for note in document["notes"])
