"""The probe counts each packet once, and times it right: against clocks read around it, never against a wall clock."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import afxdp_pool as ap
from afxdp_pool._native import ffi
from afxdp_pool.errors import ConfigError, ModeUnsupportedError
from afxdp_pool.testing import Lab, LabLink, LatencyProbe, Sink, Source, VethPair, packets
from afxdp_pool.testing.latency import bucket_edges
from afxdp_pool.testing.sink import attach

SYS_BPF = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine, 0)
BPF_PROG_LOAD, BPF_PROG_TYPE_XDP, BPF_FUNC_REDIRECT = 5, 6, 23


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a")


@pytest.fixture
def probe(pair: VethPair) -> Iterator[LatencyProbe]:
    with LatencyProbe(pair.far, pair.near) as made:
        yield made


def redirect_program(ifindex: int) -> int:
    """The descriptor of an XDP program that redirects everything out of a link: the kernel as the forwarder."""
    code = [(0xB7, 1, ifindex), (0xB7, 2, 0), (0x85, 0, BPF_FUNC_REDIRECT), (0x95, 0, 0)]
    raw = b"".join(struct.pack("=BBhi", op, register, 0, value) for op, register, value in code)
    instructions, licence = ffi.new("char[]", raw), ffi.new("char[]", b"GPL")
    address = [int(ffi.cast("uintptr_t", pointer)) for pointer in (instructions, licence)]
    attributes = struct.pack("=IIQQ", BPF_PROG_TYPE_XDP, len(code), *address).ljust(72, b"\0")
    fd = ctypes.CDLL(None, use_errno=True).syscall(SYS_BPF, BPF_PROG_LOAD, attributes, len(attributes))
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return int(fd)


def redirect(source: LabLink, target: LabLink) -> int:
    """Let the kernel forward from one link to another of the same namespace; returns the link's descriptor."""
    program = redirect_program(target.ifindex)
    try:
        return attach(program, source)
    finally:
        os.close(program)


@pytest.mark.skipif(not SYS_BPF, reason="knows no number of bpf(2) here")
@pytest.mark.parametrize("size", [64, 1500])
@pytest.mark.parametrize("burst", [1, 16])
def test_each_packet_through_the_kernels_redirect_is_in_the_histogram_once(lab: Lab, size: int, burst: int) -> None:
    left, right, count = lab.veth("left"), lab.veth("right"), 4096
    attached = redirect(left.near, right.near)
    try:
        with LatencyProbe(left.far, right.far, size=size) as probe:
            report = probe.run(100_000, count=count, burst=burst)
    finally:
        os.close(attached)
    assert (report.sent, report.delivered, report.received, report.stamped) == (count,) * 4
    assert int(report.counts.sum()) == count
    assert 0 < report.min_ns <= report.mean_ns <= report.max_ns
    edges = bucket_edges(len(report.counts))
    used = np.flatnonzero(report.counts)
    assert edges[used[0]] <= report.min_ns < edges[used[0] + 1]
    assert edges[used[-1]] <= report.max_ns < edges[used[-1] + 1]
    assert edges[used[0]] <= report.percentile(0) <= report.percentile(50) <= report.percentile(100) <= report.max_ns


def test_packets_of_an_engine_are_timed_and_its_frames_come_home(lab: Lab) -> None:
    left, right, count = lab.veth("left"), lab.veth("right"), 2000
    options = ap.Options(netns=lab.engine_netns)
    with (
        LatencyProbe(left.far, right.far) as probe,
        ap.forward(left.near.name, right.near.name, options=options) as forwarder,
    ):
        worker = threading.Thread(target=forwarder.run, args=(30,))
        worker.start()
        try:
            report = probe.run(20_000, count=count)
        finally:
            forwarder.stop()
            worker.join()
        assert (report.sent, report.received, int(report.counts.sum())) == (count, count, count)
        forwarder.audit().check()


def test_what_reflects_is_timed_at_its_own_source(lab: Lab) -> None:
    left, count = lab.veth("left"), 500
    with (
        LatencyProbe(left.far, left.far) as probe,
        ap.reflect(left.near.name, options=ap.Options(netns=lab.engine_netns)) as forwarder,
    ):
        worker = threading.Thread(target=forwarder.run, args=(30,))
        worker.start()
        try:
            assert probe.run(20_000, count=count).received == count
        finally:
            forwarder.stop()
            worker.join()
        forwarder.audit().check()


