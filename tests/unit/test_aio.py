"""asyncio: every packet is awaited, none is lost, whatever is cancelled when; a kernel played by a task beside."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from bench import numbered
from doorbell import Doorbell
from support import SMALL, conserved, small_port

import afxdp_pool.aio as aio
import afxdp_pool.waiting as waiting
from afxdp_pool import (
    ConfigError,
    Frame,
    FrameGoneError,
    FramePool,
    Frames,
    InvalidDescriptorError,
    LinkGoneError,
    PoolClosedError,
    Port,
)

LIMIT = 20.0  # nothing takes that long


def run(work: Awaitable[Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(LIMIT):
            return await work

    return asyncio.run(limited())


@pytest.fixture
def pair(pool: FramePool) -> Iterator[tuple[Port, Doorbell]]:
    with Doorbell(small_port(pool), first_index=(1 << 32) - 40) as kernel:
        yield kernel.port, kernel


@pytest.fixture
def only_the_bell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks again by the clock: a wake-up that is lost is not made up for."""
    for module, name in ((waiting, "LOOK_AGAIN"), (waiting, "HEARTBEAT"), (aio, "LOOK_AGAIN")):
        monkeypatch.setattr(module, name, 10 * LIMIT)


async def deliver(kernel: Doorbell, packets: list[bytes], pause: Callable[[], float] = lambda: 0) -> None:
    """Bring packets as there is room for them."""
    at = 0
    while at < len(packets):
        at += kernel.deliver(packets[at : at + min(random.randint(1, 20), kernel.filled())])
        await asyncio.sleep(pause())


# Receiving -----------------------------------------------------------------------------------------------------------


def test_every_packet_is_awaited_in_order(pair: tuple[Port, Doorbell], pool: FramePool, only_the_bell: None) -> None:
    port, kernel = pair
    content = numbered(1000)
    seen: list[bytes] = []

    async def work() -> None:
        port.recycle()
        bringing = asyncio.create_task(deliver(kernel, content))
        async for batch in port.packets(16):
            assert isinstance(batch, Frames)
            assert batch.port is port
            seen.extend(bytes(packet) for packet in batch)
            if len(seen) == len(content):
                break
        await bringing

    run(work())
    assert seen == content
    assert pool.umem.audit().check().app > 0, "the last batch is lent still"
    port.close()
    assert pool.umem.audit().check().app == 0


