"""Steering, on a NIC that is played: what is set, what is put back, and what is said when it cannot be."""

from __future__ import annotations

import errno
import json
import logging
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_nic import FakeNic

import afxdp_pool as ap
from afxdp_pool import ethtool, knob, netlink
from afxdp_pool.cli import doctor_netdev, main
from afxdp_pool.netdev import Netdev, find
from afxdp_pool.statedir import StateDirectory
from afxdp_pool.steering import spread_table, steering_state

UDP = ap.FlowRule(3, protocol=17, port=4242)


@pytest.fixture
def nic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNic]:
    """The loopback plays it: eight queues, all of them in use."""
    yield from played(FakeNic(), monkeypatch, tmp_path)


def played(nic: FakeNic, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeNic]:
    monkeypatch.setattr(ethtool, "ioctl", nic.ioctl)
    monkeypatch.setattr(netlink, "act", nic.act)
    monkeypatch.setattr(knob, "_files", StateDirectory(str(tmp_path / "knobs")))

    def find(name: str, netns: str | None = None) -> Netdev:
        return Netdev(name, 1, bytes(6), 1500, True, "fakenic", nic.combined, nic.combined, netns)

    monkeypatch.setattr("afxdp_pool.netdev.find", find)
    before = vars(nic).copy()
    yield nic
    after = vars(nic)
    for name in ("combined", "rx_ring", "tx_ring", "table", "configured", "key", "hash", "flags", "rules", "transform"):
        assert after[name] == before[name], f"{name} was not put back"


def test_state(nic: FakeNic) -> None:
    state = steering_state("lo")
    assert state.channels == ethtool.Channels(0, 0, 8, 0, 0, 8)
    assert state.rings == ethtool.Rings(512, 512, 4096, 4096)
    assert state.rss is not None
    assert (state.rss.table[:9], state.rss.function, state.rss.queues) == ((0, 1, 2, 3, 4, 5, 6, 7, 0), "toeplitz", 8)
    assert (state.rss.key, state.rss.is_default) == (bytes(range(40)), True)
    assert state.hash_fields == dict.fromkeys(("tcp4", "udp4", "tcp6", "udp6", "ip4", "ip6"), "sd")
    assert (state.ntuple, state.rules) == (False, ())
    assert state.as_dict()["rss"]["key"] == bytes(range(40)).hex()


def test_some_queues_for_us_the_rest_for_the_kernel(nic: FakeNic) -> None:
    """The how-to's own case, and the order in which it is put back."""
    with ap.Steering("lo") as steering:
        assert steering.set_channels(4).combined == 4
        assert steering.spread(3).table[:4] == (0, 1, 2, 0)
        made = steering.add(UDP)
        assert (made.location, made.queue) == (15, 3)
        assert steering.add(ap.FlowRule("drop", vlan=7)).location == 14, (
            "the lowest place decides, so the first is last"
        )
        state = steering.state()
        assert state.ntuple
        assert [rule.location for rule in state.rules] == [14, 15]
        assert state.rules[1] == made
        assert nic.transform == 1, "a symmetric hash stays one"
    assert nic.log == ["channels 4", "table", "rule 15", "rule 14", "table", "channels 8"]


def test_a_table_that_somebody_had_set_comes_back(nic: FakeNic) -> None:
    nic.table, nic.configured = [0, 1] * 8, True
    with ap.Steering("lo") as steering:
        steering.spread(weights=(0, 3, 1))
        assert nic.table == [1] * 12 + [2] * 4
        steering.spread(table=[5] * 16)
        assert nic.table == [5] * 16
    assert nic.table == [0, 1] * 8
    nic.table, nic.configured = [at % 8 for at in range(16)], False


def test_hash_key_and_rings(nic: FakeNic) -> None:
    with ap.Steering("lo") as steering:
        steering.set_hash("udp4", "nfds")
        assert nic.hash[2] == 0xF0
        assert steering.state().hash_fields["udp4"] == "sdfn"
        assert steering.set_key(ap.RSS_KEY_SYMMETRIC).key == ap.RSS_KEY_SYMMETRIC[:40]
        rings = steering.set_rings(rx=1000)
        assert (rings.rx, rings.tx) == (1024, 512), "the driver rounds up"


def test_a_rule_of_somebody_else_is_deleted_and_comes_back(nic: FakeNic) -> None:
    spec = ap.FlowRule(2, protocol=6, location=5).pack()
    nic.rules[5] = spec
    nic.flags |= 1 << 27
    with ap.Steering("lo") as steering:
        steering.delete(5)
        assert nic.rules == {}
        with pytest.raises(ap.ConfigError, match="no rule at 5"):
            steering.delete(5)
        assert steering.add(ap.FlowRule(1, protocol=6, location=5)).location == 5
    assert nic.rules == {5: spec}
    nic.rules.clear()
    nic.flags &= ~(1 << 27)


