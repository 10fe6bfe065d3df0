"""Rules: what is refused, and that the BPF program and a plain Python model agree on what matches.

The program runs on made-up packets with BPF_PROG_RUN: no device is involved, but CAP_BPF is needed.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_address, ip_network

import numpy as np
import pytest

from afxdp_pool import DESC, Batch
from afxdp_pool.bpf import BpfObject
from afxdp_pool.errors import ConfigError, PrivilegeError
from afxdp_pool.filters import KEY_SIZE, MAX_RULES, RULES_SIZE, Rule, pack_rules
from afxdp_pool.loaded import run
from afxdp_pool.matching import matching
from afxdp_pool.program import write_rules
from afxdp_pool.testing.machine import capabilities

TCP, UDP, ICMP = 6, 17, 1
V4 = ("192.0.2.1", "10.1.2.3")
V6 = ("2001:db8::1", "fd00::5")


def ethernet(ethertype: int, payload: bytes, tags: Sequence[int] = ()) -> bytes:
    frame = b"\x02\0\0\0\0\1\x02\0\0\0\0\2"
    for tag in tags:
        frame += struct.pack("!HH", tag, 7)
    return (frame + struct.pack("!H", ethertype) + payload).ljust(60, b"\0")


def ports(source: int = 1000, dest: int = 53) -> bytes:
    return struct.pack("!HHI", source, dest, 0)


def ipv4(protocol: int, payload: bytes, *, addresses: tuple[str, str], options: int = 0, frag: int = 0) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45 + options,
        0,
        20 + 4 * options + len(payload),
        0,
        frag,
        64,
        protocol,
        0,
        ip_address(addresses[0]).packed,
        ip_address(addresses[1]).packed,
    )
    return head + b"\1" * (4 * options) + payload


def ipv6(protocol: int, payload: bytes, *, addresses: tuple[str, str]) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
    return head + b"".join(ip_address(address).packed for address in addresses) + payload


UDP4 = ethernet(0x0800, ipv4(UDP, ports(), addresses=V4))
TCP4 = ethernet(0x0800, ipv4(TCP, ports(1000, 22) + bytes(12), addresses=V4))
UDP6 = ethernet(0x86DD, ipv6(UDP, ports(), addresses=V6))
ARP = ethernet(0x0806, bytes(28))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Rule(ethertype=0x10000), "ethertype is 0 to 65535"),
        (lambda: Rule(protocol=256), "protocol is 0 to 255"),
        (lambda: Rule(port=-1), "port is 0 to 65535"),
        (lambda: Rule(ethertype=0x8100), "VLAN tags are skipped"),
        (lambda: Rule(protocol=ICMP, port=53), "only TCP"),
        (lambda: Rule(network="10.0.0.1/8"), "host bits"),
        (lambda: Rule(network="ten"), "write networks as"),
        (lambda: Rule(network="10.0.0.0/8", source_network="fd00::/8"), "one network is IPv4"),
        (lambda: Rule(ethertype=0x0806, port=53), "excludes"),
        (lambda: Rule(ethertype=0x86DD, network="10.0.0.0/8"), "excludes"),
    ],
)
def test_refused(make: Callable[[], Rule], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()


def test_sizes() -> None:
    assert len(Rule().pack()) == 2 * KEY_SIZE == 88
    assert len(pack_rules([])) == len(pack_rules([Rule(port=1)] * MAX_RULES)) == RULES_SIZE
    with pytest.raises(ConfigError, match="at most 16"):
        pack_rules([Rule()] * (MAX_RULES + 1))


class Filter:
    """The BPF program, loaded but attached to nothing; its counters tell what a packet was taken for."""

    def __init__(self, program: BpfObject) -> None:
        self._program = program
        self._fd = program.program("afxdp_redirect")
        self._counters = program.map("counters")
        assert program.map("rule_set").value_size == RULES_SIZE

    def set(self, *rules: Rule) -> None:
        write_rules(self._program, rules)

    def _read(self) -> list[int]:
        return [int(value) for value in self._counters.lookup_cpus(0).sum(axis=0)]

    def wants(self, frame: bytes) -> bool:
        before = self._read()
        result = run(self._fd, frame)
        assert result.retval == 2, "XDP_PASS: no queue has a socket here"
        redirected, unwanted, no_socket = (b - a for a, b in zip(before, self._read(), strict=True))
        assert (redirected, unwanted + no_socket) == (0, 1)
        return bool(no_socket)


@pytest.fixture
def bpf_filter() -> Iterator[Filter]:
    with BpfObject("xdp_redirect") as program:
        try:
            program.load()
        except PrivilegeError as error:
            if all(capabilities().values()):
                raise
            pytest.skip(f"needs CAP_BPF: {error}")
        yield Filter(program)


MATCHES = [
    ("no field", Rule(), UDP4, True),
    ("ethertype", Rule(ethertype=0x0806), ARP, True),
    ("ethertype differs", Rule(ethertype=0x0806), UDP4, False),
    ("ethertype behind a tag", Rule(ethertype=0x0806), ethernet(0x0806, bytes(28), [0x8100]), True),
    ("port behind two tags", Rule(port=53), ethernet(0x0800, UDP4[14:], [0x88A8, 0x8100]), True),
    ("port behind three tags", Rule(port=53), ethernet(0x0800, UDP4[14:], [0x88A8, 0x8100, 0x8100]), False),
    ("protocol", Rule(protocol=UDP), UDP4, True),
    ("protocol v6", Rule(protocol=UDP), UDP6, True),
    ("protocol differs", Rule(protocol=TCP), UDP4, False),
    ("protocol 0 is not ARP", Rule(protocol=0), ARP, False),
    ("port", Rule(port=53), UDP4, True),
    ("port of TCP", Rule(port=22), TCP4, True),
    ("port of TCP, UDP wanted", Rule(protocol=UDP, port=22), TCP4, False),
    ("port is the destination's", Rule(port=1000), UDP4, False),
    ("source port", Rule(source_port=1000), UDP4, True),
    ("source port is the source's", Rule(source_port=53), UDP4, False),
    ("port 0 needs ports", Rule(port=0), ARP, False),
    ("port behind options", Rule(port=53), ethernet(0x0800, ipv4(UDP, ports(), options=3, addresses=V4)), True),
    ("port of a first fragment", Rule(port=53), ethernet(0x0800, ipv4(UDP, ports(), frag=0x2000, addresses=V4)), False),
    ("port of a fragment", Rule(port=53), ethernet(0x0800, ipv4(UDP, ports(), frag=185, addresses=V4)), False),
    ("fragment by address", Rule(network="10.1.2.3"), ethernet(0x0800, ipv4(UDP, b"", frag=185, addresses=V4)), True),
    ("don't-fragment", Rule(port=53), ethernet(0x0800, ipv4(UDP, ports(), frag=0x4000, addresses=V4)), True),
    ("ICMP has no ports", Rule(port=53), ethernet(0x0800, ipv4(ICMP, ports(), addresses=V4)), False),
    ("IHL below 5", Rule(protocol=UDP), ethernet(0x0800, ipv4(UDP, ports(), options=-1, addresses=V4)), False),
    ("network", Rule(network="10.0.0.0/8"), UDP4, True),
    ("network is the destination's", Rule(network="192.0.2.0/24"), UDP4, False),
    ("source network", Rule(source_network="192.0.2.0/24"), UDP4, True),
    ("network /0 is any IPv4", Rule(network="0.0.0.0/0"), UDP4, True),
    ("network /0 is no IPv6", Rule(network="0.0.0.0/0"), UDP6, False),
    ("network is not of ARP", Rule(network="0.0.0.0/0"), ARP, False),
    ("network /9 bit", Rule(network="10.128.0.0/9"), UDP4, False),
    ("network v6", Rule(network="fd00::/8"), UDP6, True),
    ("network v6 odd bits", Rule(network="fd00::4/127"), UDP6, True),
    ("network v6 last bit", Rule(network="fd00::4/128"), UDP6, False),
    ("source network v6", Rule(source_network="2001:db8::/32", port=53), UDP6, True),
    (
        "port behind hop-by-hop",
        Rule(port=53, protocol=UDP),
        ethernet(0x86DD, ipv6(0, bytes([UDP, 1]) + bytes(14) + ports(), addresses=V6)),
        True,
    ),
    ("v6 fragment", Rule(port=53), ethernet(0x86DD, ipv6(44, bytes([UDP, 0, 0, 1]) + ports(), addresses=V6)), False),
    ("truncated IPv4", Rule(protocol=UDP), UDP4[:30], False),
    ("truncated ports", Rule(port=53), UDP4[:36], False),
    ("all must match", Rule(protocol=UDP, port=53, network="11.0.0.0/8"), UDP4, False),
]


@pytest.mark.parametrize(("rule", "frame", "wanted"), [row[1:] for row in MATCHES], ids=[row[0] for row in MATCHES])
def test_match(bpf_filter: Filter, rule: Rule, frame: bytes, wanted: bool) -> None:
    bpf_filter.set(rule)
    assert bpf_filter.wants(frame) is wanted


@pytest.mark.parametrize("row", MATCHES, ids=[row[0] for row in MATCHES])
def test_match_of_a_batch(row: tuple[str, Rule, bytes, bool]) -> None:
    """The same rules over a batch, where no program is."""
    frames = [row[2], ARP, row[2]]
    data = np.frombuffer(bytearray(b"".join(frame.ljust(256, b"\xff") for frame in frames)), np.uint8)
    batch = Batch(np.array([(256 * i, len(frame), 0, 0) for i, frame in enumerate(frames)], DESC), data)
    assert matching([row[1]], batch).tolist()[::2] == [row[3]] * 2
    assert matching([Rule(port=1), row[1]], batch).tolist()[::2] == [row[3]] * 2
    assert matching([], batch).all()
    assert not matching([Rule(port=1)], batch).any()


def test_no_rules_want_everything(bpf_filter: Filter) -> None:
    assert all(bpf_filter.wants(frame) for frame in (UDP4, UDP6, ARP))
    bpf_filter.set(Rule(port=1))
    assert not any(bpf_filter.wants(frame) for frame in (UDP4, UDP6, ARP))
    bpf_filter.set()
    assert all(bpf_filter.wants(frame) for frame in (UDP4, UDP6, ARP))


def test_one_of_many_rules_is_enough(bpf_filter: Filter) -> None:
    others = [Rule(port=2000 + i) for i in range(MAX_RULES - 1)]
    bpf_filter.set(*others)
    assert not bpf_filter.wants(UDP4)
    bpf_filter.set(*others, Rule(port=53))
    assert bpf_filter.wants(UDP4)


def test_agrees_with_a_model(bpf_filter: Filter) -> None:
    """Random rules and packets; the model works on the fields, the program on the bytes."""
    choose = random.Random(20)
    for _ in range(200):
        rules = [
            Rule(
                protocol=choose.choice([None, TCP, UDP]),
                port=choose.choice([None, 53, 54]),
                source_port=choose.choice([None, None, 1000]),
                network=choose.choice([None, "10.0.0.0/8", "10.1.2.0/25", "10.1.2.128/25"]),
                source_network=choose.choice([None, None, "192.0.2.0/30"]),
            )
            for _ in range(choose.randint(1, 4))
        ]
        bpf_filter.set(*rules)
        for _ in range(10):
            protocol, source_port, port = (
                choose.choice([TCP, UDP]),
                choose.choice([1000, 1001]),
                choose.choice([53, 54]),
            )
            source, dest = f"192.0.2.{choose.randint(0, 7)}", f"10.1.{choose.randint(1, 2)}.{choose.randint(0, 255)}"
            packet = ipv4(protocol, ports(source_port, port), addresses=(source, dest))
            expected = any(
                rule.protocol in (None, protocol)
                and rule.port in (None, port)
                and rule.source_port in (None, source_port)
                and ip_address(dest) in ip_network(rule.network or "0.0.0.0/0")
                and ip_address(source) in ip_network(rule.source_network or "0.0.0.0/0")
                for rule in rules
            )
            assert bpf_filter.wants(ethernet(0x0800, packet)) is expected, (rules, packet.hex())
