"""A forked child has nothing of its parent's Umem, whatever it does to it, and the parent goes on as before."""

from __future__ import annotations

import gc
import mmap
import os
import signal
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import DEADLINE, forwarding, numbered
from support import until

from afxdp_pool import (
    DROP,
    Batch,
    BpfMemory,
    FramePool,
    PoolClosedError,
    PrivilegeError,
    SharedMemory,
    Umem,
    Workers,
)
from afxdp_pool.capture import Capture
from afxdp_pool.memory import AnonymousMemory, Memory
from afxdp_pool.metrics import serve

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def bpf_memory(size: int) -> Memory:
    try:
        return BpfMemory(size)
    except PrivilegeError:
        pytest.skip("needs CAP_BPF")


def in_child(act: Callable[[], object]) -> None:
    """Fork; the child does `act`, which must end, and without an error."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            signal.alarm(int(DEADLINE))  # a lock of a thread that is not there: it would wait for ever
            act()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("many", [False, True])
def test_a_child_leaves_the_blocks_of_a_running_forwarder(many: bool, tmp_path: Path) -> None:
    with forwarding() as bench:
        seen = threading.Event()

        def handler(batch: Batch) -> int:
            seen.set()
            return DROP

        forwarder = bench.forwarder(handler=handler)
        runner: Any = Workers([forwarder]) if many else forwarder
        bench.ports[0].fill()
        held = bench.pool.write(numbered(3)).keep()
        bench.pool.put(Batch(held.descs, bench.umem.data))  # the batch's own references
        bench.pool.unbind()
        capture = Capture(tmp_path / "capture.pcapng", bench.ports)
        endpoint = serve(runner, 0)
        runner.start()
        bench.kernels[0].deliver(numbered(5))
        assert seen.wait(DEADLINE)

        def leave() -> None:
            for thing in (endpoint, capture, held, runner, forwarder, *bench.ports, bench.pool, bench.umem):
                thing.close()
                thing.close()

        in_child(leave)
        bench.kernels[0].deliver(numbered(5))
        until(lambda: bench.ports[0].stats().rx_packets == 10)
        endpoint.close()
        runner.stop()
        assert runner.join().ports[0].stats.rx_packets == 10
        capture.close()
        assert capture.stats().written == 10
        runner.close()
        forwarder.close()
        held.close()


@pytest.mark.parametrize("made", [AnonymousMemory, SharedMemory, bpf_memory], ids=lambda made: made.__name__)
def test_a_child_sees_zeros_in_place_of_frames(made: Callable[[int], Memory]) -> None:
    size = 512 * 4096
    with Umem(512, memory=made(size)) as umem, FramePool(umem) as pool:
        batch = pool.write([b"parent"] * 4)
        seen = batch[0]

        def look() -> None:
            assert bytes(seen) == bytes(6)
            seen[:] = 1
            umem.data[:] = 2

        in_child(look)
        assert bytes(seen) == b"parent"
        pool.put(batch)
        umem.audit().check(idle=True)


def test_a_childs_own_memory_is_not_unmapped_with_its_parents() -> None:
    umem = Umem(4096)
    view = umem.data[:1]  # as who closed the Umem, but kept an array
    size = umem.data.nbytes
    umem.close()
    held = [umem, view]
    del umem, view

    def allocate() -> None:
        mappings = [mmap.mmap(-1, size // 8) for _ in range(64)]  # some would lie where the frames were
        for mapping in mappings:
            mapping[:] = b"1" * len(mapping)
        held.clear()
        gc.collect()
        assert all(mapping[:] == b"1" * len(mapping) for mapping in mappings)

    in_child(allocate)


def test_in_a_child_all_is_closed() -> None:
    with forwarding() as bench:
        frame = bench.pool.write(numbered(1))
        held = frame.keep(0)

        def look() -> None:
            assert bench.ports[0].closed
            assert held.closed or repr(held) == "<Frame, given away>"
            for use in (lambda: bench.pool.alloc(1), bench.ports[0].fileno, lambda: bytes(held), bench.umem.audit):
                with pytest.raises(PoolClosedError):
                    use()
            with Umem(64) as umem:  # one of its own works
                umem.audit().check(idle=True)

        in_child(look)
        held.close()
        bench.pool.put(frame)
