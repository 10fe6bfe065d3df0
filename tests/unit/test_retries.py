"""What is tried again while somebody else has it is tried for so long and no longer, on a clock of the test's own."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from afxdp_pool import AfXdpError, ModeUnsupportedError, ProgramBusyError, XdpProgram, netdev, opening, program
from afxdp_pool import hook as xdp


class Clock:
    """Time that passes in sleeps alone, and not for ever."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps = 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        assert self.sleeps < 10000, "it is tried for ever"


@pytest.mark.parametrize("patience", [0.0, 0.5, 3.0])
def test_a_busy_queue_is_tried_as_long_as_was_asked(monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    clock, tries = Clock(), 0
    monkeypatch.setattr(opening, "time", clock)
    port: Any = SimpleNamespace(config=SimpleNamespace(bind_timeout=patience))

    def attempt() -> bool:
        nonlocal tries
        tries += 1
        return True

    opening._again(port, attempt)
    assert tries == clock.sleeps + 1
    assert 0 <= clock.now - 1000.0 - patience < 0.05


def test_a_queue_that_is_free_after_a_while_is_had_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(opening, "time", clock)
    port: Any = SimpleNamespace(config=SimpleNamespace(bind_timeout=3.0))
    opening._again(port, lambda: clock.sleeps < 7)
    assert clock.sleeps == 7


class Hook:
    """The XDP hook of a device that is not there: what is seen on it, and how attaching ends, one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        self.seen: list[xdp.Attached | None] = [None]
        self.answers: list[AfXdpError | None] = [None]
        self.tried: list[str] = []
        device = SimpleNamespace(name="nic", index=1, driver="drv", rx_queues=1, netns=None)
        monkeypatch.setattr(program, "time", self.clock)
        monkeypatch.setattr(netdev, "find", lambda *_: device)
        monkeypatch.setattr(netdev, "in_netns", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(xdp, "look", self.look)
        monkeypatch.setattr(XdpProgram, "_attach_in", lambda _, mode, **how: self.attach(mode))

    def look(self, _: int) -> xdp.Hook:
        attached = self.seen.pop(0) if len(self.seen) > 1 else self.seen[0]
        return xdp.Hook(1, "native" if attached else "", attached)

    def attach(self, mode: str) -> None:
        self.tried.append(mode)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            raise answer


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Hook:
    return Hook(monkeypatch)


HERE = xdp.Owner.current()
TAKEN = xdp.Attached(7, "afxdp_redirect", HERE)


def test_a_hook_in_use_is_tried_for_a_second(hook: Hook) -> None:
    hook.seen = [TAKEN]
    with pytest.raises(ProgramBusyError, match=f"process {os.getpid()} uses it"):
        XdpProgram("nic")
    assert 1.0 <= hook.clock.now - 1000.0 < 1.1
    assert not hook.tried


def test_who_leaves_the_hook_in_time_is_followed(hook: Hook) -> None:
    hook.seen = [*[TAKEN] * 5, None]
    XdpProgram("nic").close()
    assert hook.clock.sleeps == 5
    assert hook.tried == ["native"]


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EEXIST])
def test_who_was_faster_is_no_reason_for_another_mode(hook: Hook, code: int) -> None:
    hook.answers = [AfXdpError(errno=code), AfXdpError(errno=code), None]
    made = XdpProgram("nic")
    assert (made.mode, made.fallback_reason) == ("native", None)
    made.close()
    assert hook.tried == ["native"] * 3
    hook.answers = [AfXdpError(errno=code)]
    with pytest.raises(ProgramBusyError, match="another program was faster"):
        XdpProgram("nic")


def test_what_cannot_pass_is_not_tried_again(hook: Hook) -> None:
    hook.seen = [xdp.Attached(7, "somebodys", None)]
    with pytest.raises(ProgramBusyError, match="somebodys"):
        XdpProgram("nic")
    hook.seen, hook.answers = [None], [AfXdpError(errno=errno.EOPNOTSUPP)]
    with pytest.raises(ModeUnsupportedError):
        XdpProgram("nic", mode="native")
    assert hook.clock.sleeps == 0


def test_an_owner_is_a_process_and_not_its_number() -> None:
    assert HERE.alive
    assert not replace(HERE, start_time=HERE.start_time + 1).alive  # a later process of that number
    assert not replace(HERE, pid=(1 << 22) + 1).alive  # beyond the kernel's highest
    assert replace(HERE, pid_namespace=1, pid=(1 << 22) + 1).alive  # out of sight
