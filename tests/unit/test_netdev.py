"""Finding devices and namespaces. Only the loopback is needed, and root where a namespace is entered."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from afxdp_pool.errors import NoSuchInterfaceError, NoSuchNamespaceError
from afxdp_pool.netdev import XdpFeatures, find, in_netns, netns_path, xdp_features
from afxdp_pool.testing.machine import capabilities

ROOT = pytest.mark.skipif(not all(capabilities().values()), reason="entering a network namespace needs CAP_SYS_ADMIN")


def here() -> str:
    return os.readlink("/proc/thread-self/ns/net")


def test_loopback() -> None:
    lo = find("lo")
    assert (lo.name, lo.index, lo.mac, lo.netns) == ("lo", 1, bytes(6), None)
    assert lo.mtu > 0
    assert lo.rx_queues >= 1
    assert lo.tx_queues >= 1


@pytest.mark.parametrize("name", ["nosuchdevice0", "", "a-name-longer-than-15", "lo/../x"])
def test_no_such_interface(name: str) -> None:
    with pytest.raises(NoSuchInterfaceError, match="lo"):
        find(name)


def test_no_such_namespace() -> None:
    with pytest.raises(NoSuchNamespaceError, match="ip netns add afxp-nowhere"):
        find("lo", "afxp-nowhere")


def test_not_a_namespace(tmp_path: Path) -> None:
    before = here()
    with pytest.raises(NoSuchNamespaceError, match="not a network namespace"):
        find("lo", __file__)
    assert here() == before


def test_netns_path() -> None:
    assert netns_path("blue") == "/run/netns/blue"
    assert netns_path("/proc/1/ns/net") == "/proc/1/ns/net"


def test_features_are_told_or_not() -> None:
    features = xdp_features("lo")
    assert features is None or isinstance(features, XdpFeatures)


def test_asked_from_a_coroutine() -> None:
    async def ask() -> bool:
        return find("lo").index == 1 and xdp_features("lo") == expected

    expected = xdp_features("lo")
    assert asyncio.run(ask())


def test_none_is_no_move() -> None:
    before = here()
    with in_netns(None):
        assert here() == before


@ROOT
def test_back_after_an_exception_and_only_this_thread() -> None:
    before, inside = here(), threading.Event()
    other: list[str] = []

    def watch() -> None:
        inside.wait(20)
        other.append(here())

    def visit(netns: str) -> None:
        with in_netns(netns):
            assert here() != before
            assert find("lo").up is False
            inside.set()
            watcher.join(20)
            raise ZeroDivisionError

    watcher = threading.Thread(target=watch)
    watcher.start()
    holder = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo ready; read _"], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        with pytest.raises(ZeroDivisionError):
            visit(f"/proc/{holder.pid}/ns/net")
        assert here() == before
        assert other == [before]
    finally:
        holder.communicate(b"\n", timeout=20)


@ROOT
def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with in_netns("/proc/self/ns/net"):
            find("lo")
            xdp_features("lo")
    assert len(os.listdir("/proc/self/fd")) == before


def test_import_does_not_bring_pyroute2() -> None:
    code = "import sys, afxdp_pool.netdev; sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
