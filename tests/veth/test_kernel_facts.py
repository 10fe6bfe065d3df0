"""What the kernel does, and its documentation does not say, measured on the kernel that runs: facts A to H.

The library rests on these, or on neither answer where kernels differ (docs/page-pool.md). `Raw` looks into, and spoils,
the rings behind the library's back: what it cannot be made to do, a bug or another program still could.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_bench import Bench, Raw, bench_on, completed, filled, receive
from live_lab import until

import afxdp_pool as ap
from afxdp_pool._native import ffi, lib
from afxdp_pool.testing import Lab, Sink, VethPair, packets


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a")


@pytest.fixture
def bench(pair: VethPair) -> Iterator[Bench]:
    with bench_on(pair) as made:
        yield made


# FILL and RX --------------------------------------------------------------------------------------------------------


def test_fact_a_a_bad_fill_entry_vanishes_and_nobody_is_told(bench: Bench) -> None:
    """A: an address beyond the UMEM is taken from FILL and dropped; rx_invalid_descs stays 0."""
    port = bench.port()
    fill = Raw(port, "fill")
    spoiled = int(fill.entries[0])
    fill.entries[0] = len(bench.umem.data) + 4096
    bench.source().send(3)
    batch = receive(port, 3)
    assert port.kernel_stats().rx_invalid_descs == 0
    assert spoiled // 4096 not in batch.frames(4096)
    # The frame is the kernel's as far as anyone can know, and comes home when the port closes.
    assert bench.umem.audit().check().fill == 29
    until(lambda: fill.consumer >= 4)
    assert spoiled // 4096 in bench.umem.holders()[0].frames
    bench.pool.put(batch)
    port.close()
    assert (port.stats().rx_bad, port.stats().fill_reclaimed) == (0, 29)


@pytest.mark.parametrize("headroom", [0, 192])
def test_fact_a2_received_addresses_have_headroom_and_lose_their_low_bits(pair: VethPair, headroom: int) -> None:
    """A2: FILL's address is cut to its frame; RX's is frame + headroom + 256."""
    with bench_on(pair, headroom=headroom) as bench:
        port = bench.port()
        fill = Raw(port, "fill")
        fill.entries[:32] += np.uint64(777)
        bench.source().send(32)
        batch = receive(port, 32)
        assert (batch.addr % 4096 == headroom + 256).all()
        assert [packets.parse(bytes(packet)) for packet in batch] == [
            packets.TestPacket(flow=0, seq=i, size=64) for i in range(32)
        ]
        bench.pool.put(batch)


def test_fact_b_a_frame_twice_in_fill_is_received_twice_and_one_is_refused(bench: Bench) -> None:
    """B: the kernel does not see that a chunk is in FILL twice; the frame table does."""
    port = bench.port()
    fill = Raw(port, "fill")
    lost = int(fill.entries[1])
    fill.entries[1] = fill.entries[0]
    assert bench.source().send(3).delivered == 3
    batch = receive(port, 2)
    assert len(set(batch.frames(4096))) == 2
    until(lambda: not port.receive() and port.stats().rx_bad == 1)
    bench.umem.audit().check()
    assert lost // 4096 in bench.umem.holders()[0].frames
    bench.pool.put(batch)


def test_fact_c_a_full_rx_ring_drops_packets_and_loses_no_frame(bench: Bench) -> None:
    """C, row 34: RX of 4, 16 frames, 12 packets: 8 dropped and counted, the frames behind them kept."""
    port = bench.port(rx_size=4, fill_level=16)
    fill = Raw(port, "fill")
    source = bench.source()
    assert source.send(12).delivered == 12
    until(lambda: port.kernel_stats().rx_ring_full == 8)
    assert port.ring_levels()["rx"] == 4
    batch = receive(port, 4)
    assert [packets.parse(bytes(packet)).seq for packet in batch] == [0, 1, 2, 3]  # type: ignore[union-attr]
    bench.pool.put(batch)
    # Whatever the ring says the kernel took, submitted minus returned is what it has.
    assert fill.consumer in (4, 5)
    assert port.stats().fill_submitted - port.stats().rx_packets == bench.umem.audit().check().fill == 12
    seen = set()
    for _ in range(3):
        assert source.send(4).delivered == 4
        batch = receive(port, 4)
        seen |= set(batch.frames(4096))
        bench.pool.put(batch)
    assert len(seen) == 12, "all twelve frames are still of use"
    assert port.kernel_stats().rx_ring_full == 8


def test_fact_d_without_frames_in_fill_packets_are_dropped_and_counted(bench: Bench) -> None:
    """D: one frame, four packets: rx_dropped 3, and FILL found empty 3 times."""
    port = bench.port(fill_level=1)
    source = bench.source()
    assert source.send(4).delivered == 4
    until(lambda: port.kernel_stats().rx_dropped == 3)
    assert port.kernel_stats().rx_fill_ring_empty_descs == 3
    bench.pool.put(receive(port, 1))
    assert port.fill(8) == 8
    assert source.send(8).delivered == 8
    bench.pool.put(receive(port, 8))
    kernel = port.kernel_stats()
    assert (kernel.rx_dropped, kernel.rx_ring_full, kernel.rx_invalid_descs) == (3, 0, 0)


# TX and COMPLETION --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 300, 4032])
def test_fact_f_a_completion_is_the_address_as_it_was_sent(bench: Bench, offset: int) -> None:
    """F: offset and all, but for bit 0; the frame is found by it."""
    port = bench.port(receive=False)
    batch = bench.pool.alloc(1)
    batch.addr[0] += np.uint64(offset)
    batch.write(0, packets.build(64))
    with Sink(bench.pair.far) as sink:
        assert port.transmit(batch) == 1
        assert sink.wait(1).unique == 1
    until(lambda: port.ring_levels()["comp"] == 1)
    # In copy mode of Linux 6.18 an odd address comes back even.
    addr = int(batch.addr[0])
    assert int(Raw(port, "comp").entries[0]) in (addr, addr & ~1)
    assert port.complete() == 1
    assert bench.pool.outstanding == 64 - 32, "those in FILL"


@pytest.mark.parametrize(("field", "value"), [("len", 0), ("addr", 1024 * 4096), ("addr", 4095), ("options", 0x8000)])
def test_fact_g_an_invalid_descriptor_balances_whether_or_not_it_comes_back(
    bench: Bench, field: str, value: int
) -> None:
    """G, row 33: kernels before c7b0c912593e swallow it, later ones complete it. Spoiled after all checks of ours."""
    port = bench.port(receive=False)
    batch = filled(bench.pool, 3)
    refused = ffi.new("struct afp_refusals *")
    descs = ffi.from_buffer("struct afp_desc[]", batch.descs)
    assert lib.afp_port_transmit(port.native, descs, 3, refused) == 3  # and no kick yet
    Raw(port, "tx").entries[field][1] = value
    port.kick()
    until(lambda: port.kernel_stats().tx_invalid_descs == 1)

    def sent_the_others() -> bool:
        port.kick()
        port.complete()
        return port.ring_levels()["tx"] == 0 and port.stats().tx_completed >= 2

    until(sent_the_others)
    # Some kernels give back the spoiled address: our frame's, a wrong one, or none. It is known by its word alone.
    missing = port.stats().tx_packets - port.stats().tx_completed
    assert missing == bench.umem.audit().check().tx
    named = [holder for holder in bench.umem.holders() if holder.who == "tx"]
    if missing:
        assert [(holder.port, holder.frames) for holder in named] == [(port.name, (batch.frames(4096)[1],))]
    else:
        assert named == []
    port.close()
    assert port.stats().tx_reclaimed == missing
    bench.umem.audit().check(idle=True)


def test_invalid_descriptors_do_not_get_as_far_as_the_kernel(bench: Bench) -> None:
    """Each kind of G, by the front door."""
    port = bench.port(receive=False)
    for field, value in (("len", 0), ("addr", 1024 * 4096), ("len", 4097), ("options", 1), ("options", 2), ("gen", 0)):
        batch = filled(bench.pool, 2)
        bad = batch.copy()
        bad.descs[field][1] = value
        with pytest.raises(ap.PoolError) as caught:
            port.transmit(bad)
        assert caught.value.done == 1
        bench.pool.put(batch[1:])
    completed(port, 6)
    assert (port.kernel_stats().tx_invalid_descs, port.stats().completion_bad) == (0, 0)


def test_fact_h_a_full_completion_ring_holds_tx_back_until_it_is_drained(bench: Bench) -> None:
    """H, row 35: COMPLETION of 32, 100 frames: EAGAIN, TX waits at 32, and goes on after."""
    port = bench.port(receive=False, comp_size=32, tx_size=128)
    with Sink(bench.pair.far) as sink:
        assert port.transmit(filled(bench.pool, 100)) == 100

        def stuck() -> bool:
            port.kick()
            return port.ring_levels() == {"fill": 32, "comp": 32, "rx": 0, "tx": 68}

        until(stuck)
        assert port.stats().tx_again > 0
        again = port.stats().tx_again
        port.kick()
        assert port.stats().tx_again == again + 1
        assert port.ring_levels()["tx"] == 68
        completed(port, 100)
        assert sink.wait(100).unique == 100
    assert (port.stats().tx_errors, port.kernel_stats().tx_invalid_descs) == (0, 0)


def test_the_kernels_counters_are_exact(bench: Bench) -> None:
    """Row 38: all six of XDP_STATISTICS after a scripted run; rx_invalid_descs is always 0."""
    port = bench.port(rx_size=8, fill_level=16)
    source = bench.source()
    assert source.send(13).delivered == 13  # 8 fit into RX
    until(lambda: port.kernel_stats().rx_ring_full == 5)
    bench.pool.put(receive(port, 8))
    assert source.send(8).delivered == 8  # all frames are received into
    bench.pool.put(receive(port, 8))
    assert source.send(4).delivered == 4  # none left
    until(lambda: port.kernel_stats().rx_dropped == 4)
    assert port.transmit(filled(bench.pool, 5)) == 5
    completed(port, 5)
    kernel = port.kernel_stats()
    assert kernel.tx_ring_empty_descs > 0
    assert kernel == ap.KernelStats(
        rx_dropped=4,
        rx_invalid_descs=0,
        tx_invalid_descs=0,
        rx_ring_full=5,
        rx_fill_ring_empty_descs=4,
        tx_ring_empty_descs=kernel.tx_ring_empty_descs,
    )
    port.close()
    assert port.kernel_stats().rx_ring_full == 5, "the last ones, of a closed port"


def test_a_kick_that_has_nothing_to_send_is_no_system_call(bench: Bench) -> None:
    """The kernel counts an empty TX ring at every sendto(): tx_ring_empty_descs says how many were wasted."""
    port = bench.port(receive=False)
    for _ in range(10):
        port.kick()
    assert port.stats().tx_kicks == port.kernel_stats().tx_ring_empty_descs == 0
