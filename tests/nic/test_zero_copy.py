"""What only zero-copy does: the NIC writes into our frames, and has them until its driver has stopped."""

from __future__ import annotations

import contextlib
import re
import subprocess
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from kernel_bench import Raw
from live_lab import audited
from nics import (
    DRIVERS,
    ENGINE,
    TRAFFIC,
    Closed,
    Wire,
    config,
    each_driver,
    each_mode,
    far_of,
    ip,
    options,
    up,
    wait_for,
    wires,
)

import afxdp_pool as ap

ZERO_COPY = "zero-copy"


@pytest.mark.parametrize("near", ["w0", "x0"])
def test_zero_copy_is_refused_where_the_driver_has_none(near: str) -> None:
    """w0 is a virtio_net without premapped DMA, x0 a vmxnet3. Demanded, zero-copy is an error; else it is copied."""
    with ap.Umem(2048) as umem:
        with ap.FramePool(umem) as pool:
            ip(ENGINE, "link", "set", near, "up")
            with pytest.raises(ap.ModeUnsupportedError, match=f"{near} queue 0"):
                ap.Port(pool, near, netns=ENGINE, config=config(ZERO_COPY))
            umem.audit().check(idle=True)
            with ap.Port(pool, near, netns=ENGINE, config=config("auto")) as port:
                assert port.info.mode == "copy"
                umem.audit().check()
        umem.audit().check(idle=True)


@each_driver
def test_auto_takes_zero_copy(driver: str) -> None:
    near = DRIVERS[driver]
    with ap.Umem(2048, memory=ap.BpfMemory(2048 * 4096)) as umem:
        with ap.FramePool(umem) as pool:
            ip(ENGINE, "link", "set", near, "up")
            with ap.Port(pool, near, netns=ENGINE, config=config("auto", transmit="auto")) as port:
                assert port.info.mode == port.mode == ZERO_COPY
                (device,) = umem.devices
                assert (device.netdev, device.driver, device.queues) == (near, driver, (0,))
                assert re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{2}:.*", device.bus)
                assert port.place is not None
                assert port.place.features is not None
                assert ap.XdpFeature.XSK_ZEROCOPY in port.place.features.flags
                assert (port.info.transmit, port.info.transmit_reason) == ("socket", "the socket's zero-copy is better")
        umem.audit().check(idle=True)


@each_driver
def test_nothing_is_written_to_frames_that_came_home_at_close(driver: str, closed: Closed) -> None:
    """close() under traffic: from then on the frames are the application's, every byte of them."""
    near = DRIVERS[driver]
    with wires(near) as (far,), ap.Umem(2048) as umem:
        for _ in range(3):
            with ap.FramePool(umem) as pool:
                port = closed(ap.Port(pool, near, netns=ENGINE, config=config(ZERO_COPY)))
                up(near, far.name)
                with flood(far):
                    assert wait_for(lambda: port.ring_levels()["rx"] > 0)  # noqa: B023
                    port.close()
                    umem.data[:] = 0xA5
                    told = far.next
                    assert wait_for(lambda: far.next > told + 500)  # noqa: B023
                written = np.flatnonzero(umem.data != 0xA5)
                assert len(written) == 0, f"{len(written)} bytes written after close"
            umem.audit().check(idle=True)


@each_mode
@each_driver
def test_closing_with_frames_in_flight_takes_them_all_back(driver: str, mode: str, closed: Closed) -> None:
    near = DRIVERS[driver]
    with wires(near) as (far,), ap.Umem(2048) as umem:
        with ap.FramePool(umem) as pool:
            port = closed(ap.Port(pool, near, netns=ENGINE, config=config(mode)))
            up(near, far.name)
            far.send(100)
            assert wait_for(lambda: port.ring_levels()["rx"] >= 16)
            batch = pool.alloc(64)
            for i in range(len(batch)):
                batch.write(i, bytes(12) + b"\x88\xb5" + bytes(50))
            assert port.transmit(batch) == 64
            port.close()  # frames in FILL, in RX, in TX and in the NIC
            report = umem.audit().check()
            assert (report.fill, report.tx, report.app) == (0, 0, 0)
            # The queue is free again, for the same frames.
            with ap.Port(pool, near, netns=ENGINE, config=config(mode)) as again:
                up(near, far.name)
                far.send(32)
                assert wait_for(lambda: again.ring_levels()["rx"] >= 32)
        umem.audit().check(idle=True)


