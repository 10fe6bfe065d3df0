"""Examples on interfaces that are named to them, as on a real NIC; what leaves them is counted at the far end."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from live_lab import audited, perfect, wait_for
from pyroute2 import IPRoute

import afxdp_pool as ap
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, Source, VethPair, packets

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@contextmanager
def running(lab: Lab, name: str, pairs: list[VethPair], *arguments: str) -> Iterator[list[str]]:
    """An example on the near ends; the lines it said are in the list once the body is over, and Ctrl-C ended it."""
    command = [sys.executable, str(EXAMPLES / name), *(pair.near.name for pair in pairs), *arguments]
    said: list[str] = []
    with subprocess.Popen(
        [*command, "--netns", lab.engine_netns], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                said.append(line)
                if line.startswith("running on"):
                    break
            else:
                pytest.fail("".join(said))
            yield said
            process.send_signal(signal.SIGINT)
            said += process.communicate(timeout=20)[0].splitlines()
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert "app 0, tx 0; all accounted for" in "".join(said), said


def test_a_switch_of_four(lab: Lab) -> None:
    pairs = [lab.veth(name) for name in "abcd"]
    a, b, c, d = (pair.far for pair in pairs)
    with (
        running(lab, "09_switch.py", pairs) as said,
        Sink(a) as at_a,
        Sink(d) as at_d,
        Sink(b) as at_b,
        Sink(c) as at_c,
    ):
        with Source(d, target_mac=a.mac) as source:
            source.send(10, rate=1000)  # floods: a is not known yet
        assert [sink.wait(10).packets for sink in (at_a, at_b, at_c)] == [10, 10, 10]
        with Source(a, target_mac=d.mac, flows=4) as source:
            source.send(5000, rate=10_000)
        perfect(at_d.wait(5000), 5000)
        assert (at_b.report().packets, at_c.report().packets) == (10, 10)
    assert "10 packets flooded; learned:" in said


def test_a_router_with_routes_of_its_own(lab: Lab) -> None:
    a, b, c = pairs = [lab.veth(name, host=True) for name in "abc"]
    with in_netns(lab.engine_netns), IPRoute() as ip:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text("0")
        ip.route("add", dst="203.0.113.0/24", gateway=b.far.ipv4)
        ip.route("add", dst="203.0.113.128/25", gateway=c.far.ipv4)
        with running(lab, "10_router.py", pairs), Sink(b.far) as at_b, Sink(c.far) as at_c:
            for address, sink, count in (("203.0.113.127", at_b, 2000), ("203.0.113.128", at_c, 3000)):
                with Source(a.far, target_mac=a.near.mac, target_ip=address) as source:
                    source.send(count, rate=10_000)
                perfect(sink.wait(count), count)
            ip.route("del", dst="203.0.113.128/25")
            with Source(a.far, target_mac=a.near.mac, target_ip="203.0.113.128") as source:

                def other_way() -> bool:
                    source.send(1)
                    return at_b.wait(2001, timeout=0.1).packets > 2000

                assert wait_for(other_way)
                before = at_b.report().packets, at_c.report().packets
                source.send(2000, rate=10_000)
                at_b.wait(before[0] + 2000)
            assert (at_b.report().packets, at_c.report().packets) == (before[0] + 2000, before[1])


def test_echo_survives_what_is_no_echo(lab: Lab) -> None:
    pair = lab.veth("a", host=True)
    with running(lab, "11_echo.py", [pair]), in_netns(pair.far.netns):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(20)
            client.connect((pair.near.ipv4, 7))
            for size in (0, 1, 1472):
                client.send(bytes(size))
                assert client.recv(2000) == bytes(size)
        received = pair.near.counters()["rx_packets"]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as looping:
            looping.bind(("", 7))
            looping.sendto(b"from an echo", (pair.near.ipv4, 7))
            assert wait_for(lambda: pair.near.counters()["rx_packets"] > received)
        assert pair.far.counters()["rx_packets"] == 3


def test_dns_serves_what_it_is_told(lab: Lab) -> None:
    message, query = pytest.importorskip("dns.message"), pytest.importorskip("dns.query")
    pair = lab.veth("a", host=True)
    with running(lab, "12_dns.py", [pair], "--record", "a.test=192.0.2.7") as said, in_netns(pair.far.netns):
        answer = query.udp(message.make_query("A.test", "A"), pair.near.ipv4, timeout=20)
        assert [record.address for record in answer.answer[0]] == ["192.0.2.7"]
    assert "1 answered" in said


def test_a_mirror_of_three_monitors(lab: Lab) -> None:
    pairs = [lab.veth(name) for name in "abcde"]
    with contextlib.ExitStack() as sinks:
        with running(lab, "15_mirror.py", pairs) as said:
            at = [sinks.enter_context(Sink(pair.far)) for pair in pairs]
            with Source(pairs[0].far, flows=4) as source, Source(pairs[2].far) as monitor:
                source.send(5000, rate=10_000)
                monitor.send(10, rate=1000)  # goes nowhere
            for sink in at[1:]:
                perfect(sink.wait(5000), 5000)
            assert at[0].report().packets == 0
        assert "0 missed by the monitors" in said


def test_the_kernel_gets_its_packets_and_its_address_goes_back(lab: Lab) -> None:
    wire, out = pairs = [lab.veth(name, host=True) for name in ("wire", "out")]
    with running(lab, "16_exception.py", pairs, "--address", f"{wire.near.ipv4}/24") as said:
        with in_netns(wire.far.netns):
            answered = subprocess.run(["ping", "-n", "-c3", "-i0.2", "-W2", wire.near.ipv4], check=False).returncode
        with in_netns(lab.engine_netns):
            server = socket.create_server((wire.near.ipv4, 8000))
        with server, in_netns(wire.far.netns), socket.create_connection((wire.near.ipv4, 8000), timeout=20) as client:
            with server.accept()[0] as other:
                other.sendall(bytes(range(256)) * 400)
            whole = b"".join(iter(partial(client.recv, 65536), b""))
        assert answered == 0
        assert whole == bytes(range(256)) * 400
        with Sink(out.far) as sink, Source(wire.far) as source:
            source.send(2000, rate=10_000)
            perfect(sink.wait(2000), 2000)
    with in_netns(lab.engine_netns), IPRoute() as ip:
        assert not ip.link_lookup(ifname="stack")
        assert [address.get("address") for address in ip.get_addr(index=wire.near.ifindex)] == [wire.near.ipv4]
    assert any(line.startswith("to the kernel ") for line in said)


def test_the_captured_file_has_each_packet_once(lab: Lab, tmp_path: Path) -> None:
    pcapng = pytest.importorskip("pcapng")
    a, b = pairs = [lab.veth(name) for name in "ab"]
    file = tmp_path / "some.pcapng"
    with (
        running(lab, "18_capture.py", pairs, "--file", str(file)),
        Sink(b.far) as sink,
        Source(a.far, flows=3) as source,
    ):
        source.send(3000, rate=10_000)
        perfect(sink.wait(3000), 3000)
    with file.open("rb") as stream:
        found = [
            packets.parse(block.packet_data) for block in pcapng.FileScanner(stream) if hasattr(block, "packet_data")
        ]
    assert {(packet.flow, packet.seq) for packet in found if packet} == {(f, n) for f in range(3) for n in range(1000)}
    assert len(found) == 3000


def test_a_delay_is_what_it_was_told_to_be(lab: Lab) -> None:
    a, b = pairs = [lab.veth(name) for name in "ab"]
    slow = running(lab, "20_delay.py", pairs, "--delay", "100", "--loss", "0")
    with slow, Sink(b.far) as sink, Source(a.far) as source:
        began = time.monotonic_ns()
        source.send(100, rate=1000)
        seen = sink.wait(100)
        perfect(seen, 100)
        assert seen.first_ns - began >= 100e6


def test_latency_is_measured_and_drawn(lab: Lab, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    pairs = [lab.veth(name) for name in ("out", "back")]
    picture = tmp_path / "latency.png"
    far = [pair.far.name for pair in pairs]
    command = [sys.executable, str(EXAMPLES / "14_latency.py"), *(pair.near.name for pair in pairs)]
    command += ["--netns", lab.engine_netns, "--seconds", "0.5", "--rate", "2000", "--png", str(picture)]
    with ap.forward(*far, options=ap.Options(netns=lab.traffic_netns)) as device:
        device.start()
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
        device.stop()
        assert device.join().received == 1000
        audited(device)
    assert said.startswith("1000 sent, 1000 came back, 0 lost\nmicroseconds: p50 ")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_samples_are_of_what_is_forwarded(lab: Lab) -> None:
    a, b = pairs = [lab.veth(name) for name in "ab"]
    sampled = running(lab, "19_sample.py", pairs, "--every", "10")
    with sampled as said, Sink(b.far) as sink, Source(a.far, flows=2) as source:
        source.send(2001, rate=10_000)
        perfect(sink.wait(2001), 2001)
    # The first of every ten: all of flow 0.
    assert "  flow 0, 64 bytes: 2010" in said


def test_scapy_answers_for_its_network_alone(lab: Lab) -> None:
    pytest.importorskip("scapy")
    pair = lab.veth("a", host=True)
    with running(lab, "17_scapy.py", [pair], "--network", "192.0.2.0/25") as said, in_netns(pair.far.netns):
        for address, code in (("192.0.2.127", 0), (pair.near.ipv4, 0), ("192.0.2.128", 1)):
            assert subprocess.run(["ping", "-n", "-c1", "-W1", address], check=False).returncode == code
    assert "seen: ICMP echo-request 1 times" in said
