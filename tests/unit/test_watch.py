"""What a watch says of packets that are stuck; real devices are in tests/fault."""

from __future__ import annotations

from dataclasses import replace

import pytest

import afxdp_pool as ap
from afxdp_pool import watch
from afxdp_pool.testing import FakeKernel
from afxdp_pool.watch import LinkState, Watch, why_stuck

SMALL = ap.PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32)
FINE = LinkState("eth1", True, True, 1500, frozenset({7}), 2, 2)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "STUCK_AFTER", 0.0)


def said(port: ap.Port, state: LinkState, times: int = 2) -> dict[str, str]:
    seen = Watch([port])
    for _ in range(times):
        found = dict(seen._troubles(port, state, FINE))
    return found


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("state", "why"),
    [
        (FINE, "the driver has them, or its queue is stopped"),
        (replace(FINE, up=False), "the interface is down"),
        (replace(FINE, carrier=False), "there is no carrier, the other end is down"),
        (replace(FINE, tx_queues=0), "the driver has them, or its queue is stopped"),  # the driver does not tell
    ],
)
def test_packets_that_are_not_sent(pool: ap.FramePool, state: LinkState, why: str) -> None:
    with ap.Port.in_memory(pool, SMALL) as port:
        port.fill()
        assert "tx" not in said(port, state)
        port.transmit(pool.write([bytes(60)] * 3))
        assert "tx" not in said(port, state, times=1)  # not before it has been so for a while
        assert said(port, state)["tx"] == (
            f"3 packets were given to the kernel and none of them has been sent for a second: {why}"
        )
        kernel = FakeKernel(port)
        kernel.complete(kernel.take_tx())
        port.complete()
        assert "tx" not in said(port, state)


def test_a_queue_beyond_the_transmit_queues(pool: ap.FramePool) -> None:
    with ap.Port.in_memory(pool, SMALL) as port:
        port.queue = 2
        assert watch._why_stuck(port, FINE) == "queue 2 is beyond the device's 2 transmit queues"


@pytest.mark.usefixtures("at_once")
def test_fill_that_nobody_fills(pool: ap.FramePool) -> None:
    with ap.Port.in_memory(pool, SMALL) as port:
        assert said(port, FINE)["fill"] == (
            "the FILL ring is empty, so nothing can be received: of 512 frames the application holds 0 and TX 0"
        )
        port.fill()
        assert "fill" not in said(port, FINE)


def test_a_completion_ring_that_nobody_empties(pool: ap.FramePool) -> None:
    with ap.Port.in_memory(pool, SMALL) as port:
        kernel = FakeKernel(port)
        assert why_stuck(port) == "the kernel has not sent them"
        for _ in range(8):
            port.transmit(pool.write([bytes(60)] * 8))
            kernel.complete(kernel.take_tx())
        assert why_stuck(port) == "the COMPLETION ring is full: call complete()"
        port.complete()


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (replace(FINE, up=False), "down"),
        (replace(FINE, carrier=False), "carrier"),
        (replace(FINE, mtu=9000), "mtu"),
        (replace(FINE, rx_queues=4), "queues"),
        (replace(FINE, rx_queues=1), None),
        (FINE, None),
    ],
)
def test_devices(pool: ap.FramePool, state: LinkState, kind: str | None) -> None:
    with ap.Port.in_memory(pool, SMALL) as port:
        port.fill()
        assert set(said(port, state)) == ({kind} if kind else set())
