"""Values of single NAPI instances: messages as the kernel sends them, from a device that is played."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import afxdp_pool as ap
from afxdp_pool import knob, knobs, napi, netlink, tuning
from afxdp_pool.cli import doctor_netdev
from afxdp_pool.netdev import find
from afxdp_pool.statedir import StateDirectory


class Played:
    """The loopback with two queues, NAPI 300 and 301."""

    def __init__(self) -> None:
        self.values = {number: {5: 0, 6: 0, 8: 0} for number in (300, 301)}
        self.sysfs = dict.fromkeys(tuning.KNOBS, 0)

    def dump(self, family: str, command: int) -> Iterator[dict[int, bytes]]:
        assert family == "netdev"
        if command == 10:
            for kind in (0, 1):
                for queue in (0, 1):
                    yield {1: u32(queue), 2: u32(1), 3: u32(kind), 4: u32(300 + queue)}
            yield {1: u32(0), 2: u32(7), 3: u32(0), 4: u32(400)}  # another device
            yield {1: u32(2), 2: u32(1), 3: u32(0)}  # a queue whose NAPI is not told
        else:
            for number, values in self.values.items():
                told = {2: u32(number), 1: u32(1), 3: u32(number - 270), **{k: u32(v) for k, v in values.items()}}
                yield told | ({4: u32(4711)} if values.get(8) else {})

    def act(self, family: str, command: int, more: bytes) -> None:
        assert (family, command) == ("netdev", 14)
        found = {kind: netlink.number(value) for kind, value in netlink.attributes(more).items()}
        self.values[found.pop(2)] |= found


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Played:
    made = Played()
    monkeypatch.setattr(netlink, "generic_dump", made.dump)
    monkeypatch.setattr(netlink, "act", made.act)
    monkeypatch.setattr(knob, "_files", StateDirectory(str(tmp_path / "knobs")))
    monkeypatch.setattr(napi, "PROC", tmp_path)
    return made


def test_a_value_of_each_queue_and_back(played: Played) -> None:
    with ap.Napi("lo", napi_defer_hard_irqs=2, gro_flush_timeout=200_000, queues=[1]) as made:
        assert played.values == {300: {5: 0, 6: 0, 8: 0}, 301: {5: 2, 6: 200_000, 8: 0}}
        assert made.changed == {"napi_defer_hard_irqs of queue 1": (0, 2), "gro_flush_timeout of queue 1": (0, 200_000)}
        with ap.Napi("lo", threaded=True, queues=[0, 1]):
            assert [values[8] for values in played.values.values()] == [1, 1]
        assert [values[8] for values in played.values.values()] == [0, 0]
    assert played.values == {300: {5: 0, 6: 0, 8: 0}, 301: {5: 0, 6: 0, 8: 0}}


@pytest.mark.parametrize("lack", ["queue", "value", "kernel"])
def test_where_it_is_not_told_the_device_s_value_is_set(
    played: Played, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    set_: list[tuple[str, str, int]] = []
    kind = knobs.Kind(lambda _, key: 0, lambda netdev, key, value: set_.append((netdev, key, value)))
    monkeypatch.setattr(tuning, "NAPI", kind)
    if lack == "value":
        del played.values[300][8]
    if lack == "kernel":

        def refuse(*_: object) -> Iterator[dict[int, bytes]]:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

        monkeypatch.setattr(netlink, "generic_dump", refuse)
    ap.Napi("lo", threaded=True, queues=[0, 2] if lack == "queue" else [0]).close()
    assert set_[0] == ("lo", "threaded", 1)


def test_a_queue_that_has_lost_its_napi(played: Played) -> None:
    with ap.Napi("lo", gro_flush_timeout=5, queues=[0]) as made:
        gone = played.values.pop(300)
        made.close()
        played.values[300] = gone
    assert napi.read("lo", 0, "gro_flush_timeout") == 5, "it could not be put back"
    assert knobs.restore("lo")
    assert napi.read("lo", 0, "gro_flush_timeout") == 0, "and is later"
    with pytest.raises(OSError, match="supported"):
        napi.read("lo", 2, "gro_flush_timeout")


@pytest.mark.parametrize(
    ("first", "second", "level", "text"),
    [
        ("0", "1", "ok", "queue 0: 30 to CPU 0, queue 1: 31 to CPU 1"),
        ("0-3", "0-3", "ok", "queue 0: 30 to CPU 0-3, queue 1: 31 to CPU 0-3"),
        ("1", "1", "warn", "queue 0: 30 to CPU 1, queue 1: 31 to CPU 1; queues share a CPU"),
    ],
)
def test_interrupts(played: Played, tmp_path: Path, first: str, second: str, level: str, text: str) -> None:
    assert doctor_netdev._interrupts(find("lo")) == [], "not told"
    for irq, cpus in (("30", first), ("31", second)):
        (tmp_path / "irq" / irq).mkdir(parents=True)
        (tmp_path / "irq" / irq / "smp_affinity_list").write_text(f"{cpus}\n")
    (finding,) = doctor_netdev._interrupts(find("lo"))
    assert (finding.level, finding.text) == (level, text)
    with ap.Napi("lo", threaded=True, queues=[1]):
        _, thread = doctor_netdev._interrupts(find("lo"))
        assert (thread.text, thread.fix) == ("queue 1: 4711", "taskset --cpu-list --pid CPU 4711")
