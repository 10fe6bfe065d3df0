"""Batches a forwarder lends: used again, so a run allocates nothing; and whatever is kept of one, no frame is lost."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE, Bench, forwarding, numbered

import afxdp_pool as ap


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


def filter_and_rewrite(batch: ap.Batch, mask: Any, scratch: Any) -> Any:
    """Every call of the batch's that works with columns; temporaries in arrays made before."""
    flow = batch.five_tuple()
    np.equal(flow.dport, 9, out=mask)
    ether = batch.load(12, ">u2")
    np.equal(ether, 0, out=mask)
    np.copyto(scratch, batch.addr)
    batch.store(0, ">u4", batch.load(2, ">u4", out=scratch_u4), where=mask)
    batch.swap_macs()
    batch.swap_macs(where=mask)
    np.equal(batch.udp.dport, 9, out=mask)
    batch.ipv4.ttl = batch.ipv4.ttl
    batch.udp.where(mask).sport = 7
    batch.decrement_ttl(where=mask)
    batch.fill_checksums()
    batch.verify_checksums()
    batch.flow_hash(symmetric=True)
    batch.rss_hash()
    return np.multiply(mask, np.uint8(ap.FORWARD(1)), out=batch.verdicts)


scratch_u4 = np.zeros(16, np.uint32)


#: Where a batch goes through in Python. The ring double has its own lists.
ON_THE_WAY = [
    tracemalloc.Filter(True, f"*/afxdp_pool/{name}.py") for name in ("batch", "columns", "handling", "handlers")
]


def test_a_run_under_way_allocates_nothing(bench: Bench) -> None:
    """Once it is warm no batch leaves a block behind, and no call takes memory for its packets."""
    mask, scratch = np.zeros(16, bool), np.zeros(16, np.uint64)
    runs, warm = 40, 10  # of four batches each, with numbers and types that are not all the same
    peaks: list[int] = []

    def handle(batch: ap.Batch) -> Any:
        assert len(batch) == 16
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        verdicts = filter_and_rewrite(batch, mask, scratch)
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        return verdicts if len(peaks) % 2 else ap.DROP

    content = numbered(64)
    snapshots = []
    bench.ports[0].fill(32)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        tracemalloc.start()
        try:
            for run in range(runs):
                for part in (content[:32], content[32:]):
                    bench.ports[0].fill(32)
                    assert bench.kernels[0].deliver(part) == 32
                forwarder.run(DEADLINE, packets=64)
                bench.finish(forwarder)
                if run in (warm, runs - 1):
                    gc.collect()
                    snapshots.append(tracemalloc.take_snapshot().filter_traces(ON_THE_WAY))
        finally:
            tracemalloc.stop()
    assert len(peaks) == 4 * runs
    grown = snapshots[1].compare_to(snapshots[0], "lineno")
    blocks = sum(statistic.count_diff for statistic in grown)
    # A run makes its batch and arrays anew; the last one's are there in both, as many as what ran before lets them be.
    # One that stayed of each run would be 30, one of each batch 120.
    assert blocks < (runs - warm) // 2, "\n".join(map(str, grown[:10]))
    assert np.median(peaks) < 1500, f"{np.median(peaks)} bytes at once for 16 packets of 64 bytes or more"


def test_a_batch_of_a_size_is_one_object_with_arrays_that_stay(bench: Bench) -> None:
    seen: dict[int, list[Any]] = {}

    def handle(batch: ap.Batch) -> Any:
        seen.setdefault(len(batch), []).append((batch, batch.addr, batch.verdicts, batch.load(6, ">u2")))
        assert not batch.verdicts.any(), "DROP until something is written"
        batch.verdicts[1:] = ap.FORWARD(1)
        return batch.verdicts

    content = numbered(150)
    with closing(bench.forwarder(handler=handle, batch=16)) as forwarder:
        bench.turn(forwarder, content)
    turns = [content[at : at + 25] for at in range(0, 150, 25)]
    one_run = [packet for turn in turns for part in (turn[:16], turn[16:]) for packet in part[1:]]
    assert bench.sent[1] == one_run
    assert set(seen) == {16, 9}
    for (batch, *arrays), n in ((seen[16][0], 16), (seen[9][0], 9)):
        assert isinstance(batch, ap.Batch)
        assert all(array.shape == (n,) for array in arrays)


