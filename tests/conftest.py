"""What every test may use. Nothing here runs, or is imported from the library, before a test asks for it."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from guest import Beside

    from afxdp_pool import FramePool, Umem

#: These run in the guest that tests/nic/machine.py boots: `make test-nic`, and tests/nic_guest.
collect_ignore = ["nic"]

# How long an example takes says more about who else uses the machine.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# docs/page-pool.md and docs/troubleshooting.md name tests for each row. A row whose test was skipped is not proven: as
# root, where nothing need be skipped, that fails the session. Only what was collected counts, so parts can be run.

PAGES = [Path(__file__).resolve().parents[1] / "docs" / name for name in ("page-pool.md", "troubleshooting.md")]
_skipped: dict[str, str] = {}


def tests_of_the_checklist() -> set[str]:
    """The node ids that these pages name; a test in C by that of the program it is in."""
    text = "".join(page.read_text() for page in PAGES if page.exists())
    names = set(re.findall(r"`(tests/[\w/]+\.(?:py|c)::\w+)`", text))
    return {
        re.sub(r"^tests/native/(\w+)\.c::.*", r"tests/native/test_native.py::test_native[\1-asan]", n) for n in names
    }


def may_do_everything() -> bool:
    """Root with the capabilities that the tests with real packets need, which root in a container may lack."""
    from afxdp_pool.testing.machine import capabilities

    return os.geteuid() == 0 and all(capabilities().values())


def unproven_rows() -> list[str]:
    """Tests of the checklist that were skipped, with the reason, if that is a failure."""
    if not _skipped or not may_do_everything():
        return []
    named = tests_of_the_checklist()
    return [
        f"{node}: {reason}"
        for node, reason in sorted(_skipped.items())
        if any(node == name or node.startswith((f"{name}[", f"{name}::")) for name in named)
    ]


def pytest_configure() -> None:
    # In the background of a script (`make test &`) they inherit that SIGINT is ignored, and so would every program they
    # interrupt: one that leaves Ctrl-C to Python, as asyncio's do, would go on for ever.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped[report.nodeid] = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.OK and unproven_rows():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = unproven_rows()
    if rows:
        terminalreporter.section(
            "docs/page-pool.md, docs/troubleshooting.md: tests they name that were skipped", red=True
        )
        for row in rows:
            terminalreporter.line(row)


def _in_guest(item: pytest.Item) -> bool:
    return item.path.parent.name == "nic_guest"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_in_guest)  # last: until then the guest runs beside the others


@pytest.fixture(scope="session", autouse=True)
def nic_guest(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside | None]:
    """The guest of tests/nic, if its test is among those to be run; booted now, unless several processes share them."""
    if not any(_in_guest(item) for item in request.session.items):
        yield None
        return
    from guest import Beside

    guest = Beside(tmp_path_factory.mktemp("guest") / "log")
    if not hasattr(request.config, "workerinput"):
        guest.start()
    yield guest
    guest.stop()


@pytest.fixture
def umem() -> Iterator[Umem]:
    """A Umem whose every frame is at home, and accounted for, when the test is over."""
    from afxdp_pool import Umem

    with Umem(512) as made:
        yield made
        for port in list(made._ports):
            port.close()
        made.audit().check(idle=True)


@pytest.fixture
def pool(umem: Umem) -> Iterator[FramePool]:
    """A pool on that Umem."""
    from afxdp_pool import FramePool

    with FramePool(umem) as made:
        yield made
