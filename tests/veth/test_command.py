"""The command as a person runs it: in a process of its own, on a lab's links, with a source and a sink beside it."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from live_lab import perfect, protocol_socket, until
from prometheus_client.parser import text_string_to_metric_families

from afxdp_pool import hook as xdp
from afxdp_pool.cli.traffic import read_capture
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, Source, VethPair, packets
from afxdp_pool.testing.lab import LabLink

pytestmark = pytest.mark.usefixtures("veth_machine")

COMMAND = [sys.executable, "-m", "afxdp_pool.cli"]
WITHIN = 20.0


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a")


def place(link: LabLink) -> list[str]:
    return ["-i", link.name, "--netns", link.netns]


def call(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=WITHIN, env=os.environ | (env or {})
    )


def on_hook(link: LabLink) -> xdp.Attached | None:
    with in_netns(link.netns):
        return xdp.look(link.ifindex).program


class Running:
    """A command that runs until it is told to stop; ready when its first line of progress has come."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *words, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.said: list[str] = []
        self.wait_for("frames umem")

    def wait_for(self, text: str) -> None:
        """Read lines of progress until one has `text`."""
        assert self.process.stderr is not None
        deadline = time.monotonic() + WITHIN
        while line := self.process.stderr.readline():
            self.said.append(line)
            if text in line:
                return
            assert time.monotonic() < deadline, self.said
        raise AssertionError(f"it ended: {self.said}")

    def stop(self, number: int = signal.SIGINT) -> dict[str, Any]:
        """Stop it by a signal; the document, its audit checked."""
        self.process.send_signal(number)
        out, err = self.process.communicate(timeout=WITHIN)
        assert self.process.returncode == 0, err
        return proven(out)


@contextlib.contextmanager
def running(*words: str) -> Iterator[Running]:
    made = Running(*words)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.communicate(timeout=WITHIN)


def proven(text: str) -> dict[str, Any]:
    """The document, after a look at its audit: that every frame came home."""
    document: dict[str, Any] = json.loads(text)
    audit = document["audit"]
    assert audit["ok"]
    assert audit["held"] == 0
    assert audit["closed"]["umem"] == audit["frames"]
    stopped = audit["stopped"]
    assert sum(stopped[state] for state in ("umem", "pool", "fill", "app", "tx")) == audit["frames"]
    assert stopped["problems"] == []
    return document


def left(document: dict[str, Any]) -> int:
    """Packets the kernel had no place for: what a burst may lose, and must own up to."""
    return sum(port["kernel"]["rx_dropped"] + port["kernel"]["rx_ring_full"] for port in document["ports"])


# The paths, counted at the far end ------------------------------------------------------------------------------------


def test_drop_counts_what_was_sent(pair: VethPair) -> None:
    count = 20_000
    with running("drop", *place(pair.near)) as drop, Source(pair.far) as source:
        assert source.send(count, rate=100_000).dropped == 0
        drop.wait_for(f"received {count:,} ")
        document = drop.stop()
    assert (document["received"], left(document)) == (count, 0)
    assert document["ports"][0]["stats"]["rx_bytes"] == 64 * count
    assert document["engine"]["dropped"] == count
    assert (document["command"], document["interface"]) == ("drop", "a-near")
    assert (document["kernel"], document["stopped_by"]) == (os.uname().release, "SIGINT")
    assert on_hook(pair.near) is None


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_drop_in_the_mode_demanded(pair: VethPair, mode: str) -> None:
    # In generic mode a veth takes no redirected frames, so these go through the far end's stack.
    with in_netns(pair.far.netns):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with wire, running("drop", *place(pair.near), f"--{mode}") as drop:
        wire.bind((pair.far.name, 0))
        for n in range(500):
            wire.send(packets.build(seq=n))
        drop.wait_for("received 500 ")
        document = drop.stop()
    (port,), (program,) = document["info"]["ports"], document["info"]["programs"]
    assert (port["netdev"], port["queue"], port["netns"], port["driver"]) == (
        pair.near.name,
        0,
        pair.near.netns,
        "veth",
    )
    assert (port["mode"], port["xdp_mode"], port["transmit"], port["transmit_reason"]) == ("copy", mode, "none", "")
    assert (program["id"], program["name"], program["mode"]) == (port["program_id"], "afxdp_redirect", mode)
    assert len(program["tag"]) == 16
    assert (document["received"], left(document)) == (500, 0)


