"""Where NICs, frames and threads are: machines of several nodes are played by files, the memory by the real kernel."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import Bench, forwarding

from afxdp_pool import DROP, Forwarder, Netdev, Route, Umem, XdpFeature, XdpFeatures, numa
from afxdp_pool.cli import doctor_netdev
from afxdp_pool.netdev import RxMetadata, XskFeature, find, flag_names

NIC, OTHER = "0000:01:00.0", "0000:81:00.0"


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


def machine(path: Path, nodes: dict[int, str], devices: dict[str, int]) -> Path:
    """A sysfs of a machine with these nodes, CPU list by number, and these PCI devices, node by address."""
    for node, cpus in nodes.items():
        folder = path / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{cpus}\n")
    (path / "devices/system/node").mkdir(parents=True, exist_ok=True)
    (path / "devices/system/node/online").write_text(",".join(map(str, nodes)) + "\n")
    for bus, node in devices.items():
        (path / "bus/pci/devices" / bus).mkdir(parents=True)
        (path / "bus/pci/devices" / bus / "numa_node").write_text(f"{node}\n")
    return path


@pytest.fixture
def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process's CPUs are node 1's, and NIC is on node 0."""
    mine = numa.ranges(os.sched_getaffinity(0))
    monkeypatch.setattr(numa, "SYS", machine(tmp_path, {0: "1000-1003", 1: mine}, {NIC: 0, OTHER: -1}))
    return tmp_path


def test_this_machine() -> None:
    """Whatever it has, it is consistent."""
    nodes = numa.nodes()
    cpus = [cpu for node in nodes for cpu in numa.cpus_of(node)]
    assert len(cpus) == len(set(cpus))
    for node in nodes:
        if numa.cpus_of(node):
            assert numa.node_of_cpus(numa.cpus_of(node)) == node
            assert numa.node_of_cpus(numa.cpus_of(node)[:1]) == node


def test_machines_of_files(two_nodes: Path) -> None:
    assert numa.nodes() == (0, 1)
    assert numa.cpus_of(0) == (1000, 1001, 1002, 1003)
    assert numa.cpus_of(7) == ()
    assert numa.node_of_cpus([1000, 1003]) == 0
    assert numa.node_of_cpus([1000, 0]) is None, "of two nodes"
    assert numa.node_of_cpus([]) is None
    assert [numa.node_of_device(bus) for bus in (NIC, OTHER, "0000:02:00.0", "", "../../..")] == [0, *[None] * 4]
    (two_nodes / "bus/vmbus/devices/vm-7").mkdir(parents=True)
    (two_nodes / "bus/vmbus/devices/vm-7/numa_node").write_text("1\n")
    assert numa.node_of_device("vm-7") == 1, "not every bus is PCI"


def test_a_kernel_without_numa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numa, "SYS", tmp_path)
    assert (numa.nodes(), numa.node_of_cpus([0]), numa.node_of_device(NIC)) == ((), None, None)


@pytest.mark.parametrize("cpus", ["0", "0-3", "0,2,4-7,9"])
def test_lists_of_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: str) -> None:
    monkeypatch.setattr(numa, "SYS", machine(tmp_path, {0: cpus}, {}))
    assert numa.ranges(numa.cpus_of(0)) == cpus


def test_frames_are_on_a_node_once_they_are_touched() -> None:
    with Umem(2048) as umem:
        assert len(umem.numa_nodes) == 0
        umem.data[:] = 1
        assert len(numa.nodes()) != 1 or umem.numa_nodes == numa.nodes()
        assert set(umem.numa_nodes) <= set(numa.nodes())
    assert umem.numa_nodes == (), "of what is closed there is nothing to tell"


def test_a_sandbox_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(numa, "syscall", refuse)
    with Umem(64, prefault=True) as umem:
        assert umem.numa_nodes == ()


def test_the_node_with_most_frames_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(_number: int, _pid: int, count: object, _pages: object, _nodes: object, told: list[int], _: int) -> int:
        for at in range(len(told)):
            told[at] = 3 if at % 4 else -14 if at % 8 else 1  # EFAULT: not there yet
        return 0

    monkeypatch.setattr(numa, "syscall", tell)
    assert numa.nodes_of_memory(0x1000, 64 * 4096) == (3, 1)


