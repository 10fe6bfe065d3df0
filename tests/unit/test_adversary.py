"""Misuse that once lost a frame, read outside of memory, or hung: found by attacking the public interface."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from doorbell import Doorbell
from support import SMALL, conserved, small_port

from afxdp_pool import (
    DESC,
    DROP,
    TX,
    Batch,
    ConfigError,
    Forwarder,
    FrameGoneError,
    FramePool,
    Frames,
    FrameSizeError,
    InvalidDescriptorError,
    PoolClosedError,
    Port,
    PortConfig,
    Route,
    Template,
    Umem,
    beacon,
    drop,
)
from afxdp_pool.netdev import find
from afxdp_pool.testing import FakeKernel

# Batches -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [np.array(0), (0,), None, np.True_, np.array([[0, 1], [2, 3]])])
def test_an_index_that_gives_no_list_of_descriptors_is_refused(key: Any) -> None:
    with conserved() as umem, FramePool(umem) as pool:
        batch = pool.alloc(8)
        with pytest.raises(InvalidDescriptorError):
            batch[key]  # len() of a single descriptor is its number of fields: C read behind it
        assert pool.put(batch) == 8


def test_descriptors_without_memory_are_refused() -> None:
    with conserved() as umem, pytest.raises(InvalidDescriptorError):
        umem.put(Batch(np.empty((100000, 0), DESC), umem.data))


def test_descriptors_that_were_resized_are_refused() -> None:
    with conserved() as umem:
        batch = Batch(np.zeros(1000, DESC), umem.data)
        batch.descs.resize(1, refcheck=False)
        with pytest.raises(InvalidDescriptorError):
            umem.put(batch)


def test_alloc_writes_only_where_its_caller_can_see_it() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        fixed = bytes(16 * 8)
        every_other = Batch(np.zeros(16, DESC), umem.data)[::2]
        for out in (every_other, Batch(np.frombuffer(fixed, DESC), umem.data)):
            with pytest.raises(ConfigError):
                pool.alloc(8, out=out)
        assert fixed == bytes(16 * 8)
        assert umem.free_frames == umem.frames


# Forwarders ----------------------------------------------------------------------------------------------------------


def run_with(act: Callable[[Umem, FramePool, Port, Forwarder], object], *, tick: bool, raising: bool = False) -> None:
    """Run a forwarder whose handler, or `on_tick`, does `act`, which must not lose a frame."""
    with conserved() as umem, FramePool(umem) as pool:
        port = small_port(pool)
        kernel = FakeKernel(port)
        port.fill()
        pool.unbind()
        kernel.deliver(32)

        def handler(batch: Batch) -> int:
            if not tick:
                act(umem, pool, port, forwarder)
                if raising:
                    raise KeyError
            return TX

        def on_tick(forwarder: Forwarder) -> None:
            act(umem, pool, port, forwarder)

        with closing(Forwarder([port], handler=handler, batch=8)) as forwarder:
            forwarder.run(0.3, on_tick=on_tick if tick else None)


@pytest.mark.parametrize("tick", [False, True])
def test_a_port_closed_under_the_loop_ends_it(tick: bool) -> None:
    with pytest.raises(PoolClosedError):
        run_with(lambda umem, pool, port, forwarder: port.close(), tick=tick)


def test_a_handler_that_closes_its_port_and_raises() -> None:
    with pytest.raises(KeyError):
        run_with(lambda umem, pool, port, forwarder: port.close(), tick=False, raising=True)


@pytest.mark.parametrize("tick", [False, True])
def test_a_forwarder_is_not_run_or_closed_from_inside(tick: bool) -> None:
    with pytest.raises(ConfigError, match="running already"):
        run_with(lambda umem, pool, port, forwarder: forwarder.run(0.01), tick=tick)
    with pytest.raises(ConfigError, match="its own handler"):
        run_with(lambda umem, pool, port, forwarder: forwarder.close(), tick=tick)


@pytest.mark.parametrize("in_handler", [False, True])
def test_the_umem_is_closed_under_the_loop(in_handler: bool) -> None:
    umem = Umem(256)
    pool = FramePool(umem)
    port = small_port(pool)
    port.fill()
    pool.unbind()
    FakeKernel(port).deliver(8)

    def close(_: object) -> int:
        umem.close()
        return DROP

    with (
        closing(Forwarder([port], {0: Route(DROP)}, handler=close if in_handler else None)) as forwarder,
        pytest.raises(PoolClosedError),
    ):
        forwarder.run(0.3, on_tick=lambda _: umem.close())


def test_a_forwarder_over_a_closed_port_does_not_run() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        port = small_port(pool)
        with closing(Forwarder([port], {0: Route(DROP)})) as forwarder:
            port.close()
            with pytest.raises(PoolClosedError):
                forwarder.run(0.1)
        assert pool.owner_tid == 0


def test_closing_waits_for_a_run_in_another_thread() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        forwarder = Forwarder([small_port(pool)], {0: Route(DROP)})
        ticks = threading.Event()
        worker = threading.Thread(target=lambda: forwarder.run(on_tick=lambda _: ticks.set()))
        worker.start()
        assert ticks.wait(20)
        forwarder.close()
        assert pool.owner_tid == 0
        worker.join(20)
        assert not worker.is_alive()


def test_a_signal_between_batches_loses_none() -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(100):
            with conserved(256) as umem, FramePool(umem) as pool:
                port = small_port(pool)
                kernel = FakeKernel(port)
                port.fill()
                pool.unbind()
                kernel.deliver([b"x" * 64] * 8)

                def handler(batch: Batch, kernel: FakeKernel = kernel) -> int:
                    kernel.deliver([b"x" * 64] * 8)
                    return DROP

                def run(forwarder: Forwarder, after: float = 0.002 + turn * 1.3e-5) -> None:
                    signal.setitimer(signal.ITIMER_REAL, after)
                    forwarder.run(10)

                forwarder = Forwarder([port], handler=handler, batch=8)
                with closing(forwarder), pytest.raises(KeyboardInterrupt):
                    run(forwarder)
                port.close()
                umem.audit().check(idle=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_packets_of_a_template_cannot_change_once_they_are_checked() -> None:
    packets = [bytearray(10000)]
    template = Template(packets, sequence_at=9000)  # type: ignore[arg-type]
    packets[0] = bytearray(64)  # 9000 is outside of the frame now
    assert template.packets == (bytes(10000),)


# Frames --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["put", "transmit", "take over", "part of a part"])
def test_a_held_packet_is_not_given_away_twice_in_one_batch(how: str) -> None:
    """The second time would be somebody else's reference to the same frame."""
    with conserved() as umem, FramePool(umem) as pool, closing(small_port(pool)) as port:
        batch = pool.write([b"x" * 60] * 4)
        with batch.keep(slice(1, 2)) as other, Frames(batch) as frames:
            twice = frames[np.array([2, 1, 0, 1])]
            act: dict[str, Callable[[], object]] = {
                "put": lambda: pool.put(twice),
                "transmit": lambda: port.transmit(twice),
                "take over": lambda: Frames(twice),
                "part of a part": lambda: pool.put(frames[1:][np.array([0, 0])]),
            }
            with pytest.raises(FrameGoneError, match="twice"):
                act[how]()
            assert pool.put(frames[np.array([2, 1, 0])]) == 3
            assert other.held.all()


