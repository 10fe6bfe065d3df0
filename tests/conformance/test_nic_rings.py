"""The NIC's own rings, at their smallest and largest, and changed under a bound socket."""

from __future__ import annotations

import pytest
from cables import Cable, carry

import afxdp_pool as ap
from afxdp_pool.testing.lab import LabLink


def rings(cable: Cable, link: LabLink) -> ap.Steering:
    """What the link's rings are changed by; or the test is skipped."""
    steering = cable.steering(link)
    if steering.state().rings is None:
        pytest.skip("the driver has no rings that can be resized")
    return steering


def test_hw_sw_min_ring_size(cable: Cable) -> None:
    """RX of 128 and TX of 64 in the NIC that sends: one packet at a time, then 63."""
    rings(cable, cable.far).set_rings(rx=128, tx=64)
    sender, receiver = cable.sender(), cable.receiver()
    carry(sender, receiver, 64, burst=1)
    carry(sender, receiver, 4 * 63, burst=63)


def test_hw_sw_max_ring_size(cable: Cable) -> None:
    """All that the NICs' rings can have, and 8192 entries in ours; in a burst of a NIC's TX ring less 8."""
    burst = 0
    for link in (cable.near, cable.far):
        steering = rings(cable, link)
        now = steering.state().rings
        assert now is not None
        burst = steering.set_rings(rx=now.most_rx, tx=now.most_tx).tx - 8
    large = {"frames": 16384, "fill_size": 8192, "comp_size": 8192, "rx_size": 8192, "tx_size": 8192}
    sender, receiver = cable.sender(**large), cable.receiver(**large, fill_level=8192)
    carry(sender, receiver, burst, burst=burst)


def test_check_rx_resize(cable: Cable) -> None:
    """Half the RX ring, and the whole again, under a bound socket; then traffic as if nothing had been."""
    steering = rings(cable, cable.near)
    now = steering.state().rings
    assert now is not None
    sender, receiver = cable.sender(), cable.receiver()
    carry(sender, receiver, 64)
    steering.set_rings(rx=now.rx // 2)
    steering.set_rings(rx=now.rx)
    carry(sender, receiver, 256)
