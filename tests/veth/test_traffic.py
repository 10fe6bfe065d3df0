"""The source sends exactly what it says, and the sink finds exactly what was done to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from afxdp_pool.errors import ConfigError, LabError, ModeUnsupportedError
from afxdp_pool.loaded import run
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, SinkReport, Source, VethPair, packets
from afxdp_pool.testing.sink import WINDOW


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a", mtu=3400)


@pytest.fixture
def sink(pair: VethPair) -> Iterator[Sink]:
    with Sink(pair.near) as made:
        yield made


@pytest.fixture
def wire(pair: VethPair) -> Iterator[socket.socket]:
    """A raw socket on the far end: what it sends arrives at the near end."""
    with in_netns(pair.far.netns):
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        raw.bind((pair.far.name, 0))
        yield raw


def send_all(wire: socket.socket, frames: list[bytes], sink: Sink) -> SinkReport:
    """Send every frame, one by one, and report once the sink has seen them all."""
    before = sink.report()
    for frame in frames:
        wire.send(frame)
    deadline = time.monotonic() + 20
    while True:
        now = sink.report()
        if now.packets + now.foreign - before.packets - before.foreign == len(frames):
            return now
        assert time.monotonic() < deadline, f"{len(frames)} frames sent, but: {now}"


def numbers(report: SinkReport) -> dict[str, int]:
    names = ("unique", "lost", "duplicate", "reordered", "stale", "corrupt", "foreign")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


@pytest.mark.parametrize("flows", [1, 3, 256])
@pytest.mark.parametrize("size", [64, 65, 66, 67, 256, 597, 1500, 1514, packets.MAX_SIZE])
def test_what_is_sent_arrives(pair: VethPair, size: int, flows: int) -> None:
    count = 20_000
    with Sink(pair.near) as sink, Source(pair.far, size=size, flows=flows) as source:
        sent = source.send(count)
        report = sink.wait(count)
    assert (sent.sent, sent.delivered, sent.dropped) == (count, count, 0)
    assert numbers(report) == {"unique": count}
    assert (report.packets, report.bytes) == (count, count * size)
    assert report.missing(sent.sent) == 0
    assert report.rate > 0
    assert sorted(report.flows) == list(range(flows))
    for number, flow in report.flows.items():
        share = count // flows + (number < count % flows)
        assert (flow.first, flow.last, flow.unique) == (0, share - 1, share)


def test_frames_of_the_source_are_those_of_python(pair: VethPair) -> None:
    addresses = packets.Addresses(
        source_mac=pair.far.mac,
        target_mac=pair.near.mac,
        source_ip=socket.inet_aton(pair.far.ipv4),
        target_ip=socket.inet_aton(pair.near.ipv4),
    )
    start = 2**40 - 2
    with Source(pair.far, size=600, flows=2, seq_start=start) as source:
        for number in range(8):
            made = run(source._program, source._frame, room=600).data
            assert made == packets.build(600, flow=number % 2, seq=start + number // 2, addresses=addresses)


def test_a_second_send_goes_on_where_the_first_ended(pair: VethPair) -> None:
    with Sink(pair.near) as sink, Source(pair.far, flows=3) as source:
        source.send(1000)
        source.start(count=1000)
        source.wait(30)
        source.send(1000)
        assert numbers(sink.wait(3000)) == {"unique": 3000}
        sink.reset()
        assert sink.report() == SinkReport()
        source.send(100)
        assert numbers(sink.wait(100)) == {"unique": 100}


def test_a_paced_source_is_never_faster_and_loses_nothing(pair: VethPair) -> None:
    count, rate = 20_000, 100_000
    with Sink(pair.near) as sink, Source(pair.far) as source:
        sent = source.send(count, rate)
        assert numbers(sink.wait(count)) == {"unique": count}
    assert sent.dropped == 0
    assert sent.seconds >= (count - 0.001 * rate) / rate * 0.99


def test_slow_pacing_sends_single_packets(pair: VethPair) -> None:
    with Sink(pair.near) as sink, Source(pair.far) as source:
        sent = source.send(rate=100, seconds=0.1)
        assert 1 <= sent.sent <= 11
        assert numbers(sink.wait(sent.sent)) == {"unique": sent.sent}


def test_a_source_in_a_process_of_its_own(pair: VethPair) -> None:
    with Sink(pair.near) as sink, Source(pair.far, flows=2, cpu=0) as source:
        source.start(rate=50_000)
        with pytest.raises(LabError, match="sending already"):
            source.send(1)
        with pytest.raises(TimeoutError):
            source.wait(0)
        sink.wait(500)
        sent = source.stop()
        report = sink.wait(sent.sent)
        assert sent.sent >= 500
        assert numbers(report) == {"unique": sent.sent}
        with pytest.raises(LabError, match="nothing was started"):
            source.stop()


@pytest.mark.skipif(os.sched_getaffinity(0) < {0, 1}, reason="needs CPUs 0 and 1")
def test_one_flow_over_two_queues_at_once_is_counted_exactly(lab: Lab) -> None:
    pair, count = lab.veth("two", queues=2), 30_000  # both within one window
    with (
        Sink(pair.near) as sink,
        Source(pair.far, cpu=0) as first,
        Source(pair.far, cpu=1, seq_start=count) as second,
    ):
        first.start(count, rate=300_000)
        second.start(count, rate=300_000)
        assert (first.wait(30).sent, second.wait(30).sent) == (count, count)
        report = sink.wait(2 * count)
        assert (report.unique, report.lost, report.duplicate, report.stale) == (2 * count, 0, 0, 0)
    counters = pair.near.counters()
    assert counters["rx_queue_0_xdp_packets"] == count
    assert counters["rx_queue_1_xdp_packets"] == count


def test_a_source_process_ends_with_its_parent(pair: VethPair) -> None:
    script = (
        "import ast, sys\n"
        "from afxdp_pool.testing import LabLink, Source\n"
        f"source = Source({pair.far!r})\n"
        "source.start(rate=1000)\n"
        "print(source._helper.pid, flush=True)\n"
        "input()\n"
    )
    with Sink(pair.near):
        parent = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        helper = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
        parent.communicate(timeout=30)
        deadline = time.monotonic() + 20
        while _runs(helper):
            assert time.monotonic() < deadline, "the helper process outlived its parent"
            time.sleep(0.005)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_failure_in_the_source_process_is_told(pair: VethPair) -> None:
    with Source(pair.far, cpu=4095) as source:
        source.start(count=1)
        with pytest.raises(LabError, match="CPU 4095"):
            source.wait(30)


def test_a_peer_without_a_program_takes_nothing_and_the_report_says_so(pair: VethPair) -> None:
    with Source(pair.far) as source:
        sent = source.send(100)
    assert (sent.sent, sent.delivered, sent.dropped) == (100, 0, 100)


def test_loss_is_counted_inside_and_at_both_ends(sink: Sink, wire: socket.socket) -> None:
    kept = [seq for seq in range(200) if seq not in {0, 1, 50, 51, 120, 199}]
    report = send_all(wire, [packets.build(64, seq=seq) for seq in kept], sink)
    assert numbers(report) == {"unique": 194, "lost": 3}
    assert report.missing(200) == 6
    assert (report.flows[0].first, report.flows[0].last) == (2, 198)


def test_every_kind_of_damage_is_told_apart(pair: VethPair, sink: Sink, wire: socket.socket) -> None:
    good = [packets.build(300, flow=7, seq=seq) for seq in range(100)]
    frames = list(good)
    frames[10], frames[11] = frames[11], frames[10]  # one reordered
    frames.insert(30, good[20])  # two duplicates
    frames.append(good[0])
    del frames[60]  # one lost (good[59])
    flipped = bytearray(packets.build(300, flow=7, seq=100))
    flipped[200] ^= 1
    wrong_magic = bytearray(packets.build(300, flow=7, seq=101))
    wrong_magic[42] ^= 1
    frames += [bytes(flipped), bytes(wrong_magic), good[5][:-4], good[5] + b"more"]
    frames += [bytes(6) + pair.far.mac + b"\x88\xb5" + bytes(60)] * 3  # an experimental ethertype
    report = send_all(wire, frames, sink)
    assert numbers(report) == {
        "unique": 99, "lost": 1, "duplicate": 2, "reordered": 1, "corrupt": 4, "foreign": 3,
    }  # fmt: skip
    assert list(report.flows) == [7]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found_by_the_kernel_too(sink: Sink, wire: socket.socket, data: st.DataObject) -> None:
    size = data.draw(st.one_of(st.integers(64, 200), st.integers(64, 1514)))
    good = packets.build(size, seq=data.draw(st.integers(0, 2**64 - 2)))
    # Not the MACs, which nothing protects, nor what decides whether it is a test packet at all.
    at = data.draw(st.integers(16, size - 1).filter(lambda at: at not in (23, 36, 37)))
    bad = bytearray(good)
    bad[at] ^= 1 << data.draw(st.integers(0, 7))
    sink.reset()
    assert numbers(send_all(wire, [good], sink)) == {"unique": 1}
    assert numbers(send_all(wire, [bytes(bad)], sink)) == {"unique": 1, "corrupt": 1}


def expected(arrivals: list[int]) -> dict[str, int]:
    """The definition of the counts, over everything that ever arrived."""
    seen: set[int] = set()
    count = dict.fromkeys(("duplicate", "reordered", "stale"), 0)
    top = arrivals[0]
    for seq in arrivals:
        if seq >= top:
            top = seq + 1
        elif top - seq > WINDOW:
            count["stale"] += 1
            continue
        elif seq in seen:
            count["duplicate"] += 1
            continue
        else:
            count["reordered"] += 1
        seen.add(seq)
    count |= {"unique": len(seen), "lost": max(seen) - min(seen) + 1 - len(seen)}
    return {name: n for name, n in count.items() if n}


steps = st.one_of(
    st.just(1),
    st.integers(-70, 70),
    st.sampled_from([63, 64, 65, -64, WINDOW - 1, WINDOW, WINDOW + 1, -WINDOW + 1, -WINDOW, -WINDOW - 1, 200_000]),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 150_000), walk=st.lists(steps, max_size=60))
@example(start=5, walk=[65536 + WINDOW - 1, 1 - WINDOW])  # a late number where a bit of two windows ago was
def test_the_window_counts_as_the_definition_does(sink: Sink, wire: socket.socket, start: int, walk: list[int]) -> None:
    arrivals = [start]
    for step in walk:
        arrivals.append(max(0, arrivals[-1] + step))
    sink.reset()  # so that a bit left over from the example before would be found out, too
    for chunk in range(0, len(arrivals), 50):
        frames = [packets.build(64, flow=255, seq=seq) for seq in arrivals[chunk : chunk + 50]]
        report = send_all(wire, frames, sink)
    assert numbers(report) == expected(arrivals)


def test_a_sink_that_does_not_verify_only_counts(pair: VethPair, wire: socket.socket) -> None:
    damaged = packets.build(64, seq=3)[:-1] + b"\0"
    with Sink(pair.near, verify=False) as sink:
        report = send_all(wire, [packets.build(64), packets.build(64), damaged, bytes(100)], sink)
    assert (report.packets, report.bytes, report.foreign) == (3, 192, 1)
    assert (report.unique, report.corrupt, report.flows) == (0, 0, {})
    assert report.missing(5) == 2


def test_foreign_packets_reach_the_stack(pair: VethPair, wire: socket.socket) -> None:
    with in_netns(pair.near.netns):
        inside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside, Sink(pair.near) as sink:
        inside.settimeout(20)
        inside.bind((pair.near.ipv4, 0))
        with in_netns(pair.far.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
            outside.sendto(b"hello", inside.getsockname())
        assert inside.recv(100) == b"hello"
        assert numbers(sink.report()) == {"foreign": 1}


def test_one_program_a_link(pair: VethPair) -> None:
    with Sink(pair.near), pytest.raises(ModeUnsupportedError, match=r"a-near.*already"):
        Sink(pair.near)
    Sink(pair.near).close()


def test_what_cannot_be_sent_is_refused(pair: VethPair) -> None:
    with pytest.raises(ConfigError):
        Source(pair.far, size=20)
    with pytest.raises(ConfigError):
        Source(pair.far, flows=257)
    with Source(pair.far) as source:
        with pytest.raises(ConfigError, match="when to end"):
            source.send()
        with pytest.raises(ConfigError, match="rate"):
            source.send(1, 0)


def test_nothing_is_left_open(pair: VethPair) -> None:
    def descriptors() -> list[str]:
        return sorted(os.listdir("/proc/self/fd"))

    before = descriptors()
    for _ in range(3):
        with Sink(pair.near), Source(pair.far) as source:
            source.send(10)
            source.start(count=10)
            source.wait(30)
        source.close()
    assert descriptors() == before
