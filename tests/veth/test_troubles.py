"""What users of AF_XDP engines run into, on real links: each ends in words that say why (docs/troubleshooting.md)."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from live_lab import audited, wait_for
from test_command import call, place, proven, running

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Source, VethPair
from afxdp_pool.testing.lab import LabLink

pytestmark = pytest.mark.usefixtures("veth_machine")

BARE = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", "--memlock=65536:65536"]


def ip(link: LabLink, *words: str) -> None:
    with in_netns(link.netns):
        subprocess.run(["ip", "link", "set", link.name, *words], check=True)


def silence(*words: str) -> tuple[str, dict[str, Any]]:
    """What a short run says of the silence it heard; and its document."""
    ended = call(*words, "--duration", "0.3", "--json")
    document = proven(ended.stdout)
    (said,) = document["silence"]
    assert said in ended.stderr, "people read it as well"
    return said, document


def test_nothing_arrives_because_it_comes_in_on_another_queue(lab: Lab) -> None:
    pair = lab.veth("a", queues=2)
    with running("drop", *place(pair.near), "-q", "1") as drop, Source(pair.far, cpu=0) as source:
        assert source.send(500, rate=50_000).dropped == 0
        document = drop.stop()
    assert document["received"] == 0
    assert document["ports"][0]["program"]["passed_no_socket"] == 500
    (said,) = document["silence"]
    assert said == (
        "a-near: nothing arrived: 500 packets came in on queues other than 1: take all (-q all), "
        f"or have one (ip netns exec {pair.near.netns} ethtool -L a-near combined 1)"
    )


def test_nothing_arrives_because_no_rule_wants_it(lab: Lab) -> None:
    pair = lab.veth("a")
    with running("drop", *place(pair.near), "--port", "53") as drop, Source(pair.far) as source:
        assert source.send(500, rate=50_000).dropped == 0
        document = drop.stop()
    (said,) = document["silence"]
    assert said.startswith("a-near: nothing arrived: no rule wanted any of the 500 packets that came: see --port")


def test_nothing_arrives_because_the_other_end_is_down(lab: Lab) -> None:
    pair = lab.veth("a")
    ip(pair.far, "down")
    said, _ = silence("drop", *place(pair.near))
    assert said == "a-near: nothing arrived: the link has no carrier: is its other end up, the cable in?"
    examined = json.loads(call("doctor", *place(pair.near), "--json").stdout)
    (about,) = [finding for finding in examined["findings"]["a-near"] if finding["what"] == "interface"]
    assert (about["level"], "without carrier" in about["text"]) == ("warn", True)


def test_nothing_arrives_because_nobody_sends(lab: Lab) -> None:
    pair = lab.veth("a")
    said, _ = silence("reflect", *place(pair.near))
    assert said == (
        "a-near: nothing arrived: nobody sent anything to this interface; "
        f"see whether its counters grow: ip netns exec {pair.near.netns} ip -s link show a-near"
    )


def test_who_received_something_hears_nothing_of_silence(lab: Lab) -> None:
    pair = lab.veth("a")
    with running("drop", *place(pair.near)) as drop, Source(pair.far) as source:
        source.send(10)
        drop.wait_for("received 10 ")
        assert drop.stop()["silence"] == []
    assert proven(call("tx", *place(pair.near), "--count", "5", "--json").stdout)["silence"] == []


def test_sending_to_a_peer_that_is_down_ends_and_every_frame_comes_home(lab: Lab) -> None:
    """The kernel answers each kick with ENOBUFS or EBUSY, having dropped a packet: retried, never waited for."""
    pair = lab.veth("a")
    ip(pair.far, "down")
    options = ap.Options(netns=pair.near.netns, port=ap.PortConfig(transmit="socket"))
    with ap.transmit(pair.near.name, [bytes(64)], count=5000, options=options) as sender:
        report = sender.run(duration=20)
        assert (report.sent, report.completed) == (5000, 5000)
        assert report.seconds < 20
        stats = report.ports[0].stats
        assert stats.tx_busy > 0
        assert stats.tx_errors == 0
        audited(sender)


def test_a_kick_that_is_refused_is_tried_again_when_the_peer_is_back(lab: Lab) -> None:
    pair = lab.veth("a")
    options = ap.Options(netns=pair.near.netns, port=ap.PortConfig(transmit="socket"))
    ip(pair.far, "down")
    with ap.transmit(pair.near.name, [bytes(64)], rate=5000, options=options) as sender:
        sender.start()
        assert wait_for(lambda: sender.snapshot().completed > 500)
        ip(pair.far, "up")
        with ap.drop(pair.far.name, options=ap.Options(netns=pair.far.netns)) as receiver:
            receiver.start()
            assert wait_for(lambda: receiver.snapshot().received > 500)
            sender.stop()
            sender.join()
            receiver.stop()
            receiver.join()
            audited(receiver)
        audited(sender)


@pytest.mark.parametrize("command", ["drop", "tx"])
def test_too_little_locked_memory_is_said_with_the_remedy(lab: Lab, command: str) -> None:
    from test_command import COMMAND

    pair = lab.veth("a")
    words = [*BARE, *COMMAND, command, *place(pair.near), "--duration", "1"]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "ENOBUFS" in ended.stderr
    assert "ulimit -l unlimited" in ended.stderr
    assert "CAP_IPC_LOCK" in ended.stderr


def test_an_mtu_too_large_for_the_frames_is_said_by_the_doctor_and_by_the_run(lab: Lab) -> None:
    pair = lab.veth("a", mtu=9000)
    examined = call("doctor", *place(pair.near))
    assert "packets over 3840 bytes fit no frame" in examined.stdout
    assert "ip link set a-near mtu 3822" in examined.stdout
    ended = call("drop", *place(pair.near), "--native", "--duration", "0.3")
    assert ended.returncode == 1
    assert "refused native XDP" in ended.stderr
    assert ended.stderr.endswith("MTU is too large to set XDP; lower the MTU\n")


def test_where_the_kernels_stack_sends_without_checksums_the_doctor_says_so(lab: Lab) -> None:
    pair: VethPair = lab.veth("a")
    with in_netns(pair.near.netns):
        subprocess.run(["ethtool", "-K", pair.near.name, "tx", "on"], check=True, capture_output=True)
    examined = call("doctor", *place(pair.near))
    assert "tx checksum is on: packets of this machine's own stack carry none over a veth" in examined.stdout
    assert "ethtool -K a-near tx off" in examined.stdout


def test_an_interface_of_another_namespace_is_pointed_to(lab: Lab) -> None:
    pair = lab.veth("a")
    with pytest.raises(ap.NoSuchInterfaceError, match=f"; namespace {pair.near.netns} has one of that name"):
        ap.drop(pair.near.name)


def test_a_run_that_failed_says_nothing_of_silence(lab: Lab) -> None:
    pair = lab.veth("a")
    ended = call("drop", *place(pair.near), "--cpus", "999", "--json")
    assert ended.returncode == 1
    assert proven(ended.stdout)["silence"] == []
