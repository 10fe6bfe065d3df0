"""Examples on interfaces that are named to them, as on a real NIC; what leaves them is counted at the far end."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_lab import perfect, wait_for

from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, Source, VethPair

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
    from pyroute2 import IPRoute

    a, b, c = pairs = [lab.veth(name, host=True) for name in "abc"]
    with in_netns(lab.engine_netns), IPRoute() as ip:
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
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
            client.settimeout(5)
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
        answer = query.udp(message.make_query("A.test", "A"), pair.near.ipv4, timeout=5)
        assert [record.address for record in answer.answer[0]] == ["192.0.2.7"]
    assert "1 answered" in said