@each_mode
@each_driver
def test_link_goes_down_with_frames_in_flight(driver: str, mode: str, closed: Closed) -> None:
    """The run ends with an error that says so; every frame is accounted for; after the link is back it goes on.

    Once with packets in the RX ring, which cannot be sent; once in the middle of traffic, with frames in the NIC.
    """
    near = DRIVERS[driver]
    with wires(near) as (far,):
        waiting = closed(ap.reflect(near, options=options(mode)))
        up(near, far.name)
        far.send(64)
        assert wait_for(lambda: waiting.ports[0].ring_levels()["rx"] >= 64)
        with link_down(near):
            waiting.start()
            with pytest.raises(ap.LinkGoneError, match=near):
                waiting.join()
            assert waiting.snapshot().ports[0].stats.tx_errors > 0
        audited(waiting)

        busy = closed(ap.reflect(near, options=options(mode)))
        up(near, far.name)
        busy.start()
        with flood(far):
            assert wait_for(lambda: busy.snapshot().completed > 64)
            with link_down(near):
                far_told = far.next
                assert wait_for(lambda: far.next > far_told + 200)
                busy.stop()
                with contextlib.suppress(ap.LinkGoneError):  # where there was something to send at that moment
                    busy.join()
        audited(busy)

        again = closed(ap.reflect(near, options=options(mode)))
        again.start()
        up(near, far.name)
        start = far.next
        far.send(64)
        seen: list[int] = []
        while len(seen) < 64 and (numbers := far.take(1)):  # what was under way before may still arrive
            seen += [number for number in numbers if number >= start]
        assert len(seen) == 64
        again.stop()
        again.join()
        audited(again)


@contextlib.contextmanager
def link_down(near: str) -> Iterator[None]:
    """The engine's NIC taken down for a while."""
    ip(ENGINE, "link", "set", near, "down")
    try:
        yield
    finally:
        ip(ENGINE, "link", "set", near, "up")


@contextlib.contextmanager
def flood(far: Wire) -> Iterator[None]:
    """Packets from the far end all the while."""
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            far.send(16)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_reset_of_the_nic_is_survived(closed: Closed) -> None:
    """ethtool -r restarts igb under the running engine. Frames in the NIC may be lost to it; none is lost to us."""
    with wires("i0") as (far,):
        forwarder = closed(ap.reflect("i0", options=options(ZERO_COPY)))
        forwarder.start()
        up("i0", far.name)
        for _ in range(3):
            far.send(64)
            subprocess.run(["ip", "netns", "exec", ENGINE, "ethtool", "-r", "i0"], check=True, timeout=30)
            up("i0", far.name)
            # The first after a reset may meet a NIC that is not quite awake.
            assert wait_for(lambda: bool(far.send(1) and far.take(1, 0.2)))
        forwarder.stop()
        forwarder.join()
        audited(forwarder)


