"""The command line in parts: what may be typed, what is drawn and worded, which sentence an error becomes."""

from __future__ import annotations

import argparse
import io
import json
import re
import signal
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from afxdp_pool import (
    Audit,
    ConfigError,
    EngineStats,
    KernelStats,
    LiveStats,
    MissingExtraError,
    Options,
    PoolStats,
    PortInfo,
    PortReport,
    PortStats,
    Report,
    Rule,
    TxStamps,
)
from afxdp_pool import __version__ as version
from afxdp_pool.cli import arguments, doctor, doctor_machine, drawing, main, output, paths, stamps, traffic, words
from afxdp_pool.cli.finding import Finding
from afxdp_pool.cli.meter import Meter, Rate, losses
from afxdp_pool.cli.notices import Notices
from afxdp_pool.cli.screen import Picture, Screen, Shape
from afxdp_pool.cli.views import Lines, View, choose_view
from afxdp_pool.report import scaled
from afxdp_pool.testing import packets

FRAMES = {"umem": 4096, "pool": 64, "fill": 1984, "app": 0, "tx": 2048}


def report(
    ports: int = 1,
    *,
    seconds: float = 10.0,
    packets: int = 0,
    kernel: KernelStats | None = None,
    live: LiveStats | None = None,
) -> Report:
    stats = dict.fromkeys(PortStats.__dataclass_fields__, 0)
    stats |= {"rx_packets": packets, "rx_bytes": 64 * packets, "tx_packets": packets, "tx_bytes": 64 * packets}
    info = PortInfo("eth9", 0, "veth", "copy", "native", "4 KB pages")
    rings = {"fill": 2048, "comp": 3, "rx": 17, "tx": 64}
    program = {"redirected": packets, "passed_filter": 0, "passed_no_socket": 0}
    port = PortReport("eth9 queue 0", info, PortStats(**stats), kernel or KernelStats(), rings, program, live)
    pool = PoolStats(**dict.fromkeys(PoolStats.__dataclass_fields__, 0) | {"hold_cnt": 4096, "recycle_cached": 9})
    engine = EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 0))
    return Report(seconds, (port,) * ports, (pool,), engine, FRAMES)


def audit(*, fill: int = 0, app: int = 0, wrong: int = 0) -> Audit:
    return Audit(8192, 8192 - fill - app, 0, fill, app, 0, 0, ("frame 7 is lost",) * wrong, wrong)


# What may be typed ----------------------------------------------------------------------------------------------------


def test_a_handler_that_is_too_slow_is_told_of() -> None:
    slow = replace(report().engine, handler_calls=160, handler_timed=10, handler_slow=4, handler_longest_ns=5_300_000)
    (line,) = output.troubles(replace(report(), engine=slow))
    assert line == "the handler is slow: 4 of 10 calls timed took over 1 ms, the longest 5.3 ms"


@pytest.mark.parametrize(
    ("text", "value"), [("0", 0), ("17", 17), ("1.5k", 1500), ("2M", 2e6), ("2m", 2e6), ("1G", 1e9), ("1e3", 1000)]
)
def test_numbers(text: str, value: float) -> None:
    assert words.number(text) == value


