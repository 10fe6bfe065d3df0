"""Pitfalls of docs/page-pool.md that need the real kernel, by number; and ports that come and go on it."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator

import pytest
from kernel_bench import SMALL, Bench, bench_on, completed, filled, receive
from live_lab import until

import afxdp_pool as ap
from afxdp_pool.memory import AnonymousMemory
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, Sink, Source, VethPair, packets


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a")


@pytest.fixture
def bench(pair: VethPair) -> Iterator[Bench]:
    with bench_on(pair) as made:
        yield made


def test_pitfall_15_frames_written_again_at_their_completion_arrive_intact(pair: VethPair) -> None:
    """Pitfall 15: few frames, each rewritten the moment it is completed; the other end checks every packet."""
    with bench_on(pair, frames=192) as bench, Sink(pair.far) as sink:
        port = bench.port(receive=False)
        sent = 0

        def more() -> bool:
            nonlocal sent
            batch = bench.pool.alloc(16)
            for i in range(len(batch)):
                batch.write(i, packets.build(1500, seq=sent + i))
            done = port.transmit(batch)
            bench.pool.put(batch[done:])
            sent += done
            port.complete()
            return sent >= 3000

        until(more)
        completed(port, sent)
        dropped = pair.near.counters()["tx_dropped"]
        seen = sink.wait(sent - dropped)
        assert (seen.unique, seen.corrupt, seen.duplicate, seen.stale) == (sent - dropped, 0, 0, 0)


def test_a_queue_can_be_bound_again_at_once_a_hundred_times(bench: Bench) -> None:
    """Row 36: the kernel releases a closed socket's queue asynchronously; the bind is tried again."""
    source = bench.source()
    for number in range(100):
        with bench.port() as port:
            if number % 10 == 0:
                assert source.send(5).delivered == 5
                bench.pool.put(receive(port, 5))
                port.transmit(filled(bench.pool, 5))
        bench.umem.audit().check(idle=True)
    bench.pool.collect()
    assert bench.pool.outstanding == 0


def test_pitfall_10_the_link_goes_while_the_kernel_has_frames(bench: Bench) -> None:
    """Pitfall 10: what was in flight comes home when the port closes, and late puts are in order."""
    port = bench.port()
    bench.source().send(8)
    batch = receive(port, 8)
    bench.pool.ref(batch)
    port.transmit(batch)
    with in_netns(bench.pair.near.netns):
        subprocess.run(["ip", "link", "del", bench.pair.near.name], check=True)
    with pytest.raises(ap.LinkGoneError):
        port.transmit(filled(bench.pool, 1))
    bench.umem.audit().check()
    port.close()
    bench.pool.put(batch)
    bench.umem.audit().check(idle=True)


def test_pitfall_14_two_queues_of_one_netdev_over_one_umem_are_flooded(lab: Lab) -> None:
    """Pitfall 14, row 37: two sockets, two threads, two pools, one Umem; and not a frame out of place."""
    pair = lab.veth("two", queues=2)
    stop = threading.Event()
    seen: list[set[int]] = [set(), set()]
    wrong: list[str] = []

    def serve(which: int, umem: ap.Umem, port: ap.Port) -> None:
        with port.pool:
            while not stop.is_set():
                port.fill()
                batch = port.receive(32)
                if any(packets.parse(bytes(packet)) is None for packet in batch):
                    wrong.append("a spoiled packet")
                seen[which].update(batch.frames(4096))
                half = len(batch) // 2
                half = port.transmit(batch[:half])
                port.pool.put(batch[half:])
                port.complete()
            port.close()

    with ap.Umem(512) as umem:
        cpu = {cpu % 2: cpu for cpu in os.sched_getaffinity(0)}  # a CPU's packets arrive at its number's queue
        one = next(iter(cpu.values()))
        ports = [ap.Port(ap.FramePool(umem), pair.near.name, q, config=SMALL, netns=pair.near.netns) for q in (0, 1)]
        threads = [threading.Thread(target=serve, args=(which, umem, port)) for which, port in enumerate(ports)]
        with Source(pair.far, cpu=cpu.get(0, one)) as even, Source(pair.far, cpu=cpu.get(1, one)) as odd:
            for thread in threads:
                thread.start()
            for _ in range(40):
                even.send(400)
                odd.send(400)
            stop.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        for queue, port in enumerate(ports):
            stats = port.stats()
            assert stats.rx_packets > 400 or queue not in cpu
            assert (stats.rx_bad, stats.completion_bad, stats.tx_errors) == (0, 0, 0)
        umem.audit().check(idle=True)
        assert umem.free_frames == 512


class Kept(AnonymousMemory):
    """Memory that outlives the Umems on it."""

    def close(self) -> None:
        pass


def test_pitfall_18_memory_is_registered_anew_after_its_umem_was_closed(pair: VethPair) -> None:
    """Pitfall 18: the kernel kept what it knew of unmapped pages. Our part: the same memory, twice in a row."""
    memory = Kept(256 * 4096)
    for _ in range(2):
        with (
            ap.Umem(256, memory=memory) as umem,
            ap.FramePool(umem) as pool,
            ap.Port(pool, pair.near.name, netns=pair.near.netns, config=SMALL) as port,
            Source(pair.far) as source,
        ):
            source.send(20)
            batch = receive(port, 20)
            assert all(packets.parse(bytes(packet)) for packet in batch)
            pool.put(batch)
            port.close()
            umem.audit().check(idle=True)


def test_pitfall_22_a_port_that_only_sends_has_stocked_fill_when_it_is_bound(bench: Bench) -> None:
    """Pitfall 22: before anything was sent."""
    port = bench.port(receive=False)
    assert port.ring_levels()["fill"] == 32
    port.transmit(filled(bench.pool, 10))
    completed(port, 10)
    assert port.ring_levels()["fill"] == 32


def test_pitfall_27_the_kernel_has_what_was_submitted_and_not_returned(bench: Bench) -> None:
    """Pitfall 27: under a flood with a tiny RX ring, at every moment."""
    port = bench.port(rx_size=2, fill_level=16)
    source = bench.source()
    for _ in range(50):
        source.send(30)
        batch = port.receive()
        bench.pool.put(batch)
        port.fill()
        stats = port.stats()
        assert stats.fill_submitted - stats.rx_packets == bench.umem.audit().check().fill == 16
    assert port.kernel_stats().rx_ring_full > 0