@pytest.mark.parametrize(
    ("devices", "memory", "thread", "told"),
    [
        ({"eth1": 0}, (0,), 0, []),
        ({"eth1": None}, (0,), 0, []),
        ({"eth1": 0}, (), None, []),
        ({"eth1": 0}, (1,), 0, ["eth1 is on NUMA node 0, and the frames on node 1"]),
        ({"eth1": 0}, (0, 1), 0, ["eth1 is on NUMA node 0, and some of the frames on node 1"]),
        ({"eth1": 0}, (1, 2), 0, ["eth1 is on NUMA node 0, and the frames on nodes 1, 2"]),
        ({"eth1": 0}, (0,), 1, ["eth1 is on NUMA node 0, and the thread that runs it on node 1"]),
        ({"veth0": None}, (1,), 0, ["the thread is on NUMA node 0, and the frames on node 1"]),
        ({"eth1": 0, "eth2": 1}, (0,), 0, ["eth2 is on NUMA node 1, and the frames on node 0",
                                           "eth2 is on NUMA node 1, and the thread that runs it on node 0"]),
    ],
)  # fmt: skip
def test_differences(
    devices: dict[str, int | None], memory: tuple[int, ...], thread: int | None, told: list[str]
) -> None:
    assert numa.differences(devices, memory, thread) == told


def nic(bus: str = NIC, **changes: Any) -> Netdev:
    """The loopback's number, so that whoever watches devices finds one."""
    features = XdpFeatures(XdpFeature(0x7F), 4, RxMetadata(3), XskFeature(2 | 1 << 9))
    made = Netdev("eth1", 1, bytes(6), 1500, True, "ice", 4, 4, bus=bus, features=features)
    return replace(made, **{"numa_node": numa.node_of_device(bus), **changes})


def test_a_forwarder_says_once_that_packets_cross(
    bench: Bench, two_nodes: Path, caplog: pytest.LogCaptureFixture
) -> None:
    forwarder = bench.forwarder({0: Route(DROP)})
    assert isinstance(forwarder, Forwarder)
    forwarder.ports[0]._where = nic()
    bench.umem.data[:] = 0
    with caplog.at_level(logging.WARNING, "afxdp_pool"):
        for _ in range(2):
            forwarder.run(0)
    told = [record.getMessage() for record in caplog.records if "NUMA" in record.getMessage()]
    assert told == [
        "memory is on NUMA node 0, and the thread that runs it on node 1: packets cross from node to node; "
        "see docs/nic-setup.md"
    ]
    info = forwarder.info()
    assert (info.devices[0].numa_node, info.memory.numa_nodes, info.loops[0].numa_node) == (0, (0,), 1)
    assert (info.ports[0].bus, info.ports[0].numa_node) == (NIC, 0)
    forwarder.ports[0]._where = None
    forwarder.close()


def test_info_names_what_the_driver_offers(bench: Bench, two_nodes: Path) -> None:
    forwarder = bench.forwarder({0: Route(DROP)})
    forwarder.ports[0]._where = nic()
    forwarder.ports[1]._where = nic(OTHER, name="eth2", features=None)
    first, second = forwarder.info().devices
    assert first.xdp == ("basic", "redirect", "ndo_xmit", "xsk_zerocopy", "hw_offload", "rx_sg", "ndo_xmit_sg")
    assert (first.rx_metadata, first.xsk) == (("timestamp", "hash"), ("tx_checksum", "0x200"))
    assert (first.zc_max_segments, second.zc_max_segments) == (4, 0)
    assert (second.xdp, second.rx_metadata, second.numa_node) == (None, None, None)
    for port in forwarder.ports:
        port._where = None
    forwarder.close()


def test_bits_that_are_not_known_are_kept() -> None:
    assert XdpFeature(0x181) & 0x180 == 0x180
    assert flag_names(XdpFeature(0x181)) == ("basic", "0x180")
    assert flag_names(RxMetadata(0)) == ()


def test_a_device_of_software_has_no_node() -> None:
    lo = find("lo")
    assert (lo.bus, lo.numa_node) == ("", None)


def test_what_the_doctor_says_of_nodes(two_nodes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    away = doctor_netdev._numa(nic())
    assert (away.level, away.text) == ("warn", "on node 0, of which this process may use 0 of 4 CPUs")
    assert away.fix.startswith("let it run there: taskset --cpu-list 1000-1003")
    assert doctor_netdev._numa(nic(numa_node=1)).level == "ok"
    assert doctor_netdev._numa(nic(OTHER)).text == "2 nodes; the device is of none"
    monkeypatch.setattr(numa, "SYS", machine(tmp_path / "small", {0: "0"}, {}))
    assert doctor_netdev._numa(nic()).text == "this machine has one node"


def test_what_the_doctor_says_of_features() -> None:
    said = {finding.what: finding.text for finding in doctor_netdev._features(nic())}
    assert said["RX metadata"] == "timestamp, hash"
    assert said["TX offloads"] == "tx_checksum, 0x200"
    assert said["zero-copy"] == "yes, 4 segments"
