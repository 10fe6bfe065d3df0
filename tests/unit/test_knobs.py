"""Knobs of a device are written down, and put back: by their owner, or by who comes after it. The device is a file."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from afxdp_pool import errors, knob, knobs, statedir
from afxdp_pool.knobs import Kind, Knobs
from afxdp_pool.statedir import StateDirectory

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


class Device:
    """Stands for lo, of which nothing is changed: its knobs are a file, so that all processes see the same."""

    def __init__(self, where: Path) -> None:
        self.where, self.refuse = where, 0
        where.write_text('{"a": 0, "b": "as it was"}')

    def __getitem__(self, key: str) -> Any:
        return json.loads(self.where.read_text())[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.where.write_text(json.dumps(json.loads(self.where.read_text()) | {key: value}))

    def read(self, netdev: str, key: str) -> Any:
        assert netdev == "lo"
        return self[key]

    def write(self, netdev: str, key: str, value: Any) -> None:
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        self[key] = value


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device(tmp_path / "device")
    monkeypatch.setattr(knob, "KINDS", {"test": (__name__, "KIND")})
    monkeypatch.setattr(knob, "_files", StateDirectory(str(tmp_path / "state")))
    monkeypatch.setitem(globals(), "KIND", Kind(made.read, made.write))
    return made


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


KIND: Kind


def files(state: Path) -> list[str]:
    return [name for name in os.listdir(state) if name != ".lock"]


def child(act: Callable[[], object], ends_by: int = signal.SIGKILL) -> int:
    """A forked child that does this and is killed; its number."""
    pid = os.fork()
    if not pid:
        try:
            act()
            os.kill(os.getpid(), ends_by)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -ends_by
    return pid


def test_what_is_changed_is_written_down_and_put_back(device: Device, state: Path) -> None:
    with Knobs("lo") as ours:
        assert ours.set("test", "a", 1) == 0
        assert ours.set("test", "b", ["other", 2]) == "as it was"
        assert ours.set("test", "a", 3) == 1
        assert (device["a"], device["b"]) == (3, ["other", 2])
        assert [(one.key, one.before, one.value, one.alive) for one in knobs.left("lo")] == [
            ("a", 0, 3, True),
            ("b", "as it was", ["other", 2], True),
        ]
        assert knobs.restore("lo") == []
    assert (device["a"], device["b"], files(state), knobs.left("lo")) == (0, "as it was", [], [])
    ours.close()


def test_what_is_so_already_is_not_changed_nor_put_back(device: Device, state: Path) -> None:
    with Knobs("lo") as ours:
        assert ours.set("test", "a", 0) == 0
        assert not state.exists() or files(state) == []
        device["a"] = 7
    assert device["a"] == 7


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_owners_close_in_any_order(device: Device, state: Path, order: tuple[int, ...]) -> None:
    owners = [Knobs("lo") for _ in order]
    for number, owner in enumerate(owners):
        owner.set("test", "a", number + 1)
    still = [0, 1, 2, 3]  # what holds, last is on top; 0 was there before
    for number in order:
        owners[number].close()
        still.remove(number + 1)
        assert device["a"] == still[-1]
    assert files(state) == []


def test_what_somebody_else_set_is_left_so(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    first, second = Knobs("lo"), Knobs("lo")
    first.set("test", "a", 1)
    device["a"] = 9
    second.set("test", "a", 2)
    first.close()
    assert device["a"] == 2
    second.close()
    assert device["a"] == 9, "what was there before the second"
    with Knobs("lo") as third:
        third.set("test", "a", 3)
        device["a"] = 8
    assert device["a"] == 8
    assert "lo: a was set to 8 meanwhile, and is left so" in caplog.text


def test_a_refused_change_leaves_nothing_written_down(device: Device, state: Path) -> None:
    with Knobs("lo") as ours:
        ours.set("test", "a", 1)
        device.refuse = errno.EINVAL
        for key in ("a", "b"):
            with pytest.raises(OSError, match="Invalid argument"):
                ours.set("test", key, 5)
        assert [one.value for one in knobs.left("lo")] == [1]
        device.refuse = 0
    assert (device["a"], files(state)) == (0, [])


def test_what_a_killed_process_left_is_put_back_by_the_next(device: Device, state: Path) -> None:
    ours = Knobs("lo")
    ours.set("test", "a", 1)
    pid = child(lambda: [Knobs("lo").set("test", key, 2) for key in ("a", "b")])
    assert (device["a"], device["b"]) == (2, 2)
    assert [(one.key, one.pid, one.alive) for one in knobs.left("lo")] == [("a", pid, False), ("b", pid, False)]
    assert knobs.restore("lo") == [
        f"lo: put b back to as it was, left at 2 by process {pid}",
        f"lo: put a back to 1, left at 2 by process {pid}",
    ]
    child(lambda: Knobs("lo").set("test", "b", 3))
    assert device["b"] == 3
    with Knobs("lo"):  # any owner that comes puts it back
        assert device["b"] == "as it was"
    ours.close()
    assert (device["a"], files(state)) == (0, [])


@pytest.mark.parametrize("late", [False, True])
def test_killed_at_the_moment_of_writing(
    device: Device, state: Path, late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written down before, so nothing is left, on whichever side of the change it dies."""

    def write(netdev: str, key: str, value: Any) -> None:
        if late:
            device.write(netdev, key, value)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as dying:
        dying.setitem(globals(), "KIND", Kind(device.read, write))
        child(lambda: Knobs("lo").set("test", "a", 5))
    assert device["a"] == (5 if late else 0)
    assert len(knobs.restore("lo")) == late
    assert (device["a"], files(state)) == (0, [])


