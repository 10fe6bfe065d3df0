"""Loops of the application's own on real packets: asyncio, poll and selectors; packets kept beyond their batch."""

from __future__ import annotations

import asyncio
import itertools
import selectors
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from live_lab import perfect, wait_for

import afxdp_pool as ap
import afxdp_pool.aio as aio
import afxdp_pool.waiting as waiting
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.traffic import Sink, Source

LIMIT = 60.0


@dataclass
class Two:
    """Two ports on one pool, and the pairs they are on."""

    umem: ap.Umem
    pool: ap.FramePool
    ports: tuple[ap.Port, ap.Port]
    pairs: tuple[VethPair, VethPair]


@contextmanager
def two_ports(lab: Lab, transmit: Any = "socket", **options: Any) -> Iterator[Two]:
    """At the end every frame must be home."""
    pairs = lab.veth("left"), lab.veth("right")
    config = ap.PortConfig(transmit=transmit, fill_level=1024, **options)
    memory = ap.BpfMemory(8192 * 4096) if transmit == "live" else None
    with ap.Umem(8192, memory=memory) as umem, ap.FramePool(umem) as pool:
        opened = [ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=config) for pair in pairs]
        try:
            yield Two(umem, pool, (opened[0], opened[1]), pairs)
            umem.audit().check()
        finally:
            for port in opened:
                port.close()
        pool.collect()
        umem.audit().check(idle=True)


def run(work: Any) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(LIMIT):
            return await work

    return asyncio.run(limited())


@pytest.mark.parametrize("transmit", ["socket", "live"])
def test_asyncio_forwards_both_ways_without_a_loss(lab: Lab, transmit: str) -> None:
    count = 5000

    async def relay(source: ap.Port, target: ap.Port) -> None:
        async for batch in source:
            await target.atransmit(batch)

    async def bring(source: Source, sink: Sink) -> None:
        """Never more under way than the rings hold, however slow this machine is today."""
        for sent in range(200, count + 1, 200):
            assert (await asyncio.to_thread(source.send, 200)).delivered == 200
            while sink.report().unique < sent:
                await asyncio.sleep(0.001)

    with two_ports(lab, transmit) as two:
        left, right = two.pairs
        first, second = two.ports

        async def work() -> None:
            tasks = [asyncio.create_task(relay(first, second)), asyncio.create_task(relay(second, first))]
            # Each far end sends, and sees what the other sent.
            with Source(left.far) as one, Source(right.far) as other, Sink(right.far) as there, Sink(left.far) as here:
                await asyncio.gather(bring(one, there), bring(other, here))
                perfect(there.report(), count)
                perfect(here.report(), count)
            for port in two.ports:
                await port.adrain()
            for task in tasks:
                task.cancel()
            assert all(
                isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*tasks, return_exceptions=True)
            )

        run(work())
        for port in two.ports:
            stats = port.stats()
            assert (stats.rx_packets, stats.tx_packets, stats.tx_completed) == (count, count, count)