@pytest.mark.parametrize("text", ["", "k", "-1", "-1k", "1kk", "x", "inf", "nan"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        words.number(text)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "walk",
        "drop",
        "drop -i",
        "forward -i a",
        "drop -i a -q x",
        "drop -i a -q 1.5",
        "drop -i a --duration 0",
        "drop -i a --copy --zero-copy",
        "drop -i a --native --generic",
        "drop -i a --attach glue",
        "drop -i a --protocol nonsense",
        "drop -i a --port 65536",
        "drop -i a --port http",
        "drop -i a --protocol icmp --port 53",
        "drop -i a --network 10.0.0.1/8",
        "drop -i a --rule port",
        "drop -i a --rule port=53,port=54",
        "drop -i a --rule colour=blue",
        "drop -i a --rule ethertype=arp,port=53",
        "forward -i a -o b --set-dst 1:2",
        "tx -i a --rate fast",
        "tx -i a --count 1.5",
        "tx -i a --tx-metadata crc",
        "drop -i a --tx-metadata checksum",
        "tx -i a --dst-ip 1.2.3",
        "tx -i a --generic",
    ],
)
def test_what_makes_no_sense_is_a_usage_error(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "error: " in said.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "required: COMMAND"),
        ("forwad -i a", "there is no command 'forwad'; did you mean forward?"),
        ("run", "there is no command 'run'; there are drop, forward, reflect"),
        ("drop", "-i/--interface; write it as `-i eth1` (`ip -br link` lists those there are)"),
        ("drop eth0", "-i/--interface; write it as `-i eth1`"),
        ("doctor eth0", "unrecognized arguments: eth0; if eth0 is an interface, write -i eth0"),
        ("forward -i a", "-o/--output; write it as `-o eth1`"),
        ("drop -i a -q 0,1", "'0,1' is not the number of a queue; write several as -q 0 -q 1"),
        ("drop -i a -q any", "'any' is not the number of a queue; write several as -q 0 -q 1"),
        ("drop -i a -q all -q 1", "-q all goes alone"),
        ("drop -i a --duration 10s", "'10s' is not a number of seconds above 0, such as 10 or 0.5"),
        ("drop -i a --ring-size 1000", "a ring has a power of two of entries, such as 1024, not 1000"),
        ("drop -i a --ring-size 0", "a ring has a power of two of entries, such as 2048, not 0"),
        ("tx -i a --count 0", "0 of them is nothing to do: leave it away for no end"),
        ("drop -i a --capture x --capture-packets 0", "0 of them is nothing to do"),
        ("drop -i a --rx-metadata hash,rss", "'hash,rss': write some of hash,timestamp,vlan,arrival"),
    ],
)
def test_what_a_newcomer_types_wrongly_is_answered_in_two_lines(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(line.split())
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert said in told
    first, last, rest = told.split("\n")
    assert first.startswith("afxdp-pool")
    assert (last.split()[0], "--help" in last, rest) == ("afxdp-pool", True, "")


@pytest.mark.parametrize(
    ("command", "usage"),
    [
        ("drop", "-i IF [options]"),
        ("forward", "-i IF -o IF [options]"),
        ("handle", "-i IF [options] HANDLER"),
        ("serve", "-i IF --allow WHO [options]"),
        ("steer", "-i IF [options] [COMMAND ...]"),
        ("top", "[-h] [--netns NAME] [--once] [--json] [--interval S]"),
    ],
)
def test_help_begins_with_what_must_be_given_and_cuts_no_flag(
    command: str, usage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    first, _, what, *rest = capsys.readouterr().out.splitlines()
    assert first == f"usage: afxdp-pool {command} {usage}"
    assert (what[0].isupper(), what[-1]) == (True, ".")
    assert not [line for line in rest if line.endswith("-")]


@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("", ()),
        ("--protocol udp --port 53", (Rule(protocol=17, port=53),)),
        ("--ethertype 0x88f7", (Rule(ethertype=0x88F7),)),
        ("--network fd00::/8", (Rule(network="fd00::/8"),)),
        (
            "--rule ethertype=arp --rule source-port=53,protocol=6",
            (Rule(ethertype=0x806), Rule(protocol=6, source_port=53)),
        ),
        ("--port 0 --rule source_network=10.0.0.0/8", (Rule(port=0), Rule(source_network="10.0.0.0/8"))),
    ],
)
def test_rules(line: str, rules: tuple[Rule, ...]) -> None:
    assert arguments.options(arguments.parse(["drop", "-i", "a", *line.split()])).rules == rules


