"""What these drivers tell of packets and do for them; what they do not is refused, or done by the kernel in copies."""

from __future__ import annotations

import time

import numpy as np
import pytest
from live_lab import audited
from nics import DRIVERS, ENGINE, Closed, config, each_driver, each_mode, ip, up, wait_for, wires

import afxdp_pool as ap
from afxdp_pool.config import RxMetadataName, TxMetadataName
from afxdp_pool.netdev import find
from afxdp_pool.testing import packets

BURST, FLOWS = 64, 4
TELLS: dict[RxMetadataName, ap.RxMetadata] = {
    "hash": ap.RxMetadata.HASH,
    "timestamp": ap.RxMetadata.TIMESTAMP,
    "vlan": ap.RxMetadata.VLAN_TAG,
}


def told(near: str) -> ap.XdpFeatures:
    features = find(near, ENGINE).features
    assert features is not None
    return features


@each_driver
def test_what_a_driver_does_not_tell_is_refused(driver: str) -> None:
    near = DRIVERS[driver]
    ip(ENGINE, "link", "set", near, "up")
    for name, feature in TELLS.items():
        if feature in told(near).rx_metadata:
            with ap.XdpProgram(near, netns=ENGINE, rx_metadata=(name,)) as program:
                assert program.rx_metadata == (name,)
        else:
            with pytest.raises(ap.MetadataUnsupportedError, match=f"driver {driver} tells no {name}"):
                ap.XdpProgram(near, netns=ENGINE, rx_metadata=(name,))


@each_mode
@each_driver
def test_what_is_known_comes_with_the_packets(driver: str, mode: str, closed: Closed) -> None:
    """The time of arrival from every driver; a hash, where there is one, is what the NIC's key makes of the flow."""
    near = DRIVERS[driver]
    asked = tuple(name for name, feature in TELLS.items() if feature in told(near).rx_metadata)
    rss = ap.steering_state(near, ENGINE).rss
    key = rss.key if rss is not None and rss.key else ap.RSS_KEY
    seen: list[tuple[int, int, int, int]] = []

    def handle(batch: ap.Batch) -> int:
        known = batch.rx_metadata()
        assert known.has_arrival.all()
        assert known.has_hash.all() if "hash" in asked else not known.has_hash.any()
        columns = batch.udp.sport, known.arrival, batch.rss_hash(key), known.hash
        seen.extend(zip(*(column.tolist() for column in columns), strict=True))
        return ap.DROP

    with wires(near) as (far,):
        chosen = ap.Options(netns=ENGINE, port=config(mode, transmit=False, rx_metadata=("arrival", *asked)))
        forwarder = closed(ap.handle([near], handle, options=chosen))
        forwarder.start()
        up(near, far.name)
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        total = far.send(BURST, flows=FLOWS)
        assert wait_for(lambda: forwarder.snapshot().received >= total)
        after = time.clock_gettime_ns(time.CLOCK_TAI)
        forwarder.stop()
        forwarder.join()
    arrivals = np.array([arrival for _, arrival, _, _ in seen])
    assert (before < arrivals).all()
    assert (arrivals < after).all()
    assert len({flow for flow, *_ in seen}) == FLOWS
    if "hash" in asked:
        assert [told_hash for *_, told_hash in seen] == [computed for _, _, computed, _ in seen]
        assert len({told_hash for *_, told_hash in seen}) == FLOWS
    audited(forwarder)


@each_driver
def test_a_request_is_done_by_the_kernel_where_the_driver_does_not(driver: str) -> None:
    """Zero-copy is refused then, if it is demanded; left open, it is copy mode, with the same result."""
    near = DRIVERS[driver]
    names: tuple[TxMetadataName, ...] = ("checksum", "timestamp")
    does = told(near).xsk
    whole = does & (ap.XskFeature.TX_CHECKSUM | ap.XskFeature.TX_TIMESTAMP) == 3
    ip(ENGINE, "link", "set", near, "up")
    with ap.Umem(2048, headroom=32) as umem:
        with ap.FramePool(umem) as pool, wires(near) as (far,):
            if not whole:
                with pytest.raises(ap.MetadataUnsupportedError, match=f"driver {driver} does no"):
                    ap.Port(pool, near, netns=ENGINE, config=config("zero-copy", tx_metadata=names))
            with ap.Port(pool, near, netns=ENGINE, config=config("auto", tx_metadata=names)) as port:
                assert port.mode == ("zero-copy" if whole else "copy")
                up(near, far.name)
                sends_bare(port, far.link.mac)
                assert far.take(BURST) == list(range(BURST))
                stamps = port.take_timestamps(BURST)
                assert stamps.number.tolist() == list(range(BURST))
                assert (np.diff(stamps.timestamp.astype(np.int64)) >= 0).all()
        umem.audit().check(idle=True)


def sends_bare(port: ap.Port, target: bytes) -> None:
    """Numbered test packets whose UDP checksum and time of sending are left to whoever sends them."""
    addresses = packets.Addresses(source_mac=b"\x02\0\0\0\0\x02", target_mac=target)
    batch = port.pool.write([packets.build(seq=number, addresses=addresses) for number in range(BURST)])
    batch.udp.checksum = 0
    assert batch.offload_checksums().all()
    assert batch.request_timestamps(np.arange(BURST)).all()
    assert port.transmit(batch) == BURST
    done = 0

    def complete() -> bool:
        nonlocal done
        done += port.complete()
        port.kick()
        return done == BURST

    assert wait_for(complete)
