"""A lab makes what it says, nowhere else, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from afxdp_pool.errors import ConfigError, LabError
from afxdp_pool.netdev import find, in_netns
from afxdp_pool.testing import Lab, Sink, Source, packets
from afxdp_pool.testing.lab import NETNS_DIR

pytestmark = pytest.mark.usefixtures("veth_machine")


def links(netns: str) -> list[tuple[int, str]]:
    with in_netns(netns):
        return socket.if_nameindex()


def labs_of(pid: int) -> list[str]:
    return sorted(path.name for path in NETNS_DIR.glob(f"afxp-{pid}-*"))


def mine() -> tuple[object, ...]:
    """What a lab could leave behind: names, mounts, links where we are, descriptors, and where we are."""
    mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"afxp-{os.getpid()}-" in line]
    links = socket.if_nameindex()
    return (
        labs_of(os.getpid()),
        mounts,
        links,
        os.listdir("/proc/self/fd"),
        os.readlink("/proc/thread-self/ns/net"),
    )


@pytest.fixture
def unchanged() -> Iterator[None]:
    before = mine()
    yield
    assert mine() == before


def in_child(script: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", f"from afxdp_pool.testing import Lab\n{script}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


@pytest.mark.usefixtures("unchanged")
def test_everything_is_made_and_everything_goes() -> None:
    here = socket.if_nameindex()
    with Lab() as lab:
        pairs = [lab.veth("a", queues=2), lab.veth("b", queues=1, mtu=3000, addresses=False)]
        assert socket.if_nameindex() == here
        assert labs_of(os.getpid()) == sorted((lab.engine_netns, lab.traffic_netns))
        assert {pair.near.netns for pair in pairs} == {lab.engine_netns}
        assert {pair.far.netns for pair in pairs} == {lab.traffic_netns}
        for link in (end for pair in pairs for end in (pair.near, pair.far)):
            seen = find(link.name, link.netns)
            assert (seen.index, seen.mac, seen.mtu, seen.up) == (link.ifindex, link.mac, link.mtu, True)
            assert (seen.rx_queues, seen.tx_queues, seen.driver) == (link.queues, link.queues, "veth")
            assert link.mac[0] & 3 == 2, "a locally administered unicast MAC"
        assert pairs[0].near.peer_mac == pairs[0].far.mac
        assert (pairs[0].near.ipv4, pairs[0].near.peer_ipv4) == ("198.18.0.1", pairs[0].far.ipv4)
        assert pairs[1].near.ipv4 == ""


@pytest.mark.usefixtures("unchanged")
def test_an_exception_takes_the_lab_down() -> None:
    with pytest.raises(ConfigError), Lab() as lab:
        lab.veth(lab.veth("a").near.name)


@pytest.mark.usefixtures("unchanged")
def test_close_is_idempotent_and_final() -> None:
    lab = Lab()
    lab.veth("a")
    lab.close()
    lab.close()
    with pytest.raises(LabError, match="closed"):
        lab.veth("b")


def test_a_lab_is_closed_when_its_process_ends() -> None:
    child = in_child("lab = Lab(); lab.veth('a'); print('ready', flush=True); input()")
    assert len(labs_of(child.pid)) == 2
    child.communicate("\n", timeout=30)
    assert child.returncode == 0
    assert labs_of(child.pid) == []


def test_the_next_lab_removes_what_a_killed_process_left() -> None:
    with Lab() as living:
        child = in_child("lab = Lab(); lab.veth('a'); print('ready', flush=True); input()")
        child.send_signal(signal.SIGKILL)
        child.communicate(timeout=30)
        left = labs_of(child.pid)
        assert len(left) == 2
        with Lab():
            assert labs_of(child.pid) == []
        assert living.engine_netns in labs_of(os.getpid())


def test_the_first_ip_netns_add_of_a_machine_does_not_hide_a_labs_names() -> None:
    """It makes /run/netns a mount if it is none yet, and what was mounted there before would be busy for ever."""
    program = """
import os, subprocess
from afxdp_pool.testing import Lab
with Lab() as lab:
    subprocess.run(["ip", "netns", "add", "other"], check=True)
    lab.veth("a")
    subprocess.run(["ip", "netns", "del", "other"], check=True)
with Lab():
    pass
