"""Closing under somebody's feet, in the wrong thread or in a callback; copies; slices of what was only lent."""

from __future__ import annotations

import asyncio
import copy
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from bench import Bench, forwarding, numbered
from doorbell import Doorbell
from support import conserved, small_port, until

import afxdp_pool.forwarder as forwarder_module
from afxdp_pool import (
    DROP,
    FORWARD,
    KEEP,
    Batch,
    ConfigError,
    Forwarder,
    FrameGoneError,
    FramePool,
    Frames,
    MemoryLimitError,
    PoolClosedError,
    PoolError,
    Port,
    PortConfig,
    Route,
    SharedMemory,
    Umem,
    wait,
)
from afxdp_pool.testing import FakeKernel

SENDS = PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32, receive=False)


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


# Closed by another thread --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [None, lambda batch: DROP])
@pytest.mark.parametrize("what", ["port", "umem"])
def test_a_run_ends_before_its_port_or_umem_is_closed_by_another_thread(what: str, handler: Any) -> None:
    """The loop would read rings that are gone."""
    for _ in range(20):
        umem = Umem(256)
        pool = FramePool(umem)
        port = small_port(pool)
        port.fill()
        FakeKernel(port).deliver(16)
        pool.unbind()
        forwarder = Forwarder([port], {} if handler else {0: Route(DROP)}, handler=handler, spin=1 << 31)
        forwarder.start()
        until(lambda pool=pool: pool.owner_tid != 0)  # type: ignore[misc]
        (port if what == "port" else umem).close()
        with pytest.raises(PoolClosedError):
            forwarder.join()
        forwarder.close()
        if what == "port":
            pool.close()
            umem.audit().check(idle=True)
        umem.close()


def test_a_port_is_closed_by_several_threads_at_once() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        for _ in range(100):
            port = small_port(pool)
            port.fill()
            start = threading.Barrier(3)
            threads = [threading.Thread(target=lambda port=port, start=start: (start.wait(20), port.close()))
                       for _ in range(3)]  # fmt: skip
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            pool.collect()


def test_a_wait_ends_when_another_thread_closes_the_port() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        port, failures = small_port(pool), []
        pool.unbind()

        def poll() -> None:
            try:
                port.poll(None)
            except PoolClosedError as error:
                failures.append(error)
            pool.unbind()

        thread = threading.Thread(target=poll)
        thread.start()
        until(lambda: port._user is not None)
        port.close()
        thread.join(20)
        assert len(failures) == 1


def test_an_awaited_port_is_closed_by_another_thread() -> None:
    with conserved() as umem, FramePool(umem) as pool, Doorbell(small_port(pool)) as kernel:
        port = kernel.port

        async def receive() -> int:
            received = 0
            async for batch in port:
                received += len(batch)
            return received

        def close() -> None:
            until(lambda: port._waiter is not None)
            port.close()

        thread = threading.Thread(target=close)
        thread.start()
        assert asyncio.run(asyncio.wait_for(receive(), 20)) == 0
        thread.join()


def test_a_wait_that_nothing_could_end_is_refused() -> None:
    with conserved() as umem, FramePool(umem) as pool, closing(Port.in_memory(pool, SENDS)) as port:
        with pytest.raises(ConfigError, match="nothing would end the wait"):
            port.poll(None)
        with pytest.raises(ConfigError, match="nothing would end the wait"):
            wait([])
        assert wait([port], 0) == wait([], 0) == []


# Callbacks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["hold", "release"])
@pytest.mark.parametrize(
    "act",
    [
        lambda s: s["pool"].alloc(1),
        lambda s: s["other"].alloc(100),
        lambda s: s["other"].put(s["theirs"]),
        lambda s: s["pool"].put(s["held"]),
        lambda s: s["pool"].alloc_fragments(1, 64),
        lambda s: s["pool"].flush(),
        lambda s: s["pool"].collect(),
        lambda s: s["pool"].unbind(),
        lambda s: s["pool"].close(),
        lambda s: s["umem"].put(s["held"]),
        lambda s: s["umem"].audit(),
        lambda s: s["umem"].close(),
        lambda s: s["port"].fill(),
        lambda s: s["port"].complete(),
        lambda s: s["port"].recycle(),
        lambda s: s["port"].close(),
        lambda s: s["frames"].close(),
        lambda s: FramePool(s["umem"]),
    ],
)
def test_a_callback_moves_no_frames(act: Callable[[dict[str, Any]], object], when: str) -> None:
    """It is called under locks, half way through a call: it waited for itself, or frames were there twice."""
    refused: list[bool] = []
    with conserved() as umem:
        there: dict[str, Any] = {"umem": umem}

        def on_event(event: str, _: Any) -> None:
            if event == when and "frames" in there and not refused:
                with pytest.raises(PoolError, match="callback"):
                    act(there)
                refused.append(True)

        with FramePool(umem, on_event=on_event) as pool, FramePool(umem) as other:
            there |= {"pool": pool, "other": other, "port": small_port(pool), "theirs": other.alloc(3)}
            batch = pool.alloc(30)
            there |= {"held": batch[:10], "frames": Frames(batch[10:])}
            pool.put(pool.alloc(100))  # holds
            pool.flush()  # releases
            assert refused
            pool.put(there["held"])
            there["frames"].close()
            other.put(there["theirs"])