def test_a_delay_is_measured_between_clocks_read_around_it(lab: Lab) -> None:
    """One packet held back: it took at least as long as it was held, and no longer than the whole affair."""
    left, right = lab.veth("left"), lab.veth("right")
    send_only = ap.PortConfig(receive=False, transmit="socket")
    with (
        ap.Umem(frames=4096) as umem,
        ap.FramePool(umem) as pool,
        ap.Port(pool, left.near.name, netns=lab.engine_netns) as port_in,
        ap.Port(pool, right.near.name, netns=lab.engine_netns, config=send_only) as port_out,
        LatencyProbe(left.far, right.far) as probe,
    ):
        port_in.fill()
        reports = []
        sender = threading.Thread(target=lambda: reports.append(probe.run(1000, count=1)))
        before = time.monotonic_ns()
        sender.start()
        while not len(batch := port_in.receive()):
            assert time.monotonic_ns() - before < 10e9, "nothing was received"
        received = time.monotonic_ns()
        while (sent := time.monotonic_ns()) - received < 5_000_000:
            pass
        assert port_out.transmit(batch) == 1
        sender.join()
        after = time.monotonic_ns()
        while umem.count_states()["tx"]:
            port_out.complete()
            assert time.monotonic_ns() - after < 10e9, "it was not completed"
        (report,) = reports
        assert report.received == 1
        assert sent - received <= report.min_ns == report.max_ns <= after - before
        umem.audit().check()


def test_packets_of_another_measurement_do_not_count(pair: VethPair, probe: LatencyProbe) -> None:
    """The measurement's number is where a test packet has its flow: flow 1 counts in the first, flow 0 never."""
    probe._begin(0, 1, 1)
    with Source(pair.far, flows=2, seq_start=1) as source:
        source.send(100)
        assert probe._wait(50)[:, 0].sum() == 50
        probe._begin(0, 1, 1)
        source.send(100)
    assert probe.run(10_000, count=50).received == 50


def test_stamps_are_as_rare_as_asked_for(probe: LatencyProbe) -> None:
    report = probe.run(None, count=64 * 170, burst=64, stamp_every=17)
    assert (report.sent, report.received) == (64 * 170, 64 * 170)
    assert report.stamped == int(report.counts.sum()) == 64 * 170 // 17


def test_no_packet_is_sent_before_it_is_due(probe: LatencyProbe) -> None:
    for rate, count in ((500, 20), (20_000, 2000)):
        report = probe.run(rate, count=count)
        assert report.received == count
        assert report.seconds >= (count - 1 - report.late) / rate * 0.999


def test_it_sends_until_the_time_is_over(probe: LatencyProbe) -> None:
    report = probe.run(100, seconds=0.1)
    assert 1 <= report.sent <= 11
    assert report.received == report.sent


def test_packets_are_good_test_packets(pair: VethPair) -> None:
    """Checksum and all, with a stamp in the place of the number."""
    from afxdp_pool.loaded import run

    with LatencyProbe(pair.far, pair.near, size=200) as probe:
        probe._begin(0, 1, 1)
        made = run(probe._program, probe._frame, room=200).data
    parsed = packets.parse(made)
    assert parsed is not None
    assert (parsed.flow, parsed.size) == (1, 200)
    assert 0 < parsed.seq <= time.monotonic_ns()


def test_what_makes_no_sense_is_refused(pair: VethPair, probe: LatencyProbe) -> None:
    with pytest.raises(ConfigError, match="when to end"):
        probe.run(1000)
    for wrong in ({"burst": 0}, {"burst": 65}, {"stamp_every": 0}):
        with pytest.raises(ConfigError, match="burst has 1 to 64"):
            probe.run(1000, count=1, **wrong)
    with pytest.raises(ConfigError, match="percentile"):
        probe.run(1000, count=1).percentile(101)
    with pytest.raises(ConfigError, match="64 to 3400"):
        LatencyProbe(pair.far, pair.near, size=63)
    with pytest.raises(ModeUnsupportedError):
        Sink(pair.near)


def test_nothing_is_left_behind(pair: VethPair) -> None:
    with LatencyProbe(pair.far, pair.near):
        pass
    with Sink(pair.near) as sink, Source(pair.far) as source:
        source.send(10)
        assert sink.wait(10).packets == 10


def test_a_spinning_source_sends_what_was_asked_for(pair: VethPair) -> None:
    with Sink(pair.near) as sink, Source(pair.far, flows=3) as source:
        sent = source.send(10_001, 200_000, spin=True)
        assert (sent.sent, sent.dropped) == (10_001, 0)
        assert sink.wait(10_001).unique == 10_001
        assert sent.seconds >= (10_001 - 64) / 200_000 * 0.99
