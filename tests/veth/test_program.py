"""The XDP program on a real device: what it lets pass, how it gets on and off, and who may take it off."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from afxdp_pool import hook as xdp
from afxdp_pool._native import lib as native
from afxdp_pool.bpf import BpfObject
from afxdp_pool.cleaning import clean
from afxdp_pool.errors import (
    AfXdpError,
    ConfigError,
    ModeUnsupportedError,
    NoSuchInterfaceError,
    ProgramBusyError,
    QueueRangeError,
)
from afxdp_pool.loaded import run
from afxdp_pool.netdev import in_netns
from afxdp_pool.program import ProgramCounters, Rule, XdpProgram
from afxdp_pool.testing import Lab
from afxdp_pool.testing.lab import LabLink, VethPair

pytestmark = pytest.mark.usefixtures("veth_machine")

MODES = pytest.mark.parametrize("mode", ["native", "generic"])
KINDS = pytest.mark.parametrize("kind", ["link", "libxdp"])


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a", queues=2)


def on_hook(link: LabLink) -> xdp.Hook:
    with in_netns(link.netns):
        return xdp.look(link.ifindex)


def name_on_hook(link: LabLink) -> str | None:
    program = on_hook(link).program
    return program.name if program else None


class Talk:
    """A UDP conversation of the two kernel stacks, from far to near: what must stay alive."""

    def __init__(self, pair: VethPair, port: int = 7777) -> None:
        self._target = (pair.near.ipv4, port)
        with in_netns(pair.near.netns):
            self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._near.bind(self._target)
        self._near.settimeout(20)
        with in_netns(pair.far.netns):
            self._far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def say(self, count: int) -> None:
        for i in range(count):
            self._far.sendto(b"%d" % i, self._target)
            assert self._near.recv(64) == b"%d" % i

    def close(self) -> None:
        self._near.close()
        self._far.close()

    def __enter__(self) -> Talk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Foreign:
    """A program that is not ours: attached over netlink, to stay, or by a link of this process."""

    def __init__(self, link: LabLink, *, by_link: bool = False) -> None:
        self._where = link
        self.program = BpfObject("traffic_sink")
        self.program.load()
        fd = self.program.program("sink_count")
        with in_netns(link.netns):
            if by_link:
                self.link = xdp.attach_link(fd, link.ifindex, "native")
            else:
                assert native.afp_xdp_attach(link.ifindex, fd, native.XDP_FLAGS_DRV_MODE, -1) == 0

    def __enter__(self) -> Foreign:
        return self

    def __exit__(self, *_: object) -> None:
        self.program.close()
        if hasattr(self, "link"):
            os.close(self.link)
        with in_netns(self._where.netns):
            native.afp_xdp_attach(self._where.ifindex, -1, native.XDP_FLAGS_DRV_MODE, -1)


CHILD = """
import sys
from afxdp_pool.program import XdpProgram
program = XdpProgram({name!r}, netns={netns!r}, attach={attach!r})
print("ready", flush=True)
sys.stdin.readline()
{then}
"""


@pytest.fixture
def child(pair: VethPair) -> Iterator[subprocess.Popen[str]]:
    """Another process of ours, with its program attached through libxdp."""
    yield from other_process(pair.near, "libxdp")


def other_process(link: LabLink, attach: str, then: str = "") -> Iterator[subprocess.Popen[str]]:
    code = CHILD.format(name=link.name, netns=link.netns, attach=attach, then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


@MODES
@KINDS
def test_stack_stays_alive_and_counters_are_exact(pair: VethPair, mode: str, kind: str) -> None:
    with (
        Talk(pair) as talk,
        XdpProgram(pair.near.name, netns=pair.near.netns, mode=mode, attach=kind) as program,  # type: ignore[arg-type]
    ):
        assert (program.mode, program.attach_kind, program.fallback_reason) == (mode, kind, None)
        hook = on_hook(pair.near)
        assert hook.program is not None
        assert (hook.mode, hook.program.name, hook.program.id) == (mode, "afxdp_redirect", program.id)
        assert hook.program.owner == xdp.Owner.current()
        assert hook.program.owner.alive
        talk.say(10)
        assert program.counters() == ProgramCounters(redirected=0, passed_filter=0, passed_no_socket=10)
        program.set_rules([Rule(protocol=17, port=9)])
        talk.say(7)
        assert program.counters() == ProgramCounters(redirected=0, passed_filter=7, passed_no_socket=10)
        program.set_rules([Rule(protocol=17, port=7777, network=f"{pair.near.ipv4}/32")])
        talk.say(5)
        assert program.counters() == ProgramCounters(redirected=0, passed_filter=7, passed_no_socket=15)
    assert on_hook(pair.near).program is None


def test_queue_beyond_the_map_passes(lab: Lab) -> None:
    """A queue number the map does not have is a queue without a socket."""
    link = lab.veth("wide", queues=70).near
    with BpfObject("xdp_redirect") as program:
        program.resize("xsks", 64)
        program.load()
        with in_netns(link.netns):
            result = run(program.program("afxdp_redirect"), bytes(64), ifindex=link.ifindex, queue=69)
        assert result.retval == 2
        assert program.map("counters").lookup_cpus(0).sum(axis=0).tolist() == [0, 0, 1]
    with XdpProgram(link.name, netns=link.netns) as ours, pytest.raises(QueueRangeError, match="it has 70"):
        ours.add_socket(70, 0)


def test_sockets_are_checked(pair: VethPair) -> None:
    with XdpProgram(pair.near.name, netns=pair.near.netns) as program, socket.socket() as tcp:
        with pytest.raises(AfXdpError, match="xsks key 1"):
            program.add_socket(1, tcp.fileno())
        program.remove_socket(1)


def test_rules_change_under_traffic(pair: VethPair) -> None:
    """Every packet is under the old rules or the new ones, and none under no rules."""
    wanted, unwanted = [Rule(port=7777)], [Rule(port=1), Rule(port=2)]
    with Talk(pair) as talk, XdpProgram(pair.near.name, netns=pair.near.netns, rules=unwanted) as program:
        for i in range(20):
            program.set_rules(wanted if i % 2 else unwanted)
            talk.say(3)
        assert program.counters() == ProgramCounters(0, 30, 30)
        with pytest.raises(ConfigError):
            program.set_rules([Rule(port=i) for i in range(17)])
        assert list(program.rules) == wanted
        talk.say(1)
        assert program.counters().passed_no_socket == 31


@KINDS
def test_off_after_an_exception(pair: VethPair, kind: str) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        XdpProgram(pair.near.name, netns=pair.near.netns, attach=kind) as program,  # type: ignore[arg-type]
    ):
        raise ZeroDivisionError
    assert program.closed
    assert on_hook(pair.near).program is None
    program.close()
    with pytest.raises(AfXdpError, match="closed"):
        program.counters()


@KINDS
@pytest.mark.parametrize("then", ["", "raise SystemExit(3)", "raise RuntimeError"])
def test_off_at_exit_without_close(pair: VethPair, kind: str, then: str) -> None:
    for process in other_process(pair.near, kind, then):
        assert name_on_hook(pair.near) == "afxdp_redirect"
        process.communicate("\n", timeout=20)
        assert on_hook(pair.near).program is None


def test_link_goes_with_a_killed_process(pair: VethPair) -> None:
    for process in other_process(pair.near, "link"):
        process.kill()
        # No wait: the hook frees itself a moment later, and opening waits for that.
        with XdpProgram(pair.near.name, netns=pair.near.netns) as program:
            assert program.attach_kind == "link"
    assert on_hook(pair.near).program is None


def test_left_over_is_recognised_and_replaced(
    pair: VethPair, child: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    left = on_hook(pair.near).program
    assert left is not None, "libxdp's attachment survives its process"
    assert left.owner is not None
    assert (left.owner.pid, left.owner.alive) == (child.pid, False)
    caplog.set_level("INFO")
    with XdpProgram(pair.near.name, netns=pair.near.netns) as program:
        assert program.id != left.id
    assert f"removed afxdp_redirect (program {left.id})" in caplog.text
    assert on_hook(pair.near).program is None


def test_clean_removes_a_left_over(pair: VethPair, child: subprocess.Popen[str]) -> None:
    near = pair.near
    assert clean(near.name, near.netns) == [], "it is in use"
    assert name_on_hook(near) == "afxdp_redirect"
    child.send_signal(signal.SIGKILL)
    child.wait(20)
    (said,) = clean(near.name, near.netns)
    assert f"left behind by process {child.pid}" in said
    assert on_hook(near).program is None
    assert clean(near.name, near.netns) == []


@pytest.mark.parametrize("kind", ["auto", "link", "libxdp"])
def test_live_owner_is_named(pair: VethPair, child: subprocess.Popen[str], kind: str) -> None:
    before = on_hook(pair.near)
    assert before.program is not None
    with pytest.raises(ProgramBusyError, match=f"process {child.pid} uses it") as caught:
        XdpProgram(pair.near.name, netns=pair.near.netns, attach=kind)  # type: ignore[arg-type]
    assert caught.value.errno == errno.EBUSY
    assert on_hook(pair.near) == before
    with XdpProgram(pair.near.name, netns=pair.near.netns, force=True) as program:
        assert program.id != before.program.id


def test_second_in_the_same_process(pair: VethPair) -> None:
    with (
        XdpProgram(pair.near.name, netns=pair.near.netns),
        pytest.raises(ProgramBusyError, match=f"process {os.getpid()}"),
    ):
        XdpProgram(pair.near.name, netns=pair.near.netns)


@pytest.mark.parametrize("kind", ["auto", "link", "libxdp"])
@pytest.mark.parametrize("by_link", [False, True])
def test_foreign_program_is_refused_and_untouched(pair: VethPair, kind: str, by_link: bool) -> None:
    near = pair.near
    with Foreign(near, by_link=by_link):
        before = on_hook(near)
        assert before.program is not None
        assert (before.program.name, before.program.owner) == ("sink_count", None)
        with pytest.raises(ProgramBusyError, match=r"sink_count \(program \d+\).*--force") as caught:
            XdpProgram(near.name, netns=near.netns, attach=kind)  # type: ignore[arg-type]
        if by_link:
            assert f"BPF link {before.link_id} of process {os.getpid()}" in str(caught.value)
        assert clean(near.name, near.netns) == []
        assert on_hook(near) == before
        with XdpProgram(near.name, netns=near.netns, attach=kind, force=True):  # type: ignore[arg-type]
            assert name_on_hook(near) == "afxdp_redirect"
        assert on_hook(near).program is None


@pytest.mark.parametrize("by_link", [False, True])
def test_clean_with_force(pair: VethPair, by_link: bool) -> None:
    with Foreign(pair.near, by_link=by_link):
        (said,) = clean(pair.near.name, pair.near.netns, force=True)
        assert "removed sink_count" in said
        assert on_hook(pair.near).program is None


def test_native_refused_falls_back_and_says_so(lab: Lab) -> None:
    """veth refuses native XDP when its peer's frames would not fit in a page."""
    link = lab.veth("big", mtu=9000).near
    with XdpProgram(link.name, netns=link.netns) as program:
        assert program.mode == on_hook(link).mode == "generic"
        assert program.fallback_reason is not None
        assert "veth refused native XDP" in program.fallback_reason
        assert "MTU" in program.fallback_reason
    with pytest.raises(ModeUnsupportedError, match="MTU"):
        XdpProgram(link.name, netns=link.netns, mode="native")
    with pytest.raises(ModeUnsupportedError, match="MTU"):
        XdpProgram(link.name, netns=link.netns, mode="native", attach="libxdp")
    with XdpProgram(link.name, netns=link.netns, attach="libxdp") as program:
        assert (program.mode, program.attach_kind) == ("generic", "libxdp")
    assert on_hook(link).program is None