def test_forward_delivers_every_packet(lab: Lab) -> None:
    a, b, count = lab.veth("a"), lab.veth("b"), 20_000
    with (
        Sink(b.far) as sink,
        Source(a.far) as source,
        running("forward", *place(a.near), "-o", b.near.name) as forward,
    ):
        source.send(count, rate=100_000)
        seen = sink.wait(count)
        document = forward.stop()
    assert (seen.unique, seen.lost, seen.duplicate, seen.corrupt, seen.reordered) == (count, 0, 0, 0, 0)
    assert (document["received"], document["sent"], document["completed"]) == (count, count, count)
    assert document["output"] == "b-near"
    assert on_hook(a.near) is None


def test_forward_both_ways_with_new_addresses(lab: Lab) -> None:
    a, b, count = lab.veth("a"), lab.veth("b"), 2000
    rewrite = ["--both-ways", "--set-dst", "02:00:00:00:00:99", "--set-src", "02:00:00:00:00:98"]
    with running("forward", *place(a.near), "-o", b.near.name, *rewrite) as forward:
        for sender, receiver in ((a.far, b.far), (b.far, a.far)):
            with Sink(receiver) as sink, Source(sender) as source:
                source.send(count, rate=50_000)
                assert sink.wait(count).unique == count
        document = forward.stop(signal.SIGTERM)
    assert (document["received"], document["completed"], document["stopped_by"]) == (2 * count, 2 * count, "SIGTERM")
    assert (on_hook(a.near), on_hook(b.near)) == (None, None)


@pytest.mark.parametrize("swap", [[], ["--no-swap-mac"]])
def test_reflect_sends_every_packet_back(pair: VethPair, swap: list[str]) -> None:
    count = 10_000
    with running("reflect", *place(pair.near), *swap) as reflect, Sink(pair.far) as sink, Source(pair.far) as source:
        source.send(count, rate=50_000)
        seen = sink.wait(count)
        document = reflect.stop()
    assert (seen.unique, seen.lost, seen.corrupt) == (count, 0, 0)
    assert (document["sent"], document["engine"]["reflected"]) == (count, count)


@pytest.mark.parametrize("size", [64, 1514])
def test_tx_sends_packets_a_sink_can_verify(pair: VethPair, size: int) -> None:
    count = 20_000
    with Sink(pair.far) as sink:
        words = ["--rate", "100k", "--count", str(count), "--size", str(size), "--json", "--quiet"]
        ended = call("tx", *place(pair.near), *words)
        seen = sink.wait(count)
    assert (ended.returncode, ended.stderr) == (0, "")
    document = proven(ended.stdout)
    assert (seen.unique, seen.lost, seen.corrupt, seen.bytes) == (count, 0, 0, count * size)
    assert (document["sent"], document["completed"], document["stopped_by"]) == (count, count, "count")


@pytest.mark.parametrize("more", [[], ["--frame-size", "2100", "--unaligned"]])
def test_tx_sends_packets_longer_than_a_frame(lab: Lab, more: list[str]) -> None:
    pair, count = lab.veth("a", mtu=9000), 500
    with protocol_socket(pair.far, 0x0800) as wire:
        words = ["--rate", "20k", "--count", str(count), "--size", "9000", "--json", "--quiet", *more]
        document = proven(call("tx", *place(pair.near), *words).stdout)
        seen = [packets.parse(wire.recv(1 << 16)) for _ in range(count)]
    assert seen == [packets.TestPacket(0, number, 9000) for number in range(count)]
    (port,) = document["ports"]
    frames = 5 if more else 3
    assert (document["sent"], document["completed"], port["info"]["max_frames"] > 3) == (count, count, True)
    assert port["stats"]["tx_parts"] == port["stats"]["tx_completed_parts"] == count * (frames - 1)


