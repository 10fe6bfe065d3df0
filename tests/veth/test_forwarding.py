"""The three paths on real packets: what the engine says must equal what the far end and the kernel counted."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from live_lab import audited, perfect, wait_for

import afxdp_pool as ap
from afxdp_pool.testing import Traffic, packets
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.traffic import Sink, Source

SMALL = ap.PortConfig(fill_size=1024, fill_level=512, rx_size=256, tx_size=256, comp_size=256)


def options(lab: Lab, **changes: object) -> ap.Options:
    return replace(ap.Options(netns=lab.engine_netns), **changes)  # type: ignore[arg-type]


def host_packets(pair: VethPair) -> int:
    return pair.near.counters()["rx_packets"]


@pytest.mark.timeout(180)
def test_a_million_packets_arrive_complete_in_order_and_intact(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    forwarder = ap.forward(left.near.name, right.near.name, options=options(lab))
    wanted, sent, delivered = 1_000_000, 0, 0
    with Sink(right.far) as sink, Source(left.far, flows=16) as source:
        forwarder.start()
        # A rate the path sustains, whatever this machine's is: never more under way than the rings hold.
        while sent < wanted:
            report = source.send(1000)
            sent += report.sent
            delivered += report.delivered
            assert wait_for(lambda goal=sent: forwarder.snapshot().completed >= goal), forwarder.snapshot()  # type: ignore[misc]
        seen = sink.wait(sent)
        forwarder.stop()
        result = forwarder.join()
    assert sent == delivered
    perfect(seen, sent)
    assert (result.received, result.sent, result.completed) == (sent, sent, sent)
    assert len(seen.flows) == 16
    kernel = result.ports[0].kernel
    assert (kernel.rx_dropped, kernel.rx_ring_full) == (0, 0)
    audited(forwarder)


def test_overload_loses_only_where_the_kernel_counts(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    forwarder = ap.forward(left.near.name, right.near.name, options=options(lab, port=SMALL))
    with Sink(right.far) as sink, Source(left.far) as source:
        forwarder.start()
        flood = source.send(seconds=1.0)
        assert wait_for(lambda: forwarder.snapshot().completed == forwarder.snapshot().received)
        forwarded = forwarder.snapshot().completed
        # The load falls: everything goes through again.
        after = [source.send(200) for _ in range(20) if wait_for(lambda: quiet(forwarder))]
        sent_after = sum(report.sent for report in after)
        assert wait_for(lambda: forwarder.snapshot().completed == forwarded + sent_after)
        right_drops = right.near.counters()["tx_dropped"]
        seen = sink.wait(forwarder.snapshot().completed - right_drops)
        forwarder.stop()
        result = forwarder.join()
    kernel, veth = result.ports[0].kernel, left.near.counters()
    lost = kernel.rx_dropped + kernel.rx_ring_full
    assert flood.sent > 10_000
    assert lost > 0, "the source is no faster than the engine: this is no overload"
    assert result.received + lost + veth.get("rx_xdp_drops", 0) == flood.delivered + sent_after
    assert seen.packets == seen.unique == result.sent - right_drops
    assert (seen.duplicate, seen.reordered, seen.stale, seen.corrupt) == (0, 0, 0, 0)
    audited(forwarder)


def quiet(forwarder: ap.Runner) -> bool:
    now = forwarder.snapshot()
    return now.received == now.completed and now.ports[0].rings["rx"] == 0


def test_drop_counts_what_was_sent(veth_pair: VethPair, traffic: Traffic, lab: Lab) -> None:
    forwarder = ap.drop(veth_pair.near.name, options=options(lab))
    forwarder.start()
    traffic.send(50_000, size=256, window=256, expect=0, until=lambda n: forwarder.snapshot().received >= n)
    forwarder.stop()
    result = forwarder.join()
    assert result.received == result.engine.dropped == 50_000
    assert result.ports[0].stats.rx_bytes == 50_000 * 256
    assert result.ports[0].program["redirected"] == 50_000
    assert result.pools[0].recycle_cached >= 0.99 * 50_000  # recycled directly, as XDP_DROP
    audited(forwarder)


@pytest.mark.parametrize("size", [64, 1500])
def test_reflect_swaps_macs_and_sends_back(veth_pair: VethPair, traffic: Traffic, lab: Lab, size: int) -> None:
    forwarder = ap.reflect(veth_pair.near.name, options=options(lab))
    forwarder.start()
    sent = traffic.send(4000, size=size)
    forwarder.stop()
    result = forwarder.join()
    perfect(sent.seen, 4000)
    assert result.engine.reflected == 4000
    audited(forwarder)


def test_both_ways_at_once(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    forwarder = ap.forward(left.near.name, right.near.name, both_ways=True, options=options(lab))
    with (
        Sink(left.far) as left_sink,
        Sink(right.far) as right_sink,
        Source(left.far) as left_source,
        Source(right.far) as right_source,
    ):
        forwarder.start()
        for total in range(200, 10_001, 200):
            left_source.send(100)
            right_source.send(100)
            assert wait_for(lambda goal=total: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
        seen = [left_sink.wait(5000), right_sink.wait(5000)]
        forwarder.stop()
        forwarder.join()
    for report in seen:
        perfect(report, 5000)
    audited(forwarder)


def test_forward_between_two_queues_of_one_netdev(lab: Lab, traffic: Traffic) -> None:
    pair = lab.veth("a", queues=2)
    forwarder = ap.forward(pair.near.name, pair.near.name, options=options(lab, queues=(0, 1)))
    forwarder.start()
    sent = traffic.send(2000, into=pair, cpu=0)
    forwarder.stop()
    result = forwarder.join()
    perfect(sent.seen, 2000)
    assert [port.stats.rx_packets for port in result.ports] == [2000, 0]
    assert [port.stats.tx_packets for port in result.ports] == [0, 2000]
    audited(forwarder)


def test_tx_sends_what_it_counts_and_frames_come_home(lab: Lab) -> None:
    pair = lab.veth("a")
    addresses = packets.Addresses(source_mac=pair.near.mac, target_mac=pair.far.mac)
    template = ap.Template(
        tuple(packets.build(200, flow=flow, addresses=addresses) for flow in range(3)), sequence_at=50, checksum_at=40
    )
    forwarder = ap.transmit(pair.near.name, template, count=30_000, rate=200_000, options=options(lab))
    with Sink(pair.far) as sink:
        result = forwarder.run(duration=30)
        dropped = pair.near.counters()["tx_dropped"]
        seen = sink.wait(30_000 - dropped)
    assert (result.sent, result.completed) == (30_000, 30_000)
    assert seen.unique == 30_000 - dropped
    assert (seen.duplicate, seen.reordered, seen.corrupt, len(seen.flows)) == (0, 0, 0, 3)
    assert result.seconds >= 30_000 / 200_000 * 0.99
    assert pair.far.counters()["rx_packets"] == 30_000 - dropped
    audited(forwarder)


def test_a_batch_handler_and_a_packet_handler_see_the_packets(lab: Lab) -> None:
    pair = lab.veth("a")
    seen: list[int] = []

    def per_packet(packet: ap.batch.Bytes) -> int:
        parsed = packets.parse(packet.tobytes())
        assert parsed is not None
        seen.append(parsed.seq)
        return ap.DROP

    forwarder = ap.handle([pair.near.name], ap.per_packet(per_packet), options=options(lab))
    with Source(pair.far) as source:
        forwarder.start()
        source.send(300)
        assert wait_for(lambda: len(seen) >= 300)
        forwarder.stop()
        result = forwarder.join()
    assert seen == list(range(300))
    assert result.engine.dropped == 300
    audited(forwarder)


def test_frames_received_on_one_netdev_come_home_from_anothers_completion_ring(lab: Lab) -> None:
    """The seed's case, by hand: two pools, packets of A's pool out of B and C at once."""
    a, b, c = lab.veth("a"), lab.veth("b"), lab.veth("c")
    netns = lab.engine_netns
    send_only = replace(SMALL, receive=False)
    with (
        ap.Umem(4096) as umem,
        ap.FramePool(umem) as pool_a,
        ap.FramePool(umem) as pool_bc,
        ap.Port(pool_a, a.near.name, netns=netns, config=SMALL) as port_a,
        ap.Port(pool_bc, b.near.name, netns=netns, config=send_only) as port_b,
        ap.Port(pool_bc, c.near.name, netns=netns, config=send_only) as port_c,
        Source(a.far) as source,
        Sink(b.far) as sink_b,
        Sink(c.far) as sink_c,
    ):
        source.send(200)
        got = 0
        while got < 200:
            batch = port_a.receive(64)
            got += len(batch)
            pool_a.ref(batch)
            assert port_b.transmit(batch) == len(batch)
            assert port_c.transmit(batch) == len(batch)
            assert wait_for(lambda: umem.count_states()["tx"] == 0 or port_b.complete() + port_c.complete() < 0)
        perfect(sink_b.wait(200), 200)
        perfect(sink_c.wait(200), 200)
        assert umem.count_states()["app"] == 0
        assert pool_a.collect() == 200  # nobody had bound the pool yet, so they were posted to it
        assert pool_bc.stats().recycle_cached == pool_bc.stats().recycle_ring == 0
        assert pool_a.stats().recycle_cached + pool_a.stats().recycle_ring == 200
        umem.audit().check()
        for port in (port_a, port_b, port_c):
            port.close()
        pool_a.close()
        pool_bc.close()
        assert umem.audit().check(idle=True).umem == 4096


def test_nothing_is_left_on_the_netdev(lab: Lab) -> None:
    pair = lab.veth("a")
    before = sorted(os.listdir("/proc/self/fd"))
    with ap.drop(pair.near.name, options=options(lab)) as forwarder:
        forwarder.run(0.05)
    with ap.XdpProgram(pair.near.name, netns=lab.engine_netns) as program:  # the hook is free again
        assert program.counters().redirected == 0
    assert sorted(os.listdir("/proc/self/fd")) == before
    with ap.drop(pair.near.name, options=options(lab)) as forwarder:  # and the queue
        forwarder.run(0.05)
        audited(forwarder)


def test_reopening_at_once_retries_the_busy_queue(lab: Lab) -> None:
    pair = lab.veth("a")
    for _ in range(30):
        with ap.drop(pair.near.name, options=options(lab)) as forwarder:
            forwarder.run(0.0)
            forwarder.audit().check()
