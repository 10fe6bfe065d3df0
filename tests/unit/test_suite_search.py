"""The search for the highest loss-free rate, on engines made of arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.suite.losses import STEPS, TOLERANCE, TRIES, Trial, search


def engine(limit: float, source: float = 1e12) -> tuple[list[float], object]:
    """Loses nothing up to `limit` packets a second, and all above; a source that makes no more than `source`."""
    asked: list[float] = []

    def attempt(rate: float) -> Trial:
        asked.append(rate)
        offered = min(rate, source)
        return Trial(rate, offered, 0 if offered <= limit else 1000, 1_000_000)

    return asked, attempt


@given(st.floats(1e5, 1e7), st.floats(1e6, 3e6))
def test_the_limit_is_found(limit: float, start: float) -> None:
    asked, attempt = engine(limit)
    best, source_limited, trials = search(attempt, start)  # type: ignore[arg-type]
    assert best <= limit
    assert not source_limited
    assert len(trials) == len(asked) <= STEPS * TRIES
    # Steps spent on finding a rate that passes are missing for coming closer.
    if 0.6 * start < limit < 1.9 * start:
        assert best >= limit * (1 - TOLERANCE)


def test_a_source_at_its_end_ends_the_search() -> None:
    asked, attempt = engine(1e9, source=5e6)
    best, source_limited, _ = search(attempt, 4e6)  # type: ignore[arg-type]
    assert (best, source_limited) == (5e6, True)
    assert asked == [4e6, 8e6]


def test_an_engine_that_always_loses_has_no_rate() -> None:
    best, source_limited, trials = search(lambda rate: Trial(rate, rate, 100, 1000), 1e6)
    assert (best, source_limited, len(trials)) == (0.0, False, STEPS * TRIES)


def test_one_passed_trial_of_a_rate_is_enough() -> None:
    """Another guest of the machine may have had its turn in the other."""
    count = 0

    def attempt(rate: float) -> Trial:
        nonlocal count
        count += 1
        return Trial(rate, rate, 1000 if count == 1 or rate > 1.1e6 else 0, 1_000_000)

    best, _, trials = search(attempt, 1e6)
    assert best >= 1e6
    assert not trials[0].passed
    assert trials[1].passed


@pytest.mark.parametrize(
    ("lost", "sent", "passed"),
    [(0, 1000, True), (1, 1000, False), (9, 1_000_000, True), (10, 1_000_000, False), (0, 0, False)],
)
def test_fewer_than_ten_in_a_million(lost: int, sent: int, passed: bool) -> None:
    assert Trial(1.0, 1.0, lost, sent).passed is passed