@each_driver
@pytest.mark.parametrize("need_wakeup", [True, False])
def test_an_empty_fill_ring_is_recovered_from(driver: str, need_wakeup: bool, closed: Closed) -> None:
    """A driver that found no frames goes to sleep and says that it must be woken; without the flag it tries again."""
    near = DRIVERS[driver]
    with wires(near) as (far,), ap.Umem(2048) as umem:
        with ap.FramePool(umem) as pool:
            port = closed(
                ap.Port(pool, near, netns=ENGINE, config=config(ZERO_COPY, fill_level=64, need_wakeup=need_wakeup))
            )
            up(near, far.name)
            far.send(100)  # more than the NIC has frames for
            assert wait_for(lambda: port.ring_levels()["rx"] == 64)
            assert wait_for(lambda: Raw(port, "fill").wants_wakeup is need_wakeup)
            assert port.ring_levels() == {"fill": 0, "comp": 0, "rx": 64, "tx": 0}
            forwarder = ap.Forwarder([port], {0: ap.Route(ap.DROP)})
            forwarder.start()
            assert wait_for(lambda: forwarder.snapshot().received >= 64)
            before = forwarder.snapshot().received
            deadline = time.monotonic() + 20
            while forwarder.snapshot().received < before + 64 and time.monotonic() < deadline:
                far.send(8)
                wait_for(lambda: False, 0.02)
            forwarder.stop()
            report = forwarder.join()
            assert report.received >= before + 64
            assert report.ports[0].stats.rx_kicks > 0 or not need_wakeup
            umem.audit().check()
            forwarder.close()
            port.close()
        umem.audit().check(idle=True)


@each_mode
@pytest.mark.parametrize("driver", ["igb"])
def test_several_queues_over_one_umem(driver: str, mode: str, closed: Closed) -> None:
    """Two queues, a port and a pool for each, flows spread over them by the NIC."""
    near = DRIVERS[driver]
    shell = ["ip", "netns", "exec", ENGINE, "ethtool"]
    subprocess.run([*shell, "-L", near, "combined", "2"], check=True, timeout=30)
    try:
        subprocess.run([*shell, "-N", near, "rx-flow-hash", "udp4", "sdfn"], check=True, timeout=30)
        with wires(near) as (far,):
            wide = ap.Options(netns=ENGINE, queues=(0, 1), workers=2, port=config(mode))
            forwarder = closed(ap.drop(near, options=wide))
            forwarder.start()
            up(near, far.name)
            for _ in range(4):
                total = far.send(128, flows=32)
                assert wait_for(lambda goal=total: forwarder.snapshot().received >= goal), forwarder.snapshot()  # type: ignore[misc]
            forwarder.stop()
            report = forwarder.join()
        assert report.received == 512
        assert [port.info.queue for port in report.ports if port.info] == [0, 1]
        assert all(port.stats.rx_packets > 0 for port in report.ports)
        audited(forwarder)
    finally:
        subprocess.run([*shell, "-L", near, "combined", "1"], check=True, timeout=30)


@each_driver
def test_ports_close_in_any_order_while_others_run(driver: str, closed: Closed) -> None:
    """The Umem is registered with both NICs' DMA. One port goes; the other one does not notice."""
    stays, goes = DRIVERS[driver], next(name for other, name in DRIVERS.items() if other != driver)
    with wires(stays) as (far,), ap.Umem(2048) as umem:
        with ap.FramePool(umem) as pool, ap.FramePool(umem) as second:
            one = closed(ap.Port(pool, stays, netns=ENGINE, config=config(ZERO_COPY)))
            two = closed(ap.Port(second, goes, netns=ENGINE, config=config(ZERO_COPY)))
            up(stays, far.name, goes, far_of(goes))
            far.send(32)
            assert wait_for(lambda: one.ring_levels()["rx"] >= 32)
            two.close()
            far.send(32)
            assert wait_for(lambda: one.ring_levels()["rx"] >= 64)
            pool.put(one.receive(64))
            one.close()
        umem.audit().check(idle=True)


def test_the_namespace_has_what_the_guest_put_there() -> None:
    """The tests above count on it: the far ends are in the other namespace."""
    out = subprocess.run(["ip", "-n", TRAFFIC, "-br", "link"], capture_output=True, text=True, check=True, timeout=30)
    assert {line.split()[0] for line in out.stdout.splitlines()} == {"lo", "i1", "v1", "x1"}
