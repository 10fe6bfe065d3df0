"""The logic of the examples, held against plain models of it, without ports."""

from __future__ import annotations

import importlib
import ipaddress
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afxdp_pool import DESC, DROP, FORWARD, Batch, FramePool, Port, PortConfig
from afxdp_pool.testing import packets
from afxdp_pool.testing.rings import FakeKernel

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> Any:
    """An example as a module."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


# Router ---------------------------------------------------------------------------------------------------------


class Kernel(NamedTuple):
    """A kernel's tables as pyroute2 hands them out."""

    routes: list[Any]
    neighbours: list[Any]

    def get_links(self) -> list[Any]:
        return [
            Message(index=10 + n, ifname=name, mtu=1500, address=f"02:00:00:00:00:0{n}") for n, name in enumerate("ab")
        ]

    def get_routes(self, family: int) -> list[Any]:
        return self.routes

    def get_neighbours(self, family: int) -> list[Any]:
        return self.neighbours


class Message(dict[str, Any]):
    """A netlink message: fields and attributes are both found by name."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(fields)


def route(network: ipaddress.IPv4Network, oif: int, metric: int = 0, table: int = 254, kind: int = 1) -> Message:
    dst = None if network.prefixlen == 0 else str(network.network_address)
    return Message(dst=dst, dst_len=network.prefixlen, oif=oif, priority=metric, table=table, type=kind)


addresses = st.integers(0, 2**32 - 1)
networks = st.tuples(addresses, st.integers(0, 32)).map(lambda pair: ipaddress.IPv4Network(pair, strict=False))


@settings(deadline=None)
@given(
    st.lists(st.tuples(networks, st.sampled_from([10, 11, 99]), st.integers(0, 3)), max_size=12),
    st.lists(networks, max_size=3),
    st.lists(addresses, max_size=20),
)
def test_the_longest_prefix_wins(main: list[Any], local: list[Any], asked: list[int]) -> None:
    unique = {(network, metric): out for network, out, metric in main}
    routes = [route(network, out, metric) for (network, metric), out in unique.items()]
    routes += [route(network, 10, table=255, kind=2) for network in local]
    tables = example("10_router").Tables.read(Kernel(routes, []), ["a", "b"])
    # The edges of every network are asked for, too.
    edges = [int(n[edge]) for n in [*(network for network, *_ in main), *local] for edge in (0, -1)]
    for address in [*asked, *edges]:
        found = tables.hops[np.searchsorted(tables.starts, address, side="right") - 1]
        ip = ipaddress.IPv4Address(address)
        best = max(
            ((network.prefixlen, -metric, out) for (network, metric), out in unique.items() if ip in network),
            default=None,
        )
        if best is None or best[2] == 99 or any(ip in network for network in local):
            assert found["verdict"] == DROP
        else:
            assert (found["verdict"], found["port"]) == (FORWARD(best[2] - 10), best[2] - 10)


# What is done to a packet to b, and what a router with a route and a neighbour there does with it.
FORWARDED, TO_THE_KERNEL, DROPPED = FORWARD(1), "kernel", DROP
WHAT_COMES = {
    "plain": ({}, FORWARDED),
    "last hop": ({22: b"\1"}, TO_THE_KERNEL),
    "wrong checksum": ({24: b"\0\0"}, TO_THE_KERNEL),
    "options": ({14: b"\x46"}, TO_THE_KERNEL),
    "longer than it is": ({16: b"\1\0"}, TO_THE_KERNEL),
    "no route": ({30: b"\xcb\0\x71\1"}, TO_THE_KERNEL),
    "no neighbour": ({33: b"\x63"}, TO_THE_KERNEL),
    "tagged": ({12: b"\x81\0"}, DROPPED),
    "no IPv4": ({14: b"\x65"}, DROPPED),
}


@pytest.mark.parametrize("what", WHAT_COMES)
def test_a_router_forwards_what_is_plain(what: str) -> None:
    router_example = example("10_router")
    router = router_example.Router(["a", "b"], None)
    links = Kernel(
        [route(ipaddress.IPv4Network("192.0.2.0/24"), 11)],
        [Message(ifindex=11, dst="192.0.2.7", state=0x80, lladdr="02:00:00:00:00:77")],
    )
    router.tables = router_example.Tables.read(links, ["a", "b"])
    ends = packets.Addresses(bytes(6), bytes(6), target_ip=b"\xc0\0\2\7")
    changes, expected = WHAT_COMES[what]
    packet = bytearray(packets.build(64, addresses=ends))
    for at, content in changes.items():
        packet[at : at + len(content)] = content
    if what in ("last hop", "options", "longer than it is", "no route", "no neighbour"):
        packet[24:26] = b"\0\0"
        packet[24:26] = (~packets.ones_sum(bytes(packet[14:34])) & 0xFFFF).to_bytes(2, "big")
    batch = batch_of([bytes(packet), bytes(packet[:20])])  # and one that is cut off
    reader, router.tun = os.pipe()
    try:
        verdicts = router(batch).tolist()
        os.close(router.tun)
        written = os.read(reader, 4096)
    finally:
        os.close(reader)
    assert verdicts == [DROP if expected == TO_THE_KERNEL else expected, DROP]
    assert written == (bytes(packet[14:]) if expected == TO_THE_KERNEL else b"")
    sent = bytes(batch[0])
    if expected == FORWARDED:
        assert sent[:12] == bytes.fromhex("020000000077 020000000001")
        assert sent[22] == packet[22] - 1
        assert packets.parse(sent) is not None  # the checksums are right
    else:
        assert sent == packet


# DNS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Any:
    dns = example("12_dns")
    many = [bytes([192, 0, 2, n]) for n in range(40)]
    table = {"pool.example": [b"\xc0\0\2\1"], "two.example": [b"\xc0\0\2\2", b"\xc0\0\2\3"], "many.example": many}
    return dns.Server({dns.wire_name(name): found for name, found in table.items()})


@pytest.mark.parametrize(
    ("name", "kind", "status", "found"),
    [
        ("pool.example", "A", "NOERROR", {"192.0.2.1"}),
        ("TWO.eXample.", "A", "NOERROR", {"192.0.2.2", "192.0.2.3"}),
        ("pool.example", "MX", "NOERROR", set()),
        ("example", "A", "NXDOMAIN", set()),
        (".", "NS", "NXDOMAIN", set()),
    ],
)
def test_dnspython_understands_the_answer(server: Any, name: str, kind: str, status: str, found: set[str]) -> None:
    message = pytest.importorskip("dns.message")
    query = message.make_query(name, kind, use_edns=True)
    answer = message.from_wire(server.answer(query.to_wire()))
    assert query.is_response(answer)
    assert answer.rcode().name == status
    assert {record.address for rrset in answer.answer for record in rrset} == found


def test_an_answer_that_does_not_fit_is_truncated(server: Any) -> None:
    message, flags = pytest.importorskip("dns.message"), pytest.importorskip("dns.flags")
    answer = message.from_wire(server.answer(message.make_query("many.example", "A").to_wire()))
    assert answer.flags & flags.TC
    assert not answer.answer


@given(st.binary(max_size=80), st.binary(max_size=12))
def test_no_message_upsets_the_server(server: Any, body: bytes, head: bytes) -> None:
    message = pytest.importorskip("dns.message")
    query = head.ljust(4, b"\0") + b"\0\1" + bytes(6) + body
    answer = server.answer(query)
    assert (answer is None) == (query[2] >= 128)
    if answer is not None:
        message.from_wire(answer, ignore_trailing=True)
    assert server.answer(body[:11]) is None


# Switch ---------------------------------------------------------------------------------------------------------


def ethernet(target: int, source: int) -> bytes:
    return target.to_bytes(6, "big") + source.to_bytes(6, "big") + bytes(50)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 6), st.integers(1, 8)), min_size=1, max_size=40))
def test_a_switch_knows_what_it_has_seen(talk: list[tuple[int, int, int]]) -> None:
    """Against a dict: known goes to its port, unknown and broadcast to all others, to the port it came from nowhere."""
    switch = example("09_switch").Switch()
    flooded: list[Any] = []

    ports: Any = tuple(object() for _ in range(3))
    switch.flood = lambda batch, here: flooded.extend([here] * len(batch))
    known: dict[int, int] = {}
    for here, source, target in talk:
        target = 0xFFFFFFFFFFFF if target == 8 else target
        flooded.clear()
        batch = batch_of([ethernet(target, source)])
        batch.port, batch.ports = ports[here], ports
        (verdict,) = switch(batch)
        known[source] = here
        if target in known:
            assert verdict == (DROP if known[target] == here else FORWARD(known[target]))
            assert not flooded
        else:
            assert (verdict, flooded) == (DROP, [here])
    assert [int(mac) for mac in switch.macs[:-1]] == sorted(known)


def test_a_switch_forgets() -> None:
    switch = example("09_switch").Switch(age=100.0)
    now = time.monotonic()
    switch.learn(np.array([5, 6], np.uint64), 0, now - 101)
    switch.learn(np.array([7], np.uint64), 1, now)
    assert [int(mac) for mac in switch.macs[:-1]] == [7]


def test_a_flood_leaves_by_every_other_port(pool: FramePool) -> None:
    switch = example("09_switch").Switch()
    config = PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32)
    ports = [Port.in_memory(pool, config, name) for name in "abc"]
    a, b, c = (FakeKernel(port) for port in ports)
    ports[0].fill()
    packet = ethernet(0xFFFFFFFFFFFF, 1)
    a.deliver([packet])
    batch = ports[0].receive()
    batch.ports = tuple(ports)
    assert switch(batch).tolist() == [DROP]
    pool.put(batch)
    assert (a.send(), b.send(), c.send()) == ([], [packet], [packet])
    assert [port.complete() for port in ports] == [0, 1, 1]


# Rate limit -----------------------------------------------------------------------------------------------------


def test_a_bucket_gives_what_it_has() -> None:
    pytest.importorskip("numba")
    limiter = example("13_rate_limit")
    refill = limiter.Refill(rate=10, burst=3)
    limiter.buckets["source"] = 0
    flood = [limiter.syn("192.0.2.1", "192.0.2.9", bytes(6))] * 5
    once = [limiter.syn("192.0.2.2", "192.0.2.9", bytes(6))]
    no_syn = [packets.build(64)] * 2
    through = [FORWARD(1)]
    assert limiter.limit(batch_of(flood + once + no_syn)).tolist() == through * 3 + [DROP] * 2 + through * 3
    refill.last -= 0.25  # two and a half tokens later
    refill(None)
    assert limiter.limit(batch_of(flood), port=1).tolist() == [FORWARD(0)] * 2 + [DROP] * 3
    refill.last -= 10
    refill(None)
    assert not limiter.buckets["source"].any()
    assert dict(refill.offenders) == {0xC0000201: 5}


def test_without_a_free_bucket_a_source_waits() -> None:
    pytest.importorskip("numba")
    limiter = example("13_rate_limit")
    limiter.Refill(rate=10, burst=3)
    limiter.buckets["source"] = 1
    assert limiter.limit(batch_of([limiter.syn("192.0.2.1", "192.0.2.9", bytes(6))])).tolist() == [DROP]
    limiter.buckets["source"] = 0


# Latency --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=300), st.sampled_from([0.1, 50, 99, 99.9, 100]))
def test_percentiles_are_right_to_a_bucket(times: list[int], percent: float) -> None:
    latency = example("14_latency")
    histogram = latency.Histogram()
    for half in np.array_split(np.array(times, np.uint64), 2):
        histogram.add(half)
    exact = float(np.percentile(times, percent, method="inverted_cdf")) / 1000
    assert exact <= histogram.percentile(percent) * (1 + 1e-9)
    assert histogram.percentile(percent) <= exact * 2 ** (1 / latency.STEPS) * (1 + 1e-9)


def batch_of(contents: list[bytes]) -> Batch:
    """A batch over memory of its own, each packet in a frame of 2048 bytes."""
    descs = np.array([(2048 * i, len(content), 0, 0) for i, content in enumerate(contents)], DESC)
    batch = Batch(descs, np.zeros(2048 * len(contents), np.uint8), frame_size=2048)
    for i, content in enumerate(contents):
        batch.write(i, content)
    return batch
