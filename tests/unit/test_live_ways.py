"""Live transmit as Python sees it, with a test that plays the program: no root, no network."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import conserved

import afxdp_pool as ap
from afxdp_pool.live import Refused, describe, unfit
from afxdp_pool.testing import FakeKernel, FakeLive
from afxdp_pool.testing.live import DEAF, FULL, GONE, SIGNAL, WELL, Answer

FEW = ap.PortConfig(fill_level=64)


@pytest.fixture
def port(pool: ap.FramePool) -> Iterator[ap.Port]:
    with ap.Port.in_memory(pool, FEW) as made:
        yield made


def batch(port: ap.Port, n: int, length: int = 60) -> ap.Batch:
    made = port.pool.alloc(n)
    assert len(made) == n
    made.descs["len"] = length
    return made


def test_stats_and_report(port: ap.Port) -> None:
    assert port.live_stats() is None
    FakeLive(port, lambda n: Answer(deliver=n - 10))
    assert port.transmit(batch(port, 100)) == 100
    stats = port.live_stats()
    assert stats is not None
    assert (stats.frames, stats.delivered, stats.dropped, stats.slices, stats.resent) == (100, 90, 10, 1, 0)
    assert stats.as_dict()["frames"] == stats.delivered + stats.dropped
    assert port.stats().tx_completed == 100
    assert [port.complete(64), port.complete(64), port.complete(64)] == [64, 36, 0]
    assert port.info.transmit == "live"
    port.close()
    assert port.live_stats() == stats


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (DEAF, "takes no redirected frames"),
        (GONE, r"refuses redirected frames \(No such device or address\)"),
        (Answer(take=0, error=errno.EPERM), r"refused to run the program \(Operation not permitted\)"),
    ],
)
def test_each_trouble_is_told_once_and_the_socket_sends(
    port: ap.Port, caplog: pytest.LogCaptureFixture, answer: Answer, says: str
) -> None:
    kernel = FakeKernel(port)
    live = FakeLive(port, lambda n: answer)
    with caplog.at_level(logging.WARNING, "afxdp_pool"):
        for _ in range(3):
            assert port.transmit(batch(port, 50)) == 50
            assert len(kernel.send()) == 50
            assert port.complete() == 50
            live.retry_now()
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("memory queue 0: sending by the socket, for now at least: ")
    assert re.search(says, caplog.records[0].getMessage())
    assert live.packets == []
    live.answer = None
    assert port.transmit(batch(port, 50)) == 50
    assert len(live.packets) == 50


def test_a_full_device_is_no_trouble(port: ap.Port, caplog: pytest.LogCaptureFixture) -> None:
    live = FakeLive(port, lambda n: FULL)
    assert port.transmit(batch(port, 50)) == 50
    assert live.stats().dropped == 50
    assert describe(live.native) == ""
    assert not caplog.records


def test_pools_left_behind_are_told(port: ap.Port, caplog: pytest.LogCaptureFixture) -> None:
    live = FakeLive(port)
    live.ring.pools_left = 16
    kernel = FakeKernel(port)
    assert port.transmit(batch(port, 300)) == 300
    assert live.runs == []
    assert len(kernel.send()) == 300
    assert "their memory with the kernel" in caplog.text


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 120),
            st.sampled_from([4, 13, 14, 60, 1500, 3300, 3301, 4096]),
            st.sampled_from(
                [WELL, DEAF, GONE, SIGNAL, Answer(take=5, error=errno.EINTR), Answer(take=0, error=errno.ENOMEM)]
            ),
            st.integers(0, 100),
        ),
        max_size=20,
    )
)
def test_packets_leave_in_order_by_both_ways(steps: list[tuple[int, int, Answer, int]]) -> None:
    with conserved() as umem, ap.FramePool(umem) as pool, ap.Port.in_memory(pool, FEW) as port:
        kernel = FakeKernel(port, first_index=2**32 - 100)
        live = FakeLive(port)
        order: list[int] = []
        number = 0

        def note(packets: list[bytes]) -> None:
            order.extend(int.from_bytes(packet[:4], "little") for packet in packets)

        def drain(n: int | None = None) -> None:
            note(live.packets)
            live.packets.clear()
            note(kernel.send(n))

        for n, length, answer, sent in steps:
            live.answer = lambda _, answer=answer: answer
            some = pool.alloc(n)
            assert len(some)
            for addr in some.descs["addr"].tolist():
                umem.data[addr : addr + 4] = list(number.to_bytes(4, "little"))
                number += 1
            some.descs["len"] = length
            rest = some
            while len(rest):
                rest = rest[port.transmit(rest) :]
                # A kick either moves packets live or into the TX ring, behind those that went live just now.
                drain(sent)
                port.complete(512)
            live.retry_now()
            umem.audit().check()
        live.answer = None
        while umem.count_states()["tx"]:
            port.kick()
            drain()
            port.complete(512)
        drain()
        assert order == list(range(number))
        stats = live.stats()
        assert stats.frames == stats.delivered + stats.dropped


def test_what_speaks_against_it() -> None:
    with ap.Umem(64) as umem:
        refused = unfit(umem)
        assert isinstance(refused, Refused)
        assert refused.chosen
        assert "BpfMemory" in refused.reason


@pytest.mark.parametrize("transmit", ["fast", "", None, 2])
def test_the_ways_to_transmit_are_checked(transmit: object) -> None:
    with pytest.raises(ap.AfXdpError, match="choose"):
        ap.PortConfig(transmit=transmit)  # type: ignore[arg-type]
    assert ap.PortConfig(transmit=True).transmit == "auto"