def test_options_are_the_library_s() -> None:
    assert arguments.options(arguments.parse(["drop", "-i", "a"])) == Options()
    line = "-q 1 -q 3 --frames 64k --frame-size 2048 --batch 32 --huge-pages --copy --generic --attach libxdp --force"
    made = arguments.options(arguments.parse(["reflect", "-i", "a", "--netns", "n", *line.split()]))
    assert (made.netns, made.queues, made.frames, made.frame_size, made.batch) == ("n", (1, 3), 64000, 2048, 32)
    assert (made.huge_pages, made.port.mode, made.xdp_mode, made.attach, made.force) == (
        True,
        "copy",
        "generic",
        "libxdp",
        True,
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"afxdp-pool {version}\n"


# What tx sends --------------------------------------------------------------------------------------------------------


def tx(line: str) -> argparse.Namespace:
    return arguments.parse(["tx", "-i", "a", *line.split()])


def test_the_default_packet_is_the_lab_s() -> None:
    made = traffic.test_template(tx(""), b"\x02\0\0\0\0\x77")
    (packet,) = made.packets
    assert packets.parse(packet) == packets.TestPacket(flow=0, seq=0, size=64)
    assert packet[:12] == b"\x02\0\0\0\0\x01" + b"\x02\0\0\0\0\x77"
    numbered = packets.build(64, seq=5, addresses=packets.Addresses(packet[6:12], packet[:6]))
    differs = [at for at in range(64) if packet[at] != numbered[at]]
    assert set(differs) <= {*range(made.sequence_at, made.sequence_at + 8), made.checksum_at, made.checksum_at + 1}


@pytest.mark.parametrize("size", [64, 65, 1514])
def test_addresses_asked_for_and_a_right_checksum(size: int) -> None:
    line = "--dst-mac 02:00:00:00:00:aa --src-mac 02:00:00:00:00:bb --dst-ip 10.0.0.1 --src-ip 10.0.0.2"
    (packet,) = traffic.test_template(tx(f"{line} --dst-port 53 --src-port 0 --size {size}"), b"").packets
    assert packet[:14].hex() == "0200000000aa0200000000bb0800"
    assert packet[26:38].hex() == "0a0000020a000001" + "00000035"
    pseudo = packet[26:34] + b"\0\x11" + (len(packet) - 34).to_bytes(2, "big")
    assert packets.ones_sum(packet[34:], packets.ones_sum(pseudo)) == 0xFFFF
    assert len(packet) == size


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_capture_files(kind: str, tmp_path: Path) -> None:
    dpkt = pytest.importorskip("dpkt")
    frames = [packets.build(64 + n, seq=n) for n in range(5)]
    with (tmp_path / "capture").open("wb") as file:
        writer = dpkt.pcap.Writer(file) if kind == "pcap" else dpkt.pcapng.Writer(file)
        for frame in frames:
            writer.writepkt(frame, ts=1.0)
    assert traffic.read_capture(tmp_path / "capture") == tuple(frames)


@pytest.mark.parametrize("content", [b"", b"text, not packets, and quite a lot of it", b"\xd4\xc3\xb2\xa1" + bytes(20)])
def test_no_capture_file(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("dpkt")
    (tmp_path / "capture").write_bytes(content)
    with pytest.raises(ConfigError, match="capture"):
        traffic.read_capture(tmp_path / "capture")


def test_captures_need_their_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "dpkt", None)
    with pytest.raises(MissingExtraError, match=r"afxdp-pool\[pcap\]"):
        traffic.read_capture(tmp_path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9400", ("127.0.0.1", 9400)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("[::1]:0", ("::1", 0)),
        ("host:65535", ("host", 65535)),
    ],
)
def test_where_to_listen(text: str, place: tuple[str, int]) -> None:
    assert words.listening(text) == place


@pytest.mark.parametrize("text", ["", "x", "host:", "::1:9400", "[host]:1", "1.2.3.4:65536"])
def test_nowhere_to_listen(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        words.listening(text)


def test_pictures_have_a_known_ending(capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments.parse(["drop", "-i", "a", "--picture", "x.SVG", "--animation", "x.gif"])
    assert (args.picture, args.animation) == ("x.SVG", "x.gif")
    with pytest.raises(SystemExit):
        arguments.parse(["drop", "-i", "a", "--picture", "x.jpg"])
    assert "'x.jpg' does not end in .png, .svg or .pdf" in capsys.readouterr().err


def test_the_words_for_captures(capsys: pytest.CaptureFixture[str]) -> None:
    args = arguments.parse(["drop", "-i", "a", "--capture", "f", "--capture-packets", "2k", "--capture-rule", "port=5"])
    assert (args.capture_packets, args.capture_rule) == (2000, [Rule(port=5)])
    for more in (["--capture-packets", "5"], ["--capture-rule", "port=5"]):
        with pytest.raises(SystemExit):
            arguments.parse(["drop", "-i", "a", *more])
        assert "goes with --capture FILE" in capsys.readouterr().err
    captured = output.Captured("f.pcapng", 1000, 5, 7)
    assert str(captured) == "captured 1,000 packets in f.pcapng, 5 left out; 7 more came too fast to be written"
    outcome = output.Outcome(report(), output.Proof(audit(), audit(), 0), "duration", captured=captured)
    assert "  captured 1,000 packets" in "\n".join(output.summary(args, outcome))
    assert output.document(args, outcome)["capture"]["dropped"] == 7


# Words ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 pps"),
        (999, "999 pps"),
        (1000, "1.000 kpps"),
        (999_999, "1.000 Mpps"),
        (12_345, "12.35 kpps"),
        (2e10, "20.00 Gpps"),
    ],
)
def test_scaled(value: float, text: str) -> None:
    assert scaled(value, "pps") == text


