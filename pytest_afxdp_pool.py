"""The pytest plugin: fixtures for tests of packet programs, and what a failed test's frames and rings looked like.

It owns nothing but the watch over failing Umems; what its fixtures make ends with their test. It lies outside the
package because pytest loads it in every run on a machine that has afxdp_pool: here is only what pytest must see, and
nothing of the package is imported before a test asks for it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from afxdp_pool import FramePool, Port
    from afxdp_pool.testing import FakeKernel, Lab, Traffic, VethPair
    from afxdp_pool.testing.state import Witness

_MARKERS = (
    "veth_pair(queues=1, mtu=1500, addresses=True): how the fixture veth_pair is made",
    "audited_pool(frames=512, frame_size=4096, ...): arguments for the Umem under the fixture audited_pool",
    "fake_port(fill_level=32, rx_size=64, ...): fields of the PortConfig of the fixture fake_port",
)
_SMALL = {"fill_size": 64, "comp_size": 64, "rx_size": 64, "tx_size": 64, "fill_level": 32}
_failed = pytest.StashKey[bool]()
_witness: Witness | None = None


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("afxdp-pool", "AF_XDP packet programs")
    group.addoption(
        "--afxdp-require",
        action="store_true",
        help="fail instead of skipping the tests that need a lab when this machine, or user, cannot make one",
    )
    group.addoption(
        "--afxdp-trace",
        action="store_true",
        help="note who takes frames, so that a failed test shows where they were taken (sets AFXDP_POOL_TRACE=1)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The markers, and tracing for this run and its child processes."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if config.getoption("afxdp_trace"):
        os.environ["AFXDP_POOL_TRACE"] = "1"


# A failed test ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, None]:
    """Watch over the Umems of a test that may make some."""
    if "afxdp_pool" in sys.modules:
        _watch().start()
    yield
    if _witness is not None:
        _witness.stop()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[Any]) -> Generator[None, Any, None]:
    """Add to the report of a failure what its Umems look like, or looked like before they were closed."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if not report.failed or call.excinfo is None:
        return
    item.stash[_failed] = True
    if "afxdp_pool" in sys.modules:
        report.sections += _watch().of(call.excinfo.value)
        lab = getattr(item, "funcargs", {}).get("lab")
        if lab is not None and report.when == "call":
            report.sections += _links(lab)


def _watch() -> Witness:
    global _witness
    if _witness is None:
        from afxdp_pool.testing.state import Witness

        _witness = Witness()
    return _witness


def _links(lab: object) -> list[tuple[str, str]]:
    from afxdp_pool.errors import AfXdpError
    from afxdp_pool.testing.lab import Lab
    from afxdp_pool.testing.state import links

    try:
        return links(lab) if isinstance(lab, Lab) else []
    except AfXdpError as error:
        return [("afxdp_pool links", f"{error}\n")]


def _chosen(request: pytest.FixtureRequest, defaults: dict[str, Any]) -> dict[str, Any]:
    """How a fixture is to be made: its defaults, the marker of its name, an indirect parameter, the last one first."""
    marker = request.node.get_closest_marker(request.fixturename)
    return {**defaults, **(marker.kwargs if marker else {}), **getattr(request, "param", {})}


# Real packets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def veth_machine(request: pytest.FixtureRequest) -> None:
    """Skip unless this machine has, and lets us use, network namespaces, veth and native XDP on it.

    With --afxdp-require it fails instead. Only a missing privilege or feature counts; any other failure is an error.
    """
    from afxdp_pool.testing.machine import lacking

    reason = lacking()
    if reason and request.config.getoption("afxdp_require"):
        pytest.fail(f"--afxdp-require: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def lab(veth_machine: None) -> Iterator[Lab]:
    """A `Lab` of the test's own: two network namespaces, and the veth pairs it is asked for. Removed after the test."""
    from afxdp_pool.testing import Lab

    _watch().start()
    with Lab() as made:
        yield made


@pytest.fixture
def veth_pair(request: pytest.FixtureRequest, lab: Lab) -> VethPair:
    """A pair of links, near for the program under test and far for the traffic.

    ``@pytest.mark.veth_pair(queues=2, mtu=3000)`` says how, or an indirect parameter with the same keys.
    """
    return lab.veth("pair", **_chosen(request, {}))


@pytest.fixture
def traffic(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Traffic]:
    """Proven packets: ``traffic.send(1000)`` through the program at `veth_pair`, or at the pairs it is told."""
    from afxdp_pool.testing import Traffic

    pair = request.getfixturevalue("veth_pair") if "veth_pair" in request.fixturenames else None
    with Traffic(pair) as made:
        yield made


# Without root -----------------------------------------------------------------------------------------------------


@pytest.fixture
def audited_pool(request: pytest.FixtureRequest) -> Iterator[FramePool]:
    """A `FramePool` on a traced `Umem` of its own. A frame still out at the end of the test fails it, by holder.

    ``@pytest.mark.audited_pool(frames=4096)`` gives arguments for the Umem, or an indirect parameter.
    """
    from afxdp_pool import AuditError, FramePool, Umem
    from afxdp_pool.testing import settle

    _watch().start()
    with Umem(**_chosen(request, {"frames": 512, "trace": True})) as umem:
        pool = FramePool(umem)
        yield pool
        if not request.node.stash.get(_failed, False):  # a test that has failed may well have left frames out
            try:
                settle(umem)
            except AuditError as error:
                told = str(error)
            else:
                return
            pytest.fail(told, pytrace=False)  # here, for pytest shows an error under way as well


@pytest.fixture
def fake_port(request: pytest.FixtureRequest, audited_pool: FramePool) -> Port:
    """A `Port` whose rings lie in memory, filled, on `audited_pool`; `fake_kernel` plays the other side.

    ``@pytest.mark.fake_port(fill_level=16)`` gives fields of its `PortConfig`, or an indirect parameter.
    """
    from afxdp_pool import Port, PortConfig

    port = Port.in_memory(audited_pool, PortConfig(**_chosen(request, _SMALL)))
    port.fill()
    audited_pool.unbind()  # whichever thread uses it first is the owner
    return port


@pytest.fixture
def fake_kernel(fake_port: Port) -> FakeKernel:
    """The kernel's side of `fake_port`: `deliver` packets to it, `send` what it transmits."""
    from afxdp_pool.testing import FakeKernel

    return FakeKernel(fake_port)
