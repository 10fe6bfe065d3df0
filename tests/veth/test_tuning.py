"""What is set beside the sockets, on real devices: NAPI values and their restoring, busy polling, sleeping."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest
from live_lab import audited, perfect, wait_for
from test_forwarding import options

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.traffic import Sink, Source
from afxdp_pool.tuning import tuned, untune

DEFER = {"napi_defer_hard_irqs": 2, "gro_flush_timeout": 200_000}


def test_napi_values_are_set_while_a_path_is_open_and_put_back(lab: Lab) -> None:
    pair = lab.veth("a")
    place = pair.near.name, lab.engine_netns
    with ap.Napi(*place, gro_flush_timeout=1000):
        runner = ap.drop(pair.near.name, options=options(lab, threaded_napi=True, **DEFER))
        assert tuned(*place) == {"threaded": 1, **DEFER}
        assert tuned(pair.far.name, lab.traffic_netns) == {}, "the other namespace's device is another one"
        with Source(pair.far) as source:
            runner.start()
            for total in range(50, 1001, 50):
                source.send(50)
                assert wait_for(lambda goal=total: runner.snapshot().received >= goal)  # type: ignore[misc]
            runner.stop()
            runner.join()
        audited(runner)
        assert tuned(*place) == {"gro_flush_timeout": 1000}
    assert tuned(*place) == {}


def test_what_fails_half_way_leaves_nothing_set(lab: Lab) -> None:
    pair = lab.veth("a")
    place = pair.near.name, lab.engine_netns
    with pytest.raises(ap.ModeUnsupportedError, match="setting threaded to 1 failed"):
        ap.Napi(*place, gro_flush_timeout=5, threaded=True)  # no XDP program: no NAPI
    assert tuned(*place) == {}
    with (
        ap.drop(pair.near.name, options=options(lab, cpus=(99_999,), threaded_napi=True, **DEFER)) as runner,
        pytest.raises(ap.ConfigError, match="pinning a-near queue 0"),
    ):
        runner.run(0.1)
    assert tuned(*place) == {}


def test_values_that_somebody_changed_meanwhile_are_left_and_said(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    place = lab.veth("a").near.name, lab.engine_netns
    ours = ap.Napi(*place, gro_flush_timeout=77)
    theirs = ap.Napi(*place, gro_flush_timeout=88)
    ours.close()
    assert tuned(*place) == {"gro_flush_timeout": 88}, "the last one's, as long as it is open"
    subprocess.run(untune(*place, "gro_flush_timeout").replace("echo 0", "echo 99"), shell=True, check=True)
    with caplog.at_level(logging.WARNING, "afxdp_pool"):
        theirs.close()
    theirs.close()
    assert "gro_flush_timeout was set to 99 meanwhile" in caplog.text
    assert tuned(*place) == {"gro_flush_timeout": 99}


def test_a_device_that_is_not_there_or_goes_away(lab: Lab) -> None:
    from pyroute2 import IPRoute

    from afxdp_pool.netdev import in_netns

    with pytest.raises(ap.NoSuchInterfaceError, match=r"nonesuch in namespace .*: there is no such interface"):
        ap.Napi("nonesuch", lab.engine_netns, gro_flush_timeout=1)
    with pytest.raises(ap.NoSuchNamespaceError):
        ap.Napi("lo", "no-such-namespace", gro_flush_timeout=1)
    pair = lab.veth("a")
    with ap.Napi(pair.near.name, lab.engine_netns, gro_flush_timeout=77), in_netns(lab.engine_netns), IPRoute() as ip:
        ip.link("del", index=pair.near.ifindex)
    assert tuned(pair.near.name, lab.engine_netns) == {}


def ends(lab: Lab, pair: VethPair, end: str, opens: str = "ap.Napi(*place, gro_flush_timeout=4321)") -> None:
    """A process that changes the device, and ends so."""
    program = f"import os, sys, afxdp_pool as ap\nplace = sys.argv[1:]\nkept = {opens}\n{end}\n"
    subprocess.run([sys.executable, "-c", program, pair.near.name, lab.engine_netns], timeout=20, check=False)


def told(lab: Lab, pair: VethPair, name: str) -> str:
    """What a command says of the device."""
    command = [sys.executable, "-m", "afxdp_pool.cli", name, "-i", pair.near.name, "--netns", lab.engine_netns]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout


KILLED = "os.kill(os.getpid(), 9)"


def test_what_a_killed_process_leaves_is_told_by_doctor_and_put_back_by_clean(lab: Lab) -> None:
    pair = lab.veth("a")
    place = pair.near.name, lab.engine_netns
    ends(lab, pair, KILLED)
    assert tuned(*place) == {"gro_flush_timeout": 4321}
    said = told(lab, pair, "doctor")
    assert "gro_flush_timeout is 4321, and was 0: left by a killed process" in said
    fix = next(line.split("-> ")[1] for line in said.splitlines() if "-> afxdp-pool clean" in line)
    assert fix == f"afxdp-pool clean -i {pair.near.name} --netns {lab.engine_netns}"
    assert "put gro_flush_timeout back to 0, left at 4321 by process" in told(lab, pair, "clean")
    assert tuned(*place) == {}
    with ap.Napi(*place, gro_flush_timeout=5):
        said = told(lab, pair, "clean")
        assert "nothing was left behind" in said
        assert "gro_flush_timeout is 5: process" in said
        assert tuned(*place) == {"gro_flush_timeout": 5}


def test_what_nobody_says_is_his_is_told_with_the_command_against_it(lab: Lab) -> None:
    pair = lab.veth("a")
    place = pair.near.name, lab.engine_netns
    subprocess.run(untune(*place, "gro_flush_timeout").replace("echo 0", "echo 99"), shell=True, check=True)
    for name in ("doctor", "clean"):
        said = told(lab, pair, name)
        assert "gro_flush_timeout is 99" in said
    fix = next(line.split("-> ")[1] for line in said.splitlines() if "-> " in line)
    subprocess.run(fix, shell=True, check=True)
    assert tuned(*place) == {}


def test_what_a_killed_process_leaves_is_put_back_by_the_next_start(lab: Lab) -> None:
    """Threaded NAPI among it, which a veth takes back only when it has an XDP program again."""
    pair = lab.veth("a")
    place = pair.near.name, lab.engine_netns
    opens = "ap.drop(place[0], options=ap.Options(netns=place[1], threaded_napi=True, gro_flush_timeout=7))"
    ends(lab, pair, KILLED, opens)
    assert tuned(*place) == {"threaded": 1, "gro_flush_timeout": 7}
    assert "it goes back when a port is opened there" in told(lab, pair, "clean")
    assert wait_for(lambda: tuned(*place) == {"threaded": 1})
    with ap.drop(pair.near.name, options=options(lab)):
        assert tuned(*place) == {}


def test_it_is_put_back_when_nobody_closes_it_and_not_by_a_forked_child(lab: Lab) -> None:
    pair = lab.veth("a")
    place = pair.near.name, lab.engine_netns
    child = "if os.fork() == 0: kept.close(); os._exit(0)\nos.wait()\n"
    ends(lab, pair, child + KILLED)
    assert tuned(*place) == {"gro_flush_timeout": 4321}, "by the parent, and still there when the child had closed it"
    ends(lab, pair, child + "sys.exit(3)")
    assert tuned(*place) == {}


@pytest.mark.parametrize("napi", [{}, DEFER], ids=["alone", "interrupts deferred"])
def test_busy_polling_moves_packets_by_the_workers_own_calls(lab: Lab, napi: dict[str, int]) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    port = ap.PortConfig(busy_poll_us=20, busy_poll_budget=32)
    runner = ap.forward(left.near.name, right.near.name, options=options(lab, port=port, **napi))
    with Sink(right.far) as sink, Source(left.far, flows=4) as source:
        runner.start()
        for total in range(200, 10_001, 200):
            source.send(200)
            assert wait_for(lambda goal=total: runner.snapshot().completed >= goal)  # type: ignore[misc]
        seen = sink.wait(10_000)
        runner.stop()
        result = runner.join()
    perfect(seen, 10_000)
    receiving = result.ports[0].stats
    assert receiving.rx_kicks >= result.engine.idle_rounds > 0, "a call in every round that finds no packet"
    audited(runner)


def test_busy_polling_without_the_privilege_is_refused_with_a_hint(lab: Lab) -> None:
    """A thread that gives up CAP_NET_ADMIN: the kernel refuses SO_PREFER_BUSY_POLL and nothing else."""
    pair = lab.veth("a")
    with ap.Umem(4096) as umem, ap.FramePool(umem) as pool:
        config = ap.PortConfig(receive=False, transmit="socket", busy_poll_us=20)
        bind = partial(ap.Port, pool, pair.near.name, netns=lab.engine_netns, config=config)
        error = _without_net_admin(bind)
        umem.audit().check()
    if error is None:
        pytest.skip("this kernel lets anybody set SO_PREFER_BUSY_POLL")
    assert isinstance(error, ap.PrivilegeError)
    assert "turning busy polling on failed" in str(error)
    assert "busy_poll_us at 0" in error.hint


def _without_net_admin(call: Callable[[], ap.Port]) -> BaseException | None:
    import ctypes
    import struct

    failure: list[BaseException] = []

    def work() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        header = struct.pack("=II", 0x20080522, 0)
        data = ctypes.create_string_buffer(24)
        assert libc.capget(header, data) == 0
        words = list(struct.unpack("=6I", data.raw))
        words[0] &= ~(1 << 12)  # effective, CAP_NET_ADMIN
        assert libc.capset(header, struct.pack("=6I", *words)) == 0
        try:
            call().close()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return failure[0] if failure else None


# Idle ---------------------------------------------------------------------------------------------------------------


def cpu_ns(thread: int) -> int:
    """CPU time of a thread of this process, from the scheduler, in ns."""
    with open(f"/proc/self/task/{thread}/schedstat") as file:
        return int(file.read().split()[0])


def test_an_idle_worker_sleeps_and_one_packet_costs_one_wake_up(lab: Lab) -> None:
    """Without traffic a worker does nothing but sleep until its next look at signals, ten times a second; a packet ends
    the sleep, and is received in the round after it."""
    pair = lab.veth("a")
    runner = ap.drop(pair.near.name, options=options(lab))
    with Source(pair.far) as source:
        runner.start()
        source.send(1)
        assert wait_for(lambda: runner.snapshot().received == 1)
        for number in range(2, 22):
            slept = runner.snapshot().engine.sleeps
            assert wait_for(lambda before=slept: runner.snapshot().engine.sleeps > before)  # type: ignore[misc]
            before = runner.snapshot().engine
            source.send(1)
            assert wait_for(lambda goal=number: runner.snapshot().received == goal)  # type: ignore[misc]
            after = runner.snapshot().engine
            # One wake-up for the packet, and perhaps the deadline's; what spins after it are idle rounds, not sleeps.
            assert after.sleeps - before.sleeps <= 2
            assert after.rounds - after.idle_rounds == number, "received in the first round after the wake-up"
        runner.stop()
        runner.join()
    audited(runner)


def test_an_idle_worker_takes_less_than_a_hundredth_of_a_core(lab: Lab) -> None:
    """By what it does, not by the clock: a look at its signals is at most 1 + spin rounds, ten times a second."""
    pair = lab.veth("a")
    runner = ap.drop(pair.near.name, options=options(lab, spin=64))
    assert isinstance(runner, ap.Forwarder)
    runner.start()
    assert wait_for(lambda: runner.snapshot().engine.sleeps > 0)
    assert runner._thread is not None
    assert runner._thread.native_id is not None
    first, started, used = runner.snapshot().engine, time.monotonic(), cpu_ns(runner._thread.native_id)
    assert wait_for(lambda: runner.snapshot().engine.sleeps >= first.sleeps + 20)
    last, took, used = runner.snapshot().engine, time.monotonic() - started, cpu_ns(runner._thread.native_id) - used
    runner.stop()
    runner.join()
    slices = took / 0.1 + 1
    assert last.sleeps - first.sleeps <= 2 * slices, "it sleeps through each slice, once"
    assert last.rounds - first.rounds <= 4 * slices, "and does nothing between"
    assert used < 0.01 * took * 1e9
    audited(runner)