def test_frames_are_joined_once_and_only_frames() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        batch = pool.write([b"x" * 60] * 4)
        with batch.keep() as other, Frames(batch) as frames:
            with pytest.raises(FrameGoneError, match="twice"):
                Frames.join([frames, other, frames])
            for plain in (batch, frames[1:]):
                with pytest.raises(ConfigError, match="takes its packets over"):
                    Frames.join([other, plain])  # type: ignore[list-item]
            assert (frames.left, other.left) == (4, 4)


def test_an_event_loop_that_is_closed_under_a_task_keeps_nothing() -> None:
    with conserved() as umem, FramePool(umem) as pool, Doorbell(small_port(pool)) as kernel:
        port, loop = kernel.port, asyncio.new_event_loop()

        async def receive() -> int:
            kernel.deliver(3)
            with await port.areceive() as batch:
                return len(batch)

        async def wait() -> list[asyncio.Task[Any]]:
            tasks = [asyncio.create_task(port.areceive())]  # kept: it is there when the port is closed
            while port._waiter is None:
                await asyncio.sleep(0)
            return tasks

        kept = loop.run_until_complete(wait())
        loop.close()
        port.recycle()
        assert asyncio.run(receive()) == 3
        loop = asyncio.new_event_loop()
        kept += loop.run_until_complete(wait())
        loop.close()
        port.close()
        for task in kept:
            task._log_destroy_pending = False  # type: ignore[attr-defined]


