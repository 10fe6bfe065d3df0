"""A quarter of a minute of `make soak`, paced, so that it also holds on a machine that is busy with other things."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from soak import Soak

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
RESULTS = TESTS.parent / "benchmarks" / "results" / "soak.json"


@pytest.mark.usefixtures("veth_machine")
@pytest.mark.timeout(300)
def test_a_quarter_of_a_minute(tmp_path: Path) -> None:
    output = tmp_path / "soak.json"
    words = ["--seconds", "15", "--rate", "20000", "--seed", "7", "--output", str(output)]
    path = os.pathsep.join(str(TESTS / name) for name in ("veth", "fault", "soak"))
    done = subprocess.run(
        [sys.executable, str(HERE / "soak.py"), *words],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(output.read_text())
    assert result["faults"]
    assert result["audits"] >= result["legs"] > 0
    assert min(result["packets"].values()) > 0


def test_the_committed_result_is_of_half_an_hour_and_all_faults() -> None:
    result = json.loads(RESULTS.read_text())
    faults = [name for name in dir(Soak) if name.startswith("fault_")]
    assert result["seconds"] >= 1800
    assert (len(result["faults"]), result["frames_lost"]) == (len(faults), 0)
    assert min(fault["tried"] for fault in result["faults"].values()) >= 5


def test_the_order_of_faults_is_the_seeds() -> None:
    def first(seed: int) -> list[str]:
        made = object.__new__(Soak)
        made.chance = random.Random(seed)
        order = made.faults()
        return [next(order).__name__ for _ in range(30)]

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert len(set(first(1)[:13])) == 13
