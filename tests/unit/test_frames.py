"""Packets kept beyond their batch: each reference goes home once, whichever way, and what is gone is not looked at."""

from __future__ import annotations

import gc
import logging
import queue
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE, Bench, forwarding, numbered
from support import conserved, elsewhere, join, small_port

import afxdp_pool as ap
from afxdp_pool import Batch, Frame, FrameGoneError, FramePool, Frames, Port, Umem
from afxdp_pool.testing.packets import SEQUENCE_AT
from afxdp_pool.testing.rings import FakeKernel


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


@pytest.fixture
def received(pool: FramePool) -> Iterator[tuple[Port, FakeKernel, Batch]]:
    """Ten packets that have arrived; the test gives them away."""
    port = small_port(pool)
    kernel = FakeKernel(port)
    port.fill(10)
    assert kernel.deliver(numbered(10)) == 10
    yield port, kernel, port.receive()
    pool.collect()
    assert pool.outstanding == kernel.filled(), "frames were not given away"


# One packet ----------------------------------------------------------------------------------------------------------


def test_a_frame_stays_when_its_batch_is_put(received: tuple[Port, FakeKernel, Batch], pool: FramePool) -> None:
    port, _, batch = received
    content = bytes(batch[3])
    frame = batch.keep(3)
    pool.put(batch)
    assert pool.umem.audit().check().app == 1
    assert bytes(frame) == bytes(frame.view) == bytes(frame.memory) == content
    assert len(frame) == len(content)
    assert frame.addr == int(batch.addr[3])
    assert frame.number == frame.addr // 4096
    assert frame.port is port
    assert frame.pool is pool
    frame.view[0] = 7
    frame.memory[1] = 8
    assert bytes(frame)[:2] == bytes([7, 8])
    assert repr(frame) == f"<Frame {frame.number} of {len(content)} bytes>"
    frame.close()
    frame.close()


def test_a_closed_frame_says_so_whatever_is_asked_of_it(
    received: tuple[Port, FakeKernel, Batch], pool: FramePool
) -> None:
    port, _, batch = received
    with batch.keep(-1) as frame:
        memory = frame.memory
        part = memory[:4]
        assert bytes(part) == bytes(batch[9])[:4]
    assert frame.closed
    for use in (
        lambda: bytes(frame),
        lambda: len(frame),
        lambda: frame.view,
        lambda: frame.memory,
        lambda: frame.addr,
        lambda: frame.number,
        lambda: frame.pool,
        lambda: frame.batch,
        lambda: frame.write(b"x"),
        lambda: frame.clone(),
        lambda: port.transmit(frame),
        lambda: np.asarray(frame),
    ):
        with pytest.raises(FrameGoneError, match="closed or sent"):
            use()
    with pytest.raises(ValueError, match="released memoryview"):
        memory[0]
    assert repr(frame) == "<Frame, given away>"
    pool.put(batch)


def test_a_frame_is_written_cut_and_sent(received: tuple[Port, FakeKernel, Batch], pool: FramePool) -> None:
    port, kernel, batch = received
    frame = batch.keep(0)
    pool.put(batch)
    frame.write(b"0123456789")
    frame.batch.addr[0] += 4
    frame.batch.len[0] = 3
    memory = frame.memory
    assert port.transmit(frame) == 1
    assert frame.closed
    with pytest.raises(ValueError, match="released"):
        memory[0]
    assert kernel.send() == [b"456"]
    assert port.complete() == 1
    frame.close()  # nothing to give back
    assert pool.umem.audit().check().app == 0


def test_a_frame_without_room_in_tx_stays_its_holders(pool: FramePool) -> None:
    port = small_port(pool)
    full = pool.alloc(64)
    full.len[:] = 60
    assert port.transmit(full) == 64
    with Frame(pool.alloc(1)) as frame:
        frame.write(b"x" * 60)
        assert port.transmit(frame) == 0
        assert bytes(frame) == b"x" * 60
    FakeKernel(port).send()
    assert port.complete() == 64