def test_what_cannot_be_put_back_now_is_later(device: Device, state: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Knobs("lo") as ours:
        ours.set("test", "a", 5)
        device.refuse = errno.EBUSY
    assert "a could not be put back to 0: Device or resource busy; it is tried again" in caplog.text
    assert [(one.value, one.alive) for one in knobs.left("lo")] == [(5, False)]
    assert knobs.restore("lo") == []
    device.refuse = 0
    assert len(knobs.restore("lo")) == 1
    assert (device["a"], files(state)) == (0, [])


def test_who_may_not_write_there_leaves_it_to_others(
    device: Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    child(lambda: Knobs("lo").set("test", "a", 5))
    with monkeypatch.context() as unprivileged:
        unprivileged.setattr(StateDirectory, "writable", False)
        assert knobs.restore("lo") == []
    assert (device["a"], caplog.text) == (5, "")
    assert len(knobs.restore("lo")) == 1


def test_long_values_are_cut_for_people() -> None:
    assert [knobs.shown(value) for value in (0, None, "on")] == ["0", "unset", "on"]
    assert knobs.shown(list(range(128))).endswith("...")


def test_a_forked_child_puts_nothing_back(device: Device) -> None:
    ours = Knobs("lo")
    ours.set("test", "a", 5)
    child(ours.close)
    assert device["a"] == 5
    assert [one.alive for one in knobs.left("lo")] == [True]
    ours.close()
    assert device["a"] == 0


def test_a_device_or_namespace_that_is_gone_is_forgotten(device: Device, state: Path) -> None:
    child(lambda: Knobs("lo").set("test", "a", 5))
    (page,) = files(state)
    note = json.loads((state / page).read_text())
    number = page.rpartition("-")[0]
    for name, netns in ((f"{number}-9999999.json", None), ("c1-2.json", "no-such-namespace")):
        (state / name).write_text(json.dumps(note | {"state": note["state"] | {"netns": netns}}))
    (state / "c2-2.json").write_text(json.dumps(note))  # for all that can be known, it may be there
    knobs.restore("lo")
    assert files(state) == ["c2-2.json"]
    with pytest.raises(errors.NoSuchInterfaceError, match="no-such: there is no such interface"):
        Knobs("no-such")
    assert knobs.restore("no-such") == []


def spoil_mode(state: Path) -> None:
    state.chmod(0o777)


def spoil_link(state: Path) -> None:
    state.rename(state.with_name("elsewhere"))
    state.symlink_to(state.with_name("elsewhere"))


def spoil_file_mode(state: Path) -> None:
    (state / files(state)[0]).chmod(0o666)


def spoil_file_link(state: Path) -> None:
    (page,) = files(state)
    (state / page).rename(state.parent / "page")
    (state / page).symlink_to(state.parent / "page")


def spoil_boot(state: Path) -> None:
    (page,) = files(state)
    (state / page).write_text((state / page).read_text().replace(statedir._boot(), "another"))


def spoil_text(state: Path) -> None:
    (state / files(state)[0]).write_text("[7")


def spoil_meaning(state: Path) -> None:
    (page,) = files(state)
    (state / page).write_text((state / page).read_text().replace('"holders"', '"others"'))


def spoil_kind(state: Path) -> None:
    (page,) = files(state)
    (state / page).write_text((state / page).read_text().replace('"test"', '"os"'))


@pytest.mark.parametrize(
    "spoil",
    [spoil_mode, spoil_link, spoil_file_mode, spoil_file_link, spoil_boot, spoil_text, spoil_meaning, spoil_kind],
)
def test_what_others_may_have_written_is_not_believed(
    device: Device, state: Path, spoil: Callable[[Path], None]
) -> None:
    child(lambda: Knobs("lo").set("test", "a", 5))
    spoil(state)
    assert knobs.restore("lo") == []
    assert knobs.left("lo") == []
    assert device["a"] == 5
    with Knobs("lo") as ours:  # it works all the same
        assert ours.set("test", "a", 6) == 5
        assert device["a"] == 6
    assert device["a"] == 5


def test_without_a_directory_it_is_said_once(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(knob, "_files", StateDirectory(str(tmp_path / "not" / "there")))
    with caplog.at_level(logging.WARNING), Knobs("lo") as ours, Knobs("lo") as other:
        ours.set("test", "a", 1)
        other.set("test", "a", 2)
        ours.set("test", "b", 1)
        assert [one.value for one in knobs.left("lo")] == [2, 1]
    assert (device["a"], device["b"]) == (0, "as it was")
    assert caplog.text.count("would stay after kill -9") == 1


def test_the_lock_has_a_deadline_and_ends_with_who_holds_it(
    device: Device, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statedir, "LOCKED_FOR", 0.2)
    locked, told = os.pipe()
    pid = os.fork()
    if not pid:
        with knob._files.locked():
            os.write(told, b".")
            signal.pause()
    try:
        assert os.read(locked, 1) == b"."
        ours = Knobs("lo")
        with pytest.raises(errors.AfXdpError, match=r"another process has it locked; .*SIGSTOP"):
            ours.set("test", "a", 1)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(locked)
        os.close(told)
    assert device["a"] == 0
    ours.set("test", "a", 1)
    ours.close()
    assert (device["a"], files(state)) == (0, [])