print(sorted(os.listdir("/run/netns")))
"""
    fresh = 'mount -t tmpfs tmpfs /run && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", fresh, "sh", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_a_forked_child_leaves_its_parents_lab_alone(lab: Lab) -> None:
    pid = os.fork()
    if pid == 0:
        lab.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert labs_of(os.getpid()) == sorted((lab.engine_netns, lab.traffic_netns))
    lab.veth("a")


@pytest.mark.parametrize("stranger", ["eth0", "other"])
@pytest.mark.parametrize("where", ["engine_netns", "traffic_netns"])
def test_nothing_is_done_beside_links_of_others(lab: Lab, stranger: str, where: str) -> None:
    from pyroute2 import IPRoute

    with in_netns(getattr(lab, where)), IPRoute() as ip:
        ip.link("add", ifname=stranger, kind="veth", peer={"ifname": "lo2"})
    before = links(lab.engine_netns), links(lab.traffic_netns)
    with pytest.raises(LabError, match=f"{stranger}|lo2"):
        lab.veth("a")
    assert (links(lab.engine_netns), links(lab.traffic_netns)) == before


def test_a_namespace_that_is_not_ours_is_refused(lab: Lab) -> None:
    lab._inodes[lab.engine_netns] += 1
    with pytest.raises(LabError, match="not the namespace"):
        lab.veth("a")


@pytest.mark.parametrize("arguments", [{"name": "UPPER"}, {"name": "a" * 11}, {"name": ""}, {"queues": 0}, {"mtu": 10}])
def test_what_cannot_be_made_is_refused(lab: Lab, arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        lab.veth(**{"name": "a", **arguments})  # type: ignore[arg-type]


def test_a_name_is_used_once(lab: Lab) -> None:
    lab.veth("a")
    with pytest.raises(ConfigError, match="not used yet"):
        lab.veth("a")


def test_a_pair_that_was_removed_can_be_made_again(lab: Lab) -> None:
    a, b = lab.veth("a"), lab.veth("b", host=True)
    lab.remove("a")
    assert list(lab.pairs) == ["b"]
    left = [name for netns in (lab.engine_netns, lab.traffic_netns) for _, name in links(netns)]
    assert not {a.near.name, a.far.name} & set(left)
    assert lab.veth("a").far.ipv4 == a.far.ipv4
    with in_netns(b.far.netns):
        subprocess.run(["ip", "link", "del", b.far.name], check=True)
    lab.remove("b")
    assert lab.veth("b", host=True).near.ifindex != b.near.ifindex
    with pytest.raises(ConfigError, match="no pair"):
        lab.remove("c")


@pytest.mark.usefixtures("unchanged")
def test_a_host_is_alone_with_its_kernel() -> None:
    with Lab() as lab:
        a, b = lab.veth("a", host=True), lab.veth("b", host=True)
        assert labs_of(os.getpid()) == sorted({lab.engine_netns, lab.traffic_netns, a.far.netns, b.far.netns})
        with in_netns(a.far.netns):
            assert [name for _, name in socket.if_nameindex() if name == "a-far" or name.startswith("b")] == ["a-far"]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"by the default route", (b.far.ipv4, 9))
        assert a.near.counters()["rx_packets"] == 1
        # Redirected frames arrive without an XDP program there.
        with Source(a.near, target_ip=a.far.ipv4) as source:
            assert source.send(100, rate=100_000).delivered == 100
        with pytest.raises(ConfigError, match="engine"):
            lab.veth("engine", host=True)


def test_packets_of_the_kernel_arrive_whole_and_alone(lab: Lab) -> None:
    """Neighbours are known (nothing is asked), checksums are filled in by software, IPv6 says nothing."""
    pair = lab.veth("a")
    count = 50
    with Sink(pair.far) as far, Sink(pair.near) as near:
        with in_netns(pair.near.netns):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for seq in range(count):
                payload = packets.build(600, seq=seq)[packets.HEADERS :]
                sender.sendto(payload, (pair.far.ipv4, packets.PORT))
        seen = far.wait(count)
        assert (seen.unique, seen.lost, seen.corrupt, seen.foreign) == (count, 0, 0, 0)
        assert near.report().foreign == 0
    assert pair.near.counters()["tx_packets"] == count
    assert pair.far.counters()["rx_xdp_drops"] == count
