"""Live-frame transmit on real packets: whatever way they go, what the engine says is what the far end and the kernel counted."""

from __future__ import annotations

import logging
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

import afxdp_pool as ap
from afxdp_pool._native import ffi, lib
from afxdp_pool.live import LONGEST
from afxdp_pool.netdev import ethtool, in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab, LabLink, VethPair
from afxdp_pool.testing.traffic import Sink, SinkReport, Source

GRO = 0x2C  # ETHTOOL_SGRO
LIVE = ap.PortConfig(transmit="live")
SENDS = ap.PortConfig(receive=False, fill_level=64)


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Wait on a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def options(lab: Lab, port: ap.PortConfig = ap.PortConfig()) -> ap.Options:  # noqa: B008
    return ap.Options(netns=lab.engine_netns, port=port)


def perfect(seen: SinkReport, sent: int) -> None:
    assert (seen.unique, seen.missing(sent)) == (sent, 0)
    assert (seen.duplicate, seen.reordered, seen.stale, seen.corrupt, seen.foreign) == (0, 0, 0, 0, 0)


def audited(forwarder: ap.Forwarder) -> None:
    """Every frame is accounted for with the ports open, and home once they are closed."""
    umem, pools = forwarder.umem, forwarder.pools
    umem.audit().check()
    for port in forwarder.ports:
        port.close()
    for pool in pools:
        pool.close()
    umem.audit().check(idle=True)
    forwarder.close()


def live_of(report: ap.Report, port: int) -> ap.LiveStats:
    live = report.ports[port].live
    assert live is not None
    assert live.frames == live.delivered + live.dropped
    return live


@contextmanager
def sending(lab: Lab, pair: VethPair, config: ap.PortConfig = SENDS, frames: int = 2048) -> Iterator[ap.Port]:
    """A port that only sends, out of the near end, over frames that programs can see; its frames are home afterwards."""
    with ap.Umem(frames, memory=ap.BpfMemory(frames * 4096)) as umem:
        with ap.FramePool(umem) as pool:
            with ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=config) as port:
                yield port
                umem.audit().check()
        umem.audit().check(idle=True)


class Numbered:
    """Test packets of one flow, written into frames of a port's pool and numbered on."""

    def __init__(self, port: ap.Port, link: LabLink) -> None:
        self.port, self.next = port, 0
        self.addresses = packets.Addresses(source_mac=link.mac, target_mac=link.peer_mac)

    def batch(self, sizes: list[int], offsets: list[int] | None = None) -> ap.Batch:
        batch = self.port.pool.alloc(len(sizes))
        assert len(batch) == len(sizes)
        if offsets:
            batch.descs["addr"] += np.array(offsets, np.uint64)
        batch.descs["len"] = sizes
        for addr, size in zip(batch.descs["addr"].tolist(), sizes, strict=True):
            data = packets.build(size, seq=self.next, addresses=self.addresses)
            self.port.pool.umem.data[addr : addr + size] = np.frombuffer(data, np.uint8)
            self.next += 1
        return batch

    def send(self, sizes: list[int], offsets: list[int] | None = None) -> None:
        """Send them, and wait until all have completed."""
        batch = self.batch(sizes, offsets)
        done = sent = 0
        deadline = time.monotonic() + 10
        while done < len(sizes):
            assert time.monotonic() < deadline
            if sent < len(sizes):
                sent += self.port.transmit(batch[sent:])
            done += self.port.complete(2048)


def live_stats(port: ap.Port) -> ap.LiveStats:
    stats = port.live_stats()
    assert stats is not None
    assert stats.frames == stats.delivered + stats.dropped
    return stats


