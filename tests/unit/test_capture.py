"""Captures of ports in memory, read by readers that are not ours: what is in the file, what is said of the rest."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dpkt
import numpy as np
import pcapng
import pytest
from bench import DEADLINE, Bench, forwarding, numbered
from support import conserved, small_port, until

from afxdp_pool import (
    DROP,
    FORWARD,
    AfXdpError,
    Batch,
    ConfigError,
    Forwarder,
    FramePool,
    MissingExtraError,
    PoolClosedError,
    Route,
    Rule,
    Workers,
)
from afxdp_pool.capture import Capture, CaptureStats
from afxdp_pool.testing import packets as test_packets
from afxdp_pool.testing.rings import FakeKernel


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "capture.pcapng"


def blocks(path: Path, kind: type[Any]) -> list[Any]:
    return [block for block in pcapng.FileScanner(io.BytesIO(path.read_bytes())) if isinstance(block, kind)]


def packets(path: Path, interface: int | None = None) -> list[bytes]:
    every = blocks(path, pcapng.blocks.EnhancedPacket)
    return [block.packet_data for block in every if interface in (None, block.interface_id)]


def statistics(path: Path) -> list[dict[str, int]]:
    return [dict(block.options) for block in blocks(path, pcapng.blocks.InterfaceStatistics)]


def test_what_is_forwarded_is_captured_coming_and_going(bench: Bench, path: Path) -> None:
    content = numbered(500)
    with closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder:
        with Capture(path, forwarder) as capture:
            bench.turn(forwarder, content)
        assert capture.stats() == CaptureStats(written=1000, filtered=0, dropped=0)
    assert bench.sent == [[], content], "the packets went on their way"
    assert packets(path, 0) == packets(path, 1) == content
    with path.open("rb") as file:  # and another reader
        assert [bytes(packet) for _, packet in dpkt.pcapng.Reader(file)] == packets(path)
    first, *_, last = blocks(path, pcapng.blocks.EnhancedPacket)
    assert (first.options["epb_flags"].inout, first.options["epb_queue"]) == ("inbound", 0)
    assert last.options["epb_flags"].inout == "outbound"
    times = [block.timestamp for block in blocks(path, pcapng.blocks.EnhancedPacket)]
    assert times == sorted(times)
    (begin, end), _ = ((s["isb_starttime"], s["isb_endtime"]) for s in statistics(path))
    begin, end = ((t & 0xFFFFFFFF) << 32 | t >> 32 if sys.byteorder == "little" else t for t in (begin, end))
    assert begin / 1e9 <= times[0] <= times[-1] <= end / 1e9
    said = [s["isb_ifrecv"] for s in statistics(path)], [s["isb_usrdeliv"] for s in statistics(path)]
    assert said == ([500, 0], [500, 500])


def test_interfaces_and_writer_are_named(bench: Bench, path: Path) -> None:
    with Capture(path, bench.ports, snaplen=100):
        pass
    (section,) = blocks(path, pcapng.blocks.SectionHeader)
    assert section.options["shb_userappl"] == "afxdp_pool"
    first, second = blocks(path, pcapng.blocks.InterfaceDescription)
    assert (first.options["if_name"], first.options["if_tsresol"]) == ("memory", b"\x09")
    assert (first.link_type, second.snaplen) == (1, 100)
    assert "memory queue 0, copy" in first.options["if_description"]


def test_a_direction_and_a_length(bench: Bench, path: Path) -> None:
    content = numbered(40)
    with (
        closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder,
        Capture(path, forwarder, direction="out", snaplen=42),
    ):
        bench.turn(forwarder, content)
    assert packets(path, 0) == []
    assert packets(path) == [packet[:42] for packet in content]
    assert [block.packet_len for block in blocks(path, pcapng.blocks.EnhancedPacket)] == [*map(len, content)]


def test_rules_and_a_function_choose(bench: Bench, path: Path) -> None:
    def odd(batch: Batch) -> Any:
        return batch.load(test_packets.SEQUENCE_AT, ">u8") % 2 == 1

    content = numbered(30)
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        for rule, keep, wanted in [
            (Rule(protocol=17, port=9), None, content),
            (Rule(port=10), None, []),
            (Rule(network="198.18.0.0/15"), odd, content[1::2]),
        ]:
            with Capture(path, forwarder, rules=[rule], keep=keep) as capture:
                bench.turn(forwarder, content)
            assert packets(path) == wanted
            assert capture.stats() == CaptureStats(len(wanted), 30 - len(wanted), 0)
            assert statistics(path)[0]["isb_filteraccept"] == len(wanted)


def test_it_stops_by_itself_after_so_many(bench: Bench, path: Path) -> None:
    content = numbered(100)
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder, Capture(path, forwarder, packets=30) as capture:
        assert not capture.done
        bench.turn(forwarder, content[:50])
        until(lambda: capture.done)
        bench.turn(forwarder, content[50:])
        assert capture.stats() == CaptureStats(30, 20, 0)
        with Capture(path.with_name("another"), forwarder):
            pass  # the ports are free again
    assert packets(path) == content[:30]


def test_what_is_too_much_is_dropped_from_the_capture_alone(bench: Bench, path: Path) -> None:
    content = [test_packets.build(1500, seq=i) for i in range(500)]
    with closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder:
        hold, held = threading.Event(), threading.Event()

        def slow(batch: Batch) -> Any:
            held.set()
            assert hold.wait(DEADLINE)
            return np.ones(len(batch), bool)

        with Capture(path, forwarder, keep=slow, room=1 << 17, direction="in") as capture:
            bench.turn(forwarder, content[:10])
            assert held.wait(DEADLINE)
            bench.turn(forwarder, content[10:])
            dropped = capture.stats().dropped
            hold.set()
    assert bench.sent[1] == content
    assert 0 < dropped < 490
    written = packets(path)
    assert len(written) == 500 - dropped
    assert written == content[: len(written)]
    assert (statistics(path)[0]["isb_osdrop"], statistics(path)[0]["isb_ifrecv"]) == (dropped, 500)


def test_what_the_kernel_dropped_is_told(bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from afxdp_pool import KernelStats

    with closing(bench.forwarder({0: Route(DROP)})) as forwarder, Capture(path, forwarder):
        bench.turn(forwarder, numbered(5))
        monkeypatch.setattr(bench.ports[0], "kernel_stats", lambda: KernelStats(rx_dropped=3, rx_ring_full=4))
    assert (statistics(path)[0]["isb_ifdrop"], statistics(path)[0]["isb_ifrecv"]) == (7, 12)


def test_workers_are_written_in_the_order_of_time(path: Path) -> None:
    content = numbered(200)
    with conserved() as umem, contextlib.ExitStack() as stack:
        ports = [small_port(stack.enter_context(FramePool(umem))) for _ in range(2)]
        forwarders = [stack.enter_context(Forwarder([port], {0: Route(DROP)})) for port in ports]
        with Workers(forwarders) as workers, Capture(path, workers) as capture:
            assert len(capture._rings) == 2
            for at in range(0, 200, 20):
                for port, kernel in zip(ports, [FakeKernel(port) for port in ports], strict=True):
                    port.fill()
                    kernel.deliver(content[at : at + 20])
                for forwarder in reversed(forwarders):
                    forwarder.run(DEADLINE, packets=20)
    assert packets(path, 0) == packets(path, 1) == content
    times = [block.timestamp for block in blocks(path, pcapng.blocks.EnhancedPacket)]
    assert times == sorted(times)


def test_a_full_disk_ends_the_capture_not_the_forwarder(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    content = numbered(100)
    with closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder:
        with pytest.raises(AfXdpError, match="ENOSPC"):
            Capture("/dev/full", forwarder)
        reading, writing = os.pipe()
        capture = Capture(f"/proc/self/fd/{writing}", forwarder)
        os.close(reading)
        bench.turn(forwarder, content)
        until(lambda: capture.done)
        assert "writing the capture failed" in caplog.text
        with pytest.raises(AfXdpError, match="writing the capture failed"):
            capture.close()
        capture.close()
        os.close(writing)
    assert bench.sent[1] == content


def test_a_port_closed_under_it_and_a_second_capture(bench: Bench, path: Path) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder, Capture(path, forwarder):
        with pytest.raises(ConfigError, match="another capture is on it"):
            Capture(path.with_name("another"), [bench.ports[1]])
        bench.turn(forwarder, numbered(10))
        bench.ports[0].close()
    assert len(packets(path)) == 10
    with pytest.raises(PoolClosedError):
        Capture(path, [bench.ports[0]])


@pytest.mark.parametrize(
    "wrong", [{"snaplen": 0}, {"packets": 0}, {"direction": "up"}, {"room": 1000}, {"room": 3 << 20}]
)
def test_what_cannot_be(bench: Bench, path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Capture(path, bench.ports, **wrong)
    with pytest.raises(ConfigError, match="needs a port"):
        Capture(path, [])
    assert not path.exists()


def test_it_needs_its_extra(bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pcapng", None)
    with pytest.raises(MissingExtraError, match=r"afxdp-pool\[pcap\]"):
        Capture(path, bench.ports)
    with pytest.raises(MissingExtraError):
        Capture(path.parent / "no" / "directory", bench.ports)


def test_a_file_that_cannot_be_made(bench: Bench, path: Path) -> None:
    with pytest.raises(AfXdpError, match="opening the capture failed: No such file or directory"):
        Capture(path.parent / "no" / "directory", bench.ports)
    with Capture(path, bench.ports):
        pass
