"""A short run of each fuzzer, the whole corpus first. `make fuzz` runs them for ten minutes."""

from __future__ import annotations

import fcntl

import fuzzing
import pytest


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [*fuzzing.NAMES, fuzzing.PARSERS])
def test_nothing_breaks_within_seconds(name: str) -> None:
    if reason := fuzzing.lacking(name):
        pytest.skip(reason)
    fuzzing.BUILD.mkdir(exist_ok=True)
    with (fuzzing.BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fuzzing.fuzzer(name)
    done = fuzzing.run(name, seconds=5)
    assert done.returncode == 0, done.stdout[-6000:]
    assert len(list((fuzzing.CORPUS / name).iterdir())) > 10
