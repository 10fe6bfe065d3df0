"""The hot paths' instructions a frame, counted by callgrind: repeatable on a noisy machine, so they guard the paths."""

from __future__ import annotations

import pytest

from benchmarks.pool.callgrind import available, build, instructions

pytestmark = pytest.mark.skipif(not available(), reason="needs valgrind: apt install valgrind")

# A third above what gcc 12 made of them when they were written, for other compilers. At bulk 64.
MOST = {"direct": 33, "ring": 40, "slow": 79, "remote_solo": 82}


@pytest.mark.parametrize("case", sorted(MOST))
def test_a_frame_costs_no_more_instructions_than_it_did(case: str) -> None:
    build("build/bench_pool")
    assert instructions(case, bulk=64).total <= MOST[case]


def test_a_frame_costs_the_same_instructions_among_a_thousand_and_a_million() -> None:
    """Whether the same 64 go round or half of all are out, in random order: what grows is misses, not work."""
    build("build/bench_pool")
    for out in (False, True):
        few, many = (instructions("direct", frames=n, window=n // 2 * out).total for n in (1 << 10, 1 << 20))
        assert many == pytest.approx(few, rel=0.01)


def test_the_yardstick_does_less_than_the_pool() -> None:
    """`bare` has no pool; were it slow, the pool would look good beside it."""
    build("build/bench_pool")
    assert instructions("direct", subject="bare").total < 0.7 * instructions("direct").total