# What others say -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [b"[" * 200_000, b"[]", b'{"ports": [1], "handler": ""}', b'{"ports": [], "handler": 5}']
)
def test_a_beacon_that_lies_is_none(text: bytes) -> None:
    head = struct.Struct("=8sII")
    with open(os.memfd_create("afxdp_pool"), "r+b") as file:
        file.write(head.pack(b"afxpool1", len(text), head.size + len(text)) + text + bytes(8))
        file.truncate(1 << 40)  # a file without blocks: nobody has that much memory
        file.flush()
        assert beacon.read(f"/proc/self/fd/{file.fileno()}") is None


# Numbers -------------------------------------------------------------------------------------------------------------


def test_numbers_that_mean_nothing_are_refused_by_a_documented_error() -> None:
    with conserved() as umem, FramePool(umem) as pool, closing(small_port(pool)) as port:
        for size in (-1, 1 << 32, 1 << 64):
            with pytest.raises(FrameSizeError):
                pool.alloc_fragments(1, size)
        for spin in (-1, 1 << 32):
            with pytest.raises(ConfigError):
                Forwarder([port], {0: Route(DROP)}, spin=spin)
        with closing(Forwarder([port], {0: Route(DROP)})) as forwarder:
            for duration, packets in ((float("nan"), None), (0.0, -1), (0.0, 1 << 64)):
                with pytest.raises(ConfigError):
                    forwarder.run(duration, packets=packets)
    with pytest.raises(ConfigError):
        PortConfig(tx_budget=-1)
    with pytest.raises(ConfigError):
        PortConfig(bind_timeout=float("nan"))  # a busy queue would be tried for ever


def test_what_is_nothing_of_the_kind_is_refused_by_its_name() -> None:
    with conserved() as umem, FramePool(umem) as pool, closing(small_port(pool)) as port:
        wrong: list[tuple[Callable[[Any], object], str]] = [
            (FramePool, "Umem"),
            (Port.in_memory, "FramePool"),
            (lambda thing: Port.in_memory(pool, thing or "x"), "PortConfig"),  # type: ignore[arg-type]
            (lambda thing: Port(pool, thing), "str"),
            (lambda thing: Forwarder([port, thing]), "Port"),
            (lambda thing: drop("nosuch0", options=thing), "Options"),
            (find, "str"),
        ]
        for make, kind in wrong:
            for thing in (None, b"x", 5):
                with pytest.raises(ConfigError, match=f"a [a-zA-Z]+ is no {kind}"):
                    make(thing)
        assert umem.free_frames == umem.frames


def test_requests_without_values_are_refused() -> None:
    """C read the values from address 0."""
    with conserved(headroom=32) as umem, FramePool(umem) as pool:
        batch = pool.write([bytes(60)])
        for ask in (batch.launch_at, batch.request_timestamps):
            with pytest.raises(TypeError):
                ask(None)  # type: ignore[arg-type]
        assert pool.put(batch) == 1


def test_a_fields_type_is_not_looked_up_among_the_batchs_arrays() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        batch = pool.write([bytes(60)])
        batch.store(0, "u1", 1, where=np.ones(1, np.bool_))
        with pytest.raises(TypeError):
            batch.load(0, "where")
        with pytest.raises(TypeError):
            batch.rss_hash(40)  # type: ignore[arg-type]  # bytes(40) are 40 zeros
        pool.put(batch)


def test_memory_without_bytes_is_refused() -> None:
    class Empty:
        buffer = np.empty((1 << 20, 0), np.uint8)
        description = "nothing"

        def close(self) -> None:
            """There is nothing to close."""

    with pytest.raises(ConfigError):
        Umem(8, memory=Empty())  # type: ignore[arg-type]


# Threads -------------------------------------------------------------------------------------------------------------


def test_a_ports_counters_can_be_read_while_it_is_closed() -> None:
    done, errors = threading.Event(), []
    ports: list[Port] = []
    interval = sys.getswitchinterval()
    with conserved() as umem, FramePool(umem) as pool:

        def read() -> None:
            try:
                while not done.is_set():
                    for port in ports[-1:]:
                        assert port.stats().fill_submitted <= 8  # of memory that was freed: anything
                        port.kernel_stats()
                        umem.holders()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=read) for _ in range(3)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for _ in itertools.repeat(None, 500):
                ports.append(Port.in_memory(pool, SMALL))
                ports[-1].fill(8)
                ports.pop().close()
        finally:
            done.set()
            sys.setswitchinterval(interval)
            for thread in threads:
                thread.join()
        assert not errors
