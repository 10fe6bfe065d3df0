"""Beside libxdp's dispatcher: who is joined, replaced, left alone.

Not every kernel lets a dispatcher be attached (it needs BPF_PROG_TYPE_EXT), so here it is one as `hook.look`
would tell of it, and what is done about it is recorded.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from afxdp_pool import hook as xdp
from afxdp_pool.bpf import BpfObject
from afxdp_pool.cleaning import clean
from afxdp_pool.errors import AfXdpError, ProgramBusyError
from afxdp_pool.program import Rule, XdpProgram
from afxdp_pool.testing import Lab
from afxdp_pool.testing.lab import VethPair

pytestmark = pytest.mark.usefixtures("veth_machine")


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a")


class Dispatcher:
    """The stand-in. `refuse` is the errno with which joining fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ifindex: int, *parts: xdp.Attached) -> None:
        self.ifindex, self.parts, self.calls = ifindex, list(parts), list[str]()
        self.refuse = 0
        monkeypatch.setattr(xdp, "look", self.look)
        monkeypatch.setattr(xdp, "remove", self.remove)
        monkeypatch.setattr(xdp, "remove_part", self.remove_part)
        monkeypatch.setattr(xdp, "LibxdpAttachment", self.attach)

    def look(self, ifindex: int) -> xdp.Hook:
        if not self.parts:
            return xdp.Hook(ifindex, "", None)
        return xdp.Hook(ifindex, "generic", xdp.Attached(1, "xdp_dispatcher", None), tuple(self.parts))

    def remove(self, hook: xdp.Hook) -> None:
        self.calls.append("remove")
        self.parts.clear()

    def remove_part(self, hook: xdp.Hook, part: xdp.Attached) -> None:
        self.calls.append(f"remove {part.id}")
        self.parts.remove(part)

    def attach(self, program: BpfObject, ifindex: int, mode: str) -> Dispatcher:
        self.calls.append(f"join in {mode} mode")
        if self.refuse and self.parts:
            raise AfXdpError(errno=self.refuse)
        program.load()
        return self

    def detach(self) -> None:
        self.calls.append("leave")

    def close(self) -> None:
        pass


NEIGHBOUR = xdp.Attached(2, "xdp_filter", None)
DEAD = xdp.Attached(3, "afxdp_redirect", xdp.Owner(os.getpid(), 1, xdp.Owner.current().pid_namespace))
ALIVE = xdp.Attached(4, "afxdp_redirect", xdp.Owner.current())
ELSEWHERE = xdp.Attached(5, "afxdp_redirect", xdp.Owner(1, 1, 1))


def test_dispatcher_is_joined_and_left(pair: VethPair, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Dispatcher(monkeypatch, pair.near.ifindex, NEIGHBOUR, DEAD)
    with XdpProgram(pair.near.name, netns=pair.near.netns, rules=[Rule(port=1)]) as program:
        assert (program.mode, program.attach_kind) == ("generic", "libxdp")
    assert others.calls == ["remove 3", "join in generic mode", "leave"]
    assert others.parts == [NEIGHBOUR]


@pytest.mark.parametrize("ours", [ALIVE, ELSEWHERE])
def test_dispatcher_with_a_live_one_of_ours(
    pair: VethPair, monkeypatch: pytest.MonkeyPatch, ours: xdp.Attached
) -> None:
    others = Dispatcher(monkeypatch, pair.near.ifindex, NEIGHBOUR, ours)
    assert ours.owner is not None
    with pytest.raises(ProgramBusyError, match=f"process {ours.owner.pid} uses it"):
        XdpProgram(pair.near.name, netns=pair.near.netns)
    assert others.calls == []
    with XdpProgram(pair.near.name, netns=pair.near.netns, force=True):
        assert others.parts == [NEIGHBOUR], "force is for what is in the way, not for the neighbours"


def test_dispatcher_that_cannot_be_joined(pair: VethPair, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Dispatcher(monkeypatch, pair.near.ifindex, NEIGHBOUR)
    others.refuse = errno.EBUSY
    with pytest.raises(ProgramBusyError, match=r"xdp_dispatcher .*calls xdp_filter \(program 2\)"):
        XdpProgram(pair.near.name, netns=pair.near.netns)
    with pytest.raises(ProgramBusyError, match="calls xdp_filter"):
        XdpProgram(pair.near.name, netns=pair.near.netns, attach="link")
    assert "remove" not in others.calls
    with XdpProgram(pair.near.name, netns=pair.near.netns, force=True) as program:
        assert "remove" in others.calls
        assert program.attach_kind == "link"


def test_clean_in_a_dispatcher(pair: VethPair, monkeypatch: pytest.MonkeyPatch) -> None:
    others = Dispatcher(monkeypatch, pair.near.ifindex, NEIGHBOUR, DEAD, ALIVE)
    assert len(clean(pair.near.name, pair.near.netns)) == 1
    assert others.parts == [NEIGHBOUR, ALIVE]


def test_stale_pins_only_of_dead_owners(pair: VethPair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = pair.near.ifindex
    inside = {f"dispatch-{index}-7": [DEAD], f"dispatch-{index}-8": [DEAD, ALIVE], f"dispatch-{index}-9": []}
    for name in inside:
        (tmp_path / name).mkdir()
        (tmp_path / name / "prog0-prog").touch()
    monkeypatch.setattr(xdp, "stale_pins", lambda hook: [(tmp_path / name, inside[name]) for name in inside])
    assert clean(pair.near.name, pair.near.netns) == [
        f"{pair.near.name}: removed the pins in {tmp_path / f'dispatch-{index}-7'}"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(inside)[1:]
    inside = {f"dispatch-{index}-7": [DEAD]}
    (tmp_path / f"dispatch-{index}-7").mkdir()
    (tmp_path / f"dispatch-{index}-7").chmod(0o777)
    assert clean(pair.near.name, pair.near.netns) == []  # others may write there
    assert (tmp_path / f"dispatch-{index}-7").exists()