# Copies --------------------------------------------------------------------------------------------------------------


def test_what_owns_something_is_not_copied() -> None:
    ways: list[Callable[[Any], object]] = [copy.copy, copy.deepcopy, pickle.dumps]
    with (
        conserved() as umem,
        FramePool(umem) as pool,
        closing(small_port(pool)) as port,
        closing(Forwarder([port], {0: Route(DROP)})) as forwarder,
        Frames(pool.write([b"x" * 60])) as frames,
    ):
        for thing in (umem, pool, port, forwarder, frames, frames[:1], pool.alloc(0)):
            for way in ways:
                with pytest.raises(TypeError, match=r"cannot be copied|cannot pickle"):
                    way(thing)


# What is lent and handed over ----------------------------------------------------------------------------------------


def test_a_slice_that_is_kept_is_of_the_packets_it_was_cut_of(bench: Bench) -> None:
    """It was one of the loop's memory: a put gave back the packets of a later call, and these were lost."""
    kept: list[Batch] = []

    def handle(batch: Batch) -> Any:
        for old in kept:
            bench.pool.put(old)
        kept[:] = [batch[: len(batch) // 2], batch[len(batch) // 2 :][::-1]]
        return KEEP

    content = numbered(100)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, content)
        assert forwarder.snapshot().engine.refused == 0
    assert bytes(kept[0][0]) == content[91], "the last turn's 25 come as 16 and 9"
    assert bytes(kept[1][0]) == content[99]
    for old in kept:
        bench.pool.put(old)
    assert bench.umem.audit().check().app == 0


def test_a_slice_of_a_lent_batch_can_be_handed_over(bench: Bench) -> None:
    def handle(batch: Batch) -> Any:
        forwarder.hand_over(batch[:2], bench.ports[1])
        batch.verdicts[:2] = KEEP
        batch.verdicts[2:] = FORWARD(1)
        return batch.verdicts

    content = numbered(100)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, content)
        bench.finish(forwarder)
    assert sorted(bench.sent[1]) == sorted(content)


def test_frames_that_were_handed_over_are_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed by who had handed them over, they ended every later run, and close() half way."""
    monkeypatch.setattr(forwarder_module, "DRAIN_WITHIN", 0.0)
    with conserved() as umem, FramePool(umem) as pool:
        port = small_port(pool)
        kernel = FakeKernel(port)
        frames, batch = Frames(pool.write(numbered(3))), pool.write(numbered(2))
        with closing(Forwarder([port], {})) as forwarder:
            forwarder.hand_over(frames, port)
            with pytest.raises(FrameGoneError):
                forwarder.hand_over(frames, port)
            frames.close()
            forwarder.hand_over(batch, port)
            batch.descs["addr"] = 0
            batch.descs.shape = (2, 1)
            forwarder.run(0)
            assert kernel.send() == [*numbered(3), *numbered(2)]
            port.complete()
            left, wrong = Frames(pool.write(numbered(2))), pool.alloc(1)
            forwarder.hand_over(left, port)
            left.close()
            for nothing in (None, b"packet"):
                with pytest.raises(ConfigError, match="no batch"):
                    forwarder.hand_over(nothing, port)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="no port"):
                forwarder.hand_over(wrong, None)  # type: ignore[arg-type]
            pool.put(wrong)
            assert umem.count_states()["app"] == 2
        assert umem.count_states()["app"] == 0


# The end of the interpreter ------------------------------------------------------------------------------------------


def test_frames_that_are_held_at_the_end_of_the_program_say_nothing() -> None:
    program = """if True:
        import afxdp_pool as ap
        umem = ap.Umem(64)
        pool = ap.FramePool(umem)
        frames, frame = ap.Frames(pool.write([b"x" * 60])), ap.Frame(pool.write([b"y" * 60]))
        cycle = [frames]
        cycle.append(cycle)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""


def test_memory_that_the_machine_does_not_have_is_not_asked_for() -> None:
    """The kernel would look for it until it had killed somebody."""
    for size in (1 << 62, 1 << 50, np.int64(1 << 50)):
        with pytest.raises(MemoryLimitError, match="not so much memory"):
            SharedMemory(size)  # type: ignore[arg-type]


def test_a_command_whose_output_is_closed_does_its_work() -> None:
    command = f"{sys.executable} -m afxdp_pool.cli steer -i lo >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
