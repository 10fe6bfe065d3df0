"""The hot paths' instructions a frame, counted by callgrind: repeatable on a noisy machine, so they guard the paths."""

from __future__ import annotations

import pytest

from benchmarks.pool.callgrind import available, build, instructions

pytestmark = pytest.mark.skipif(not available(), reason="needs valgrind: apt install valgrind")

# A third above what gcc 12 made of them when they were written, for other compilers. At bulk 64.
MOST = {"direct": 39, "ring": 45, "slow": 85, "remote_solo": 82}


@pytest.mark.parametrize("case", sorted(MOST))
def test_a_frame_costs_no_more_instructions_than_it_did(case: str) -> None:
    build("build/bench_pool")
    assert instructions(case, bulk=64).total <= MOST[case]
