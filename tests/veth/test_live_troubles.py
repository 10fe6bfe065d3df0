"""Live-frame transmit when something is in its way: no packet is lost uncounted, and nothing is left behind."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import replace

import pytest
from live_lab import (
    GRO,
    LIVE,
    SENDS,
    Numbered,
    audited,
    live_of,
    live_programs,
    live_stats,
    numbered_template,
    options,
    programs_of,
    sending,
    threaded,
    wait_for,
)

import afxdp_pool as ap
from afxdp_pool.netdev import ethtool, in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink


def test_what_a_full_receiver_drops_is_counted_exactly(lab: Lab) -> None:
    pair = lab.veth("a")
    sends = options(lab, replace(LIVE, receive=False))
    delivered = dropped = refused = 0
    with Sink(pair.far) as sink:
        threaded(pair.far)
        for _ in range(20):  # until the receiver was too slow once; what is counted holds every time
            with ap.transmit(pair.near.name, numbered_template(pair), count=50_000, options=sends) as forwarder:
                live = live_of(forwarder.run(duration=20), 0)
                audited(forwarder)
            delivered, dropped = delivered + live.delivered, dropped + live.dropped
            counters = pair.near.counters()
            assert (counters["tx_xdp_xmit"], counters["tx_xdp_xmit_errors"]) == (delivered, dropped)
            # Of the socket's packets some found no room either. tx_dropped has both.
            got = 50_000 - (counters["tx_dropped"] - refused)
            refused = counters["tx_dropped"]
            seen = sink.wait(got)
            assert (seen.unique, seen.duplicate, seen.corrupt) == (got, 0, 0)
            sink.reset()
            if dropped:
                break
        assert dropped > 0, "the receiver always kept up"


def test_an_end_that_takes_no_frames_gets_them_by_the_socket(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    pair = lab.veth("a")
    with sending(lab, pair) as port, caplog.at_level(logging.WARNING, "afxdp_pool"):
        numbered = Numbered(port, pair.near)
        for _ in range(20):
            numbered.send([100] * 50)
        assert wait_for(lambda: pair.far.counters()["rx_packets"] == 1000)
        stats = live_stats(port)
        assert (stats.frames, stats.resent % 50) == (0, 0)
        assert stats.resent > 0
        assert [record.getMessage() for record in caplog.records if "XDP program" in record.getMessage()]
        assert len(caplog.records) == 1
        with Sink(pair.far) as sink:
            start = numbered.next

            def went_live() -> bool:
                numbered.send([100] * 50)
                return live_stats(port).frames > 0

            assert wait_for(went_live, 5.0)
            seen = sink.wait(numbered.next - start)
            assert (seen.packets, seen.reordered, seen.duplicate) == (numbered.next - start, 0, 0)
        assert len(caplog.records) == 1


def test_frames_a_receiver_keeps_are_bounded_and_none_is_lost(lab: Lab) -> None:
    pair = lab.veth("a")
    with in_netns(pair.far.netns):
        keeper = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        keeper.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        keeper.bind(("0.0.0.0", packets.PORT))
        ethtool(pair.far.name, struct.pack("=II", GRO, 1))
    with keeper, sending(lab, pair, replace(SENDS, transmit="live")) as port:
        numbered = Numbered(port, pair.near)
        numbered.addresses = packets.Addresses(
            pair.near.mac, pair.far.mac, socket.inet_aton(pair.near.ipv4), socket.inet_aton(pair.far.ipv4)
        )
        for _ in range(60):
            numbered.send([100] * 300)
            wait_for(lambda: False, 0.002)  # runs would be too seldom to make many pools otherwise
        stats = live_stats(port)
        assert 0 < stats.pools_left <= stats.pools_left_most <= 17
        assert stats.frames < numbered.next, "nothing was left for the socket"
        dropped = pair.near.counters()["tx_dropped"]
        keeper.settimeout(1.0)
        seqs: list[int] = []
        while len(seqs) < numbered.next - dropped:
            seqs.append(struct.unpack_from("!Q", keeper.recv(2048), 8)[0])
        assert len(set(seqs)) == numbered.next - dropped
        assert seqs == sorted(seqs)

        def gone() -> bool:
            return int(port._live.native.ring.pools_left) == 0  # type: ignore[union-attr]

        assert wait_for(gone, 10.0)


def test_signals_at_a_thousand_a_second_cost_no_frame(lab: Lab) -> None:
    pair = lab.veth("a")
    alarms = [0]

    def count(number: int, frame: object) -> None:
        alarms[0] += 1

    template = numbered_template(pair)
    with Sink(pair.far) as sink:
        forwarder = ap.transmit(pair.near.name, template, count=2_000_000, options=options(lab))
        before = signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            result = forwarder.run(duration=20)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert live_of(result, 0).frames > 1_000_000
        lost = pair.near.counters()["tx_dropped"]  # of both ways
        seen = sink.wait(2_000_000 - lost)
        assert (seen.unique, seen.duplicate, seen.reordered, seen.corrupt) == (2_000_000 - lost, 0, 0, 0)
        assert alarms[0] > 5
        audited(forwarder)


def test_a_link_deleted_meanwhile_ends_the_run_and_frames_come_home(lab: Lab) -> None:
    pair = lab.veth("a")
    template = packets.build(64, addresses=packets.Addresses(pair.near.mac, pair.far.mac))
    forwarder = ap.transmit(pair.near.name, [template], options=options(lab, replace(LIVE, receive=False)))
    with Sink(pair.far):
        forwarder.start(duration=20)
        assert wait_for(lambda: live_of(forwarder.snapshot(), 0).frames > 100_000)
        with lab._inside(pair.near.netns) as ip:
            ip.link("del", index=pair.near.ifindex)
        lab._links.clear()
        with pytest.raises(ap.LinkGoneError):
            forwarder.join()
    audited(forwarder)


def test_a_killed_process_leaves_nothing(lab: Lab) -> None:
    pair = lab.veth("a")
    script = (
        "import afxdp_pool as ap\n"
        "from afxdp_pool.testing import packets\n"
        f"t = packets.build(64, addresses=packets.Addresses({pair.near.mac!r}, {pair.far.mac!r}))\n"
        f"o = ap.Options(netns={lab.engine_netns!r}, port=ap.PortConfig(receive=False, transmit='live'))\n"
        f"f = ap.transmit({pair.near.name!r}, [t], options=o)\n"
        "f.run(duration=30)\n"
    )
    with Sink(pair.far, verify=False) as sink:
        child = subprocess.Popen([sys.executable, "-c", script])
        try:
            assert sink.wait(100_000, timeout=20).packets >= 100_000
            made = programs_of(child.pid) & live_programs()
            assert made
        finally:
            child.kill()
            child.wait()
        assert wait_for(lambda: not made & live_programs())


def test_opening_and_closing_leaves_nothing(lab: Lab) -> None:
    pair = lab.veth("a")

    made: set[int] = set()

    def twenty_times() -> None:
        with ap.Umem(256, memory=ap.BpfMemory(256 * 4096)) as umem, ap.FramePool(umem) as pool:
            for _ in range(20):
                with ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=SENDS):
                    made.update(programs_of(os.getpid()) & live_programs())

    with sending(lab, pair):
        pass
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    twenty_times()  # the mapping goes with the last view of it
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert made
    assert wait_for(lambda: not made & live_programs())


def test_programs_attached_elsewhere_stall_a_run_but_cost_nothing(lab: Lab) -> None:
    pair, other = lab.veth("a"), lab.veth("b")
    sends = options(lab, replace(LIVE, receive=False))
    forwarder = ap.transmit(pair.near.name, numbered_template(pair), rate=300_000, options=sends)
    with Sink(pair.far) as sink:
        forwarder.start(duration=20)
        for _ in range(5):
            Sink(other.far).close()
        forwarder.stop()
        result = forwarder.join()
        live = live_of(result, 0)
        got = result.sent - pair.near.counters()["tx_dropped"]
        seen = sink.wait(got)
        assert got > 1000
        assert (seen.unique, seen.duplicate, seen.reordered) == (got, 0, 0)
        assert live.stalls <= live.slices
        assert (live.stalls > 0) == (live.longest_ns > 2_000_000)
        audited(forwarder)


def test_what_is_refused_and_what_falls_back(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    pair = lab.veth("a")
    with ap.Umem(256) as umem, ap.FramePool(umem) as pool, caplog.at_level(logging.WARNING, "afxdp_pool"):
        with pytest.raises(ap.ModeUnsupportedError, match="BpfMemory"):
            ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=replace(SENDS, transmit="live"))
        with ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=SENDS) as port:
            assert port.info.transmit == "socket"
            assert "BPF array map" in port.info.transmit_reason
            assert port.live_stats() is None
        umem.audit().check(idle=False)
    assert not caplog.records  # it was chosen so


@pytest.mark.parametrize("missing", [38, 39])  # CAP_PERFMON, CAP_BPF (then CAP_SYS_ADMIN goes too, which implies both)
def test_without_the_privilege_there_is_one_warning_and_the_socket(lab: Lab, missing: int) -> None:
    pair = lab.veth("a")
    script = (
        "import ctypes, logging, struct, sys\n"
        "import afxdp_pool as ap\n"
        "logging.basicConfig(format='LOG %(message)s', stream=sys.stdout)\n"
        "libc = ctypes.CDLL(None)\n"
        f"netns = open('/run/netns/{lab.engine_netns}')\n"
        "assert libc.setns(netns.fileno(), 0) == 0\n"
        "if True:\n"
        "  head, data = struct.pack('II', 0x20080522, 0), bytearray(24)\n"
        "  raw = (ctypes.c_char * 24).from_buffer(data)\n"
        "  assert libc.capget(head, raw) == 0\n"
        "  low, high = struct.unpack_from('I', data, 0)[0], struct.unpack_from('I', data, 12)[0]\n"
        "  struct.pack_into('I', data, 0, low & ~(1 << 21))\n"
        f"  struct.pack_into('I', data, 12, high & ~(1 << {missing - 32}))\n"
        "  assert libc.capset(head, raw) == 0\n"
        "  o = ap.Options(port=ap.PortConfig(receive=False))\n"
        f"  f = ap.transmit({pair.near.name!r}, [bytes(64)], count=1000, options=o)\n"
        "  r = f.run(duration=5); print(f.ports[0].info.transmit, r.completed, f.audit()); f.close()\n"
    )
    with Sink(pair.far) as sink:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        warned, told = done.stdout.splitlines()
        assert warned.startswith("LOG ")
        assert "EPERM" in warned
        assert told.startswith("socket 1000 ")
        assert wait_for(lambda: sink.report().foreign == 1000)
