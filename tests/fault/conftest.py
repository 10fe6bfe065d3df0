"""What every fault has: real traffic through an engine, a record of what it did to it, and a look at what is left.

``AFXDP_FAULT_ROUNDS`` says how often the process is killed, ``AFXDP_FAULT_RESULTS`` where the records go: `make faults`
sets both, and scripts/fault_table.py makes the table of docs/reliability.md from them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty import Flow, Record, left_behind

from afxdp_pool.testing import Lab

_records: list[Record] = []
_passed = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Note whether the test itself passed."""
    outcome = yield
    if call.when == "call":
        item.stash[_passed] = outcome.get_result().passed


@pytest.fixture
def record(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Record]:
    """The record of this test's fault. At its end nothing of ours may be left on the lab's links."""
    made = Record(request.node.name)
    yield made
    if request.node.stash.get(_passed, False) is not True:
        return  # it says enough
    made.left += left_behind(lab, made.pids)
    assert made.left == []
    assert made.lost == 0
    assert made.tries > 0
    assert made.title
    assert made.does
    _records.append(made)


@pytest.fixture
def flow(lab: Lab, record: Record) -> Iterator[Flow]:
    """Traffic from the far end of one pair to that of another, and an engine between them once `start` was called."""
    with Flow(lab) as made:
        yield made


def pytest_sessionfinish(session: pytest.Session) -> None:
    where = os.environ.get("AFXDP_FAULT_RESULTS")
    if where and _records:
        kernel, date = os.uname().release, time.strftime("%Y-%m-%d", time.gmtime())
        rows = [record.row() for record in _records]
        Path(where).write_text(json.dumps({"kernel": kernel, "date": date, "faults": rows}, indent=1) + "\n")
