"""A short run of each fuzzer, the whole corpus first. `make fuzz` runs them for ten minutes.

What Python reads is fuzzed by atheris where that is installed (the extra `fuzz`), and by hypothesis everywhere.
"""

from __future__ import annotations

import fcntl
import importlib.util

import fuzzing
import pytest
import readers
from hypothesis import example, given, settings
from hypothesis import strategies as st

SEEDS = [path.read_bytes() for path in sorted((fuzzing.CORPUS / fuzzing.PARSERS).iterdir())]
HERE = [fuzzing.PARSERS] if importlib.util.find_spec("atheris") else []


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """What the corpus has, with a part of it replaced by anything; for any reader."""
    seed = draw(st.sampled_from(SEEDS))[1:]
    start = draw(st.integers(0, len(seed)))
    end = draw(st.integers(start, min(len(seed), start + 16)))
    reader = draw(st.integers(0, len(readers.READERS) - 1))
    return bytes([reader]) + seed[:start] + draw(st.binary(max_size=16)) + seed[end:]


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_readers_say_what_they_do_not_understand(seed: bytes) -> None:
    readers.one(seed)


@settings(max_examples=400)
@given(spoiled() | st.binary(max_size=200))
def test_readers_take_anything(data: bytes) -> None:
    readers.one(data)


@settings(max_examples=200)
@given(st.integers(0, len(readers.READERS) - 1), st.text(max_size=40))
@example(readers.READERS.index(readers.device_file), "[" * 5000)
@example(readers.READERS.index(readers.state_file), "[" * 5000)
@example(
    readers.READERS.index(readers.device_file),
    '{"knobs": [{"kind": "napi", "key": "", "before": 0, "holders": [{"owner": [1e999, 1, 1], "n": 1, "value": 0}]}]}',
)
def test_readers_take_any_text(reader: int, text: str) -> None:
    readers.one(bytes([reader]) + text.encode(errors="surrogateescape"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [*fuzzing.NAMES, *HERE])
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
