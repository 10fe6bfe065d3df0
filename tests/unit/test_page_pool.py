"""Rows of the checklist in docs/page-pool.md that no other test is about; each names its row."""

from __future__ import annotations

import dataclasses
import gc
import json
import mmap
import os
import shutil
import subprocess
import threading
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import pytest
from support import conserved, elsewhere, identities, join, small_port

from afxdp_pool import Batch, ConfigError, FramePool, PoolError, Umem
from afxdp_pool.memory import AnonymousMemory
from afxdp_pool.testing.rings import FakeKernel

BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "pool"


def test_row_01_a_pool_that_is_refused_leaves_nothing(umem: Umem) -> None:
    """Row 1: there are no flags to get wrong; what there is, is checked before a pool is made."""
    for wrong in ({"ring_size": 0}, {"quota": -1}, {"ring_size": -5, "quota": 3}):
        with pytest.raises(ConfigError):
            FramePool(umem, **wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        FramePool(umem, flags=4)  # type: ignore[call-arg]
    with FramePool(umem) as first:
        assert first.id == 1
    assert umem.free_frames == umem.frames


def test_row_02_the_ring_has_1024_places_unless_told(umem: Umem) -> None:
    """Row 2: and at most 16384, as page_pool_init() clamps it."""
    sizes = {}
    for asked in (None, 1, 1024, 16384, 16385, 10**6):
        with FramePool(umem) if asked is None else FramePool(umem, ring_size=asked) as pool:
            sizes[asked] = pool.native.ring_size
    assert sizes == {None: 1024, 1: 1, 1024: 1024, 16384: 16384, 16385: 16384, 10**6: 16384}


def test_row_12_a_million_frames_are_put_by_eight_threads() -> None:
    """Row 12: any thread puts; nothing is lost, nothing waits for room."""
    wanted, threads = 1_000_000, 8
    lane: SimpleQueue[Batch | None] = SimpleQueue()
    put = [0] * threads

    def give_back(umem: Umem, which: int) -> None:
        while (batch := lane.get()) is not None:
            put[which] += umem.put(batch)

    with conserved(4096, frame_size=2048) as umem, FramePool(umem, ring_size=64) as pool:
        workers = [threading.Thread(target=give_back, args=(umem, which)) for which in range(threads)]
        for worker in workers:
            worker.start()
        taken = 0
        while taken < wanted:
            batch = pool.alloc(256)
            taken += len(batch)
            lane.put(batch)
        for _ in workers:
            lane.put(None)
        for worker in workers:
            worker.join()
        pool.collect()
        assert sum(put) == taken
        assert (pool.outstanding, pool.stats().late_refused) == (0, 0)
        identities(pool, taken, taken)


def test_row_16_a_mixed_batch_is_one_post_a_pool_and_counted_a_frame(umem: Umem) -> None:
    """Row 16: three pools interleaved; the kernel takes at most 16 pages a call, and counts an overflow once."""
    pools = [FramePool(umem, ring_size=4) for _ in range(3)]
    mixed = join(*[pool.alloc(100) for pool in pools])
    mixed = mixed[np.arange(300).reshape(3, 100).T.ravel()]
    assert elsewhere(lambda: umem.put(mixed)) == 300
    for pool in pools:
        assert pool.collect() == 100
        stats = pool.stats()
        assert (stats.remote_batches, stats.recycle_ring, stats.recycle_ring_full) == (1, 4, 96)
        identities(pool, 100, 100)
        pool.close()


def test_row_19_a_pool_with_nothing_out_is_gone_at_once(umem: Umem) -> None:
    """Row 19: and the hook has seen every frame leave."""
    left: list[int] = []

    def leaves(kind: str, frames: npt.NDArray[np.uint32]) -> None:
        if kind == "release":
            left.extend(frames.tolist())

    pool = FramePool(umem, on_event=leaves)
    batch = pool.alloc(150)
    pool.put(batch)
    pool.close()
    assert (pool.state, len(left), len(set(left))) == ("closed", 192, 192)
    assert set(batch.frames(4096)) <= set(left)
    assert umem.free_frames == umem.frames


def test_row_22_a_pool_closed_while_ports_use_it_ends_with_the_last_of_them(umem: Umem) -> None:
    """Row 22: the kernel counts users of the pool; here its frames with the ports keep it."""
    pool, other = FramePool(umem), FramePool(umem)
    receiving, sending = small_port(pool), small_port(other)
    receiving.fill(20)
    batch = pool.alloc(5)
    batch.len[:] = 60
    sending.transmit(batch)
    pool.close()
    assert (pool.state, pool.inflight) == ("detached", 25)
    with pytest.raises(PoolError):
        receiving.fill(1)
    receiving.close()
    assert (pool.state, pool.inflight) == ("detached", 5)
    sending.close()
    assert (pool.state, pool.inflight) == ("closed", 0)
    other.close()


def test_row_22_a_pool_that_was_forgotten_is_still_there_for_its_frames(umem: Umem) -> None:
    """Row 22: its callbacks too, which C may call when its object is long gone."""
    events: list[str] = []

    def forget() -> Batch:
        return FramePool(umem, ring_size=1, on_event=lambda kind, _: events.append(kind)).alloc(400)

    batch = forget()
    gc.collect()
    assert umem.put(batch) == 400
    assert set(events) == {"hold", "release"}
    umem.audit().check(idle=True)


#: Attributes of the set page-pool, and of page-pool-stats, in the kernel's Documentation/netlink/specs/netdev.yaml.
PAGE_POOL = {"id", "ifindex", "napi-id", "inflight", "inflight-mem", "detach-time", "dmabuf", "io-uring"}
PAGE_POOL_STATS = (
    *("alloc-fast", "alloc-slow", "alloc-slow-high-order", "alloc-empty", "alloc-refill", "alloc-waive"),
    *("recycle-cached", "recycle-cache-full", "recycle-ring", "recycle-ring-full", "recycle-released-refcnt"),
)


def test_row_25_statistics_have_the_keys_of_the_kernels_netlink(umem: Umem) -> None:
    """Row 25: what has a meaning here, under the kernel's name; detach-time only once the pool is closed."""
    pool = FramePool(umem)
    batch = pool.alloc(1)
    told = json.loads(json.dumps(pool.as_page_pool()))
    assert told == {"id": 1, "inflight": 64, "inflight-mem": 64 * 4096}
    pool.close()
    told = json.loads(json.dumps(pool.as_page_pool()))
    assert told.keys() == {"id", "inflight", "inflight-mem", "detach-time"} < PAGE_POOL
    assert (told["inflight"], told["inflight-mem"]) == (1, 4096)
    stats = pool.stats().as_page_pool_stats()
    assert tuple(json.loads(json.dumps(stats))) == PAGE_POOL_STATS
    assert stats["alloc-slow"] == 1
    names = [field.name.replace("_", "-") for field in dataclasses.fields(pool.stats())]
    assert tuple(names[:11]) == PAGE_POOL_STATS
    umem.put(batch)


def test_row_26_the_hook_is_called_in_the_slow_path_only(umem: Umem) -> None:
    """Row 26: once for each bulk that enters or leaves; frames that are recycled cost it nothing."""
    events: list[tuple[str, int]] = []
    with FramePool(umem, on_event=lambda kind, frames: events.append((kind, len(frames)))) as pool:
        for _ in range(1000):
            pool.put(pool.alloc(128))
        assert events == [("hold", 64)] * 2
        pool.flush()
        assert events[2:] == [("release", 128)]


class ReadOnlyMemory:
    """A provider of memory nobody can write to."""

    def __init__(self) -> None:
        self.buffer = mmap.mmap(-1, 64 * 4096, prot=mmap.PROT_READ)
        self.description = "nothing"

    def close(self) -> None:
        self.buffer.close()


class CountingMemory(AnonymousMemory):
    """A provider that says how often it was closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


def test_row_28_a_provider_is_used_closed_once_and_refused_when_of_no_use() -> None:
    """Row 28: the kernel calls memory the CPU cannot read unreadable, and refuses it to a pool that did not ask."""
    memory = CountingMemory(64 * 4096)
    with Umem(64, memory=memory) as umem, FramePool(umem) as pool:
        batch = pool.alloc(64)
        for i in range(64):
            batch.write(i, bytes([i]) * 10)
        assert all(memory.buffer[int(addr)] == i for i, addr in enumerate(batch.addr))
        pool.put(batch)
        umem.audit().check(idle=True)
    umem.close()
    assert memory.closed == 1
    with pytest.raises(ConfigError, match="written"):
        Umem(64, memory=ReadOnlyMemory())
    with pytest.raises(ConfigError, match="too short"):
        Umem(65, memory=CountingMemory(64 * 4096))


def test_row_31_a_loop_that_drops_recycles_directly(umem: Umem, pool: FramePool) -> None:
    """Row 31: after warming up no frame leaves the cache's reach, and none comes from the Umem."""
    port = small_port(pool)
    kernel = FakeKernel(port)

    def drop(rounds: int) -> None:
        for _ in range(rounds):
            port.fill()
            kernel.deliver(32)
            pool.put(port.receive())

    drop(10)
    before = pool.stats()
    drop(1000)
    after = pool.stats()
    assert after.recycle_cached - before.recycle_cached == after.alloc_fast - before.alloc_fast == 32_000
    assert (after.alloc_slow, after.alloc_refill, after.recycle_ring) == (before.alloc_slow, 0, 0)


def test_row_39_a_quota_holds_back_without_a_deadlock(umem: Umem) -> None:
    """Row 39: a pool that has all it may have goes on with what comes home; and the two kinds of failure differ."""
    with FramePool(umem, quota=80) as pool, small_port(pool) as port:
        kernel = FakeKernel(port)
        assert port.fill() == 32
        sent = 0
        while sent < 5000:
            batch = pool.alloc(64)
            batch.len[:] = 60
            assert len(batch) == 48, "what the quota leaves beside FILL"
            assert len(pool.alloc(1)) == 0
            sent += port.transmit(batch)
            kernel.deliver(32)
            pool.put(port.receive())
            assert port.fill() == 32
            kernel.send()
            assert port.complete(64) == 48
            assert pool.inflight == 80
        stats = pool.stats()
        assert stats.alloc_quota > 0
        assert stats.alloc_failed == 0
        with FramePool(umem) as greedy:
            rest = greedy.alloc(512)
            assert len(rest) == umem.frames - 80
            assert (greedy.stats().alloc_quota, greedy.stats().alloc_failed) == (0, 1)
            greedy.put(rest)


@pytest.mark.parametrize(
    ("case", "counter"),
    [("direct", "recycle_cached"), ("ring", "recycle_ring"), ("slow", "alloc_slow"), ("remote_solo", "remote_frames")],
)
def test_row_40_the_benchmark_runs_and_measures_what_it_says(case: str, counter: str) -> None:
    """Row 40: bench_page_pool's cases; it fails itself if a frame is not home. See benchmarks/pool."""
    if not (shutil.which("make") and shutil.which(os.environ.get("CC", "gcc"))):
        pytest.skip("needs make and a C compiler")
    subprocess.run(["make", "-s", "-C", str(BENCHMARK), "build/bench_pool"], check=True, timeout=100)
    command = [str(BENCHMARK / "build" / "bench_pool"), "--seconds", "0.02", case]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    measured = json.loads(done.stdout)
    assert measured["home"] == measured["frames"]
    assert measured[counter] * 64 >= measured["moved"] > 0
    assert measured["pair"] > 0
