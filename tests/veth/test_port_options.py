"""Rings and mode of single devices, where one `Options.port` for all of them does not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from live_lab import audited, in_step, options, perfect

import afxdp_pool as ap
from afxdp_pool import numa
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

SMALL = ap.PortConfig(fill_size=512, comp_size=256, rx_size=256, tx_size=256, fill_level=256, transmit="socket")
COUNT = 2000


def test_a_device_has_rings_and_a_way_out_of_its_own(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    chosen = replace(options(lab), ports={right.near.name: SMALL})

    def handle(batch: ap.Batch) -> int:
        assert batch.port is not None
        return ap.FORWARD(1 - batch.ports.index(batch.port))

    runner = ap.handle([left.near.name, right.near.name], handle, options=chosen)
    first, second = (port.info for port in runner.ports)
    assert (first.tx_size, second.tx_size, second.fill_level) == (chosen.port.tx_size, 256, 256)
    assert (first.transmit, second.transmit) == ("live", "socket")
    with Sink(right.far) as sink, Source(left.far) as source:
        runner.start()
        in_step(source, runner, COUNT, 100)
        runner.stop()
        runner.join()
        perfect(sink.wait(COUNT), COUNT)
    audited(runner)


def test_options_for_a_device_that_is_not_used_are_refused(lab: Lab) -> None:
    pair = lab.veth("a")
    with pytest.raises(ap.ConfigError, match=f"names eth77, where there are only {pair.near.name}"):
        ap.drop(pair.near.name, options=replace(options(lab), ports={"eth77": SMALL}))
    copying = replace(options(lab), ports={pair.near.name: SMALL}).with_mode("copy")
    assert (copying.port.mode, copying.port_of(pair.near.name).mode) == ("copy", "copy")


def test_a_port_knows_its_mode_and_its_device(lab: Lab) -> None:
    pair = lab.veth("a", queues=2)
    with ap.drop(pair.near.name, options=replace(options(lab), xdp_mode="native")) as runner:
        (port,) = runner.ports
        assert (port.mode, port.xdp_mode) == ("copy", "native")
        assert port.place is not None
        assert (port.place.driver, port.place.rx_queues, port.place.numa_node) == ("veth", 2, None)
        offers = port.place.features
        if offers is not None:  # Linux 6.3
            assert ap.XdpFeature.BASIC | ap.XdpFeature.REDIRECT in offers.flags
            assert ap.XdpFeature.XSK_ZEROCOPY not in offers.flags
        assert runner.umem.devices == (), "nobody does DMA"
        assert set(runner.umem.numa_nodes) <= set(numa.nodes())
        (device,) = runner.info().devices
        assert (device.netdev, device.netns, device.driver) == (pair.near.name, lab.engine_netns, "veth")
        assert device.xdp is None or "redirect" in device.xdp
    with pytest.raises(ap.PoolClosedError):
        port.mode  # noqa: B018
    with ap.drop(pair.near.name, options=replace(options(lab), xdp_mode="generic")) as runner:
        assert runner.ports[0].xdp_mode == "generic"