def test_what_somebody_changed_meanwhile_is_left(nic: FakeNic, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "afxdp_pool"), ap.Steering("lo") as steering:
        steering.set_hash("tcp4", "sdfn")
        nic.hash[1] = 0x10
    assert "hash tcp4 was set to s meanwhile" in caplog.text
    assert nic.hash[1] == 0x10
    nic.hash[1] = 0x30


def test_a_driver_that_chooses_places_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for nic in played(FakeNic(places=0), monkeypatch, tmp_path):
        with ap.Steering("lo") as steering:
            assert steering.add(UDP).location == 100
            assert steering.add(ap.FlowRule(1, vlan=3)).location == 101
            assert len(nic.rules) == 2


def test_a_rule_the_nic_has_no_filter_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for nic in played(FakeNic(choosy=True), monkeypatch, tmp_path):
        with ap.Steering("lo") as steering, pytest.raises(ap.AfXdpError, match="no filter for these fields") as raised:
            steering.add(ap.FlowRule(1, protocol=17, mac="02:00:00:00:00:01"))
        assert raised.value.errno == errno.EINVAL
        assert nic.rules == {}


def test_what_is_not_possible_is_refused_before_the_device_is_asked(nic: FakeNic) -> None:
    with ap.Steering("lo") as steering:
        for call, message in (
            (lambda: steering.set_channels(9), "combined queues cannot be 9; it has 8"),
            (lambda: steering.set_channels(rx=1), "rx queues cannot be 1; it has 0"),
            (lambda: steering.set_rings(tx=5000), "a tx ring of 5000 is not possible; choose 1 to 4096"),
            (lambda: steering.spread(table=[0] * 15), "has 16 places, not 15"),
            (lambda: steering.spread(2, first=7), "there is no queue 8"),
            (lambda: steering.spread(), "a number of queues, or a weight"),
            (lambda: steering.spread(17), "over 17 queues; choose 1 to 16"),
            (lambda: steering.spread(weights=(0, 0)), "weights"),
            (lambda: steering.set_key(b"short"), "the key has 40 bytes, not 5"),
            (lambda: steering.set_hash("udp", "sd"), "no packets are called 'udp'"),
            (lambda: steering.set_hash("udp4", "sx"), "no field is 'x'"),
            (lambda: steering.add(ap.FlowRule(8, protocol=17)), "there is no queue 8"),
        ):
            with pytest.raises(ap.ConfigError, match=message):
                call()
    assert nic.log == []


def test_the_kernel_s_own_sentence_is_passed_on(nic: FakeNic) -> None:
    with ap.Steering("lo") as steering:
        steering.spread(8, first=0)
        steering.spread(table=[7] * 16)
        with pytest.raises(
            ap.AfXdpError, match="setting 4 combined queues failed: requested channel counts are too low"
        ):
            steering.set_channels(4)


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        (errno.EOPNOTSUPP, ap.ModeUnsupportedError, "the driver fakenic steers no flows"),
        (errno.EPERM, ap.PrivilegeError, "CAP_NET_ADMIN"),
        (errno.EBUSY, ap.AfXdpError, "close the sockets on it"),
    ],
)
def test_errors(nic: FakeNic, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[ap.AfXdpError], hint: str) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(code, os.strerror(code))

    with ap.Steering("lo") as steering:
        with monkeypatch.context() as patched:
            patched.setattr(ethtool, "ioctl", refuse)
            with pytest.raises(kind, match="steering ip=4,protocol=17,port=4242,queue=3 failed") as raised:
                steering.add(UDP)
            assert steering.state() == ap.SteeringState(None, None, None, {}, None, ())
        assert hint in raised.value.hint


def test_what_is_kept_stays_until_it_is_put_back(nic: FakeNic) -> None:
    with ap.Steering("lo", kept=True) as steering:
        steering.set_channels(4)
        steering.spread(3)
    assert nic.combined == 4
    with ap.Steering("lo") as steering:
        steering.set_channels(6)
    assert (nic.combined, nic.table[:4]) == (4, [0, 1, 2, 0]), "of the running one, only its own goes back"
    with ap.Steering("lo", kept=True) as steering:
        done = steering.put_back()
        assert [line.split(",")[0] for line in done] == [
            "lo: put rss table back to None",
            "lo: put channels back to {'rx': 0",
        ]
        assert nic.combined == 8
        assert steering.put_back() == []


# The command ----------------------------------------------------------------------------------------------------------


def command(line: str) -> int:
    return main(["steer", "-i", "lo", *line.split()])


