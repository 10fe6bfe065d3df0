"""Interrupted at any moment, by Ctrl-C or what another signal's handler raises: it ends, and every frame comes home."""

from __future__ import annotations

import asyncio
import dis
import functools
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import pytest
from doorbell import Doorbell
from support import conserved, small_port

from afxdp_pool import Batch, Forwarder, Frame, FramePool, Frames, Umem, forwarder
from afxdp_pool.testing import FakeKernel

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = str(ROOT / "afxdp_pool")


def test_programs_that_tests_start_can_be_interrupted() -> None:
    asked = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "True\n"


def test_so_they_can_when_the_tests_run_in_the_background_of_a_script() -> None:
    """A shell without job control starts them with SIGINT ignored, which every program they start would inherit."""
    test = f"{Path(__file__).relative_to(ROOT)}::{test_programs_that_tests_start_can_be_interrupted.__name__}"
    words = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*words, test], cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout


def test_ctrl_c_ends_what_asyncio_awaits() -> None:
    """asyncio cancels the task, in a turn of its loop: the signal may come between a look at the rings and sleep."""

    async def reflect(kernel: Doorbell, started: threading.Event) -> None:
        async def traffic() -> None:
            while True:
                kernel.deliver([bytes(60)] * random.randint(1, 8))
                kernel.send()
                started.set()
                await asyncio.sleep(random.choice([0, 0.0001]))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(traffic())
            async for batch in kernel.port:
                await kernel.port.atransmit(batch)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for _ in range(60):
            with conserved() as umem, FramePool(umem) as pool, Doorbell(small_port(pool)) as kernel:
                started = threading.Event()

                def interrupt(started: threading.Event = started, after: float = random.random() * 0.01) -> None:
                    started.wait(20)
                    threading.Event().wait(after)
                    os.kill(os.getpid(), signal.SIGINT)

                thread = threading.Thread(target=interrupt)
                thread.start()
                with pytest.raises(KeyboardInterrupt):
                    asyncio.run(reflect(kernel, started))
                thread.join()
                kernel.port.close()
                umem.audit().check(idle=True)
    finally:
        signal.signal(signal.SIGINT, before)


# What a signal's handler raises -------------------------------------------------------------------------------------


class Interrupted(BaseException):
    pass


def interrupt(call: Callable[[], object], place: int) -> str:
    """Raise in `call`, at the n-th place in this library where Python may run a signal's handler; which that is, or "".

    Those are the start of a function, behind each call, and the end of each turn of a loop (CHECK_EVAL_BREAKER in
    CPython's Python/ceval.c).
    """
    left = place
    before: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(LIBRARY) or _destroys(frame):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        last = before.get(frame, -1)
        before[frame] = frame.f_lasti
        if event == "call" or (event == "opcode" and last in _places(frame.f_code)):
            left -= 1
            if left < 0:
                raise Interrupted(f"{frame.f_code.co_qualname}, line {frame.f_lineno}")
        return trace

    sys.settrace(trace)
    try:
        call()
    except Interrupted as where:
        return str(where)
    finally:
        sys.settrace(None)
        before.clear()  # these frames hold what was in their variables
    return ""


def _destroys(frame: FrameType | None) -> bool:
    """Whether `__del__` runs, whose exceptions Python ignores: there it would be a handler that was not heard."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@functools.cache
def _places(code: CodeType) -> frozenset[int]:
    return frozenset(one.offset for one in dis.get_instructions(code) if one.opname.startswith(("CALL", "JUMP_BACK")))


class Stage:
    """A port in memory, four packets, and what somebody does with them, until all is given back."""

    def __init__(self, umem: Umem, pool: FramePool) -> None:
        self.umem, self.pool, self.port = umem, pool, small_port(pool)
        self.kernel = FakeKernel(self.port)
        self.batch = pool.write([bytes(60)] * 4)
        self.frames: Frames | None = None

    def hold(self) -> Frames:
        self.frames = Frames(self.batch)
        return self.frames

    def over(self) -> None:
        """What a program does that was interrupted: give back what it still has."""
        if self.frames is not None:
            self.frames.close()
        elif self.batch.held.any():
            self.pool.put(self.batch[self.batch.held])
        self.drain()

    def drain(self) -> None:
        """The kernel sends what is in TX."""
        while self.port.ring_levels()["tx"]:
            self.kernel.send()
            self.port.complete()


def keep_and_put(stage: Stage) -> Callable[[], object]:
    return lambda: stage.batch.keep().close()


def keep_one(stage: Stage) -> Callable[[], object]:
    return lambda: stage.batch.keep(2).close()


def keep_twice(stage: Stage) -> Callable[[], object]:
    def work() -> None:
        with stage.batch.keep(slice(1, 3)) as some, some.keep(0):
            pass

    return work


def take_over(stage: Stage) -> Callable[[], object]:
    return lambda: Frames(stage.batch).close()


def move_some(stage: Stage) -> Callable[[], object]:
    frames = stage.hold()
    return lambda: Frames(frames[np.array([True, False, True, False])]).close()


def join_all(stage: Stage) -> Callable[[], object]:
    frames = stage.hold()
    parts: list[Frames | Frame] = [Frames(frames[:1]), frames, stage.batch.keep(3)]

    def work() -> None:
        Frames.join(parts).close()

    return work


def close(stage: Stage) -> Callable[[], object]:
    return stage.hold().close


def put_some(stage: Stage) -> Callable[[], object]:
    frames = stage.hold()
    return lambda: stage.pool.put(frames[1:3])


def send_some(stage: Stage) -> Callable[[], object]:
    frames = stage.hold()
    return lambda: stage.port.transmit(frames[1:3])


def send_with_a_second_reference(stage: Stage) -> Callable[[], object]:
    """Whoever gave one back twice would take somebody else's."""
    other = Batch(stage.batch.descs.copy(), stage.umem.data, umem=stage.umem, frame_size=4096)
    stage.pool.ref(other)
    frames = stage.hold()

    def over() -> None:
        frames.close()
        stage.pool.put(other)
        stage.drain()

    stage.over = over  # type: ignore[method-assign]
    return lambda: stage.port.transmit(frames)


def handed_over(stage: Stage) -> Forwarder:
    """A worker that is to send the packets."""
    worker = Forwarder([stage.port], {}, spin=0)
    stage.pool.unbind()
    worker.hand_over(stage.batch, stage.port)
    stage.batch = stage.batch[:0]

    def over() -> None:
        worker.close()
        stage.drain()

    stage.over = over  # type: ignore[method-assign]
    return worker


def send_handed(stage: Stage) -> Callable[[], object]:
    return handed_over(stage)._send_handed


def run(stage: Stage) -> Callable[[], object]:
    worker = handed_over(stage)
    return lambda: worker.run(0)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "scene",
    [
        *(keep_and_put, keep_one, keep_twice, take_over, move_some, join_all, close, put_some, send_some),
        *(send_with_a_second_reference, send_handed, run),
    ],
)
def test_what_a_signals_handler_raises_loses_no_frame_and_frees_none_twice(
    scene: Callable[[Stage], Callable[[], object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder, "DRAIN_WITHIN", 0.001)  # the kernel sends nothing before it is over
    for place in itertools.count(0, 13 if scene is run else 1):  # it comes by some 500 places
        with conserved(128) as umem, FramePool(umem) as pool:
            stage = Stage(umem, pool)
            cut = interrupt(scene(stage), place)
            stage.over()
            assert umem.count_states()["app"] == 0, f"interrupted in {cut}"
            assert umem.foreign_puts == 0
        if not cut:
            break
    assert place > 5