@pytest.mark.parametrize("size", [64, 9000])
def test_tx_asks_the_device_and_sums_up_its_timestamps(lab: Lab, size: int) -> None:
    """The lab's links leave checksums to the kernel, which computes them for the socket."""
    pair, count = lab.veth("a", mtu=9000), 300
    with protocol_socket(pair.far, 0x0800) as wire:
        words = ["--rate", "2k", "--count", str(count), "--size", str(size), "--json"]
        ended = call("tx", *place(pair.near), *words, "--tx-metadata", "checksum,timestamp")
        document = proven(ended.stdout)
        seen = [packets.parse(wire.recv(1 << 16)) for _ in range(count)]
    assert seen == [packets.TestPacket(0, number, size) for number in range(count)]
    assert document["info"]["ports"][0]["tx_metadata"] == ["checksum", "timestamp"]
    times = document["tx_timestamps"]
    assert (0 < times["taken"] <= count, times["lost"], times["clock"]) == (True, 0, "kernel")
    assert 0 < times["p50_us"] <= times["p99_us"] <= times["longest_us"]
    assert f"  {times['taken']:,} packets told when they were sent, by the kernel's clock; after " in ended.stderr


def test_tx_refuses_what_the_link_cannot_send(lab: Lab) -> None:
    pair = lab.veth("a", mtu=9000)
    for words, says in (
        (["--size", "9019"], "too long for an MTU of 9000"),
        (["--size", "9000", "--transmit", "live"], "cannot go live"),
        (["--size", "9000", "--ring-size", "16"], "no room for one packet"),
        (["--size", "9000", "--tx-metadata", "software_checksum"], "first frame alone"),
        (["--tx-metadata", "launch_time"], "sends at no time that it is told"),
    ):
        ended = call("tx", *place(pair.near), "--count", "1", *words)
        assert (ended.returncode, says in ended.stderr) == (1, True), ended.stderr


def test_tx_keeps_its_rate_for_its_duration(pair: VethPair) -> None:
    with Sink(pair.far) as sink:
        ended = call("tx", *place(pair.near), "--rate", "2k", "--duration", "1", "--json")
        document = proven(ended.stdout)
        assert sink.wait(document["sent"]).unique == document["sent"]
    assert document["sent"] == pytest.approx(2000, abs=100)
    assert document["stopped_by"] == "duration"
    assert "audit: " in ended.stderr