def test_clones_are_sent_and_kept_at_once(received: tuple[Port, FakeKernel, Batch], pool: FramePool) -> None:
    port, kernel, batch = received
    frame = batch.keep(5)
    assert port.transmit(batch) == 10
    for _ in range(3):
        assert port.transmit(frame.clone()) == 1
    sent = kernel.send()
    assert sent[5] == bytes(frame) == sent[10] == sent[12]
    assert port.complete() == 13
    assert pool.umem.audit().check().app == 1
    frame.close()


def test_a_frame_outlives_its_pool_and_is_no_danger_after_its_umem() -> None:
    umem = Umem(256)
    pool = FramePool(umem)
    batch = pool.alloc(2)
    first, second = batch.keep(0), batch.keep(1)
    pool.put(batch)
    pool.close()
    assert pool.state == "detached"
    assert first.pool is pool
    first.write(b"still there")
    assert bytes(first) == b"still there"
    first.close()
    assert umem.audit().check().app == 1
    umem.close()
    for use in (lambda: bytes(second), lambda: second.view, lambda: second.pool, lambda: second.clone()):
        with pytest.raises(ap.PoolClosedError, match="Umem is closed"):
            use()
    assert repr(second) == "<Frame, given away>"
    second.close()


def test_a_frame_forgotten_after_its_umem_says_nothing() -> None:
    umem = Umem(64)
    pool = FramePool(umem)
    batch = pool.alloc(1)
    frame = batch.keep(0)
    pool.put(batch)
    pool.close()
    umem.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del frame


def test_a_frame_is_closed_by_another_thread(received: tuple[Port, FakeKernel, Batch], pool: FramePool) -> None:
    _, _, batch = received
    frames = [batch.keep(i) for i in range(10)]
    pool.put(batch)

    def close() -> None:
        for frame in frames:
            assert len(bytes(frame)) == len(frame)
            frame.close()

    elsewhere(close)
    assert pool.collect() == 10


# Several -------------------------------------------------------------------------------------------------------------


def test_many_are_kept_by_a_mask_and_given_away_bit_by_bit(
    received: tuple[Port, FakeKernel, Batch], pool: FramePool
) -> None:
    port, kernel, batch = received
    content = [bytes(packet) for packet in batch]
    odd = np.arange(10) % 2 == 1
    frames = batch.keep(odd)
    pool.put(batch)
    assert isinstance(frames, Frames)
    assert [bytes(packet) for packet in frames] == content[1::2]
    assert frames.load(SEQUENCE_AT, ">u8").tolist() == [1, 3, 5, 7, 9]
    assert frames.left == 5
    assert port.transmit(frames[np.array([4, 0])]) == 2
    assert pool.put(frames[1:2].copy()) == 1
    assert frames.left == 2
    for again in (frames, frames[:1], frames[1:3], frames[np.array([False, True, False, False, True])]):
        with pytest.raises(FrameGoneError, match="sent or given back already"):
            pool.put(again)
        with pytest.raises(FrameGoneError):
            port.transmit(again)
        with pytest.raises(FrameGoneError):
            again.keep()
    moved = Frames(frames[2:3])
    assert (frames.left, moved.left) == (1, 1)
    assert kernel.send() == [content[9], content[1]]
    assert port.complete() == 2
    assert repr(frames) == "<Frames, 1 of 5 held>"
    frames.close()
    assert repr(frames) == "<Frames, 5 given away>"
    for use in (lambda: frames[0], lambda: frames.addr, lambda: frames.descs, lambda: list(frames), frames.five_tuple):
        with pytest.raises(FrameGoneError, match="were given back"):
            use()
    with pytest.raises(AttributeError, match="no attribute 'adr'"):
        frames.adr  # type: ignore[attr-defined] # noqa: B018
    assert bytes(moved[0]) == content[5]
    moved.close()


def test_sending_goes_on_behind_what_there_was_room_for(pool: FramePool) -> None:
    port = small_port(pool)
    kernel = FakeKernel(port)
    frames = Frames(pool.alloc(100))
    frames.len[:] = 60
    rest: Batch = frames
    rounds = 0
    while len(rest):
        rest = rest[port.transmit(rest) :]
        kernel.send()
        port.complete()
        rounds += 1
    assert (rounds, frames.left) == (2, 0)