def test_rates_are_of_the_last_second() -> None:
    meter = Meter()
    for tenth in range(31):
        rates = meter.add(tenth / 10, report(packets=1000 * tenth if tenth < 20 else 20000))
    assert rates[0].rx_pps == 0
    meter.add(3.1, report(packets=21000))
    assert meter.rates[0].rx_pps == pytest.approx(1000, rel=0.01)
    assert meter.rates[0].rx_bps == pytest.approx(512_000, rel=0.01)
    assert max(meter.history[0][0]) == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize(
    ("proof", "ok", "text"),
    [
        (output.Proof(audit(fill=64), audit(), 0), True, "audit: 8192 frames all accounted for"),
        (output.Proof(audit(), audit(fill=3), 0), False, "3 frames did not come back"),
        (output.Proof(audit(), audit(), 2), False, "hold 2 frames"),
        (output.Proof(audit(app=3), audit(app=3), 3, 3), True, "all accounted for, 3 of them kept by the handler"),
        (output.Proof(audit(app=3), audit(app=3, fill=2), 5, 3), False, "FAILED: 2 frames did not come back"),
        (output.Proof(audit(wrong=1), audit(), 0), False, "frame 7 is lost"),
    ],
)
def test_the_proof(proof: output.Proof, ok: bool, text: str) -> None:
    assert proof.ok is ok
    assert proof.as_dict()["ok"] is ok
    assert text in str(proof)


def test_the_summary_tells_what_became_of_live_frames() -> None:
    args = arguments.parse(["tx", "-i", "eth9", "--transmit", "live"])
    live = LiveStats(1000, 990, 10, 64, 12, 2, 14_200_000, 1, 3)
    outcome = output.Outcome(report(live=live), output.Proof(audit(), audit(), 0), "duration", None, ())
    text = "\n".join(output.summary(args, outcome))
    for part in ("dropped 10 of 1,000 packets sent live", "sent again by the socket 64", "up to 3 runs; 1 still",
                 "2 of 12 live runs stalled, the longest for 14.2 ms"):  # fmt: skip
        assert part in text
    assert output.document(args, outcome)["ports"][0]["live"]["dropped"] == 10
    quiet = output.live_troubles(report(live=LiveStats(1000, 1000)).ports[0])
    assert quiet == output.live_troubles(report().ports[0]) == []
    assert arguments.options(args).port.transmit == "live"
    assert arguments.options(arguments.parse(["drop", "-i", "eth9"])).port.transmit == "auto"


def test_summary_and_document() -> None:
    kernel = KernelStats(rx_dropped=5, rx_ring_full=1200, rx_fill_ring_empty_descs=7)
    args = arguments.parse(["forward", "-i", "eth8", "-o", "eth9"])
    proof = output.Proof(audit(), audit(), 0)
    outcome = output.Outcome(report(packets=1_000_000, kernel=kernel), proof, "SIGINT", None, ("a notice",))
    text = "\n".join(output.summary(args, outcome))
    for part in ("forward eth8 -> eth9: stopped by Ctrl-C after 10.0 s", "1,000,000 packets",
                 "100.0 kpps", "1,200: RX ring full", "5: FILL ring empty", "all accounted"):  # fmt: skip
        assert part in text
    document = json.loads(json.dumps(output.document(args, outcome)))
    assert (document["command"], document["interface"], document["output"]) == ("forward", "eth8", "eth9")
    assert (document["received"], document["audit"]["ok"], document["error"]) == (1_000_000, True, None)
    assert document["info"] is None
    assert document["ports"][0]["kernel"]["rx_ring_full"] == 1200
    assert document["stopped_by"] == "SIGINT"


