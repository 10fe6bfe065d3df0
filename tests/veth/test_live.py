"""Live-frame transmit on real packets: what the engine says is what the far end and the kernel counted."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from live_lab import (
    LIVE,
    SENDS,
    Numbered,
    audited,
    live_of,
    live_stats,
    numbered_template,
    options,
    perfect,
    sending,
    wait_for,
)

import afxdp_pool as ap
from afxdp_pool.live import LONGEST
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source


@pytest.mark.parametrize("transmit", ["auto", "live"])
def test_bursts_of_any_size_keep_their_order(lab: Lab, transmit: ap.config.Transmit) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    forwarder = ap.forward(left.near.name, right.near.name, options=options(lab, ap.PortConfig(transmit=transmit)))
    draw, sent = random.Random(1), 0
    with Sink(right.far) as sink, Source(left.far) as source:
        forwarder.start()
        while sent < 40_000:
            # Several bursts, one behind the other, before the engine is waited for: the two ways meet.
            for _ in range(draw.randint(1, 5)):
                sent += source.send(draw.randint(1, 200)).sent
            assert wait_for(lambda goal=sent: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
        seen = sink.wait(sent)
        forwarder.stop()
        result = forwarder.join()
    perfect(seen, sent)
    live = live_of(result, 1)
    assert (live.delivered, live.resent) == (live.frames, 0)
    assert live.frames > sent // 10
    if transmit == "auto":
        assert result.ports[1].stats.tx_kicks > 5, "nothing went by the socket: this proves no alternation"
    else:
        assert live.frames == sent
    audited(forwarder)


def test_every_size_from_any_offset_arrives_intact(lab: Lab) -> None:
    pair = lab.veth("a", mtu=3500)
    draw = random.Random(2)
    sizes = [*range(packets.MIN_SIZE, packets.MAX_SIZE + 1)]
    sizes += [draw.randint(packets.MIN_SIZE, packets.MAX_SIZE) for _ in range(8192 - len(sizes))]
    draw.shuffle(sizes)
    with Sink(pair.far) as sink, sending(lab, pair) as port:
        numbered = Numbered(port, pair.near)
        while sizes:
            some, sizes = sizes[:512], sizes[512:]
            numbered.send(some, [draw.randint(0, 4096 - size) for size in some])
        for some in ([LONGEST] * 100, [LONGEST + 1] * 100, [64] * 70 + [LONGEST + 1] + [64] * 70):
            numbered.send(some)
        perfect(sink.wait(numbered.next), numbered.next)
        stats = live_stats(port)
        assert (stats.dropped, stats.resent) == (0, 0)
        assert numbered.next // 2 < stats.frames < numbered.next


def test_packets_shorter_than_a_test_packet(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, sending(lab, pair, replace(SENDS, transmit="live")) as port:
        for size in range(14, 64):
            batch = port.pool.alloc(64)
            batch.descs["len"] = size
            assert port.transmit(batch) == 64
            assert port.complete() == 64
        assert wait_for(lambda: sink.report().foreign == 50 * 64)
        assert live_stats(port).delivered == 50 * 64


def test_more_than_the_mtu_goes_by_the_socket_and_is_refused_there(lab: Lab) -> None:
    pair = lab.veth("a", mtu=1500)
    with Sink(pair.far) as sink, sending(lab, pair, replace(SENDS, transmit="live")) as port:
        numbered = Numbered(port, pair.near)
        for size in (1514, 1600):
            numbered.send([size] * 50)
        assert pair.near.counters()["tx_dropped"] == 50
        assert sink.wait(50).packets == 50
        stats = live_stats(port)
        assert (stats.frames, stats.dropped, stats.resent) == (50, 0, 0)


def sends_all_back(forwarder: ap.Runner, source: Source, sink: Sink) -> None:
    """5000 packets, none before the last hundred are back."""
    forwarder.start()
    for total in range(100, 5001, 100):
        source.send(100)
        assert wait_for(lambda goal=total: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
    perfect(sink.wait(5000), 5000)
    forwarder.stop()
    assert live_of(forwarder.join(), 0).delivered == 5000
    audited(forwarder)


def test_reflect_and_tx_and_a_handler(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, Source(pair.far) as source:
        openings: tuple[Callable[[], ap.Runner], ...] = (
            lambda: ap.reflect(pair.near.name, options=options(lab, LIVE)),
            lambda: ap.handle([pair.near.name], lambda batch: ap.TX, options=options(lab, LIVE)),
        )
        for opened in openings:
            sink.reset()
            sends_all_back(opened(), source, sink)
        before = sink.report().packets
        template = packets.build(200, addresses=packets.Addresses(pair.near.mac, pair.far.mac))
        forwarder = ap.transmit(pair.near.name, [template], count=100_000, options=options(lab))
        live = live_of(forwarder.run(duration=20), 0)
        assert live.frames > 90_000
        assert sink.wait(before + 100_000).packets - before == 100_000 - live.dropped
        audited(forwarder)


def test_both_ways_and_clones_out_of_several_ports(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    with Sink(left.far) as left_sink, Sink(right.far) as right_sink:
        with Source(left.far) as one, Source(right.far) as other:
            forwarder = ap.forward(left.near.name, right.near.name, both_ways=True, options=options(lab, LIVE))
            forwarder.start()
            for total in range(200, 10_001, 200):
                one.send(100)
                other.send(100)
                assert wait_for(lambda goal=total: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
            for sink in (left_sink, right_sink):
                perfect(sink.wait(5000), 5000)
            forwarder.stop()
            result = forwarder.join()
            assert [live_of(result, port).delivered for port in (0, 1)] == [5000, 5000]
            audited(forwarder)
        for sink in (left_sink, right_sink):
            sink.reset()
        before = [sink.report().packets for sink in (left_sink, right_sink)]
        with sending(lab, left) as port:
            config = replace(SENDS, transmit="live")
            with ap.Port(port.pool, right.near.name, netns=lab.engine_netns, config=config) as second:
                numbered = Numbered(port, left.near)
                for n in (5, 100, 19, 200):
                    batch = numbered.batch([100] * n)
                    port.pool.ref(batch)
                    assert port.transmit(batch) == second.transmit(batch) == n
                    assert wait_for(lambda: port.stats().tx_reclaimed == 0 and port.complete(0) == 0)
                    assert second.complete(2048) == n
                    done = port.complete(2048)
                    while done < n:
                        done += port.complete(2048)
                    assert port.pool.stats().inflight - port.pool.umem.count_states()["pool"] <= 128
                for sink, old in zip((left_sink, right_sink), before, strict=True):
                    assert sink.wait(old + numbered.next).packets - old == numbered.next
                assert live_stats(second).delivered == numbered.next


def test_two_threads_each_with_a_queue_and_others_redirects_meanwhile(lab: Lab) -> None:
    pair, noise = lab.veth("a", queues=2), lab.veth("noise")
    made = []
    with Sink(pair.far) as sink, Sink(noise.near, verify=False), Source(noise.far) as source:
        for flow in range(2):
            template = numbered_template(pair, flow)
            config = ap.Options(
                netns=lab.engine_netns, queues=(flow,), port=replace(LIVE, receive=False, fill_level=64)
            )
            made.append(ap.transmit(pair.near.name, template, count=300_000, options=config))
        source.start(seconds=10)
        for forwarder in made:
            forwarder.start(duration=20)
        results = [forwarder.join() for forwarder in made]
        source.stop()
        lives = [live_of(result, 0) for result in results]
        counters = pair.near.counters()
        assert counters["tx_xdp_xmit"] == sum(live.delivered for live in lives)
        assert counters["tx_xdp_xmit_errors"] == sum(live.dropped for live in lives)
        lost = counters["tx_dropped"]
        seen = sink.wait(600_000 - lost)
        assert (seen.packets, seen.duplicate, seen.corrupt) == (600_000 - lost, 0, 0)
    for forwarder in made:
        audited(forwarder)


def test_completions_are_told_though_frames_are_home(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, sending(lab, pair) as port:
        assert (port.info.transmit, port.info.transmit_reason) == ("live", "")
        numbered = Numbered(port, pair.near)
        assert port.transmit(numbered.batch([64] * 100)) == 100
        assert port.pool.umem.count_states()["tx"] == 0
        assert [port.complete(60), port.complete(60), port.complete(60)] == [60, 40, 0]
        perfect(sink.wait(100), 100)
        result = port.live_stats()
        port.close()
        assert port.live_stats() == result


def test_frames_of_another_threads_pool_go_home_to_it(lab: Lab) -> None:
    pair = lab.veth("a")
    with Sink(pair.far) as sink, sending(lab, pair) as port, ap.FramePool(port.pool.umem) as pool:
        numbered = Numbered(port, pair.near)
        numbered.port = type("With", (), {"pool": pool})()
        given = numbered.batch([64] * 200)
        told: list[int] = []

        def send() -> None:
            told.append(port.transmit(given))
            told.append(port.complete(2048))

        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        assert told == [200, 200]
        perfect(sink.wait(200), 200)
        port.pool.umem.audit().check()
        assert pool.collect() == 200
