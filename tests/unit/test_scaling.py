"""What a packet costs does not depend on how many workers there are: instructions, counted over rings in memory."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.pool.callgrind import available
from benchmarks.scaling.loops import build, instructions

pytestmark = pytest.mark.skipif(
    not available() or not shutil.which("pkg-config"), reason="needs valgrind and pkg-config: apt install valgrind"
)


def test_a_packet_costs_the_same_with_eight_workers_as_with_one() -> None:
    build()
    alone, eight = instructions("forward", 1), instructions("forward", 8)
    assert eight == pytest.approx(alone, rel=0.02)


def test_a_frame_that_comes_home_from_another_worker_costs_the_same_with_eight_as_with_two() -> None:
    build()
    two, eight = instructions("cross", 2), instructions("cross", 8)
    assert eight == pytest.approx(two, rel=0.02)