def test_without_privileges() -> None:
    code = """
import os
from afxdp_pool.bpf import BpfObject
from afxdp_pool.errors import PrivilegeError
with BpfObject("xdp_redirect") as program:
    os.setuid(65534)
    try:
        program.load()
    except PrivilegeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert "grant CAP_NET_ADMIN and CAP_BPF" in done.stdout
    assert done.stderr == "", "libbpf prints nothing"


def test_device_that_goes_away(lab: Lab) -> None:
    link = lab.veth("gone").near
    programs = [XdpProgram(link.name, netns=link.netns, attach="libxdp")]
    with in_netns(link.netns):
        subprocess.run(["ip", "link", "del", link.name], check=True)
    for program in programs:
        program.close()
    with pytest.raises(NoSuchInterfaceError):
        XdpProgram(link.name, netns=link.netns)


def test_forked_child_leaves_it_on(pair: VethPair) -> None:
    with ExitStack() as stack:
        program = stack.enter_context(XdpProgram(pair.near.name, netns=pair.near.netns, attach="libxdp"))
        pid = os.fork()
        if pid == 0:
            program.close()
            os._exit(0)
        os.waitpid(pid, 0)
        assert name_on_hook(pair.near) == "afxdp_redirect"
    assert on_hook(pair.near).program is None


def test_nothing_leaks(pair: VethPair) -> None:
    def attach_once() -> None:
        for kind in ("link", "libxdp"):
            XdpProgram(pair.near.name, netns=pair.near.netns, attach=kind).close()

    attach_once()
    before = sorted(os.listdir("/proc/self/fd")), Path("/proc/thread-self/ns/net").readlink()
    attach_once()
    assert (sorted(os.listdir("/proc/self/fd")), Path("/proc/thread-self/ns/net").readlink()) == before


def test_bad_arguments(pair: VethPair) -> None:
    for bad in ({"mode": "offload"}, {"attach": "tc"}, {"rules": [Rule()] * 17}):
        with pytest.raises(ConfigError):
            XdpProgram(pair.near.name, netns=pair.near.netns, **bad)
    assert on_hook(pair.near).program is None