def test_the_command_sets_and_puts_back(nic: FakeNic, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--channels 4 --spread 3 --hash udp4=sdfn --rule protocol=udp,port=4242,queue=3 --rx-ring 1024") == 0
    assert (nic.combined, nic.table[:4], nic.hash[2], list(nic.rules)) == (4, [0, 1, 2, 0], 0xF0, [15])
    assert capsys.readouterr().out.splitlines() == [
        "lo: rings: 1024 rx",
        "lo: spread over 3 queues from 0 on",
        "lo: queues: 4 combined",
        "lo: hash of udp4: sdfn",
        "lo: rule ip=4,protocol=17,port=4242,queue=3",
    ]
    assert command("") == 0
    told = capsys.readouterr().out
    for line in (
        "queues       4 combined (of 8)",
        "rings        rx 1024 (of 4096), tx 512 (of 4096)",
        "spreading    toeplitz, 16 places: queues 0-2 alike",
        "hash         udp4: sdfn",
        "rule         ip=4,protocol=17,port=4242,queue=3,location=15",
        "changed      rss table, until afxdp-pool steer --restore",
    ):
        assert line in told, told
    assert command("--channels 2 --weights 1,3 --delete 15 --key symmetric") == 0
    assert nic.log[-3:] == ["table", "channels 2", "key"]
    assert capsys.readouterr().out.startswith("lo: spread over (1, 3)\nlo: queues: 2 combined\n"), "the table first"
    assert command("--channels 6 --spread 5") == 0
    assert nic.log[-2:] == ["channels 6", "table"], "and here the queues"
    assert command("--restore") == 0
    assert "lo: put channels back to {'rx': 0, 'tx': 0, 'combined': 8}, kept at" in capsys.readouterr().out
    assert command("--restore --json") == 0
    assert json.loads(capsys.readouterr().out)["channels"]["combined"] == 8


def test_the_doctor_says_what_is_kept(nic: FakeNic) -> None:
    with ap.Steering("lo", kept=True) as steering:
        steering.set_channels(4)
        steering.spread(3)
        steering.add(UDP)
        said = [finding.text for finding in doctor_netdev._changed(find("lo")) if finding.what == "steering"]
        assert said == [
            "channels is 0 rx, 0 tx, 4 combined, and was 0 rx, 0 tx, 8 combined: kept so",
            "rss table is queues [0, 1, 2], and was the driver's own: kept so",
            "ntuple is True, and was False: kept so",
            "rule 15 is ip=4,protocol=17,port=4242,queue=3,location=15, and was none: kept so",
        ]
        steering.put_back()


def test_the_command_keeps_it_while_another_runs(
    nic: FakeNic, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command(f"--channels 4 -- touch {tmp_path / 'ran'}") == 0
    assert (tmp_path / "ran").exists()
    assert nic.log == ["channels 4", "channels 8"]
    assert command("--channels 4 -- false") == 1
    assert command("--channels 4 -- /no/such/command") == 127
    assert "No such file or directory" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--rule port=53", "says not where to: add queue=N, or queue=drop"),
        ("--rule port=53,queue=1", "ports are those of a protocol"),
        ("--rule proto=udp,queue=1", "is no part of a rule"),
        ("--weights 1,x", "no list of numbers"),
        ("--hash udp4", "is not as udp4=sdfn"),
        ("--key zz", "is no key"),
        ("--spread 2 --weights 1,1", "not allowed with"),
        ("--spread 0", "nothing to do"),
    ],
)
def test_lines_that_mean_nothing(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(line)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "table"),
    [
        ({"queues": 3}, (0, 1, 2, 0, 1, 2, 0, 1)),
        ({"queues": 2, "first": 1}, (1, 2, 1, 2, 1, 2, 1, 2)),
        ({"weights": (1, 1)}, (0, 0, 0, 0, 1, 1, 1, 1)),
        ({"weights": (0, 1)}, (1,) * 8),
        ({"weights": (3, 0, 5)}, (0, 0, 0, 2, 2, 2, 2, 2)),
        ({"weights": (1, 2)}, (0, 0, 0, 1, 1, 1, 1, 1)),
    ],
)
def test_tables(arguments: dict[str, Any], table: tuple[int, ...]) -> None:
    assert spread_table(8, **arguments) == table


def test_the_kernel_s_sentence_in_an_error_message() -> None:
    text = netlink.attribute(1, b"no such thing\0")
    head = struct.pack("=IHH", 0, 2, 0x300) + bytes(8)
    request = struct.pack("=IHHII", 20, 16, 5, 0, 0)
    capped = head + struct.pack("=i", -22) + request + text
    assert netlink.said(capped) == "no such thing"
    whole = struct.pack("=IHH", 0, 2, 0x200) + bytes(8) + struct.pack("=i", -22) + request + b"rest" + text
    assert netlink.said(whole) == "no such thing"
    assert netlink.said(struct.pack("=IHH", 0, 2, 0) + bytes(8) + struct.pack("=i", -22) + request) == ""
    assert netlink.said(capped[:38]) == ""
