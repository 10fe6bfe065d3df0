"""Zero-copy and steering by real drivers, as a part of all tests: what tests/nic finds in the guest that it boots."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest
from guest import NIC, Beside

WITHIN = 2500.0  # seconds, which is more than the guest gives itself; it has been running beside the other tests


@pytest.mark.timeout(WITHIN + 60)
def test_real_drivers_in_a_guest(nic_guest: Beside) -> None:
    code, printed = nic_guest.finish(WITHIN)
    skipped = re.search(r"^tests/nic: skipped: (.*)$", printed, re.MULTILINE)
    if skipped:
        pytest.skip(f"no guest can be booted here: {skipped[1]}")
    assert code == 0, printed[-20_000:]
    results = json.loads((NIC / "last-results.json").read_text())
    ran = [one for one in results["tests"] if not one["reason"].endswith("has no tap devices")]
    assert Counter(one["outcome"] for one in ran) == {"passed": len(ran)}
    there = {name for path in NIC.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert {one["test"].partition("[")[0] for one in results["tests"]} == there, "every test of tests/nic has run"
