"""Pitfalls of docs/page-pool.md, by number: those about rings, what the kernel does with them, and closing.

`FakeKernel` plays the kernel, of whatever version is meant. On the real one: tests/veth/test_kernel_facts.py.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from support import SMALL, conserved, small_port

from afxdp_pool import (
    Batch,
    DoubleFreeError,
    FramePool,
    InvalidDescriptorError,
    PoolClosedError,
    PoolError,
    PortConfig,
    Umem,
)
from afxdp_pool.memory import AnonymousMemory
from afxdp_pool.testing.rings import FakeKernel


def packets(pool: FramePool, n: int) -> Batch:
    batch = pool.alloc(n)
    batch.len[:] = 64
    return batch


# Closing ------------------------------------------------------------------------------------------------------------


def test_pitfall_10_after_port_and_umem_are_closed_a_late_put_touches_nothing() -> None:
    """Pitfall 10: pages were unmapped after their device was gone (ee62ce7a1d90)."""
    umem = Umem(256)
    pool = FramePool(umem)
    port = small_port(pool)
    kernel = FakeKernel(port)
    port.fill()
    kernel.deliver(8)
    received, sent = port.receive(), packets(pool, 4)
    pool.ref(sent)
    port.transmit(sent)
    port.close()
    assert pool.put(sent) == 4, "the application's references are its own, port or no port"
    assert pool.put(received[:4]) == 4
    umem.audit().check()
    content = bytes(received[5])
    umem.close()
    for batch in (received[4:], sent):
        with pytest.raises(PoolClosedError):
            umem.put(batch)
    assert bytes(received[5]) == content


def test_pitfall_11_forced_reclaim_races_with_puts_and_completions(umem: Umem, pool: FramePool) -> None:
    """Pitfall 11: a forced reclaim raced with returns, and freed buffers twice (003049b1c4fb)."""
    for _ in range(40):
        first, second = small_port(pool), small_port(pool)
        kernel = FakeKernel(second)
        first.fill()
        batch = packets(pool, 60)
        pool.ref(batch)
        pool.ref(batch)
        assert first.transmit(batch) == second.transmit(batch) == 60
        together = threading.Barrier(5)

        def at_once(call: Callable[[], object], together: threading.Barrier = together) -> None:
            together.wait()
            call()

        threads = [
            threading.Thread(target=at_once, args=(call,))
            for call in (first.close, *(partial(pool.put, batch[i : i + 20]) for i in (0, 20, 40)))
        ]
        for thread in threads:
            thread.start()
        kernel.send()
        together.wait()
        while second.complete(5):
            pass
        for thread in threads:
            thread.join()
        pool.collect()
        assert (pool.outstanding, pool.stats().late_refused) == (0, 0)
        umem.audit().check(idle=True)
        second.close()
        everything = pool.alloc(513)
        assert len(everything) == len(set(everything.addr.tolist())) == 512
        pool.put(everything)


class Watched(AnonymousMemory):
    """Memory that looks around when it is let go."""

    watch: Callable[[], None] = staticmethod(lambda: None)

    def close(self) -> None:
        self.watch()
        super().close()


def test_pitfall_21_a_umem_closes_rings_first_then_pools_then_memory() -> None:
    """Pitfall 21: a driver unmapped memory before its rings were quiet (gve)."""
    seen: list[str] = []
    memory = Watched(256 * 4096)
    umem = Umem(256, memory=memory)
    pool = FramePool(umem)
    port = small_port(pool)
    kernel = FakeKernel(port)
    port.fill()
    kernel.deliver(3)
    port.transmit(packets(pool, 5))
    kernel.take_tx(2)
    memory.watch = lambda: seen.append(f"{port!r}, {pool.state}, {port.stats().tx_reclaimed}")
    umem.close()
    assert seen == ["<Port memory queue 0, closed>, closed, 5"]
    assert port.stats().fill_reclaimed == 32


# FILL and RX --------------------------------------------------------------------------------------------------------


def test_pitfall_12_no_frame_is_in_a_fill_ring_twice(umem: Umem, pool: FramePool) -> None:
    """Pitfall 12: the same chunk several times in FILL was freed twice by the kernel."""
    ports = [small_port(pool), small_port(pool)]
    kernels = [FakeKernel(port) for port in ports]
    held = packets(pool, 400)
    assert [port.fill(64) for port in ports] == [64, 48], "what is held, or filled already, is not filled"
    addresses = [addr for kernel in kernels for addr in kernel.take_fill()]
    assert len(set(addresses)) == 112
    assert not set(addresses) & set(held.addr.tolist())
    stolen = held[:1].copy()
    stolen.addr[0] = addresses[0]
    for gen in range(1, 5):
        stolen.descs["gen"] = gen
        for call in (pool.put, pool.ref, ports[0].transmit):
            with pytest.raises(DoubleFreeError):
                call(stolen)
    for _ in range(3):  # and a kernel that has it twice
        kernels[0].push_rx(addresses[0] + 256, 60)
    batch = ports[0].receive()
    assert (len(batch), ports[0].stats().rx_bad) == (1, 2)
    pool.put(batch)
    pool.put(held)


def test_pitfall_13_a_full_rx_ring_loses_packets_not_frames(umem: Umem, pool: FramePool) -> None:
    """Pitfall 13: a driver leaked the buffer when RX was full (CVE-2024-35834)."""
    port = small_port(pool, replace(SMALL, rx_size=4))
    kernel = FakeKernel(port)
    for number in range(1, 30):
        port.fill()
        assert kernel.deliver(30) == 4
        assert kernel.rx_ring_full == 26 * number
        assert umem.audit().check().fill == 32
        assert pool.put(port.receive()) == 4


def test_pitfall_14_ports_on_one_umem_are_flooded_by_different_threads(umem: Umem) -> None:
    """Pitfall 14: sockets on one UMEM raced for its one FILL ring (a1356ac7749c). Here each port has its own."""
    seen = [0, 0]

    def flood(which: int) -> None:
        with FramePool(umem) as pool, small_port(pool) as port:
            kernel = FakeKernel(port)
            for _ in range(200):
                port.fill()
                kernel.deliver([bytes([which]) * 60] * 32)
                batch = port.receive()
                seen[which] += sum(packet[0] == which for packet in batch)
                port.transmit(batch[::2])
                pool.put(batch[1::2])
                kernel.send()
                port.complete()

    threads = [threading.Thread(target=flood, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [6400, 6400]
    assert umem.audit().check(idle=True).umem == 512


def test_pitfall_22_a_port_that_only_sends_has_frames_in_fill(pool: FramePool) -> None:
    """Pitfall 22: some drivers stall when the FILL ring of a socket that only sends is empty."""
    config = PortConfig(receive=False)
    assert 0 < config.frames_needed <= 128
    with small_port(pool, config) as port:
        kernel = FakeKernel(port)
        assert port.fill() == kernel.filled() == 64


def test_pitfall_27_a_frame_parked_in_the_kernel_is_counted_though_in_no_ring(umem: Umem, pool: FramePool) -> None:
    """Pitfall 27: the kernel keeps frames aside, in no ring: only submitted minus returned knows them."""
    port = small_port(pool)
    kernel = FakeKernel(port)
    port.fill(32)
    parked = kernel.take_fill()
    port.transmit(packets(pool, 10))
    under_way = kernel.take_tx()
    assert port.ring_levels() == {"fill": 0, "comp": 0, "rx": 0, "tx": 0}
    assert port.fill() == 0, "the kernel has its fill already"
    stats = port.stats()
    assert stats.fill_submitted - stats.rx_packets == umem.audit().check().fill == 32
    assert stats.tx_packets - stats.tx_completed == umem.audit().check().tx == 10
    assert [len(holder.frames) for holder in umem.holders()] == [32, 10]
    kernel.push_rx(parked[7] + 256, 60)
    kernel.complete(under_way[3:5])
    pool.put(port.receive())
    port.complete()
    audit = umem.audit().check()
    assert (audit.fill, audit.tx) == (31, 8)


# TX and COMPLETION --------------------------------------------------------------------------------------------------


def test_pitfall_15_no_frame_is_handed_out_again_before_its_completion(umem: Umem) -> None:
    """Pitfall 15: addresses were completed while the kernel still read them (30f241fcf52a).

    Against a kernel that does that nothing helps; here frames are scarce, completed in any order and written at once.
    """
    chance = random.Random(15)
    with conserved(96) as scarce, FramePool(scarce) as pool, small_port(pool) as port:
        kernel = FakeKernel(port)
        under_way: list[tuple[int, bytes]] = []
        for number in range(1, 800):
            batch = pool.alloc(chance.randrange(1, 40))
            for i in range(len(batch)):
                batch.write(i, number.to_bytes(4, "big") * 15)
            sent = port.transmit(batch)
            pool.put(batch[sent:])
            under_way += [(packet.addr, packet.data) for packet in kernel.take_tx()]
            chance.shuffle(under_way)
            for addr, content in under_way[: chance.randrange(40)]:
                assert scarce.data[addr : addr + 60].tobytes() == content
                under_way.remove((addr, content))
                kernel.push_comp(addr)
            port.complete()


@pytest.mark.parametrize("kernel_version", ["before c7b0c912593e: it vanishes", "after: it comes back"])
def test_pitfall_16_a_descriptor_the_kernel_refuses_balances_in_both_behaviours(
    umem: Umem, pool: FramePool, kernel_version: str
) -> None:
    """Pitfall 16: an invalid TX descriptor used to vanish; now it comes back through COMPLETION.

    The port lets none pass, so the double makes one: as far as it knows, descriptor 5 is invalid.
    """
    port = small_port(pool)
    kernel = FakeKernel(port)
    batch = packets(pool, 8)
    port.transmit(batch)
    sent = kernel.take_tx()
    vanishes = "vanishes" in kernel_version
    assert kernel.complete([packet for packet in sent if not (vanishes and packet is sent[5])]) == 8 - vanishes
    assert port.complete() == 8 - vanishes
    assert umem.audit().check().tx == pool.outstanding == vanishes
    missing = [(holder.who, holder.port, holder.pool, holder.frames) for holder in umem.holders()]
    assert missing == ([("tx", port.name, pool.id, (sent[5].addr // 4096,))] if vanishes else [])
    port.close()
    assert port.stats().tx_reclaimed == vanishes
    assert pool.outstanding == 0
    umem.audit().check(idle=True)


def test_pitfall_17_no_descriptor_crosses_the_end_of_its_frame_or_of_the_umem(umem: Umem, pool: FramePool) -> None:
    """Pitfall 17: the kernel took descriptors that cross the UMEM's end. Here they are refused before it sees them."""
    chance = random.Random(17)
    port = small_port(pool)
    kernel = FakeKernel(port)
    every = packets(pool, 512)
    ends = np.isin(every.addr, [0, 255 * 4096, 511 * 4096])
    pool.put(every[~ends])
    size = len(umem.data)
    sent = 0
    for _ in range(3000):
        home = chance.choice([0, 255, 511]) * 4096
        one = every[every.addr == home].copy()
        edge = chance.choice([home, home + 4096, size, (1 << 64) - 1])
        addr = min(max(edge + chance.randrange(-3, 4), 0), (1 << 64) - 1)
        length = max(0, chance.choice([0, home + 4096 - addr, size - addr, 4096, 1 << 31]) + chance.randrange(-2, 3))
        one.addr[0], one.len[0] = addr, min(length, 0xFFFFFFFF)
        if addr // 4096 in (0, 255, 511) and length > 0 and addr % 4096 + length <= 4096:
            pool.ref(every[every.addr == addr // 4096 * 4096])
            assert port.transmit(one) == 1
            assert [len(packet) for packet in kernel.send()] == [length]
            sent += port.complete()
        else:
            with pytest.raises(PoolError):
                port.transmit(one)
    assert port.stats().tx_packets == sent > 200
    pool.put(every[ends])


@pytest.mark.parametrize("bits", [1, 2, 3, 8, 0x8000])
def test_pitfall_17_options_that_no_socket_here_is_bound_for_are_refused(pool: FramePool, bits: int) -> None:
    """Bit 0 would join two packets, bit 1 have the kernel read metadata before the packet; others are invalid."""
    with small_port(pool) as port:
        batch = packets(pool, 2)
        batch.descs["options"][1] = bits
        with pytest.raises(InvalidDescriptorError, match="options") as caught:
            port.transmit(batch)
        assert caught.value.done == 1
        pool.put(batch[1:])