def test_what_is_kept_of_a_batch_cannot_lose_or_double_a_frame(bench: Bench) -> None:
    """References of the last call, used in this one: the engine's own copy of the descriptors decides."""
    kept: list[Any] = []
    calls = 0

    def handle(batch: ap.Batch) -> Any:
        nonlocal calls
        calls += 1
        for descs, addr, verdicts, columns in kept:
            addr[:] = 0
            verdicts[:] = ap.KEEP
            columns[:] = 0xFFFF
            descs[:] = 0
            with pytest.raises((ap.DoubleFreeError, ap.ForeignFrameError)):
                bench.pool.put(ap.Batch(descs, batch.data))
        kept.append((batch.descs, batch.addr, batch.verdicts, batch.load(0, ">u2")))
        return ap.FORWARD(1) if calls % 2 else ap.DROP

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, numbered(200))
        engine = forwarder.snapshot().engine
    for descs, addr, verdicts, columns in kept:
        with pytest.raises((ap.DoubleFreeError, ap.ForeignFrameError, ap.InvalidDescriptorError)):
            bench.pool.put(ap.Batch(descs, bench.umem.data))
        addr[:] = verdicts[:] = columns[:] = 0  # memory that stays as long as somebody looks at it
    assert engine.dropped + engine.forwarded + engine.refused == 200
    audit = bench.umem.audit().check()
    assert (audit.app, audit.tx) == (0, 0)


USES: dict[str, Callable[[ap.Batch], object]] = {
    "len": len,
    "addr": lambda batch: batch.addr,
    "a packet": lambda batch: batch[0],
    "packets": list,
    "load": lambda batch: batch.load(12, ">u2"),
    "a header": lambda batch: batch.udp.dport,
    "keep": lambda batch: batch.keep(),
    "copy": lambda batch: batch.copy(),
    "verdicts": lambda batch: batch.verdicts,
}


@pytest.mark.parametrize("raises", [False, True])
def test_a_batch_kept_beyond_its_call_refuses_and_says_what_to_do(bench: Bench, raises: bool) -> None:
    kept: list[ap.Batch] = []

    def handle(batch: ap.Batch) -> int:
        for old in kept:
            for use in USES.values():
                with pytest.raises(ap.FrameGoneError, match=r"lent to a handler.*keep\(\).*copy\(\)"):
                    use(old)
            with pytest.raises(ap.FrameGoneError):
                bench.pool.put(old)
        assert batch.udp.valid.all(), "the one of this call is as good as ever"
        kept.append(batch)
        if raises and len(kept) == 3:
            raise KeyError("mine")
        return ap.FORWARD(1)

    content = numbered(96)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        if raises:
            with pytest.raises(KeyError, match="mine"):
                bench.turn(forwarder, content)
            bench.finish(forwarder)
            bench.finish(forwarder)
        else:
            bench.turn(forwarder, content)
    assert len(kept) == (4 if raises else 8)
    for old in kept:
        with pytest.raises(ap.FrameGoneError):
            old.copy()
        assert repr(old) == "<Batch that was lent to a handler, whose call is over>"
        assert isinstance(old, ap.Batch)
    assert bench.sent[1] == (content[:25] + content[41:50] if raises else content), "all but the batch of the error"


def test_a_batch_nobody_keeps_is_used_again_and_one_that_is_kept_costs_another(bench: Bench) -> None:
    seen: list[int] = []
    keep: list[ap.Batch | None] = [None]

    def handle(batch: ap.Batch) -> int:
        seen.append(id(batch))
        keep[0] = None if len(seen) != 3 else batch
        return ap.DROP

    bench.ports[0].fill(64)
    bench.kernels[0].deliver(numbered(48))
    with closing(bench.forwarder(handler=handle, batch=8)) as forwarder:
        forwarder.run(DEADLINE, packets=48)
    assert len(seen) == 6
    assert seen[0] == seen[1] == seen[2] != seen[3]
    assert seen[3] == seen[4] == seen[5]