@pytest.mark.parametrize("transmit", ["auto", "live"])
def test_bursts_of_any_size_keep_their_order(lab: Lab, transmit: ap.config.Transmit) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    forwarder = ap.forward(left.near.name, right.near.name, options=options(lab, ap.PortConfig(transmit=transmit)))
    draw, sent = random.Random(1), 0
    with Sink(right.far) as sink, Source(left.far) as source:
        forwarder.start()
        while sent < 40_000:
            # Several bursts, one behind the other, before the engine is waited for: the two ways meet.
            for _ in range(draw.randint(1, 5)):
                sent += source.send(draw.randint(1, 200)).sent
            assert wait_for(lambda goal=sent: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
        seen = sink.wait(sent)
        forwarder.stop()
        result = forwarder.join()
    perfect(seen, sent)
    live = live_of(result, 1)
    assert (live.delivered, live.resent) == (live.frames, 0)
    assert live.frames > sent // 10
    if transmit == "auto":
        assert result.ports[1].stats.tx_kicks > 50, "nothing went by the socket: this proves no alternation"
    else:
        assert live.frames == sent
    audited(forwarder)


def test_every_size_from_any_offset_arrives_intact(lab: Lab) -> None:
    pair = lab.veth("a", mtu=3500)
    draw = random.Random(2)
    sizes = [*range(packets.MIN_SIZE, packets.MAX_SIZE + 1)]
    sizes += [draw.randint(packets.MIN_SIZE, packets.MAX_SIZE) for _ in range(8192 - len(sizes))]
    draw.shuffle(sizes)
    with Sink(pair.far) as sink, sending(lab, pair) as port:
        numbered = Numbered(port, pair.near)
        while sizes:
            some, sizes = sizes[:512], sizes[512:]
            numbered.send(some, [draw.randint(0, 4096 - size) for size in some])
        for some in ([LONGEST] * 100, [LONGEST + 1] * 100, [64] * 70 + [LONGEST + 1] + [64] * 70):
            numbered.send(some)
        perfect(sink.wait(numbered.next), numbered.next)
        stats = live_stats(port)
        assert (stats.dropped, stats.resent) == (0, 0)
        assert numbered.next // 2 < stats.frames < numbered.next


def test_packets_shorter_than_a_test_packet(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, sending(lab, pair, replace(SENDS, transmit="live")) as port:
        for size in range(14, 64):
            batch = port.pool.alloc(64)
            batch.descs["len"] = size
            assert port.transmit(batch) == 64
            assert port.complete() == 64
        assert wait_for(lambda: sink.report().foreign == 50 * 64)
        assert live_stats(port).delivered == 50 * 64


def test_more_than_the_mtu_goes_by_the_socket_and_is_refused_there(lab: Lab) -> None:
    pair = lab.veth("a", mtu=1500)
    with Sink(pair.far) as sink, sending(lab, pair, replace(SENDS, transmit="live")) as port:
        numbered = Numbered(port, pair.near)
        for size in (1514, 1600):
            numbered.send([size] * 50)
        assert pair.near.counters()["tx_dropped"] == 50
        assert sink.wait(50).packets == 50
        stats = live_stats(port)
        assert (stats.frames, stats.dropped, stats.resent) == (50, 0, 0)


def test_reflect_and_tx_and_a_handler(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, Source(pair.far) as source:
        forwarder = ap.reflect(pair.near.name, options=options(lab, LIVE))
        forwarder.start()
        for total in range(100, 5001, 100):
            source.send(100)
            assert wait_for(lambda goal=total: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
        perfect(sink.wait(5000), 5000)
        forwarder.stop()
        assert live_of(forwarder.join(), 0).delivered == 5000
        audited(forwarder)
        sink.reset()
        forwarder = ap.handle(
            [pair.near.name], lambda batch, verdicts: verdicts.fill(ap.TX), options=options(lab, LIVE)
        )
        forwarder.start()
        for total in range(100, 5001, 100):
            source.send(100)
            assert wait_for(lambda goal=total: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
        perfect(sink.wait(5000), 5000)
        forwarder.stop()
        assert live_of(forwarder.join(), 0).delivered == 5000
        audited(forwarder)
        before = sink.report().packets
        template = packets.build(200, addresses=packets.Addresses(pair.near.mac, pair.far.mac))
        forwarder = ap.transmit(pair.near.name, [template], count=100_000, options=options(lab))
        live = live_of(forwarder.run(duration=20), 0)
        assert live.frames > 90_000
        assert sink.wait(before + 100_000).packets - before == 100_000 - live.dropped
        audited(forwarder)


def test_both_ways_and_clones_out_of_several_ports(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    with Sink(left.far) as left_sink, Sink(right.far) as right_sink:
        with Source(left.far) as one, Source(right.far) as other:
            forwarder = ap.forward(left.near.name, right.near.name, both_ways=True, options=options(lab, LIVE))
            forwarder.start()
            for total in range(200, 10_001, 200):
                one.send(100)
                other.send(100)
                assert wait_for(lambda goal=total: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
            for sink in (left_sink, right_sink):
                perfect(sink.wait(5000), 5000)
            forwarder.stop()
            result = forwarder.join()
            assert [live_of(result, port).delivered for port in (0, 1)] == [5000, 5000]
            audited(forwarder)
        for sink in (left_sink, right_sink):
            sink.reset()
        before = [sink.report().packets for sink in (left_sink, right_sink)]
        with sending(lab, left) as port:
            config = replace(SENDS, transmit="live")
            with ap.Port(port.pool, right.near.name, netns=lab.engine_netns, config=config) as second:
                numbered = Numbered(port, left.near)
                for n in (5, 100, 19, 200):
                    batch = numbered.batch([100] * n)
                    port.pool.ref(batch)
                    assert port.transmit(batch) == second.transmit(batch) == n
                    assert wait_for(lambda: port.stats().tx_reclaimed == 0 and port.complete(0) == 0)
                    assert second.complete(2048) == n
                    done = port.complete(2048)
                    while done < n:
                        done += port.complete(2048)
                    assert port.pool.stats().inflight - port.pool.umem.count_states()["pool"] <= 128
                for sink, old in zip((left_sink, right_sink), before, strict=True):
                    assert sink.wait(old + numbered.next).packets - old == numbered.next
                assert live_stats(second).delivered == numbered.next


def threaded(link: LabLink, on: bool = True) -> None:
    """Give the link's NAPI a thread each, by /sys of its namespace, mounted where only this call sees it."""
    script = (
        "import ctypes,sys\n"
        "libc=ctypes.CDLL(None,use_errno=True)\n"
        "assert libc.unshare(0x20000)==0\n"  # CLONE_NEWNS
        "assert libc.mount(b'none',b'/',None,0x44000,None)==0\n"  # MS_REC | MS_PRIVATE
        "assert libc.mount(b'sysfs',b'/sys',b'sysfs',0,None)==0\n"
        f"open('/sys/class/net/{link.name}/threaded','w').write('{int(on)}')\n"
    )
    with in_netns(link.netns):
        subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


def test_what_a_full_receiver_drops_is_counted_exactly(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink:
        threaded(pair.far)
        template = packets.build(64, addresses=packets.Addresses(pair.near.mac, pair.far.mac))
        forwarder = ap.transmit(pair.near.name, [template], count=400_000, options=options(lab, replace(LIVE, receive=False)))
        result = forwarder.run(duration=20)
        live = live_of(result, 0)
        counters = pair.near.counters()
        by_socket = result.sent - live.frames
        assert live.dropped > 0, "the receiver kept up: this proves nothing"
        # xdp_xmit counts what got into the peer's ring; what the socket sends that finds no room is in tx_dropped.
        assert counters["tx_xdp_xmit"] == live.delivered
        assert counters["tx_xdp_xmit_errors"] == live.dropped
        got = live.delivered + by_socket - counters["tx_dropped"]
        assert sink.wait(got).packets == got
        audited(forwarder)


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
        dropped = stats.dropped + pair.near.counters()["tx_dropped"]
        keeper.settimeout(1.0)
        seqs = []
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

    template = ap.Template(
        (packets.build(64, addresses=packets.Addresses(pair.near.mac, pair.far.mac)),), sequence_at=50, checksum_at=40
    )
    with Sink(pair.far) as sink:
        forwarder = ap.transmit(pair.near.name, template, count=2_000_000, options=options(lab))
        before = signal.signal(signal.SIGALRM, count)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            result = forwarder.run(duration=20)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        live = live_of(result, 0)
        lost = live.dropped + pair.near.counters()["tx_dropped"]
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
        names = live_programs()
        child = subprocess.Popen([sys.executable, "-c", script])
        try:
            assert sink.wait(100_000, timeout=20).packets >= 100_000
            assert live_programs() > names
        finally:
            child.kill()
            child.wait()
        assert wait_for(lambda: live_programs() == names)


def live_programs() -> int:
    """Programs of live transmitters that the kernel has, of any process."""
    found, at = 0, ffi.new("uint32_t *")
    info = ffi.new("struct afp_prog_info *")
    while lib.bpf_prog_get_next_id(at[0], at) == 0:
        fd = lib.bpf_prog_get_fd_by_id(at[0])
        if fd < 0:
            continue
        if lib.afp_prog_info(fd, info) == 0:
            found += ffi.string(info.name).startswith((b"live_transmit", b"live_xmit", b"live_pool"))
        os.close(fd)
    return found


def test_opening_and_closing_leaves_nothing(lab: Lab) -> None:
    pair = lab.veth("a")
    with sending(lab, pair):
        pass
    descriptors, programs = len(os.listdir("/proc/self/fd")), live_programs()
    with ap.Umem(256, memory=ap.BpfMemory(256 * 4096)) as umem, ap.FramePool(umem) as pool:
        for _ in range(20):
            ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=SENDS).close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert wait_for(lambda: live_programs() == programs)


def test_programs_attached_elsewhere_stall_a_run_but_cost_nothing(lab: Lab) -> None:
    pair, other = lab.veth("a"), lab.veth("b")
    template = ap.Template(
        (packets.build(64, addresses=packets.Addresses(pair.near.mac, pair.far.mac)),), sequence_at=50, checksum_at=40
    )
    with Sink(pair.far) as sink:
        forwarder = ap.transmit(
            pair.near.name, template, count=300_000, rate=300_000, options=options(lab, replace(LIVE, receive=False))
        )
        forwarder.start(duration=20)
        attached = 0
        while forwarder.snapshot().completed < 300_000 and attached < 1000:
            Sink(other.far).close()
            attached += 1
        result = forwarder.join()
        live = live_of(result, 0)
        lost = live.dropped + pair.near.counters()["tx_dropped"]
        seen = sink.wait(300_000 - lost)
        assert (seen.unique, seen.duplicate, seen.reordered) == (300_000 - lost, 0, 0)
        assert live.stalls <= live.slices
        assert (live.stalls > 0) == (live.longest_ns > 2_000_000)
        assert attached > 3
        audited(forwarder)


def test_two_threads_each_with_a_queue_and_others_redirects_meanwhile(lab: Lab) -> None:
    pair, noise = lab.veth("a", queues=2), lab.veth("noise")
    made = []
    with Sink(pair.far) as sink, Sink(noise.near, verify=False), Source(noise.far) as source:
        for flow in range(2):
            template = ap.Template(
                (packets.build(64, flow=flow, addresses=packets.Addresses(pair.near.mac, pair.far.mac)),),
                sequence_at=50,
                checksum_at=40,
            )
            config = ap.Options(
                netns=lab.engine_netns, queues=(flow,), port=replace(LIVE, receive=False, fill_level=64)
            )
            made.append(ap.transmit(pair.near.name, template, count=300_000, options=config))
        source.start(seconds=10)
        for forwarder in made:
            forwarder.start(duration=20)
        results = [forwarder.join() for forwarder in made]
        source.stop()
        lives = [live_of(result, 0) for result in results]
        counters = pair.near.counters()
        assert counters["tx_xdp_xmit"] == sum(live.delivered for live in lives)
        assert counters["tx_xdp_xmit_errors"] == sum(live.dropped for live in lives)
        lost = sum(live.dropped for live in lives) + counters["tx_dropped"]
        seen = sink.wait(600_000 - lost)
        assert (seen.packets, seen.duplicate, seen.corrupt) == (600_000 - lost, 0, 0)
    for forwarder in made:
        audited(forwarder)


def test_completions_are_told_though_frames_are_home(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, sending(lab, pair) as port:
        assert (port.info.transmit, port.info.transmit_reason) == ("live", "")
        numbered = Numbered(port, pair.near)
        assert port.transmit(numbered.batch([64] * 100)) == 100
        assert port.pool.umem.count_states()["tx"] == 0
        assert [port.complete(60), port.complete(60), port.complete(60)] == [60, 40, 0]
        perfect(sink.wait(100), 100)
        result = port.live_stats()
        port.close()
        assert port.live_stats() == result


def test_frames_of_another_threads_pool_go_home_to_it(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, sending(lab, pair) as port, ap.FramePool(port.pool.umem) as pool:
        numbered = Numbered(port, pair.near)
        numbered.port = type("With", (), {"pool": pool})()  # type: ignore[assignment]
        given = numbered.batch([64] * 200)
        told: list[int] = []

        def send() -> None:
            told.append(port.transmit(given))
            told.append(port.complete(2048))

        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        assert told == [200, 200]
        perfect(sink.wait(200), 200)
        port.pool.umem.audit().check()
        assert pool.collect() == 200


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
        "from afxdp_pool.netdev import in_netns\n"
        f"with in_netns({lab.engine_netns!r}):\n"
        "  libc = ctypes.CDLL(None)\n"
        "  head, data = struct.pack('II', 0x20080522, 0), bytearray(24)\n"
        "  raw = (ctypes.c_char * 24).from_buffer(data)\n"
        "  assert libc.capget(head, raw) == 0\n"
        "  low, high = struct.unpack_from('I', data, 0)[0], struct.unpack_from('I', data, 12)[0]\n"
        f"  struct.pack_into('I', data, 0, low & ~(1 << 21)); struct.pack_into('I', data, 12, high & ~(1 << {missing - 32}))\n"
        "  assert libc.capset(head, raw) == 0\n"
        f"  f = ap.transmit({pair.near.name!r}, [bytes(64)], count=1000, options=ap.Options(port=ap.PortConfig(receive=False)))\n"
        "  r = f.run(duration=5); print(f.ports[0].info.transmit, r.completed, f.audit()); f.close()\n"
    )
    with Sink(pair.far) as sink:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert "socket 1000" in done.stdout, done.stdout
        assert done.stdout.count("LOG ") == 1, done.stdout
        assert wait_for(lambda: sink.report().foreign == 1000)
