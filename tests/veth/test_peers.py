"""The rival engines of the benchmarks: every packet sent to one is counted at the far end, or by it and the kernel.

They are the programs of benchmarks/native, built here by its Makefile, and benchmarks/peers/af_packet.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab, LabLink
from afxdp_pool.testing.traffic import Sink, Source

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "benchmarks" / "native"
AF_PACKET = "af_packet"
RECEIVING = ["peer", "packet_mmap", "dpdk_af_xdp", "kernel_xdp", AF_PACKET]
SENDING = ["peer", "packet_mmap", "dpdk_af_xdp", AF_PACKET]
COUNT, BURST = 3000, 50  # packets, and how many at once: fewer than any ring on the way holds
KEYS = {"job", "received", "sent", "rx_dropped", "rx_ring_full", "kernel_dropped", "user_seconds", "sys_seconds"}


@cache
def make() -> str:
    if shutil.which("make") is None or shutil.which("pkg-config") is None:
        return "not built: all: make or pkg-config is missing (Debian: make pkg-config)"
    done = subprocess.run(["make", "-s", "-C", str(NATIVE)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def command(engine: str) -> list[str]:
    """What starts an engine; skips the test when a package is missing that it is built with."""
    if engine == AF_PACKET:
        return [sys.executable, "-m", "benchmarks.peers.af_packet"]
    for line in make().splitlines():
        if line.startswith(("not built: all:", f"not built: build/{engine}:")):
            pytest.skip(line)
    return [str(NATIVE / "build" / engine)]


class Run:
    """A running engine, and its report once it has ended."""

    report: dict[str, Any]


@contextmanager
def running(lab: Lab, engine: str, job: str, *arguments: str) -> Iterator[Run]:
    """An engine in the lab's engine namespace from "ready" to SIGTERM; it must end by itself, with status 0."""
    run = Run()
    process = subprocess.Popen(
        ["ip", "netns", "exec", lab.engine_netns, *command(engine), job, *arguments, "--duration", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.strip() == "ready":
                break
        else:
            pytest.fail(f"{engine} {job} did not start: {''.join(said)}")
        yield run
        process.terminate()
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
        run.report = json.loads(output)
        assert run.report.keys() >= KEYS
        assert run.report["job"] == job
    finally:
        process.kill()
        process.communicate()


def nothing_left(link: LabLink, lab: Lab) -> bool:
    """Whether no XDP program is on the link any more."""
    shown = subprocess.run(
        ["ip", "-n", lab.engine_netns, "-details", "link", "show", link.name],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return "xdp" not in shown


@pytest.mark.parametrize("engine", RECEIVING)
def test_drop_counts_every_packet_received_or_lost(lab: Lab, engine: str) -> None:
    """Offered at once, far more than a ring holds: what the engine did not get, the kernel counted."""
    pair = lab.veth("a")
    with Source(pair.far) as source, running(lab, engine, "drop", "-i", pair.near.name) as run:
        sent = source.send(100_000)
    assert sent.delivered > 0
    assert run.report["received"] > 0
    assert run.report["received"] + run.report["kernel_dropped"] == sent.delivered
    assert nothing_left(pair.near, lab)


@pytest.mark.parametrize("size", [64, 1500])
@pytest.mark.parametrize("engine", RECEIVING)
def test_forward_delivers_every_packet_in_order_and_intact(lab: Lab, engine: str, size: int) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    names = "-i", left.near.name, "-o", right.near.name
    with Sink(right.far) as sink, Source(left.far, size=size) as source:
        with running(lab, engine, "forward", *names) as run:
            for goal in range(BURST, COUNT + 1, BURST):
                source.send(BURST)
                seen = sink.wait(goal)
        assert (seen.unique, seen.missing(COUNT)) == (COUNT, 0)
        assert (seen.duplicate, seen.reordered, seen.corrupt) == (0, 0, 0)
    assert (run.report["received"], run.report["sent"], run.report["kernel_dropped"]) == (COUNT, COUNT, 0)
    assert nothing_left(left.near, lab)
    assert nothing_left(right.near, lab)


@pytest.mark.parametrize("engine", RECEIVING)
def test_reflect_sends_every_packet_back(lab: Lab, engine: str) -> None:
    """The MACs are the packet's own swapped: the link's stack takes frames for its MAC, and counts the others."""
    pair = lab.veth("a")
    with Sink(pair.far) as sink, Source(pair.far, size=256) as source:
        with running(lab, engine, "reflect", "-i", pair.near.name) as run:
            for goal in range(BURST, COUNT + 1, BURST):
                source.send(BURST)
                seen = sink.wait(goal)
        assert (seen.unique, seen.missing(COUNT)) == (COUNT, 0)
        assert (seen.duplicate, seen.reordered, seen.corrupt, seen.foreign) == (0, 0, 0, 0)
    assert (run.report["received"], run.report["sent"], run.report["kernel_dropped"]) == (COUNT, COUNT, 0)
    assert nothing_left(pair.near, lab)


@pytest.mark.parametrize("engine", SENDING)
def test_tx_sends_the_template(lab: Lab, engine: str) -> None:
    """What arrives is the test packet given, whole; what does not, the sending link counted as dropped."""
    pair = lab.veth("a")
    packet = packets.build(200, addresses=packets.Addresses(pair.near.mac, pair.far.mac))
    arguments = "-i", pair.near.name, "--size", "200", "--template-hex", packet.hex()
    with Sink(pair.far) as sink:
        with running(lab, engine, "tx", *arguments) as run:
            assert sink.wait(COUNT).packets >= COUNT
        dropped = pair.near.counters()["tx_dropped"]
        seen = sink.wait(run.report["sent"] - dropped)
        assert seen.packets == run.report["sent"] - dropped
        assert seen.bytes == seen.packets * 200
        assert seen.corrupt == 0
    assert run.report["received"] == 0
    assert nothing_left(pair.near, lab)


def test_kernel_xdp_has_no_job_tx(lab: Lab) -> None:
    done = subprocess.run([*command("kernel_xdp"), "tx", "-i", "lo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "live frames" in done.stderr
