"""Interrupted at any moment, by Ctrl-C or what another signal's handler raises: it ends, and every frame comes home."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from doorbell import Doorbell
from support import conserved, small_port

from afxdp_pool import FramePool

ROOT = Path(__file__).resolve().parents[2]


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
