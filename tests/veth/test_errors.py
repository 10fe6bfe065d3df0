"""What users get wrong: each mistake has its own error, says what to do, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing.lab import Lab, VethPair


@pytest.fixture
def pair(lab: Lab) -> Iterator[VethPair]:
    """A veth pair; after the test the process has no more descriptors than before, and the hook is free."""
    made = lab.veth("a", queues=2)
    before = len(os.listdir("/proc/self/fd"))
    yield made
    assert len(os.listdir("/proc/self/fd")) == before
    with ap.XdpProgram(made.near.name, netns=made.near.netns):
        pass


def options(pair: VethPair, **changes: Any) -> ap.Options:
    return replace(ap.Options(netns=pair.near.netns), **changes)


def test_no_such_interface(pair: VethPair) -> None:
    with pytest.raises(ap.NoSuchInterfaceError, match=r"nosuch.*there is no such interface.*a-near"):
        ap.drop("nosuch", options=options(pair))
    with pytest.raises(ap.NoSuchInterfaceError):
        ap.forward(pair.near.name, "nosuch", options=options(pair))


def test_no_such_namespace(pair: VethPair) -> None:
    with pytest.raises(ap.NoSuchNamespaceError, match="nosuch"):
        ap.drop(pair.near.name, options=ap.Options(netns="nosuch"))


def test_interface_down(lab: Lab, pair: VethPair) -> None:
    with in_netns(pair.near.netns):
        subprocess.run(["ip", "link", "set", pair.near.name, "down"], check=True)
    with pytest.raises(ap.InterfaceDownError, match=r"a-near.*is down; bring it up: ip -n \S+ link set a-near up"):
        ap.drop(pair.near.name, options=options(pair))


def test_queue_out_of_range(pair: VethPair) -> None:
    with pytest.raises(ap.QueueRangeError, match=r"a-near.*no queue 2; it has 2 queues: choose 0 to 1"):
        ap.drop(pair.near.name, options=options(pair, queues=(2,)))
    with pytest.raises(ap.QueueRangeError):
        ap.drop(pair.near.name, options=options(pair, queues=(-1,)))


def test_busy_queue(pair: VethPair) -> None:
    quick = replace(ap.PortConfig(), bind_timeout=0.05)
    with ap.drop(pair.near.name, options=options(pair)) as first:
        with pytest.raises(ap.QueueBusyError, match=r"a-near queue 0.*another AF_XDP socket"):
            ap.drop(pair.near.name, options=options(pair, port=quick))
        first.run(0.01)  # and the first goes on
        first.audit().check()
        with ap.drop(pair.near.name, options=options(pair, queues=(1,))) as second:
            second.run(0.01)
            second.audit().check()


@pytest.mark.parametrize("size", [0, 1024, 3000, 8192])
def test_wrong_frame_size(size: int) -> None:
    with pytest.raises(ap.FrameSizeError, match="2048 or 4096"):
        ap.Umem(64, frame_size=size)


def test_headroom_too_large() -> None:
    with pytest.raises(ap.FrameSizeError, match="choose 0 to 1344"):
        ap.Umem(64, frame_size=2048, headroom=1345)


@pytest.mark.parametrize("ring", ["fill_size", "comp_size", "rx_size", "tx_size"])
def test_ring_size_not_a_power_of_two(ring: str) -> None:
    with pytest.raises(ap.RingSizeError, match=f"{ring} 1000 .*powers of two"):
        ap.PortConfig(**{ring: 1000})  # type: ignore[arg-type]


def test_fewer_frames_than_the_rings_need(pair: VethPair) -> None:
    with pytest.raises(ap.NotEnoughFramesError, match=r"need 2112 frames, and the Umem has 512; use 2112"):
        ap.drop(pair.near.name, options=options(pair, frames=512))


def test_zero_copy_demanded_of_a_driver_without(pair: VethPair) -> None:
    with pytest.raises(ap.ModeUnsupportedError, match="veth has no zero-copy"):
        ap.drop(pair.near.name, options=options(pair).with_mode("zero-copy"))


def test_a_foreign_program_is_not_touched(pair: VethPair) -> None:
    from afxdp_pool.testing.traffic import Sink

    with Sink(pair.near) as foreign:
        with pytest.raises(ap.ProgramBusyError, match="--force"):
            ap.drop(pair.near.name, options=options(pair))
        assert foreign.report().packets == 0


@pytest.mark.parametrize("what", ["in the namespace", "by name of the namespace"])
def test_no_privilege(pair: VethPair, what: str) -> None:
    netns = None if what == "in the namespace" else pair.near.netns
    script = f"""
        import afxdp_pool as ap
        try:
            ap.drop({pair.near.name!r}, options=ap.Options(netns={netns!r}))
        except ap.PrivilegeError as error:
            print(error)
        else:
            raise SystemExit("it was allowed")
    """
    # Still root, so that it can read the interpreter's files, but without a single capability.
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    enter = [] if netns else ["nsenter", f"--net=/run/netns/{pair.near.netns}"]
    done = subprocess.run(
        [*enter, *bare, sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "CAP_" in done.stdout


def test_a_port_of_another_threads_pool(pair: VethPair) -> None:
    import threading

    with ap.Umem(4096) as umem, ap.FramePool(umem) as pool:
        thread = threading.Thread(target=pool.bind)
        thread.start()
        thread.join()
        with pytest.raises(ap.WrongThreadError, match="unbind"):
            ap.Port(pool, pair.near.name, netns=pair.near.netns)
        umem.audit().check(idle=True)
        umem.close()


def test_link_deleted_while_sending(lab: Lab) -> None:
    pair = lab.veth("b")
    forwarder = ap.transmit(pair.near.name, [bytes(64)], options=options(pair))
    forwarder.start()
    with in_netns(pair.near.netns):
        subprocess.run(["ip", "link", "del", pair.near.name], check=True)
    with pytest.raises(ap.LinkGoneError, match="b-near queue 0"):
        forwarder.join()
    umem = forwarder.umem
    for port in forwarder.ports:
        port.close()
    umem.audit().check()
    for pool in forwarder.pools:
        pool.close()
    umem.audit().check(idle=True)
    forwarder.close()