def test_a_batch_is_given_back_when_the_next_is_asked_for(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, kernel = pair
    kept: list[Any] = []

    async def work() -> None:
        port.recycle()
        kernel.deliver(numbered(3))
        async for batch in port:
            kept.append((batch, batch.keep(0)))
            if len(kept) == 2:
                break
            kernel.deliver(numbered(3))
        port._take_back()
        await port.areceive()  # no packet comes

    with pytest.raises(TimeoutError):
        asyncio.run(asyncio.wait_for(work(), 0.05))
    for batch, frame in kept:
        with pytest.raises(FrameGoneError, match="were given back"):
            batch.five_tuple()
        assert bytes(frame) == numbered(1)[0]
        frame.close()
    assert pool.umem.audit().check().app == 0


def test_what_was_sent_put_or_moved_is_not_given_back_again(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, kernel = pair
    moved: list[Frames] = []

    async def work() -> None:
        port.recycle()
        kernel.deliver(numbered(10))
        async for batch in port:
            port.transmit(batch[:3])
            assert await port.atransmit(batch[3:5]) == 2
            pool.put(batch[5:6])
            moved.append(Frames(batch[6:8]))
            if len(moved) == 2:
                break
            kernel.deliver(numbered(10))
        assert len(kernel.send()) == 10
        await port.adrain()

    run(work())
    port.close()
    assert sum(frames.left for frames in moved) == pool.umem.audit().check().app == 4
    for frames in moved:
        frames.close()


def test_areceive_gives_the_packets_to_its_caller(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, kernel = pair

    async def work() -> None:
        port.recycle()
        asyncio.get_running_loop().call_later(0.01, kernel.deliver, numbered(5))
        with await port.areceive(2) as batch:
            assert [bytes(packet) for packet in batch] == numbered(2)
        batch = await port.areceive()
        assert pool.put(batch) == 3
        assert batch.left == 0

    run(work())
    assert pool.umem.audit().check().app == 0


def test_packets_that_nobody_took_from_a_task_give_themselves_back(pair: tuple[Port, Doorbell]) -> None:
    port, kernel = pair

    async def work() -> None:
        port.recycle()
        kernel.deliver(numbered(5))
        task = asyncio.create_task(port.areceive())
        while not task.done():
            await asyncio.sleep(0)
        del task
        gc.collect()

    with pytest.warns(ResourceWarning, match="5 packets forgotten"):
        run(work())
    assert port.pool.umem.audit().check().app == 0


def test_a_port_that_is_closed_ends_the_loop_and_whoever_waits(pair: tuple[Port, Doorbell]) -> None:
    port, kernel = pair

    async def loop() -> int:
        return sum([len(batch) async for batch in port])

    async def work() -> None:
        task = asyncio.create_task(loop())
        port.recycle()
        kernel.deliver(7)
        while port._waiter is None or port.stats().rx_packets < 7:
            await asyncio.sleep(0)
        port.close()
        assert await task == 7
        assert await loop() == 0
        with pytest.raises(PoolClosedError):
            await port.areceive()
        with pytest.raises(PoolClosedError):
            await port.atransmit(Frames(port.pool.alloc(1), lent=True))
        await port.adrain()

    run(work())


def test_one_task_at_a_time_waits_for_a_port(pair: tuple[Port, Doorbell]) -> None:
    port, kernel = pair

    async def work() -> None:
        first = asyncio.create_task(port.areceive())
        while port._waiter is None:
            await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="another task waits"):
            await port.areceive()
        kernel.deliver(1)
        (await first).close()

    run(work())


def test_a_wait_that_ends_leaves_the_next_one_alone(
    pair: tuple[Port, Doorbell], only_the_bell: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, kernel = pair
    monkeypatch.setattr(aio, "TURN", LIMIT)  # the second task lets nobody run before it waits

    async def work() -> None:
        first = asyncio.create_task(port.areceive())
        while port._waiter is None:
            await asyncio.sleep(0)
        second = asyncio.create_task(port.areceive())
        port._waiter[0]()  # as its timer does; the second task comes first now
        with pytest.raises(ConfigError):
            await first
        kernel.deliver(1)
        (await second).close()

    run(work())


def test_a_port_that_only_sends_has_no_packets(pool: FramePool) -> None:
    port = small_port(pool, replace(SMALL, receive=False))
    with pytest.raises(ConfigError, match="only sends"):
        run(port.areceive())
    other = small_port(pool, replace(SMALL, transmit=False))
    batch = pool.alloc(1)
    with pytest.raises(ConfigError, match="does not send"):
        run(other.atransmit(batch))
    pool.put(batch)


def test_who_never_waits_lets_others_run_and_can_be_cancelled(pair: tuple[Port, Doorbell]) -> None:
    port, kernel = pair
    turns = 0

    async def flooded() -> None:
        nonlocal turns
        async for _ in port.packets(4):
            turns += 1
            port.fill()
            kernel.deliver(4)

    async def work() -> None:
        port.recycle()
        kernel.deliver(8)
        task = asyncio.create_task(flooded())
        for _ in range(5):
            await asyncio.sleep(0.002)
        before = turns
        await asyncio.sleep(0.002)
        assert turns > before > 5
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(work())


# Sending -------------------------------------------------------------------------------------------------------------


def test_sending_waits_for_room(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, kernel = pair
    content = numbered(300)
    out: list[bytes] = []

    async def send() -> None:
        batch = pool.alloc(300)
        for i, packet in enumerate(content):
            batch.write(i, packet)
        assert await port.atransmit(batch) == 300

    async def take() -> None:
        while len(out) < 300:
            out.extend(kernel.send(7))
            await asyncio.sleep(0)

    async def work() -> None:
        await asyncio.gather(send(), take())
        await port.adrain()

    run(work())
    assert out == content
    assert port.stats().tx_completed == 300


def test_completions_are_taken_while_the_loop_does_other_things(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, kernel = pair

    async def work() -> None:
        frame = Frame(pool.alloc(1))
        frame.write(b"x" * 60)
        await port.atransmit(frame)
        assert frame.closed
        assert await port.atransmit(pool.alloc(0)) == 0
        assert kernel.waiting() == 1
        await asyncio.sleep(0.005)
        kernel.send()
        while port.stats().tx_completed < 1:
            await asyncio.sleep(0.001)

    run(work())


def test_an_error_gives_back_what_did_not_go(pair: tuple[Port, Doorbell], pool: FramePool) -> None:
    port, kernel = pair

    async def work() -> None:
        batch = pool.alloc(5)
        batch.len[:] = 60
        batch.len[3] = 0
        with pytest.raises(InvalidDescriptorError) as refused:
            await port.atransmit(batch)
        assert refused.value.done == 3
        assert pool.umem.audit().check().app == 0
        assert len(kernel.send()) == 3
        await port.adrain()
        with pytest.raises(FrameGoneError):
            await port.atransmit(batch)

    run(work())


def test_leaving_the_block_waits_for_what_is_under_way(pool: FramePool) -> None:
    async def work() -> None:
        with Doorbell(small_port(pool)) as kernel:
            async with kernel.port as port:
                batch = pool.alloc(3)
                batch.len[:] = 60
                await port.atransmit(batch)
                asyncio.get_running_loop().call_later(0.02, kernel.send)
            assert port.closed
            assert port.stats().tx_completed == 3
            assert port.stats().tx_reclaimed == 0

    run(work())


def test_a_link_that_is_gone_is_said_to_who_waits(pair: tuple[Port, Doorbell], monkeypatch: pytest.MonkeyPatch) -> None:
    port, _ = pair
    times = iter([0.001, 0.001])

    def recycle() -> float:
        for pause in times:
            return pause
        raise LinkGoneError("gone")

    monkeypatch.setattr(port, "recycle", recycle)
    with pytest.raises(LinkGoneError):
        run(port.areceive())
    assert port._waiter is None


# Several ports, and cancelling ---------------------------------------------------------------------------------------


async def relay(source: Port, target: Port) -> None:
    async for batch in source:
        odd = batch.load(57, "u1") % 2 == 1
        await target.atransmit(batch[odd])


async def consume(kernel: Doorbell, out: list[bytes]) -> None:
    while True:
        out.extend(kernel.send(random.randint(1, 30)))
        await asyncio.sleep(0)


def test_two_ports_relay_to_each_other_in_one_loop(pool: FramePool) -> None:
    content = numbered(500)
    wanted = [packet for packet in content if packet[57] % 2]
    sent: list[list[bytes]] = [[], []]

    async def work() -> None:
        with Doorbell(small_port(pool)) as left, Doorbell(small_port(pool)) as right:
            ports = left.port, right.port
            for port in ports:
                port.recycle()
            tasks = [
                asyncio.create_task(one)
                for one in (relay(*ports), relay(*ports[::-1]), consume(left, sent[0]), consume(right, sent[1]))
            ]
            await asyncio.gather(deliver(left, content), deliver(right, content))
            while any(len(out) < len(wanted) for out in sent):
                await asyncio.sleep(0.001)
            for port in ports:
                await port.adrain()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    run(work())
    assert sent == [wanted, wanted]
    assert pool.umem.audit().check(idle=True)


@pytest.mark.parametrize("seed", range(30))
def test_a_task_is_cancelled_anywhere_and_no_frame_is_lost(seed: int) -> None:
    chance = random.Random(seed)
    random.seed(seed)

    async def work(pool: FramePool) -> None:
        with Doorbell(small_port(pool)) as left, Doorbell(small_port(pool, replace(SMALL, tx_size=16))) as right:
            sent: list[bytes] = []
            bringing = asyncio.create_task(deliver(left, numbered(400), lambda: chance.choice([0, 0, 0.0005])))
            slow = asyncio.create_task(consume(right, sent))
            for _ in range(12):
                task = asyncio.create_task(relay(left.port, right.port))
                for _ in range(chance.randint(0, 12)):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                left.port._take_back()
                assert pool.umem.audit().check().app == 0
            for other in (bringing, slow):
                other.cancel()
            await asyncio.gather(bringing, slow, return_exceptions=True)
            assert sent == [packet for packet in sent if packet[57] % 2]

    with conserved() as umem, FramePool(umem) as pool:
        run(work(pool))


@pytest.mark.parametrize("seed", range(10))
def test_no_wake_up_is_lost(seed: int, pool: FramePool, only_the_bell: None) -> None:
    """One packet at a time, each only when the last was received: one lost wake-up, and nothing happens any more."""
    chance = random.Random(seed)
    with Doorbell(small_port(pool)) as kernel:
        port = kernel.port

        async def bring(received: asyncio.Event) -> None:
            for packet in numbered(200):
                for _ in range(chance.choice([0, 0, 1, 2, 5])):
                    await asyncio.sleep(0)
                kernel.deliver([packet])
                await received.wait()
                received.clear()

        async def work() -> None:
            received = asyncio.Event()
            port.recycle()
            bringing = asyncio.create_task(bring(received))
            for _ in range(200):
                with await port.areceive() as batch:
                    assert len(batch) == 1
                received.set()
                for _ in range(chance.choice([0, 0, 1, 2, 5])):
                    await asyncio.sleep(0)
            await bringing

        run(work())