def test_frames_kept_one_by_one_are_sent_in_one(received: tuple[Port, FakeKernel, Batch], pool: FramePool) -> None:
    port, kernel, batch = received
    content = [bytes(packet) for packet in batch]
    single = [batch.keep(i) for i in (7, 2)]
    several = batch.keep(slice(4, 6))
    pool.put(batch)
    joined = Frames.join([*single, several])
    assert all(frame.closed for frame in single)
    assert (several.left, joined.left) == (0, 4)
    assert port.transmit(joined) == 4
    assert kernel.send() == [content[7], content[2], content[4], content[5]]
    assert port.complete() == 4
    with pytest.raises(ap.ConfigError, match="nothing to join"):
        Frames.join([])


def test_all_are_kept_or_none(received: tuple[Port, FakeKernel, Batch], pool: FramePool) -> None:
    _, _, batch = received
    pool.put(batch[6:7])
    with pytest.raises(ap.DoubleFreeError, match="frame 6 of the batch") as refused:
        batch.keep()
    assert refused.value.done == 0
    rest = np.arange(10) != 6
    pool.put(batch[rest])
    assert pool.umem.audit().check().app == 0, "each had one reference only"


def test_fragments_have_one_reference_which_frames_take_over(pool: FramePool) -> None:
    batch = pool.alloc_fragments(4, 1000)
    with pytest.raises(ap.PoolError, match="takes that one over"):
        batch.keep(0)
    frames = Frames(batch)
    first = Frame(frames[:1])
    first.write(b"in a quarter of a frame")
    assert bytes(first) == b"in a quarter of a frame"
    frames.close()
    first.close()
    pool.flush()


def test_descriptors_of_no_umem_cannot_be_held(pool: FramePool) -> None:
    batch = pool.alloc(1)
    by_hand = Batch(batch.descs.copy(), batch.data)
    for use in (lambda: by_hand.keep(0), lambda: Frames(by_hand), lambda: by_hand.held):
        with pytest.raises(ap.InvalidDescriptorError, match="no Umem"):
            use()
    pool.put(batch)
    with pytest.raises(FrameGoneError):
        Frames(batch)
    with pytest.raises(ap.ConfigError, match="one packet, not 0"):
        Frame(batch[:0])
    with pytest.raises(ap.ConfigError, match="frames that are held"), Frames(pool.alloc(2)) as frames:
        pool.alloc(2, out=frames)
    with conserved() as other, FramePool(other) as other_pool:
        ours, theirs = Frames(pool.alloc(1)), Frames(other_pool.alloc(1))
        with pytest.raises(ap.ForeignFrameError):
            pool.put(theirs)
        with pytest.raises(ap.ForeignFrameError, match="several Umems"):
            Frames.join([ours, theirs])
        ours.close()
        theirs.close()


# What is gone --------------------------------------------------------------------------------------------------------


def test_a_batch_knows_which_of_its_packets_are_gone(received: tuple[Port, FakeKernel, Batch], pool: FramePool) -> None:
    port, kernel, batch = received
    assert batch.held.all()
    pool.put(batch[:2])
    port.transmit(batch[2:4])
    assert batch.held.tolist() == [False] * 2 + [True] * 8, "what is in TX is not another's yet"
    kernel.send()
    port.complete()
    elsewhere(lambda: pool.put(batch[4:5]))
    assert batch.held.tolist() == [False] * 5 + [True] * 5
    for use in (lambda: batch[1], lambda: batch[-8], lambda: list(batch), lambda: batch.write(0, b"x")):
        with pytest.raises(FrameGoneError, match=r"packet \d of the batch"):
            use()
    assert len(batch[9])
    again = pool.alloc(4)
    assert not batch.held[:5].any(), "in another life of the frame"
    pool.put(join(again, batch[5:]))