def test_tx_replays_a_capture_once(pair: VethPair, tmp_path: Path) -> None:
    dpkt = pytest.importorskip("dpkt")
    with (tmp_path / "c.pcap").open("wb") as file:
        writer = dpkt.pcap.Writer(file)
        for n in range(100):
            writer.writepkt(packets.build(64 + n, flow=n % 3, seq=n // 3))
    with Sink(pair.far) as sink:
        ended = call("tx", *place(pair.near), "--pcap", str(tmp_path / "c.pcap"), "--json")
        seen = sink.wait(100)
    assert proven(ended.stdout)["sent"] == 100
    assert (seen.unique, seen.lost, seen.corrupt, len(seen.flows)) == (100, 0, 0, 3)


@pytest.mark.parametrize(("port", "taken"), [("9", 1000), ("7", 0)])
def test_the_filter_lets_the_rest_pass(pair: VethPair, port: str, taken: int) -> None:
    with running("drop", *place(pair.near), "--protocol", "udp", "--port", port) as drop, Source(pair.far) as source:
        source.send(1000, rate=50_000)
        drop.wait_for(f"received {taken:,} ")
        document = drop.stop()
    program = document["ports"][0]["program"]
    assert (document["received"], program["redirected"], program["passed_filter"]) == (taken, taken, 1000 - taken)


# Ends -----------------------------------------------------------------------------------------------------------------


def test_a_killed_process_leaves_no_program(pair: VethPair) -> None:
    with running("drop", *place(pair.near)) as drop:
        assert on_hook(pair.near) is not None
        drop.process.kill()
        drop.process.communicate(timeout=WITHIN)
        until(lambda: on_hook(pair.near) is None)


def test_clean_after_a_killed_libxdp_process(pair: VethPair) -> None:
    with running("drop", *place(pair.near), "--attach", "libxdp") as drop:
        alive = call("clean", *place(pair.near))
        assert "left alone" in alive.stdout
        assert on_hook(pair.near) is not None
        drop.process.kill()
        drop.process.communicate(timeout=WITHIN)
    assert on_hook(pair.near) is not None
    examined = call("doctor", *place(pair.near))
    assert "left behind by a killed process" in examined.stdout
    assert f"afxdp-pool clean -i {pair.near.name} --netns {pair.near.netns}" in examined.stdout
    cleaned = call("clean", *place(pair.near), "--json")
    assert len(json.loads(cleaned.stdout)["removed"]) >= 1
    assert on_hook(pair.near) is None
    assert call("clean", *place(pair.near)).stdout == "a-near: nothing was left behind\n"


def test_the_interface_is_deleted_under_it(pair: VethPair) -> None:
    with running("drop", *place(pair.near)) as drop:
        with in_netns(pair.near.netns):
            subprocess.run(["ip", "link", "del", pair.near.name], check=True)
        out, err = drop.process.communicate(timeout=WITHIN)
    document = proven(out)
    assert drop.process.returncode == 1
    assert err.splitlines()[-1].startswith("afxdp-pool: a-near: the interface was deleted; ")
    assert (document["stopped_by"], document["error"]) == ("error", err.splitlines()[-1][len("afxdp-pool: ") :])


def test_the_reader_of_its_lines_goes_away(pair: VethPair) -> None:
    process = subprocess.Popen(
        [*COMMAND, "drop", *place(pair.near)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "rx 0 pps" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(WITHIN) == 0
        assert process.stderr.read() == ""
    assert on_hook(pair.near) is None


def screen(
    words: list[str], stdout: IO[bytes] | None = None, env: dict[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], IO[bytes], list[Any]]:
    """The command on a terminal of 80 by 24; returns also the terminal's other side, and its settings before."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    before = termios.tcgetattr(theirs)
    settings = os.environ | {"TERM": "xterm-256color"} | (env or {})
    process = subprocess.Popen([*COMMAND, *words], stdin=theirs, stdout=stdout or theirs, stderr=theirs, env=settings)
    os.close(theirs)
    return process, os.fdopen(ours, "rb", buffering=0), before


@pytest.mark.parametrize("plain", [False, True])
def test_the_screen_comes_and_goes(pair: VethPair, plain: bool) -> None:
    env = {"NO_COLOR": "1"} if plain else {"NO_COLOR": ""}
    process, terminal, before = screen(["drop", *place(pair.near)], env=env)
    with terminal, Source(pair.far) as source:
        drawn = b""
        deadline = time.monotonic() + WITHIN
        source.start(rate=10_000)
        while b"kpps" not in drawn:
            assert time.monotonic() < deadline, drawn
            drawn += terminal.read(65536)
        assert not termios.tcgetattr(terminal)[3] & termios.ECHO
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while more := terminal.read(65536):
                drawn += more
        assert process.wait(WITHIN) == 0
        source.stop()
        assert termios.tcgetattr(terminal) == before
    # The signal may come in the middle of a write, and cut a picture.
    shown, _, after = drawn.decode(errors="replace").partition("\x1b[?1049l")
    assert shown.count("\x1b[?1049h") == 1
    for part in ("afxdp-pool", "a-near queue 0", "native XDP", "frames owned"):
        assert part in shown
    assert ("\x1b[32m" in shown) is not plain
    assert "\x1b" not in after
    assert "frames all accounted for" in after
    assert on_hook(pair.near) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_screen_beside_the_document(pair: VethPair, number: int, tmp_path: Path) -> None:
    with (tmp_path / "document").open("w+b") as document:
        process, terminal, before = screen(["drop", *place(pair.near), "--live", "--json"], stdout=document)
        with terminal:
            drawn = terminal.read(65536)
            while b"frames owned" not in drawn:
                drawn += terminal.read(65536)
            process.send_signal(number)
            with contextlib.suppress(OSError):
                while more := terminal.read(65536):
                    drawn += more
            assert process.wait(WITHIN) == 0
            assert termios.tcgetattr(terminal) == before
        assert drawn.count(b"\x1b[?1049h") == drawn.count(b"\x1b[?1049l") == 1
        document.seek(0)
        assert proven(document.read().decode())["stopped_by"] == signal.Signals(number).name


def test_a_capture_beside_a_forward(lab: Lab, tmp_path: Path) -> None:
    left, right = lab.veth("l"), lab.veth("r")
    path = tmp_path / "forward.pcapng"
    words = ["-i", left.near.name, "-o", right.near.name, "--netns", left.near.netns, "--capture", str(path)]
    words += ["--capture-rule", "protocol=udp,port=9", "--rx-metadata", "arrival,hash"]
    with Sink(right.far) as sink, running("forward", *words) as forward:
        with Source(left.far) as source:
            sent = source.send(500, rate=20_000)
        seen = sink.wait(sent.delivered)
        document = forward.stop()
    perfect(seen, sent.delivered)
    captured = document["capture"]
    # Written: the test packets, each as it came and as it went; left out: what the links' own kernels say.
    assert (captured["path"], captured["dropped"]) == (str(path), 0)
    assert captured["written"] == 2 * sent.delivered
    assert captured["filtered"] == document["received"] + document["sent"] - captured["written"]
    assert [packets.parse(frame) for frame in read_capture(path)].count(None) == 0
    assert [port["rx_metadata"] for port in document["info"]["ports"]] == [["hash", "arrival"], []]
    tshark = shutil.which("tshark")
    if tshark:
        fields = ["frame.interface_name", "frame.packet_flags_direction", "udp.dstport", "ip.checksum.status"]
        words = [word for field in fields for word in ("-e", field)]
        read = [tshark, "-o", "ip.check_checksum:TRUE", "-r", str(path), "-T", "fields", *words]
        lines = subprocess.run(read, check=True, capture_output=True, text=True).stdout.splitlines()
        assert len(lines) == captured["written"]
        assert {tuple(line.split()) for line in lines} == {
            (left.near.name, "0x00000001", "9", "1"),
            (right.near.name, "0x00000002", "9", "1"),
        }


def test_metrics_while_it_runs(pair: VethPair) -> None:
    with running("drop", *place(pair.near), "--metrics", "0") as drop, Source(pair.far) as source:
        sent = source.send(1000, rate=100_000).delivered
        drop.wait_for(f"received {sent:,}")
        (line,) = (line for line in drop.said if line.startswith("metrics on "))
        with urllib.request.urlopen(line.split()[2], timeout=WITHIN) as answer:
            text = answer.read().decode()
        document = drop.stop()
    found = {(sample.name, sample.labels.get("queue")): sample for family in text_string_to_metric_families(text)
             for sample in family.samples}  # fmt: skip
    assert found["afxdp_pool_rx_packets_total", "0"].value == sent == document["received"]
    labels = found["afxdp_pool_port_info", "0"].labels
    assert (labels["netdev"], labels["netns"], labels["driver"]) == (pair.near.name, pair.near.netns, "veth")
    assert (labels["mode"], labels["xdp_mode"], labels["transmit"]) == ("copy", "native", "none")
    assert found["afxdp_pool_program_redirected_packets_total", None].value == sent


# What cannot be -------------------------------------------------------------------------------------------------------


def refused(ended: subprocess.CompletedProcess[str], *parts: str) -> None:
    """It failed with one sentence that has these parts."""
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("afxdp-pool: ")
    assert ended.stderr.count("\n") == 1
    for part in parts:
        assert part in ended.stderr


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["-q", "7"], ["a-near", "there is no queue 7", "it has 1 queue"]),
        (["--frame-size", "1000"], ["a-near: a frame of 1000 bytes", "2048 or 4096"]),
        (["--frames", "100"], ["a-near", "and the Umem has 100; use 2112"]),
        (["--zero-copy"], ["a-near", "veth has no zero-copy", "use copy"]),
        (["-q", "0", "-q", "0"], ["a-near", "give each queue once"]),
        (["--batch", "5000"], ["a-near", "choose 1 to 1024"]),
    ],
)
def test_values_that_cannot_be(pair: VethPair, words: list[str], parts: list[str]) -> None:
    refused(call("drop", *place(pair.near), *words), *parts)
    assert on_hook(pair.near) is None


def test_places_that_are_not(pair: VethPair) -> None:
    refused(call("drop", "-i", "nope0", "--netns", pair.near.netns), "nope0", "no such interface", "a-near")
    refused(call("drop", "-i", "a-near", "--netns", "nowhere"), "nowhere", "ip netns add nowhere")
    refused(call("forward", *place(pair.near), "-o", "nope0"), "nope0", "no such interface")
    refused(call("forward", *place(pair.near), "-o", "a-near"), "a-near", "use reflect")
    refused(call("clean", "-i", "nope0", "--netns", pair.near.netns), "nope0", "no such interface")
    assert on_hook(pair.near) is None


def test_an_interface_that_is_down(pair: VethPair) -> None:
    with in_netns(pair.near.netns):
        subprocess.run(["ip", "link", "set", pair.near.name, "down"], check=True)
    refused(call("drop", *place(pair.near)), "a-near", "is down", f"ip -n {pair.near.netns} link set a-near up")
    examined = call("doctor", *place(pair.near))
    assert examined.returncode == 1
    assert f"-> ip netns exec {pair.near.netns} ip link set a-near up" in examined.stdout


def test_a_queue_or_hook_in_use(pair: VethPair) -> None:
    with running("tx", *place(pair.near), "--rate", "1") as first:
        refused(call("tx", *place(pair.near)), "a-near queue 0", "EBUSY", "another AF_XDP socket")
        refused(call("drop", *place(pair.near)), "a-near queue 0", "EBUSY")
        assert on_hook(pair.near) is None
        first.stop()
    with running("drop", *place(pair.near)) as second:
        before = on_hook(pair.near)
        refused(call("drop", *place(pair.near)), "a-near", f"process {second.process.pid} uses it", "--force")
        assert on_hook(pair.near) == before
        second.stop()


def test_packets_that_cannot_be_sent(pair: VethPair, tmp_path: Path) -> None:
    pytest.importorskip("dpkt")
    (tmp_path / "no.pcap").write_text("nothing of the kind")
    refused(call("tx", *place(pair.near), "--size", "2000"), "a-near", "too long for an MTU of 1500", "mtu 1986")
    refused(call("tx", *place(pair.near), "--size", "20"), "a-near", "64 to 65549")
    refused(call("tx", *place(pair.near), "--pcap", str(tmp_path / "none")), "none: No such file")
    refused(call("tx", *place(pair.near), "--pcap", str(tmp_path / "no.pcap")), "no.pcap", "not a readable capture")
    refused(call("tx", *place(pair.near), "--pcap", "x", "--size", "64"), "--size does not go with --pcap")


def test_without_privileges(pair: VethPair) -> None:
    # Still root, so that it can read the interpreter's files, but without a single capability.
    drop_them = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    for words in (["drop"], ["tx"], ["reflect"]):
        with in_netns(pair.near.netns):
            ended = subprocess.run(
                [*drop_them, *COMMAND, *words, "-i", "a-near"], capture_output=True, text=True, timeout=WITHIN
            )
        refused(ended, "a-near", "EPERM", "run as root")
    with in_netns(pair.near.netns):
        ended = subprocess.run(
            [*drop_them, *COMMAND, "doctor", "-i", "a-near"], capture_output=True, text=True, timeout=WITHIN
        )
    assert (ended.returncode, ended.stderr) == (1, "")
    assert "CAP_NET_ADMIN" in ended.stdout
    assert on_hook(pair.near) is None


# The doctor -----------------------------------------------------------------------------------------------------------


def test_the_doctor_on_a_good_link(pair: VethPair) -> None:
    ended = call("doctor", *place(pair.near), "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    document = json.loads(ended.stdout)
    about = {finding["what"]: finding for finding in document["findings"]["a-near"]}
    assert document["usable"]
    assert about["interface"]["level"] == "ok"
    assert about["XDP hook"]["text"] == "free"
    assert about["offloads"]["level"] == "ok"
    assert about["zero-copy"]["level"] == "warn"
    assert {"RX metadata", "TX offloads", "NUMA"} <= set(about)
    assert on_hook(pair.near) is None


def test_the_doctor_names_who_is_there(pair: VethPair) -> None:
    with Sink(pair.near):
        ended = call("doctor", *place(pair.near))
        assert ended.returncode == 1
        assert "sink_verify" in ended.stdout
        assert f"clean -i a-near --netns {pair.near.netns} --force" in ended.stdout
    ended = call("doctor", "-i", "nope0", "--netns", pair.near.netns)
    assert ended.returncode == 1
    assert "interfaces there: lo, a-near" in ended.stdout