def test_packets_of_several_frames_are_packets_and_their_frames_are_said() -> None:
    plain = report(packets=100)
    stats = replace(plain.ports[0].stats, rx_parts=50, tx_parts=40, tx_completed=99, tx_completed_parts=30)
    long = replace(plain, ports=(replace(plain.ports[0], stats=stats),))
    args = arguments.parse(["forward", "-i", "eth8", "-o", "eth9", "--multi-buffer"])
    proof = output.Proof(audit(), audit(), 0)
    text = "\n".join(output.summary(args, output.Outcome(long, proof, "SIGINT")))
    for name, moved, frames in (("received", 100, 150), ("sent", 100, 140), ("completed", 99, 129)):
        assert re.search(rf"{name} +{moved} packets .* in {frames} frames$", text, re.MULTILINE)
    assert "frames\n" not in "\n".join(output.summary(args, output.Outcome(plain, proof, "SIGINT")))
    assert str(long) == "10.0 s: received 100, sent 100, completed 99, 10 pps"


class Answers:
    """A port whose packets are sent, each `wait` ns after it was handed over."""

    def __init__(self, mode: str = "copy") -> None:
        self.mode, self.lost = mode, 0
        self.next: npt.NDArray[Any] = np.empty(0)

    def take_timestamps(self, n: int) -> TxStamps:
        numbers = np.arange(len(self.next), dtype=np.uint64) + np.uint64(1 << 60)
        return TxStamps(numbers, numbers + self.next.astype(np.uint64), self.lost)


def test_what_timestamps_come_to_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stamps, "MOST", 500)
    port = Answers()
    taking = stamps.Stamps(port)  # type: ignore[arg-type]
    assert str(taking.times()) == "0 packets told when they were sent, by the kernel's clock"
    waits = np.arange(10_000) * 1000
    for start in range(0, 10_000, 77):
        port.next = waits[start : start + 77]
        taking.take()
    port.next, port.lost = np.array([99_000_000]), 3
    taking.take()
    times = taking.times()
    assert (times.taken, times.lost, times.longest_us) == (10_001, 3, 99_000)
    assert times.p50_us == pytest.approx(5000, rel=0.02)
    assert times.p99_us == pytest.approx(9900, rel=0.02)
    assert re.fullmatch(
        r"10,001 packets told .* by the kernel's clock, 3 more .*; after .* ms \(p50\), 9.* ms \(p99\), 99 ms at most",
        str(times),
    )
    device = stamps.Stamps(Answers("zero-copy"))  # type: ignore[arg-type]
    device.take()
    assert device.times() == stamps.SendTimes(0, 0, "device")


def test_a_drop_does_not_speak_of_sending() -> None:
    args = arguments.parse(["drop", "-i", "eth9"])
    outcome = output.Outcome(report(packets=7), output.Proof(audit(), audit(), 0), "duration")
    assert "sent" not in "\n".join(output.summary(args, outcome))
    assert " tx " not in output.progress("drop", report(), [Rate()]).split("frames")[0]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("too few", hint="use more"), "eth9: too few; use more"),
        (ConfigError("too few", subject="eth9 queue 2"), "eth9 queue 2: too few"),
        (ConfigError("refused", hint="libbpf's last lines:\none\ntwo"), "eth9: refused; libbpf's last lines: one two"),
        (FileNotFoundError(2, "No such file", "x.pcap"), "x.pcap: No such file"),
        (OSError(5, "Input/output error"), "eth9: Input/output error"),
    ],
)
def test_an_error_is_one_sentence(error: Exception, text: str) -> None:
    assert output.sentence(error, "eth9") == text


