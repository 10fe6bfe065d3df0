"""Steering by real drivers: igb spreads by hash and table. These NICs have no flow rules, and say so."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from live_lab import audited
from nics import DRIVERS, ENGINE, Closed, Wire, config, each_mode, up, wait_for, wires, with_two_queues

import afxdp_pool as ap
from afxdp_pool import napi
from afxdp_pool.netdev import in_netns
from afxdp_pool.tuning import tuned

FLOWS = 32

each_nic = pytest.mark.parametrize("near", DRIVERS.values())
#: NICs whose packets follow the table. Over QEMU's tap devices those of virtio_net did not, for a reason not known yet.
each_with_table = pytest.mark.parametrize("near", ["i0"])


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Whatever a test does, the NICs are as they were before."""
    before = [ap.steering_state(near, ENGINE) for near in DRIVERS.values()]
    yield
    assert [ap.steering_state(near, ENGINE) for near in DRIVERS.values()] == before


def received(far: Wire, runner: ap.Runner, *, spread: bool = True) -> list[int]:
    """Send every flow; packets by queue."""
    before = [port.stats.rx_packets for port in runner.snapshot().ports]
    far.send(4 * FLOWS, flows=FLOWS if spread else 1)
    assert wait_for(lambda: runner.snapshot().received >= sum(before) + 4 * FLOWS), runner.snapshot()
    return [port.stats.rx_packets - old for port, old in zip(runner.snapshot().ports, before, strict=True)]


def both_queues(near: str, mode: str) -> ap.Runner:
    return ap.drop(near, options=ap.Options(netns=ENGINE, queues=(0, 1), port=config(mode)))


@each_mode
@each_with_table
def test_steering_by_table_and_hash(near: str, mode: str, closed: Closed) -> None:
    steering = closed(ap.Steering(near, ENGINE))
    assert steering.set_channels(2).combined == 2
    steering.set_hash("udp4", "sdfn")
    with wires(near) as (far,):
        runner = closed(both_queues(near, mode))
        runner.start()
        up(near, far.name)
        steering.spread(2)
        assert min(received(far, runner)) > 0, "the hash spreads over both"
        steering.spread(1)
        assert received(far, runner) == [4 * FLOWS, 0]
        steering.spread(weights=(0, 1))
        assert received(far, runner) == [0, 4 * FLOWS]
        steering.set_hash("udp4", "sd")
        steering.spread(table=[0, 1] * 64)
        assert 0 in received(far, runner), "of one pair of addresses, all to one queue"
        runner.stop()
        runner.join()
    audited(runner)


@each_with_table
def test_steering_by_the_place_in_the_hash_that_we_compute(near: str, closed: Closed) -> None:
    """Which queue a packet comes by is what `Batch.rss_hash` says with the NIC's key, and the table."""
    steering = closed(ap.Steering(near, ENGINE))
    steering.set_channels(2)
    steering.set_hash("udp4", "sdfn")
    rss = steering.set_key(ap.RSS_KEY)
    table = steering.spread(table=[place % 3 % 2 for place in range(len(rss.table))]).table
    assert rss.key == ap.RSS_KEY
    seen: list[tuple[int, int]] = []

    def note(batch: ap.Batch) -> int:
        assert batch.port is not None
        seen.extend((int(value), batch.port.queue) for value in batch.rss_hash(rss.key))
        return ap.DROP

    with wires(near) as (far,):
        runner = closed(ap.handle([near], note, options=ap.Options(netns=ENGINE, queues=(0, 1), port=config("copy"))))
        runner.start()
        up(near, far.name)
        received(far, runner)
        runner.stop()
        runner.join()
    assert len(seen) == 4 * FLOWS
    assert {queue for _, queue in seen} == {0, 1}
    assert [table[value % len(table)] for value, _ in seen] == [queue for _, queue in seen]
    audited(runner)


def test_steering_that_igb_does_not_have(closed: Closed) -> None:
    steering = closed(ap.Steering("i0", ENGINE))
    with pytest.raises(ap.ModeUnsupportedError, match="the driver igb steers no flows"):
        steering.add(ap.FlowRule(0, protocol=17, port=4242))
    with pytest.raises(ap.ConfigError, match="combined queues cannot be 99"):
        steering.set_channels(99)
    rings = steering.set_rings(rx=512, tx=512)
    assert (rings.rx, rings.tx) == (512, 512)
    virtio = closed(ap.Steering("v0", ENGINE))
    with pytest.raises(ap.ModeUnsupportedError, match="the driver virtio_net steers no flows"):
        virtio.add(ap.FlowRule(0, protocol=17, port=4242))


@each_nic
def test_steering_of_a_killed_process_is_put_back_by_the_next(near: str, closed: Closed) -> None:
    with_two_queues(near)
    program = (
        "import signal, afxdp_pool as ap\n"
        f"steering = ap.Steering({near!r}, {ENGINE!r})\n"
        "steering.set_channels(2); steering.spread(1); steering.set_hash('udp4', 'sdfn')\n"
        "print('set', flush=True); signal.pause()\n"
    )
    before = ap.steering_state(near, ENGINE)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "set\n"
        child.send_signal(signal.SIGKILL)
    now = ap.steering_state(near, ENGINE)
    assert now.channels != before.channels
    assert now.hash_fields["udp4"] == "sdfn"
    with closed(ap.Steering(near, ENGINE)) as steering:
        assert steering.state() == before


@each_nic
def test_steering_with_a_zero_copy_socket_on_the_queue(near: str, closed: Closed) -> None:
    """Its queue cannot be taken away; the kernel says why."""
    steering = closed(ap.Steering(with_two_queues(near), ENGINE))
    steering.set_channels(2)
    steering.spread(1)
    with ap.Umem(1024) as umem, ap.FramePool(umem) as pool:
        port = closed(ap.Port(pool, near, 1, netns=ENGINE, config=config("zero-copy")))
        with pytest.raises(ap.AfXdpError, match="AF_XDP"):
            steering.set_channels(1)
        port.close()
        umem.audit().check()


@each_nic
def test_steering_of_interrupts_queue_by_queue(near: str, closed: Closed) -> None:
    """Values of one queue's NAPI, by netlink; the device's own in sysfs stay."""
    with in_netns(ENGINE):
        before = napi.instances(near)[0].values
    path = ap.Options(netns=ENGINE, port=config("copy"), napi_defer_hard_irqs=2, gro_flush_timeout=200_000)
    runner = closed(ap.drop(near, options=path))
    with in_netns(ENGINE):
        now = napi.instances(near)[0].values
    assert (now["napi_defer_hard_irqs"], now["gro_flush_timeout"]) == (2, 200_000)
    assert tuned(near, ENGINE) == {"napi_defer_hard_irqs of queue 0": 2, "gro_flush_timeout of queue 0": 200_000}
    runner.close()
    with in_netns(ENGINE):
        assert napi.instances(near)[0].values == before
    assert tuned(near, ENGINE) == {}
