"""Every example runs as it is, and says what it should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

EXPECTED = {
    "01_drop.py": ["received 100000", "recycled directly: ", "all accounted for"],
    "02_forward.py": ["sent 50000, completed 50000", "far end: 50000 packets of 4 flows, 0 lost, 0 reordered"],
    "03_tx.py": ["sent 50000, completed 50000", "far end: 50000 packets, 0 lost, 0 corrupt", "all accounted for"],
    "04_handler.py": [
        "batch: 10000 forwarded, 10000 dropped; flows [0, 2]",
        "packet: 5000 forwarded, 15000 dropped; flows [0]",
        "all accounted for",
    ],
    "06_workers.py": [
        "worker 1: received 10000, completed 10000",
        "far end: 20000 packets",
        "kept 10000, far end 10000; came home to their own pools: 10000",
        "app 0, tx 0; all accounted for",
    ],
    "05_by_hand.py": ["1000 received; far ends: 1000 and 1000", "app 0, tx 0; all accounted for"],
    "07_compiled.py": [
        "10000 forwarded; far end: 10000 packets of flows [0, 2]",
        "{40000: 5000, 40001: 5000, 40002: 5000, 40003: 5000}",
        "all accounted for",
    ],
    "08_five_tuple.py": ["10000 forwarded, 10000 dropped; flows [1, 2], 0 corrupt", "all accounted for"],
}


def test_every_example_is_tested() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(EXPECTED)


@pytest.mark.usefixtures("veth_machine")
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_example(name: str) -> None:
    if name == "07_compiled.py":
        pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[numba]'")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    for text in EXPECTED[name]:
        assert text in done.stdout, done.stdout
