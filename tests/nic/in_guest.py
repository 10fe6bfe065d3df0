"""What pytest has in the guest that machine.py boots: a fixture, and the results for the host."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

#: Where the guest leaves its results; set by machine.py.
RESULTS = Path(os.environ.get("AFXDP_POOL_NIC_GUEST", "/mnt"))

_found: list[dict[str, Any]] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "/nic/" in report.nodeid and (report.when == "call" or report.outcome != "passed"):
        name = report.nodeid.rpartition("::")[2]
        why = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        _found.append({"test": name, "outcome": report.outcome, "seconds": round(report.duration, 1), "reason": why})


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not _found:
        return
    told = {"kernel": os.uname().release, "date": time.strftime("%Y-%m-%d"), "tests": _found}
    (RESULTS / "results.json").write_text(json.dumps(told, indent=1) + "\n")


@pytest.fixture
def closed() -> Iterator[Any]:
    """Closes what it is called with, when the test is over, so that a test that fails does not keep its queues."""
    with contextlib.ExitStack() as stack:

        def enter(thing: Any) -> Any:
            return stack.enter_context(thing)

        yield enter
