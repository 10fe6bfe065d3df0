"""Every example runs as it is, and says what it should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

EXPECTED = {
    "01_drop.py": [
        "ping: 64 bytes from 198.18.0.1",
        "received 20000",
        "recycled directly: 20000 of 20000",
        "left to the kernel: 1",
        "all accounted for",
    ],
    "02_forward.py": ["sent 50000, completed 50000", "far end: 50000 packets of 4 flows, 0 lost, 0 reordered"],
    "03_tx.py": ["sent 50000, completed 50000", "far end: 50000 packets, 0 lost, 0 corrupt", "all accounted for"],
    "04_handler.py": [
        "far end: 10000 packets of flows [0, 2]",
        "10000 forwarded, 10000 dropped",
        "all accounted for",
    ],
    "04_handler.py --packet": [
        "far end: 5000 packets of flows [0]",
        "5000 forwarded, 15000 dropped",
        "all accounted for",
    ],
    "06_workers.py": [
        "far end: 20000 packets",
        "app 0, tx 0; all accounted for",
        "worker 0: received 10000, completed 10000",
        "worker 1: received 10000, completed 10000",
    ],
    "06_workers.py --thread": [
        "far end: 20000 packets",
        "app 0, tx 0; all accounted for",
        "came home to their own pools: 20000",
        "worker 1: received 10000, completed 0",
    ],
    "05_by_hand.py": ["1000 received", "far ends: 1000 and 1000", "app 0, tx 0; all accounted for"],
    "07_compiled.py": [
        "far end: 10000 packets of flows [0, 2]",
        "{40000: 5000, 40001: 5000, 40002: 5000, 40003: 5000}",
        "all accounted for",
    ],
    "09_switch.py": [
        "a to b, unknown yet: 500 at b, 500 at c",
        "b answers:           1 at a, 0 at c",
        "a to b, known:       500 at b, 0 at c",
        "a to b, forgotten:   500 at b, 500 at c",
        "c to all:            100 at a, 100 at b",
        "app 0, tx 0; all accounted for",
        "02:af:58:00:01:02 is at b-near",
    ],
    "10_router.py": [
        "ARP by the kernel: 64 bytes from 198.18.1.2: icmp_seq=1 ttl=63",
        "second, forwarded here:        64 bytes from 198.18.1.2: icmp_seq=1 ttl=63",
        "(0 packets to the kernel)",
        "a TTL of 1:                    From 198.18.0.1 icmp_seq=1 Time to live exceeded",
        "to the router itself:          64 bytes from 198.18.0.1: icmp_seq=1 ttl=64",
        "without a route:               From 198.18.0.1 icmp_seq=1 Destination Net Unreachable",
        "5000 packets at the far end, 0 corrupt",
        "app 0, tx 0; all accounted for",
    ],
    "11_echo.py": ["a host sent 1000 datagrams, and 1000 came back as they were", "app 0, tx 0; all accounted for"],
    "12_dns.py": [
        "dig pool.example: NOERROR 192.0.2.1",
        "dig two.Pool.example: NOERROR 192.0.2.2 192.0.2.3",
        "dig nobody.example: NXDOMAIN",
        "4 answered",
        "app 0, tx 0; all accounted for",
    ],
    "13_rate_limit.py": [
        "20000 SYNs from one source, and 10 of 10 connections from another",
        "  198.51.100.66: 199",
        "app 0, tx 0; all accounted for",
    ],
    "14_latency.py": ["10000 sent, 10000 came back, 0 lost", "microseconds: p50 ", " us ", "all accounted for"],
    "15_mirror.py": [
        "a to b: 5000, b to a: 1000, at the monitors: 6000 and 6000",
        "app 0, tx 0; all accounted for",
        "0 missed by the monitors",
    ],
    "16_exception.py": [
        "ping meanwhile:  64 bytes from 198.18.0.1: icmp_seq=1 ttl=64",
        "and a long one:  4008 bytes from 198.18.0.1: icmp_seq=1 ttl=64",
        "10000 packets of UDP at the far end of out-near",
        "app 0, tx 0; all accounted for",
        "to the kernel ",
    ],
    "17_scapy.py": [
        "ping 203.0.113.77: 64 bytes from 203.0.113.77",
        "TCP port 80 of 203.0.113.5 is open",
        "UDP port 53 of 203.0.113.6: nobody there",
        "app 0, tx 0; all accounted for",
    ],
    "18_capture.py": [
        "8000 packets at the far end",
        "app 0, tx 0; all accounted for",
        "2000 packets, 6000 not wanted, 0 dropped",
    ],
    "19_sample.py": ["12000 packets at the far end", "flow 0, 256 bytes: 3000", "app 0, tx 0; all accounted for"],
    "21_arrivals.py": [
        "a-near tells: hash, vlan, arrival",
        "at the far end: 5000 test packets, and 100 from sockets",
        "app 0, tx 0; all accounted for",
        "5100 packets waited, in microseconds: p50 ",
        ": 50 packets\nflow 0x",
    ],
    "22_jumbo.py": [
        "8972 bytes: 8980 bytes from 198.18.1.2: icmp_seq=1 ttl=64",
        "received 8, sent 8, completed 8, ",
        "app 0, tx 0; all accounted for",
        "2 packets of 9014 bytes; 8 frames more than packets",
    ],
    "20_delay.py": ["64 bytes from 198.18.1.2", "at the far end, 0 out of order", "app 0, tx 0; all accounted for"],
    "08_five_tuple.py": [
        "far end: 10000 packets of flows [1, 2], 0 corrupt",
        "10000 forwarded, 10000 dropped",
        "all accounted for",
    ],
}

NEEDS_MODULE = {
    "07_compiled.py": "numba",
    "13_rate_limit.py": "numba",
    "17_scapy.py": "scapy",
    "18_capture.py": "pcapng",
}
PING = ["10_router.py", "16_exception.py", "17_scapy.py", "20_delay.py", "22_jumbo.py"]
NEEDS_TOOL = {"12_dns.py": "dig"} | dict.fromkeys(PING, "ping")


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("[0-9]*.py")) == sorted({name.split()[0] for name in EXPECTED})


@pytest.mark.timeout(360)
@pytest.mark.usefixtures("veth_machine")
@pytest.mark.parametrize("command", sorted(EXPECTED))
def test_example(command: str) -> None:
    name, *arguments = command.split()
    if name in NEEDS_MODULE:
        pytest.importorskip(NEEDS_MODULE[name])
    if name in NEEDS_TOOL and not shutil.which(NEEDS_TOOL[name]):
        pytest.skip(f"needs {NEEDS_TOOL[name]}")
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments], capture_output=True, text=True, check=False, timeout=110
        )
        assert done.returncode == 0, done.stderr
        if "too slow for" not in done.stdout:  # a busy machine; it says itself how many packets that cost
            break
    for text in EXPECTED[command]:
        assert text in done.stdout, done.stdout
