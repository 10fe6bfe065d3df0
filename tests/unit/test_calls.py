"""The quick calls of `alloc` and `put` (calls.c): refuse what the others refuse, and never wait with Python's lock."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from afxdp_pool import DoubleFreeError, ForeignFrameError, FramePool, PoolClosedError, Umem, WrongThreadError
from afxdp_pool._native import calls


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


NONSENSE: list[tuple[type[Exception], tuple[object, ...]]] = [
    *((TypeError, arguments) for arguments in ((), (1, 2), (1, 2, 3, 4), ("1", 2, 3), (1, 2, "3"))),
    *((ValueError, arguments) for arguments in ((0, 1, 1), (1, 0, 1), (1, 1, 1 << 31))),
    *((OverflowError, arguments) for arguments in ((1, 1, -1), (1, 1, 1 << 70))),
]


@pytest.mark.parametrize(("error", "arguments"), NONSENSE)
def test_nonsense_is_an_error_and_touches_nothing(error: type[Exception], arguments: tuple[object, ...]) -> None:
    for call in (calls.alloc, calls.put):
        with pytest.raises(error):
            call(*arguments)
