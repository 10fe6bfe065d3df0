"""Packets of 9000 bytes over real drivers: by copies as far as the driver goes, by zero-copy where it has segments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from live_lab import audited
from nics import DRIVERS, ENGINE, TRAFFIC, Closed, each_driver, each_mode, far_of, ip, options, up, wait_for, wires

import afxdp_pool as ap
from afxdp_pool import netdev

SIZES = [60, 1500, 3840, 3841, 7680, 7681, 9014]


@contextmanager
def jumbo(near: str) -> Iterator[None]:
    for mtu in ("9000", "1500"):
        ip(ENGINE, "link", "set", near, "mtu", mtu)
        ip(TRAFFIC, "link", "set", far_of(near), "mtu", mtu)
        if mtu == "9000":
            yield


@each_mode
@each_driver
def test_packets_longer_than_a_frame(driver: str, mode: str, closed: Closed) -> None:
    near = DRIVERS[driver]
    features = netdev.xdp_features(near, ENGINE)
    chosen = options(mode, multi_buffer=True)
    with jumbo(near), wires(near) as (far,):
        if mode == "zero-copy" and (features is None or features.zc_max_segments <= 1):
            with pytest.raises(ap.ModeUnsupportedError, match="more than one segment"):
                ap.reflect(near, options=chosen)
            return
        forwarder = closed(ap.reflect(near, options=chosen, swap_mac=True))
        info = forwarder.ports[0].info
        print(f"{driver}, {mode}: {info.mode}, {info.xdp_mode} XDP, {info.max_frames} frames a packet")
        forwarder.start()
        up(near, far.name)
        for size in SIZES:
            sent = (far.link.peer_mac + far.link.mac + b"\x88\xb5" + bytes(range(256)) * 40)[:size]
            far.raw.send(sent)
            far.raw.settimeout(30)
            while (back := far.raw.recv(1 << 16))[12:14] != b"\x88\xb5":
                pass
            assert back == sent[6:12] + sent[:6] + sent[12:]
        assert wait_for(lambda: forwarder.snapshot().ports[0].stats.in_tx == 0), forwarder.snapshot()
        forwarder.stop()
        report = forwarder.join()
    stats = report.ports[0].stats
    assert (stats.rx_packets, stats.tx_packets, stats.rx_bytes) == (len(SIZES), len(SIZES), sum(SIZES))
    assert (stats.rx_parts, stats.tx_parts) == (6, 6)
    audited(forwarder)
