"""The plugin's fixtures that need a lab: real packets, counted at the far end, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import afxdp_pool as ap
from afxdp_pool.testing import Lab, Traffic, VethPair

pytest_plugins = ["pytester"]


def options(lab: Lab, **more: object) -> ap.Options:
    return ap.Options(netns=lab.engine_netns, **more)  # type: ignore[arg-type]


def test_all_of_it_comes_through(lab: Lab, traffic: Traffic) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    with ap.forward(left.near.name, right.near.name, both_ways=True, options=options(lab)) as forwarder:
        forwarder.start()
        there = traffic.send(3000, into=left, out_of=right, size=256, flows=3)
        back = traffic.send(500, into=right, out_of=left)
        again = traffic.send(200, into=left, out_of=right)
        forwarder.stop()
        assert forwarder.join().completed == 3700
        forwarder.audit().check()
    assert [(d.sent, d.delivered, d.expected, d.seen.unique) for d in (there, back, again)] == [
        (3000, 3000, 3000, 3000),
        (500, 500, 500, 500),
        (200, 200, 200, 200),
    ]
    assert len(there.seen.flows) == 3
    assert there.seen.bytes == 3000 * 256
    assert str(there) == "left-far to right-far: 3000 sent, 3000 of 3000 arrived intact"
    assert right.far.counters()["rx_packets"] == 3200


@pytest.mark.veth_pair(queues=2, mtu=3000)
def test_the_pair_is_as_asked_for_and_the_default(veth_pair: VethPair, traffic: Traffic, lab: Lab) -> None:
    assert (veth_pair.near.queues, veth_pair.near.mtu) == (2, 3000)
    with ap.reflect(veth_pair.near.name, options=options(lab, queues=(0, 1))) as forwarder:
        forwarder.start()
        for cpu in (0, 1):
            traffic.send(500, cpu=cpu, size=1800)
        forwarder.stop()
        assert [port.stats.rx_packets for port in forwarder.join().ports] == [500, 500]
        forwarder.audit().check()


@pytest.mark.parametrize("veth_pair", [{"mtu": 600}], indirect=True)
def test_packets_that_are_dropped_on_purpose(veth_pair: VethPair, traffic: Traffic, lab: Lab) -> None:
    assert veth_pair.far.mtu == 600
    with ap.drop(veth_pair.near.name, options=options(lab)) as forwarder:
        forwarder.start()
        traffic.send(1000, expect=0, until=lambda n: forwarder.snapshot().received >= n)
        lost = traffic.send(1000, timeout=0.2, exact=False)
        with pytest.raises(AssertionError, match=r"64 sent \(of 1000, then given up\), 0 of 64 arrived .*64 missing"):
            traffic.send(1000, timeout=0.2)
        with pytest.raises(ap.ConfigError, match="until"):
            traffic.send(1000, expect=500)
        forwarder.stop()
        forwarder.join()
        forwarder.audit().check()
    assert (lost.wanted, lost.sent, lost.seen.packets, lost.exact) == (1000, 64, 0, False)


def test_nobody_listens(veth_pair: VethPair, traffic: Traffic) -> None:
    """Without an XDP program at the near end the link takes nothing, and that is said."""
    with pytest.raises(AssertionError, match="10 not taken by the first link"):
        traffic.send(10, timeout=0.1)


def test_a_failure_shows_rings_and_links_and_leaves_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        import afxdp_pool as ap

        @pytest.mark.parametrize("n", range(4))
        def test_it(lab, veth_pair, traffic, n):
            print("namespaces", lab.engine_netns, lab.traffic_netns)
            with ap.drop(veth_pair.near.name, options=ap.Options(netns=lab.engine_netns)) as forwarder:
                forwarder.start()
                traffic.send(100, expect=0, until=lambda n: forwarder.snapshot().received >= n)
                if n == 3:
                    traffic.send(100, timeout=0.2)
                forwarder.stop()
                forwarder.join()
        """
    )
    result = pytester.runpytest_subprocess("-n", "2", "-rA", "--afxdp-require", timeout=100)
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        [
            "E * AssertionError: pair-far to pair-far: 64 sent (of 100, then given up), 0 of 64 arrived *",
            "*- afxdp_pool frames -*",
            "no audit: thread * runs pool 1",
            "*- afxdp_pool rings -*",
            "pair-near queue 0 in namespace *: fill *; veth, copy, XDP native, transmit none",
            "*- afxdp_pool counters -*",
            "  engine: fill_submitted *, rx_packets 164, *",
            "  XDP program: redirected 164",
            "*- afxdp_pool links -*",
            "pair-far: * tx_xdp_xmit 164*",
        ]
    )
    made = {name for line in result.outlines if line.startswith("namespaces") for name in line.split()[1:]}
    assert len(made) == 8, "every test has its own, also in parallel"
    assert not any(Path("/run/netns", name).exists() for name in made)