def test_an_unforeseen_error_has_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: argparse.Namespace) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(paths, "open_path", fail)
    assert main(["drop", "-i", "eth9"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("afxdp-pool: eth9: unexpected ZeroDivisionError: oh;")
    assert said.err.count("\n") == 1
    monkeypatch.setenv("AFXDP_POOL_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        main(["drop", "-i", "eth9"])


def test_the_second_interrupt_aborts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with paths.Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.received == "SIGTERM"
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# The picture ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1 << 20), min_size=5, max_size=5), st.integers(10, 200))
def test_shares_fill_the_bar_and_hide_nobody(counts: list[int], columns: int) -> None:
    frames = dict(zip(FRAMES, counts, strict=True))
    line = drawing.shares(frames, columns, letters=False)
    assert line.cell_len == (columns if sum(counts) else 0)
    assert len(line.spans) == sum(count > 0 for count in counts)


@given(st.floats(0, 2), st.integers(1, 50))
def test_bars_keep_their_width(share: float, columns: int) -> None:
    line = drawing.bar(share, columns, "green")
    assert line.cell_len == columns
    assert (line.plain == "·" * columns) == (share == 0)


@given(st.integers(1, 5000), st.integers(1, 100), st.integers(1, 20), st.booleans())
def test_the_map_shows_each_nth_frame_once(frames: int, columns: int, rows: int, letters: bool) -> None:
    states = np.full(frames, 4, np.uint8)
    lines, step = drawing.frame_map(states, columns, rows, letters=letters)
    assert len(lines) <= rows
    assert all(line.cell_len <= columns for line in lines)
    two = sum(span.end - span.start for line in lines for span in line.spans if " on " in str(span.style))
    assert two + sum(line.cell_len for line in lines) == -(-frames // step)


def test_the_map_has_a_mark_for_every_state() -> None:
    def drawn(states: list[int], columns: int, *, letters: bool = False) -> list[tuple[str, str]]:
        (line,), step = drawing.frame_map(np.array(states, np.uint8), columns, 1, letters=letters)
        assert step == 1
        return [(line.plain[span.start : span.end], str(span.style)) for span in line.spans] or [(line.plain, "")]

    assert drawn([0, 1, 2, 3, 4], 5, letters=True) == [(".ofAt", "")]
    assert drawn([0, 1, 2, 0, 0, 3], 3) == [("·", "dim"), ("▀", "blue"), ("▀", "green on yellow")]
    assert drawn([0, 2], 1) == [("▄", "green")]


def picture(ports: int) -> Picture:
    kernel = KernelStats(rx_dropped=123456, rx_ring_full=987654, rx_fill_ring_empty_descs=55555)
    shape = Shape(
        "eth9 queue 0", "veth · native XDP · copy · 4 KB pages", dict.fromkeys(("fill", "rx", "tx", "comp"), 2048)
    )
    past = deque([1.0, 5.0, 0.0])
    return Picture(
        "forward eth8 <-> eth9",
        report(ports, packets=10**15, kernel=kernel),
        [Rate(1e6, 5e8, 1e6, 5e8, 1e6, 10)] * ports,
        [(past, past)] * ports,
        [shape] * ports,
        np.zeros(8192, np.uint8),
    )


def drawn(shown: Picture, columns: int, rows: int, **console: Any) -> str:
    """What a terminal of that size gets."""
    out = io.TextIOWrapper(io.BytesIO(), encoding=console.pop("encoding", "utf-8"), write_through=True)
    terminal = Console(file=out, width=columns, height=rows, force_terminal=True, _environ={}, **console)
    terminal.print(shown, end="")
    assert isinstance(out.buffer, io.BytesIO)
    return out.buffer.getvalue().decode(out.encoding)


@pytest.mark.parametrize("letters", [True, False])
@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 12), (132, 50), (300, 100)])
@pytest.mark.parametrize("ports", [1, 2, 3, 8, 64])
def test_the_screen_fits(ports: int, columns: int, rows: int, letters: bool) -> None:
    assert len(picture(ports).lines(columns, rows, letters=letters)) == rows
    text = drawn(picture(ports), columns, rows, no_color=letters, color_system=None).split("\n")
    assert len(text) == rows
    assert all(len(line) <= columns for line in text)


def test_two_ports_are_drawn_in_full_on_80_by_24() -> None:
    whole = drawn(picture(2), 80, 24, color_system=None)
    for part in ("eth9 queue 0", "native XDP", "1.000 Mpps", "500.0 Mbit/s", "987,654 RX ring full", "fill ", "100.0%",
                 "hold 4,096 - release 0 = 4,096", "t tx 2,048", "00:00:10", "Ctrl-C stops"):  # fmt: skip
        assert part in whole
    assert whole.count("   ring ") == 2
    assert "\x1b" not in whole


def test_without_colours_states_are_letters_and_without_blocks_the_screen_is_ascii() -> None:
    assert "\x1b[32m" in drawn(picture(1), 80, 24, color_system="standard")
    plain = drawn(picture(1), 80, 24, color_system="standard", no_color=True)
    assert "\x1b[32m" not in plain
    assert "f fill" in plain
    assert drawn(picture(1), 80, 24, color_system="standard", encoding="ascii").isascii()


def test_a_long_notice_is_shown_whole() -> None:
    said = " ".join(["sending by the socket, for now at least"] * 3)
    shown = drawn(replace(picture(1), notice=said), 80, 24, color_system=None)
    assert said in " ".join(" ".join(shown.split("\n")[-3:]).split())


def test_what_goes_on_beside_it_is_said_at_the_foot() -> None:
    shown = drawn(replace(picture(1), beside=("metrics on http://x/metrics", "7 packets captured")), 80, 24)
    assert " Ctrl-C stops · metrics on http://x/metrics · 7 packets captured" in shown


def test_a_handler_s_time_is_shown() -> None:
    engine = replace(report().engine, rounds=1000, handler_calls=320, handler_timed=20, handler_ns=20 * 123_456)
    shown = replace(picture(1), report=replace(report(), engine=engine))
    assert "handler 123 us a batch" in drawn(shown, 80, 24, color_system=None)


def test_many_ports_become_a_table() -> None:
    assert "and 52 more ports" in drawn(picture(64), 80, 24, color_system=None)


def chosen(monkeypatch: pytest.MonkeyPatch, words: str, *, tty: bool = True, term: str = "xterm") -> type[View]:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: tty)
    monkeypatch.setenv("TERM", term)
    return type(choose_view(arguments.parse(["drop", "-i", "eth9", *words.split()]), Notices()))