@pytest.mark.parametrize(
    "damage",
    [
        lambda batch: setattr(batch.verdicts, "shape", (len(batch), 1)),
        lambda batch: setattr(batch.descs, "shape", (1, len(batch))),
        lambda batch: setattr(batch, "port", None),
        lambda batch: setattr(batch, "data", np.zeros(1, np.uint8)),
        lambda batch: batch.load(0, ">u2").resize(1, refcheck=False),
        lambda batch: batch.load(0, ">u2").base.resize(1, refcheck=False),
    ],
)
def test_damage_done_to_a_batch_reaches_no_frame(bench: Bench, damage: Any) -> None:
    def handle(batch: ap.Batch) -> Any:
        damage(batch)
        batch.load(0, ">u2")
        batch.five_tuple()
        return batch.verdicts

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.ports[0].fill()
        bench.kernels[0].deliver(10)
        try:
            forwarder.run(DEADLINE, packets=10)
        except ValueError:
            assert forwarder.snapshot().engine.dropped, "the batch it happened in"
        bench.finish(forwarder)
        assert forwarder.snapshot().engine.refused == 0
    assert bench.umem.audit().check().app == 0


def test_packets_that_leave_by_one_port_keep_their_order_whatever_the_verdicts(bench: Bench) -> None:
    """TX and FORWARD to the port it came from are one way out; drops in between change nothing."""
    content = numbered(300)
    pattern = np.array([ap.TX, ap.DROP, ap.FORWARD(0), ap.FORWARD(1), ap.FORWARD(0), ap.FORWARD(1), ap.TX], np.uint8)
    decided: list[int] = []

    def handle(batch: ap.Batch) -> Any:
        verdicts = np.resize(pattern, len(batch))
        decided.extend(verdicts.tolist())
        return verdicts

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, content)
        engine = forwarder.snapshot().engine
    back = [p for p, v in zip(content, decided, strict=True) if v in (ap.TX, ap.FORWARD(0))]
    on = [p for p, v in zip(content, decided, strict=True) if v == ap.FORWARD(1)]
    assert bench.sent == [back, on]
    assert (engine.reflected, engine.forwarded) == (len(back), len(on)), "reflected: out of the port it came from"


@pytest.mark.parametrize("view", ["memoryview", "numpy"])
def test_a_packet_handler_sees_the_packet_itself(bench: Bench, view: Any) -> None:
    def one(packet: Any) -> int:
        assert type(packet) is (memoryview if view == "memoryview" else np.ndarray)
        packet[0] ^= 0xFF
        return ap.FORWARD(1) if packet[1] == 0 else ap.DROP

    content = numbered(60)
    with closing(bench.forwarder(handler=ap.per_packet(one, view=view))) as forwarder:
        bench.turn(forwarder, content)
    assert bench.sent[1] == [bytes([packet[0] ^ 0xFF]) + packet[1:] for packet in content]


@pytest.mark.parametrize("wrong", [None, "drop", 256, -1, 1.0, b"", []])
def test_one_packet_without_a_verdict_is_an_error(bench: Bench, wrong: Any) -> None:
    answers = iter([ap.DROP, wrong, ap.DROP])
    with closing(bench.forwarder(handler=ap.per_packet(lambda packet: next(answers)))) as forwarder:
        bench.ports[0].fill()
        bench.kernels[0].deliver(3)
        with pytest.raises(ap.VerdictError, match="for one of its packets, which is no verdict"):
            forwarder.run(DEADLINE)
        assert forwarder.snapshot().engine.dropped == 3


def test_a_packet_is_seen_in_one_of_two_ways() -> None:
    with pytest.raises(ap.ConfigError, match="bytes"):
        ap.per_packet(lambda packet: 0, view="bytes")  # type: ignore[arg-type]
