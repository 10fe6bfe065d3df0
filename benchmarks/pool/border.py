"""What the way from Python into the pool costs: `alloc` and `put` of a batch of 64, by the public calls and below them.

`variants` gives one callable for each way; every call moves one batch out of the pool and back, and all are verified.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from afxdp_pool import FramePool, Umem
from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import DESC

BATCH = 64
CALLS = 50  # batches a sample


@contextmanager
def variants(frames: int = 8192) -> Iterator[dict[str, Callable[[], None]]]:
    """The ways in, on a pool of their own. At the end every frame must be back in the Umem."""
    with Umem(frames) as umem:
        with FramePool(umem) as pool:
            descs = np.empty(BATCH, DESC)
            pointer = ffi.from_buffer("struct afp_desc[]", descs)
            refused = ffi.new("struct afp_refusals *")
            native, table = pool.native, umem.table

            def public() -> None:
                pool.put(pool.alloc(BATCH))

            kept = pool.alloc(BATCH)
            pool.put(kept)

            def public_kept() -> None:
                pool.put(pool.alloc(BATCH, out=kept))

            def from_buffer() -> None:
                lib.afp_pool_alloc(native, ffi.from_buffer("struct afp_desc[]", descs), BATCH)
                lib.afp_put(table, ffi.from_buffer("struct afp_desc[]", descs), BATCH, refused)

            def ctypes_data() -> None:
                lib.afp_pool_alloc(native, ffi.cast("struct afp_desc *", descs.ctypes.data), BATCH)
                lib.afp_put(table, ffi.cast("struct afp_desc *", descs.ctypes.data), BATCH, refused)

            def precomputed() -> None:
                lib.afp_pool_alloc(native, pointer, BATCH)
                lib.afp_put(table, pointer, BATCH, refused)

            yield {
                "python: pool.alloc, pool.put": public,
                "python: pool.alloc(out=), pool.put": public_kept,
                "python: C calls, from_buffer each": from_buffer,
                "python: C calls, .ctypes.data each": ctypes_data,
                "python: C calls, pointers kept": precomputed,
            }
            if refused.n:
                raise SystemExit(f"{refused.n} good frames refused")
            umem.audit().check()
        if umem.free_frames != frames:
            raise SystemExit(f"{frames - umem.free_frames} frames did not come home")


def measure(call: Callable[[], None], seconds: float) -> float:
    """Nanoseconds a frame: the median of samples of `CALLS` batches."""
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while not samples or time.perf_counter() < end:
        begin = time.perf_counter_ns()
        for _ in range(CALLS):
            call()
        samples.append((time.perf_counter_ns() - begin) / (CALLS * BATCH))
    return statistics.median(samples)