def test_no_wake_up_of_a_socket_is_lost(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each packet is sent when the one before was received, by another thread; nobody looks by the clock."""
    for module, name in ((waiting, "LOOK_AGAIN"), (waiting, "HEARTBEAT"), (aio, "LOOK_AGAIN")):
        monkeypatch.setattr(module, name, 10 * LIMIT)
    rounds = 300
    with two_ports(lab) as two, Source(two.pairs[0].far) as source:
        port = two.ports[0]
        answered = threading.Semaphore(0)

        def send() -> None:
            for _ in range(rounds):
                source.send(1)
                assert answered.acquire(timeout=LIMIT)

        async def work() -> None:
            for _ in range(rounds):
                with await port.areceive() as batch:
                    assert len(batch) == 1
                answered.release()

        sender = threading.Thread(target=send)
        sender.start()
        run(work())
        sender.join()
        assert port.stats().rx_packets == rounds
        # The same by poll().
        sender = threading.Thread(target=send)
        sender.start()
        for _ in range(rounds):
            assert port.poll(LIMIT)
            assert two.pool.put(port.receive()) == 1
            answered.release()
        sender.join()


@pytest.mark.parametrize("config", [{"need_wakeup": False}, {"busy_poll_us": 20}, {"mode": "copy", "tx_budget": 0}])
def test_a_socket_of_any_kind_is_awaited_and_sends(lab: Lab, config: dict[str, Any]) -> None:
    count = 1000

    async def reflect(port: ap.Port) -> None:
        async for batch in port.packets(32):
            await port.atransmit(batch)

    with two_ports(lab, **config) as two, Sink(two.pairs[0].far) as sink, Source(two.pairs[0].far) as source:
        port = two.ports[0]

        async def work() -> None:
            task = asyncio.create_task(reflect(port))
            for sent in range(100, count + 1, 100):
                await asyncio.to_thread(source.send, 100)
                while sink.report().packets < sent:
                    await asyncio.sleep(0.001)
            await port.adrain()
            task.cancel()
            await asyncio.wait([task])

        run(work())
        perfect(sink.report(), count)
        stats = port.stats()
        assert (stats.rx_packets, stats.tx_completed) == (count, count)
        assert stats.rx_kicks > 0, "asked before each sleep: a driver that wants to be woken, or polled, is"


def test_a_task_that_is_cancelled_under_load_loses_no_frame(lab: Lab) -> None:
    async def relay(two: Two) -> None:
        async for batch in two.ports[0]:
            await two.ports[1].atransmit(batch)

    with two_ports(lab) as two, Source(two.pairs[0].far) as source:

        async def work() -> None:
            source.start(rate=50_000, seconds=LIMIT)
            for pause in itertools.cycle([0, 0, 0.001, 0.003, 0.01, 0.05]):
                task = asyncio.create_task(relay(two))
                await asyncio.sleep(pause)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                if two.ports[1].stats().tx_packets > 2000:
                    break
            await two.ports[1].adrain()

        run(work())
        source.stop()


def test_who_waits_is_told_that_the_device_is_gone(lab: Lab) -> None:
    pairs = lab.veth("one"), lab.veth("other")

    def delete(pair: VethPair) -> None:
        with in_netns(lab.engine_netns):
            subprocess.run(["ip", "link", "del", pair.near.name], check=True)

    with ap.Umem(8192) as umem, ap.FramePool(umem) as pool:
        ports = [ap.Port(pool, pair.near.name, netns=lab.engine_netns) for pair in pairs]

        async def work() -> None:
            task = asyncio.create_task(ports[0].areceive())
            await asyncio.sleep(0.05)
            delete(pairs[0])
            with pytest.raises(ap.LinkGoneError, match="open the port again"):
                await task

        run(work())
        removing = threading.Timer(0.05, delete, (pairs[1],))
        removing.start()
        with pytest.raises(ap.LinkGoneError):
            ports[1].poll(LIMIT)
        removing.join()
        for port in ports:
            port.close()
        pool.collect()
        umem.audit().check(idle=True)


def test_one_selector_serves_two_ports(lab: Lab) -> None:
    count, sent = 5000, 0
    with (
        two_ports(lab) as two,
        Source(two.pairs[0].far) as first,
        Source(two.pairs[1].far) as second,
        selectors.DefaultSelector() as selector,
    ):
        received = {port: 0 for port in two.ports}
        for port in two.ports:
            selector.register(port, selectors.EVENT_READ, port)

        def turn() -> bool:
            pause = min(port.recycle() for port in two.ports)
            for key, _ in selector.select(pause):
                received[key.data] += two.pool.put(key.data.receive())
            return set(received.values()) == {sent}

        while sent < count:
            sent += 200
            for source in (first, second):
                assert source.send(200).delivered == 200
            assert wait_for(turn)


def test_kept_packets_are_whole_while_the_rest_flows_on(lab: Lab) -> None:
    """Every tenth packet stays, is looked at when its frames' neighbours went round, and is sent last."""
    count = 5000
    kept: list[ap.Frames] = []

    def handle(batch: ap.Batch) -> Any:
        tenth = batch.load(packets.SEQUENCE_AT, ">u8") % 10 == 0
        if tenth.any():
            kept.append(batch.keep(tenth))
        return ap.FORWARD(1)

    left, right = lab.veth("left"), lab.veth("right")
    options = ap.Options(netns=lab.engine_netns)
    with (
        Sink(right.far) as sink,
        Source(left.far) as source,
        ap.handle([left.near.name, right.near.name], handle, options=options) as forwarder,
    ):
        forwarder.start()
        for sent in range(200, count + 1, 200):
            assert source.send(200).delivered == 200
            assert wait_for(lambda goal=sent: forwarder.snapshot().completed >= goal)  # type: ignore[misc]
        forwarder.stop()
        assert forwarder.join().engine.forwarded == count
        perfect(sink.wait(count), count)
        assert forwarder.audit().check().app == count // 10
        whole = ap.Frames.join(kept)
        assert whole.load(packets.SEQUENCE_AT, ">u8").tolist() == list(range(0, count, 10))
        for packet in whole:
            assert packets.parse(bytes(packet)) is not None, "corrupt"
        rest: ap.Batch = whole
        port = forwarder.ports[1]
        while len(rest):
            rest = rest[port.transmit(rest) :]
            port.complete(1024)
        again = sink.wait(count + count // 10)
        assert (again.packets, again.duplicate) == (count + count // 10, count // 10)
        assert wait_for(lambda: port.recycle() >= 0 and port.stats().tx_completed == count + count // 10)
        assert whole.left == 0
        assert forwarder.audit().check().app == 0
