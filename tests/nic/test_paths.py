"""The engine's paths over real drivers, in copy mode and in zero-copy. Counted at the other end of the cable."""

from __future__ import annotations

import pytest
from live_lab import audited
from nics import DRIVERS, ENGINE, Closed, config, each_mode, each_way, link, near_of, options, up, wait_for, wires

import afxdp_pool as ap
from afxdp_pool.testing import packets

BURST, BURSTS = 64, 8
ALL = BURST * BURSTS


@each_way
def test_drop(driver: str, mode: str, closed: Closed) -> None:
    near = near_of(driver)
    with wires(near) as (far,):
        forwarder = closed(ap.drop(near, options=options(mode)))
        info = forwarder.ports[0].info
        assert (info.driver, info.mode, info.xdp_mode) == (driver, mode, "native")
        forwarder.start()
        up(near, far.name)
        for _ in range(BURSTS):
            total = far.send(BURST)
            assert wait_for(lambda goal=total: forwarder.snapshot().received >= goal), forwarder.snapshot()  # type: ignore[misc]
        forwarder.stop()
        report = forwarder.join()
    assert report.received == report.engine.dropped == ALL
    assert report.ports[0].stats.rx_bytes == ALL * 64
    audited(forwarder)


@each_mode
@pytest.mark.parametrize("way", ["igb to virtio_net", "virtio_net to igb"])
def test_forward_between_drivers_over_one_umem(way: str, mode: str, closed: Closed) -> None:
    left, right = (DRIVERS[driver] for driver in way.split(" to "))
    with wires(left, right) as (source, sink):
        forwarder = closed(ap.forward(left, right, options=options(mode)))
        forwarder.start()
        up(left, right, source.name, sink.name)
        seen = []
        for _ in range(BURSTS):
            source.send(BURST)
            seen += sink.take(BURST)
        # The last ones may lie in the NIC, sent and not yet told of.
        assert wait_for(lambda: forwarder.snapshot().completed == ALL), forwarder.snapshot()
        forwarder.stop()
        report = forwarder.join()
    assert seen == list(range(ALL))  # each once, in order
    inbound, outbound = report.ports
    assert [port.info.mode for port in report.ports if port.info] == [mode, mode]
    # The frames are the first NIC's pool's, and came home from the other one's completion ring.
    assert (inbound.stats.rx_packets, outbound.stats.tx_completed, outbound.stats.rx_packets) == (ALL, ALL, 0)
    audited(forwarder)


@each_mode
def test_forward_both_ways_at_once(mode: str, closed: Closed) -> None:
    left, right = DRIVERS.values()
    with wires(left, right) as (one, other):
        forwarder = closed(ap.forward(left, right, both_ways=True, options=options(mode)))
        forwarder.start()
        up(left, right, one.name, other.name)
        there, back = [], []
        for _ in range(BURSTS):
            one.send(BURST)
            other.send(BURST)
            there += other.take(BURST)
            back += one.take(BURST)
        assert wait_for(lambda: forwarder.snapshot().completed == 2 * ALL), forwarder.snapshot()
        forwarder.stop()
        forwarder.join()
    assert there == back == list(range(ALL))
    audited(forwarder)


@each_way
def test_reflect(driver: str, mode: str, closed: Closed) -> None:
    near = near_of(driver)
    with wires(near) as (far,):
        forwarder = closed(ap.reflect(near, options=options(mode)))
        forwarder.start()
        up(near, far.name)
        seen = []
        for _ in range(BURSTS):
            far.send(BURST)
            seen += far.take(BURST)
        assert wait_for(lambda: forwarder.snapshot().completed == ALL), forwarder.snapshot()
        forwarder.stop()
        forwarder.join()
    assert seen == list(range(ALL))
    audited(forwarder)


@each_way
def test_tx_and_completion(driver: str, mode: str, closed: Closed) -> None:
    near = near_of(driver)
    count = 3 * BURST  # fewer than the far NIC has descriptors: a guest that is held up would lose more
    packet = packets.build(128, addresses=packets.Addresses(source_mac=link(near).mac, target_mac=link(near).peer_mac))
    with wires(near) as (far,):
        forwarder = closed(ap.transmit(near, [packet], count=count, rate=2_000, options=options(mode)))
        up(near, far.name)
        report = forwarder.run()
        seen = far.take(count)
    assert len(seen) == count
    assert report.sent == report.completed == count
    audited(forwarder)


@each_mode
def test_one_received_frame_out_of_both_drivers(mode: str, closed: Closed) -> None:
    """Clones: an igb frame leaves by igb and by virtio_net at once, and goes home when both are done with it."""
    first, second = DRIVERS.values()
    with wires(first, second) as (source, mirror), ap.Umem(2048) as umem:
        with ap.FramePool(umem) as pool, ap.FramePool(umem) as other:
            a = closed(ap.Port(pool, first, netns=ENGINE, config=config(mode)))
            b = closed(ap.Port(other, second, netns=ENGINE, config=config(mode, receive=False)))
            up(first, second, source.name, mirror.name)
            back, copies = [], []
            for _ in range(BURSTS):
                source.send(BURST)
                left = BURST
                while left:
                    assert wait_for(lambda: a.ring_levels()["rx"] > 0)
                    batch = a.receive(left)
                    left -= len(batch)
                    pool.ref(batch)
                    assert a.transmit(batch) == b.transmit(batch) == len(batch)
                    a.fill()
                for port in (a, b):  # a kick of the copy mode may leave some for the next
                    assert wait_for(lambda: port.kick() or port.ring_levels()["tx"] == 0)  # type: ignore[func-returns-value]  # noqa: B023
                back += source.take(BURST)
                copies += mirror.take(BURST)
                a.complete(512)
                b.complete(512)
            assert back == copies == list(range(ALL))
            for port in (a, b):
                assert wait_for(lambda: port.complete(512) >= 0 and port.stats().tx_completed == ALL)  # noqa: B023
            umem.audit().check()
            a.close()
            b.close()
        umem.audit().check(idle=True)