@pytest.mark.parametrize("trace", [False, True])
def test_columns_look_at_the_frame_table_when_traced(trace: bool) -> None:
    with Umem(64, trace=trace) as umem, FramePool(umem) as pool:
        batch = pool.write(numbered(4))
        assert batch.load(12, ">u2").tolist() == [0x800] * 4
        pool.put(batch)
        for use in (lambda: batch.load(0), lambda: batch.eth.type, batch.five_tuple, lambda: batch.store(0, "u1", 0)):
            if trace:
                with pytest.raises(FrameGoneError):
                    use()
            else:
                use()


def test_a_reference_put_by_who_had_none_is_found_out(pool: FramePool) -> None:
    batch = pool.alloc(1)
    frame = batch.keep(0)
    pool.put(batch)
    pool.put(batch)  # the frame's
    with pytest.raises(FrameGoneError, match="given back"):
        bytes(frame)
    with pytest.raises(ap.DoubleFreeError):
        frame.close()


# Forgotten -----------------------------------------------------------------------------------------------------------


def forget(batch: Batch) -> None:
    kept_in_vain = batch.keep(0)
    del kept_in_vain


@pytest.mark.parametrize("trace", [False, True])
def test_a_forgotten_frame_comes_home_with_a_warning(trace: bool) -> None:
    with Umem(64, trace=trace) as umem, FramePool(umem) as pool:
        batch = pool.alloc(1)
        with pytest.warns(ResourceWarning, match="1 packet forgotten") as caught:
            forget(batch)
        (warning,) = [one for one in caught if "forgotten" in str(one.message)]
        assert ("kept_in_vain = batch.keep(0)" in str(warning.message)) is trace
        assert ("AFXDP_POOL_TRACE=1" in str(warning.message)) is not trace
        assert isinstance(warning.source, Frames), "tracemalloc tells where it was made"
        pool.put(batch)
        umem.audit().check(idle=True)


def test_a_frame_forgotten_in_a_callback_waits_for_its_end() -> None:
    """C holds the table's lock there: a put would wait for itself."""
    cycle: list[Any] = []

    def collect(event: str, frames: Any) -> None:
        cycle.clear()
        gc.collect()

    with Umem(512) as umem, FramePool(umem) as other:
        cycle.append(other.alloc(1).keep(0))
        cycle.append(cycle)
        done = threading.Event()

        def work() -> None:
            with FramePool(umem, on_event=collect) as pool:
                pool.put(pool.alloc(1))
            done.set()

        def run() -> bool:
            threading.Thread(target=work, daemon=True).start()
            return done.wait(20)

        with pytest.warns(ResourceWarning, match="forgotten"):
            assert run(), "a deadlock"
        umem.reap()
        assert other.collect() == 0, "one reference of two is back"
        assert umem.audit().check().app == 1


def test_a_frame_kept_for_ever_is_named_with_traceback_and_age(caplog: pytest.LogCaptureFixture) -> None:
    with Umem(64, trace=True) as umem:
        pool = FramePool(umem)
        batch = pool.alloc(3)
        kept_for_ever = batch.keep(1)
        pool.put(batch)
        (holder,) = umem.holders()
        assert (holder.who, holder.frames) == ("application", (kept_for_ever.number,))
        assert holder.age is not None
        assert "kept_for_ever = batch.keep(1)" in str(holder)
        pool.close()
        assert pool.detached_at is not None
        with caplog.at_level(logging.WARNING, logger="afxdp_pool"):
            umem.reap(pool.detached_at + 61)
        assert "was closed 61 s ago and still waits for 1 frames" in caplog.text
        assert "kept_for_ever = batch.keep(1)" in caplog.text
        kept_for_ever.close()
        umem.audit().check(idle=True)


def test_who_took_a_frame_in_an_earlier_life_has_nothing_to_do_with_it() -> None:
    with Umem(128, trace=True) as umem, FramePool(umem) as pool:
        port = small_port(pool, ap.PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=1))
        pool.put(pool.alloc(1))
        port.fill()
        FakeKernel(port).deliver(1)
        with closing(ap.Forwarder([port], handler=lambda batch: ap.KEEP, spin=0)) as forwarder:
            forwarder.run(DEADLINE, packets=1)
        (holder,) = [one for one in umem.holders() if one.who == "application"]
        assert holder.traceback is None, "the engine took it, whom nobody traces"
        port.close()


