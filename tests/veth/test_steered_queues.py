"""Steering of a device that has little of it, real all the same: the number of veth's queues, and its refusals."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from live_lab import audited, options, wait_for

import afxdp_pool as ap
from afxdp_pool.ethtool import Channels
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Source


def test_fewer_queues_while_it_is_open(lab: Lab) -> None:
    pair = lab.veth("a", queues=4)
    place = pair.near.name, lab.engine_netns
    # veth takes XDP only on an end with as many receiving queues as its peer has sending ones.
    with ap.Steering(pair.far.name, lab.traffic_netns) as far, ap.Steering(*place) as steering:
        far.set_channels(tx=2)
        now = steering.set_channels(rx=2, tx=2)
        assert (now.rx, now.tx, now.most_rx) == (2, 2, 4)
        runner = ap.drop(pair.near.name, options=replace(options(lab), queues="all", workers="queues"))
        assert [port.queue for port in runner.ports] == [0, 1]
        with Source(pair.far, cpu=0) as source:
            runner.start()
            source.send(500)
            assert wait_for(lambda: runner.snapshot().received == 500)
            runner.stop()
            runner.join()
        audited(runner)
    after = ap.steering_state(*place).channels
    assert after is not None
    assert (after.rx, after.tx) == (4, 4)


def test_all_queues_of_devices_that_differ(lab: Lab) -> None:
    left, right = lab.veth("left", queues=2), lab.veth("right")
    every = replace(options(lab), queues="all", workers="queues")
    with pytest.raises(ap.ConfigError, match="devices that differ: left-near has 2, right-near has 1; name the queues"):
        ap.forward(left.near.name, right.near.name, both_ways=True, options=every)
    with pytest.raises(ap.QueueRangeError, match=r"right-near in namespace .*: there is no queue 1"):
        ap.forward(left.near.name, right.near.name, options=every)
    with ap.forward(right.near.name, left.near.name, options=every) as runner:
        assert [(port.netdev, port.queue) for port in runner.ports] == [("right-near", 0), ("left-near", 0)]
    with ap.handle([left.near.name], lambda _: ap.DROP, options=every) as runner:
        assert [port.queue for port in runner.ports] == [0, 1]


def test_what_veth_does_not_have_is_refused_in_words(lab: Lab) -> None:
    pair = lab.veth("a", queues=2)
    with ap.Steering(pair.near.name, lab.engine_netns) as steering:
        for call, lack in (
            (lambda: steering.spread(1), "has no table to set"),
            (lambda: steering.set_rings(rx=512), "has rings of a fixed size"),
            (lambda: steering.set_hash("udp4", "sdfn"), "does not let the hash's fields be chosen"),
            (lambda: steering.add(ap.FlowRule(1, protocol=17, port=9)), "steers no flows"),
        ):
            with pytest.raises(ap.ModeUnsupportedError, match=f"the driver veth {lack}"):
                call()


def test_the_command_keeps_and_puts_back(lab: Lab) -> None:
    pair = lab.veth("a", queues=4)
    place = ["-i", pair.near.name, "--netns", lab.engine_netns]
    steer = [sys.executable, "-m", "afxdp_pool.cli", "steer", *place]

    def call(*arguments: str) -> str:
        done = subprocess.run([*steer, *arguments], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("--rx-channels", "2") == "a-near: queues: 2 rx\n"
    with ap.Steering(pair.near.name, lab.engine_netns) as steering:  # it does not take it for a dead process's
        assert steering.state().channels == Channels(2, 4, 0, 4, 4, 0)
    assert "3 rx (of 4)" in call("--rx-channels", "3", "--", *steer), "while the command runs"
    assert "2 rx (of 4)" in call()
    assert call("--restore").startswith("a-near: put channels back to {'rx': 4")
    now = ap.steering_state(pair.near.name, lab.engine_netns).channels
    assert now == Channels(4, 4, 0, 4, 4, 0)
