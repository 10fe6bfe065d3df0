"""The quick calls of `alloc` and `put` (calls.c): refuse what the others refuse, and never wait with Python's lock."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from afxdp_pool import (
    Batch,
    ConfigError,
    DoubleFreeError,
    ForeignFrameError,
    FramePool,
    PoolClosedError,
    Umem,
    WrongThreadError,
)
from afxdp_pool.batch import DESC


def test_a_bad_descriptor_behind_good_ones_is_named_by_its_place() -> None:
    with Umem(256) as umem:
        with FramePool(umem) as pool:
            batch = pool.alloc(8)
            pool.put(batch[5:6])
            with pytest.raises(DoubleFreeError) as refused:
                pool.put(batch)
            assert refused.value.refused[0][0] == 5
            assert refused.value.done == 7
            umem.audit().check()
            kept = pool.alloc(8, out=batch)
            kept.addr[7] = umem.frames * umem.frame_size
            with pytest.raises(ForeignFrameError) as foreign:
                pool.put(kept)
            assert foreign.value.refused[0][0] == 7
            umem.audit().check()
        assert umem.audit().app == 1  # the frame whose address was overwritten is still held


def test_a_kept_batch_does_not_reach_a_closed_pool_or_umem() -> None:
    umem = Umem(256)
    pool, other = FramePool(umem), FramePool(umem)
    kept = pool.alloc(8)
    lost = other.alloc(8)
    pool.put(kept)
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.alloc(8, out=kept)
    assert pool.put(lost) == 8  # a put needs the Umem only
    umem.audit().check()
    other.close()
    umem.close()
    with pytest.raises(PoolClosedError):
        pool.put(lost)


def test_a_kept_batch_is_refused_to_another_thread() -> None:
    with Umem(256) as umem, FramePool(umem) as pool:
        kept = pool.alloc(8)
        pool.put(kept)
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                pool.alloc(8, out=kept)
            except WrongThreadError as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(errors) == 1
        umem.audit().check()


def test_a_read_only_array_takes_the_long_way() -> None:
    with Umem(256) as umem, FramePool(umem) as pool:
        batch = pool.alloc(8).copy()
        batch.descs.flags.writeable = False
        assert pool.put(batch) == 8
        with pytest.raises(DoubleFreeError):
            pool.put(batch)
        umem.audit().check()


def test_hooks_under_the_tables_lock_do_not_wait_for_calls_that_wait_for_it() -> None:
    """A hook waits for Python's lock, its thread having the table's: who waits for that must not have the other."""
    rounds = 300
    with Umem(1024) as umem:
        told = [0, 0]

        def run(number: int) -> None:
            def hook(event: str, frames: np.ndarray) -> None:
                told[number] += len(frames) if event == "hold" else -len(frames)

            with FramePool(umem, ring_size=1, on_event=hook) as pool:
                for _ in range(rounds):
                    pool.put(pool.alloc(256))  # beyond cache and ring: from the Umem, and back there
                    pool.flush()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert told == [0, 0]
        umem.audit().check()
        assert umem.free_frames == 1024


def test_a_batch_of_another_size_or_kind_is_not_taken_the_quick_way() -> None:
    with Umem(256) as umem, Umem(256) as another, FramePool(umem) as pool, FramePool(another) as foreign:
        batch = pool.alloc(8)
        pool.put(batch)
        others = foreign.alloc(8)
        for n, out, error in ((7, batch, None), (9, batch, ConfigError), (8, others, ConfigError)):
            assert pool._alloc(n, out) is None
            if error is None:
                assert len(pool.alloc(n, out=out)) == n
                assert pool.put(out[:n]) == n
            else:
                with pytest.raises(error):
                    pool.alloc(n, out=out)
        assert pool.put(pool.alloc(0)) == 0
        assert foreign.put(others) == 8
        umem.audit().check()
        another.audit().check()


def test_what_is_no_batch_is_not_taken_for_one() -> None:
    with Umem(256) as umem, FramePool(umem) as pool:
        for nonsense in (None, 7, "x", object(), pool):
            assert pool._alloc(8, nonsense) is None  # type: ignore[arg-type]
            assert pool._put(nonsense) == -1  # type: ignore[arg-type]
        batch = pool.alloc(8)
        assert pool._alloc("8", batch) is None  # type: ignore[arg-type]
        assert pool._alloc(1 << 70, batch) is None
        with pytest.raises(TypeError):
            pool._alloc(8)  # type: ignore[call-arg]
        pool.put(batch)
        umem.audit().check()


def test_an_array_of_another_length_is_no_batchs_own() -> None:
    batch = Batch(np.zeros(4, DESC), np.zeros(4096, np.uint8))
    with pytest.raises(ValueError, match="as many"):
        batch._hold(np.zeros(5, DESC))
    readonly = np.zeros(4, DESC)
    readonly.flags.writeable = False
    assert batch._hold(readonly) is False
    assert batch._hold(np.zeros(8, DESC)[::2]) is False


def test_batches_and_pools_are_collected_even_in_a_ring() -> None:
    with Umem(256) as umem:
        with FramePool(umem) as pool:
            batch = pool.alloc(8)
            pool.put(batch)
            pool.ring = [pool]  # type: ignore[attr-defined]
            batch.port = [batch, pool]  # type: ignore[assignment]
        gone = weakref.ref(pool)
        del pool, batch
        gc.collect()
        assert gone() is None
        umem.audit().check()


def test_frames_that_somebody_keeps_count_of_take_the_long_way() -> None:
    with Umem(256) as umem, FramePool(umem) as pool:
        batch = pool.alloc(8)
        frames = batch.keep()
        part = frames[2:4]
        assert pool._put(frames) == pool._put(part) == -1
        assert pool._alloc(8, frames) is None
        assert pool.put(part) == 2
        assert (frames.left, pool._put(part)) == (6, -1)
        frames.close()
        assert pool.put(batch) == 8
        umem.audit().check()