# In a handler --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verdict", [ap.DROP, ap.TX, ap.FORWARD(1)])
def test_a_handlers_verdict_decides_about_its_own_reference(bench: Bench, verdict: int) -> None:
    kept: list[Frame] = []
    several: list[Frames] = []

    def handle(batch: Batch) -> int:
        kept.append(batch.keep(0))
        several.append(batch.keep(slice(1, 3)))
        return verdict

    content = numbered(100)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, content)
        out = {ap.DROP: [[], []], ap.TX: [content, []], ap.FORWARD(1): [[], content]}[verdict]
        assert bench.sent == out
        held = [bytes(frame) for frame in kept] + [bytes(packet) for frames in several for packet in frames]
        assert set(held) <= set(content)
        assert bench.umem.audit().check().app == len(held) == len(set(held))
        sent = sum(bench.ports[1].transmit(frame) for frame in kept)
        assert sent == len(kept)
        bench.finish(forwarder)
    for frames in several:
        frames.close()


def test_a_handler_that_keeps_by_verdict_holds_what_frames_take_over(bench: Bench) -> None:
    kept: list[Frames] = []

    def handle(batch: Batch) -> Any:
        chosen = batch.load(SEQUENCE_AT, ">u8") % 2 == 0
        kept.append(Frames(batch[chosen]))
        return np.where(chosen, ap.KEEP, ap.DROP)

    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, numbered(100))
        engine = forwarder.snapshot().engine
    assert engine.kept == sum(frames.left for frames in kept) == bench.umem.audit().check().app
    for frames in kept:
        frames.close()


def test_kept_frames_are_sent_by_another_worker(bench: Bench) -> None:
    kept: list[Frames] = []

    def handle(batch: Batch) -> int:
        kept.append(batch.keep())
        return ap.DROP

    content = numbered(20)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, content)
        for frames in kept:
            forwarder.hand_over(frames, bench.ports[1])
        bench.finish(forwarder)
        bench.finish(forwarder)
        assert bench.sent[1] == content
        assert not any(frames.left for frames in kept)


def test_what_is_no_batch_is_said_to_be_none(pool: FramePool) -> None:
    port = small_port(pool)
    wrong: Any = b"a packet"
    for use in (port.transmit, Frames, Frame):
        with pytest.raises(ap.ConfigError, match=r"a bytes is no batch; pool.write\(\[...\]\) makes one"):
            use(wrong)
    batch = pool.alloc(2)
    for at in (2, -3):
        with pytest.raises(IndexError):
            batch.keep(at)
        with pytest.raises(IndexError):
            batch.write(at, b"x")
    pool.put(batch)


def test_a_frame_given_where_a_batch_belongs_says_what_to_do(pool: FramePool) -> None:
    frame = Frame(pool.alloc(1))
    for use in (pool.put, pool.ref):
        with pytest.raises(ap.ConfigError, match=r"a Frame is no batch; a frame is given back by frame.close\(\)"):
            use(frame)  # type: ignore[arg-type]
    frame.close()


def test_threads_clone_close_and_forget_at_once() -> None:
    """The owner keeps allocating meanwhile; at the end every reference was given back once."""
    rounds, threads = 200, 4
    with conserved() as umem, FramePool(umem) as pool:
        waiting: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()

        def work(number: int) -> None:
            chance = random.Random(number)
            while (frame := waiting.get()) is not None:
                clone = frame.clone()
                assert bytes(clone) == bytes(frame) == b"x" * 60
                for one in chance.sample([frame, clone], 2):
                    if chance.random() < 0.5:
                        one.close()
                del frame, clone, one

        workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for worker in workers:
            worker.start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            for _ in range(rounds):
                batch = pool.write([b"x" * 60] * 8)
                for i in range(len(batch)):
                    waiting.put(batch.keep(i))
                pool.put(batch)
            for _ in workers:
                waiting.put(None)
            for worker in workers:
                worker.join()
        pool.collect()
        assert umem.audit().check().app == 0
