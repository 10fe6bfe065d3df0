"""Faults of network devices, with packets flowing: down, changed, deleted; and their namespace."""

from __future__ import annotations

import logging
import subprocess

import pytest
from faulty import Flow, Record, ip, ip_done
from live_lab import wait_for

import afxdp_pool as ap
from afxdp_pool.testing.lab import LabLink, _remove_netns


def _down_and_up(flow: Flow, record: Record, caplog: pytest.LogCaptureFixture, link: LabLink, said: str) -> None:
    """Three times down, which the log tells, and up, which it tells as well; packets flow again."""
    caplog.set_level(logging.INFO)
    flow.start()
    flow.send()
    flow.flows()
    for _ in range(3):
        caplog.clear()
        ip_done(link.netns, "link", "set", link.name, "down")
        assert wait_for(lambda: said in caplog.text, 5)
        ip_done(link.netns, "link", "set", link.name, "up")
        record.tried(flow.flows())
        assert wait_for(lambda: f"no longer: {said}" in caplog.text, 5)
    flow.intact()
    flow.stopped()


def test_receiving_interface_down_and_up(flow: Flow, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    _down_and_up(flow, record, caplog, flow.left.near, "the interface is down")
    record.of(
        "interface that receives down and up",
        "waits; says so in the log, and when it is over",
        f"{flow.left.near.name}: the interface is down: nothing is received until it is up again",
    )


def test_sending_interface_down(flow: Flow, record: Record) -> None:
    flow.start()
    flow.send()
    for _ in range(3):
        flow.flows()
        ip_done(flow.lab.engine_netns, "link", "set", flow.right.near.name, "down")
        error = flow.ended_by(ap.LinkGoneError)
        ip_done(flow.lab.engine_netns, "link", "set", flow.right.near.name, "up")
        assert wait_for(lambda: "state UP" in ip(flow.lab.engine_netns, "link", "show", flow.right.near.name).stdout)
        flow.start()
        record.tried(flow.flows())
    flow.stopped()
    record.of("interface that sends down", "ends the run; opened again, it goes on", _plain(error, flow))


def test_mtu_changed(flow: Flow, record: Record) -> None:
    flow.start()
    flow.send()
    flow.flows()
    for mtu in (1000, 2000, 576, 1500):
        ip_done(flow.lab.engine_netns, "link", "set", flow.left.near.name, "mtu", str(mtu))
        record.tried(flow.flows())
    refused = ip(flow.lab.traffic_netns, "link", "set", flow.left.far.name, "mtu", "9000")
    assert refused.returncode != 0  # by veth: more than the other end's native XDP takes
    record.tried(flow.flows())
    flow.intact()
    flow.stopped()
    record.of("MTU changed", "goes on; the kernel refuses what native XDP cannot take", refused.stderr.splitlines()[0])


def test_mtu_beyond_the_frames(flow: Flow, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    """Frames of 2048 bytes take packets of 1792."""
    with ap.drop(flow.left.near.name, options=flow.options(frame_size=2048)) as engine, ap.Watch(engine.ports) as watch:
        engine.start()
        ip_done(flow.lab.engine_netns, "link", "set", flow.left.near.name, "mtu", "2000")
        assert wait_for(lambda: "the MTU is 2000" in caplog.text, 5)
        watch.check()
        engine.stop()
        engine.join()
        engine.audit().check()
    record.tried()
    text = next(r.getMessage() for r in caplog.records if "the MTU is" in r.getMessage())
    record.of("MTU beyond the frames' size", "goes on; says so in the log", text.replace(_where(flow), ""))


@pytest.mark.parametrize("path", ["drop", "forward"])
@pytest.mark.parametrize("end", ["near", "far"])
def test_netdev_deleted(flow: Flow, record: Record, path: str, end: str) -> None:
    if path == "drop":
        flow.engine = ap.drop(flow.left.near.name, options=flow.options())
        flow.engine.start()
    else:
        flow.start()
        flow.send()
        flow.flows()
    pair = flow.left if path == "drop" else flow.right
    if end == "near":
        ip_done(flow.lab.engine_netns, "link", "del", pair.near.name)
    else:
        ip_done(flow.lab.traffic_netns, "link", "del", pair.far.name)
    error = flow.ended_by(ap.LinkGoneError)
    record.tried()
    what = "netdev deleted" if end == "near" else "peer deleted, and the netdev with it"
    which = "receives" if path == "drop" else "sends"
    record.of(f"{what} ({which})", "ends the run within about a second", _plain(error, flow))


def test_namespace_deleted(flow: Flow, record: Record) -> None:
    """Its name goes; the sockets keep the namespace, and the packets flow on until they are closed."""
    flow.start(attach="link")
    flow.send()
    flow.flows()
    _remove_netns(flow.lab.engine_netns)
    for _ in range(3):
        record.tried(flow.flows())
    flow.stopped()
    record.of("namespace deleted", "goes on: its sockets keep the namespace; closes as ever", "")


def test_carrier_lost(flow: Flow, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    _down_and_up(flow, record, caplog, flow.right.far, "there is no carrier")
    record.of(
        "TX without a taker: peer down and up",
        "goes on; the device drops and counts; says so in the log",
        f"{flow.right.near.name}: there is no carrier, the other end is down: what is sent is lost",
    )


def test_queue_count_changed(flow: Flow, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    def channels(count: int, link: LabLink = flow.left.near, way: str = "rx") -> None:
        command = ["ip", "netns", "exec", link.netns, "ethtool", "-L", link.name, way, str(count)]
        subprocess.run(command, capture_output=True, check=True)

    caplog.set_level(logging.INFO)
    channels(1, flow.left.far, "tx")  # a veth's native XDP takes no less than its peer's transmit queues
    channels(1)
    flow.start()
    flow.send()
    flow.flows()
    channels(2)
    assert wait_for(lambda: "2 receive queues now" in caplog.text, 5)
    channels(1)
    assert wait_for(lambda: "no longer" in caplog.text, 5)
    record.tried(flow.flows())
    flow.stopped()
    record.of(
        "queue count changed",
        "goes on; says in the log that some packets pass by",
        "it has 2 receive queues now, and had 1: packets of queues without a socket go to the kernel's stack",
    )


def _where(flow: Flow) -> str:
    return f" in namespace {flow.lab.engine_netns}"


def _plain(error: Exception, flow: Flow) -> str:
    return str(error).replace(_where(flow), "")