def test_which_view(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    assert chosen(monkeypatch, "") is chosen(monkeypatch, "--live") is chosen(monkeypatch, "--live --json") is Screen
    assert chosen(monkeypatch, "--no-live") is chosen(monkeypatch, "--json") is Lines
    assert chosen(monkeypatch, "", tty=False) is chosen(monkeypatch, "", term="dumb") is Lines
    assert chosen(monkeypatch, "--quiet") is View
    assert not caplog.messages
    assert chosen(monkeypatch, "--live", term="dumb") is Lines
    assert "no terminal that can show it" in caplog.text


def test_the_live_view_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "afxdp_pool.cli.screen")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(MissingExtraError, match=r"afxdp-pool\[tui\]"):
        chosen(monkeypatch, "--live")


# The doctor -----------------------------------------------------------------------------------------------------------


def test_capabilities() -> None:
    assert doctor_machine.capabilities("CapPrm:\t0\nCapEff:\t0000008000003000\n") == {"NET_ADMIN", "NET_RAW", "BPF"}
    assert doctor_machine.capabilities("") == set()


def test_privileges() -> None:
    assert doctor_machine._privileges({"NET_RAW", "NET_ADMIN", "SYS_ADMIN"}).level == "ok"
    assert doctor_machine._privileges({"NET_RAW", "NET_ADMIN", "BPF"}).level == "warn"
    lacking = doctor_machine._privileges({"NET_RAW"})
    assert (lacking.level, "CAP_BPF, CAP_NET_ADMIN" in lacking.text) == ("missing", True)


def test_what_is_not_ok_has_a_remedy() -> None:
    for finding in doctor_machine.examine():
        assert finding.level == "ok" or finding.fix or "only --huge-pages" in finding.text
        assert "\n" not in finding.text


def test_the_doctor_s_report() -> None:
    findings = [Finding("kernel", "ok", "6.18"), Finding("hook", "missing", "taken", "free it")]
    assert doctor.report("eth9", findings, colour=False) == [
        "eth9",
        "  ok       kernel  6.18",
        "  missing  hook    taken",
        "                   -> free it",
    ]


def test_losses_name_only_what_was_lost() -> None:
    assert losses(KernelStats()) == {}
    assert losses(KernelStats(rx_dropped=3)) == {"no frame or too long": 3}
    assert losses(KernelStats(rx_dropped=3, rx_fill_ring_empty_descs=3)) == {"FILL ring empty": 3}
    assert losses(KernelStats(tx_invalid_descs=2, tx_ring_empty_descs=9)) == {"bad TX entry": 2}
