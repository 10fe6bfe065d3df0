"""The pytest plugin as its user sees it: pytest runs files of its own, in processes of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import afxdp_pool as ap
from afxdp_pool.testing import Delivery, SinkReport, settle, state

FIXTURES = ("veth_machine", "lab", "veth_pair", "traffic", "audited_pool", "fake_port", "fake_kernel")
SKIP_PLUGINS = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
USERS_TESTS = """
import pytest

import afxdp_pool as ap

CONFIG = ap.PortConfig(fill_size=64, fill_level=32)

def test_leak(audited_pool):
    kept = audited_pool.alloc(3)  # and never put

def test_whole(audited_pool):
    audited_pool.put(audited_pool.alloc(3))

def test_in_a_with():
    with ap.Umem(256) as umem, ap.FramePool(umem) as pool, ap.Port.in_memory(pool, CONFIG, "lan") as port:
        port.fill()
        batch = pool.alloc(5)
        assert len(batch) == 6

def test_with_a_fixture(fake_port, fake_kernel):
    fake_kernel.deliver(4)
    raise RuntimeError("the program under test") from ValueError("its cause")

def test_handled():
    try:
        with ap.Umem(256, frame_size=2048):
            raise KeyError
    except KeyError:
        pass
    assert False

@pytest.mark.audited_pool(frames=1024, frame_size=2048)
@pytest.mark.fake_port(fill_level=16)
def test_markers(audited_pool, fake_port, fake_kernel):
    assert (audited_pool.umem.frames, audited_pool.umem.frame_size) == (1024, 2048)
    assert fake_kernel.filled() == fake_port.config.fill_level == 16

@pytest.mark.parametrize("audited_pool", [{"frames": 64}, {"frames": 128}], indirect=True)
def test_parameters(audited_pool):
    assert audited_pool.umem.frames in (64, 128)

@pytest.mark.audited_pool(framse=64)
def test_mistake(audited_pool):
    pass

def test_by_hand(fake_port, fake_kernel):
    assert fake_kernel.deliver([b"one packet of sixty bytes, or nearly"]) == 1
    batch = fake_port.receive()
    assert fake_port.transmit(batch) == 1
    assert fake_kernel.send() == [b"one packet of sixty bytes, or nearly"]
    assert fake_port.complete() == 1

def test_forwarder(fake_port, fake_kernel):
    fake_kernel.deliver(20)
    with ap.Forwarder([fake_port], {0: ap.Route(ap.DROP)}) as forwarder:
        forwarder.start()  # in a thread of its own
        while forwarder.snapshot().engine.dropped < 20:
            pass
        forwarder.stop()
        assert forwarder.join().received == 20

def take(pool):
    return pool.alloc(2)

@pytest.mark.parametrize("trace", [True])
def test_traced(trace):
    with ap.Umem(256, trace=trace) as umem, ap.FramePool(umem) as pool:
        batch = take(pool)
        assert not batch
"""


def pytest_run(directory: Path, *options: str, before: tuple[str, ...] = ()) -> str:
    """pytest on what lies in `directory`; all it said."""
    done = subprocess.run(
        [*before, sys.executable, "-m", "pytest", *SKIP_PLUGINS, *options],
        env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
        cwd=directory, capture_output=True, text=True, check=False, timeout=110,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What pytest says of each of the user's tests that failed, with two workers; under "", the whole."""
    directory = tmp_path_factory.mktemp("user")
    (directory / "test_user.py").write_text(USERS_TESTS)
    said = pytest_run(directory, "-n", "2", "--strict-markers", "-rA")
    parts = re.split(r"\n_+ (?:ERROR at \w+ of )?(\w+)(?:\[.*\])? _+\n", said.partition("short test summary")[0])
    return {"": said} | dict(zip(parts[1::2], parts[2::2], strict=True))


def holds(text: str, *lines: str) -> None:
    """Each of the lines, in this order; * stands for anything within a line."""
    pattern = r".*?".join(r"[^\n]*".join(map(re.escape, line.split("*"))) + r"[^\n]*\n" for line in lines)
    assert re.search(pattern, text + "\n", re.DOTALL), text


def test_the_outcomes(told: dict[str, str]) -> None:
    assert "4 failed, 7 passed, 2 errors" in told[""]
    passed = set(re.findall(r"^PASSED test_user.py::(\w+)", told[""], re.MULTILINE))
    assert passed == {"test_leak", "test_whole", "test_markers", "test_parameters", "test_by_hand", "test_forwarder"}


def test_a_leak_fails_the_test_and_names_the_line(told: dict[str, str]) -> None:
    holds(
        told["test_leak"],
        "3 frames still out; put them, or send and complete them, before the end:",
        "application has 3 frames of pool 1 for *, taken by MainThread:",
        '  File "*test_user.py", line *, in test_leak',
        "    kept = audited_pool.alloc(3)",
        "- afxdp_pool frames -",
        "Umem of 512 frames of 4096 bytes, *: umem *, app 3, tx 0",
    )
    assert "pluggy" not in told["test_leak"]


def test_a_failure_shows_what_it_closed(told: dict[str, str]) -> None:
    holds(
        told["test_in_a_with"],
        "- afxdp_pool frames -",
        "Umem of 256 frames of 4096 bytes, 4 KB pages: umem 192, pool 27, fill 32, app 5, tx 0",
        "audit: 256 frames: umem 192, pool 27, fill 32, app 5, tx 0; all accounted for",
        ". umem, o pool, f fill, A app, t tx",
        "     0 oooooo*AAAAAfffff*",
        "    64 ....*.... (3 such lines)",
        "- afxdp_pool rings -",
        "lan queue 0: fill 32/64, rx 0/2048, tx 0/2048, comp 0/2048",
        "- afxdp_pool counters -",
        "pool 1, open: *hold_cnt 64",
        "  engine: fill_submitted 32",
        "- afxdp_pool holders -",
        "fill of lan queue 0 has 32 frames of pool 1",
        "application has 5 frames of pool 1",
        "(who took them: *--afxdp-trace)",
    )


def test_a_failure_shows_what_is_open(told: dict[str, str]) -> None:
    holds(told["test_with_a_fixture"], "RuntimeError: the program under test", "fill 28/64, rx 4/64")


def test_an_error_that_was_handled_shows_nothing(told: dict[str, str]) -> None:
    assert "afxdp_pool frames" not in told["test_handled"]


def test_tracing_shows_who_took_the_frames(told: dict[str, str]) -> None:
    holds(told["test_traced"], "application has 2 frames *, taken by MainThread:", ", in take")


def test_a_mistaken_argument_is_named(told: dict[str, str]) -> None:
    holds(told["test_mistake"], "unexpected keyword argument 'framse'")


def test_a_run_that_does_not_use_it_pays_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        """
import os, sys

def test_nothing_is_imported():
    assert "pytest_afxdp_pool" in sys.modules
    heavy = {"afxdp_pool", "numpy", "cffi", "_cffi_backend", "pyroute2", "rich", "numba", "asyncio"}
    assert heavy & set(sys.modules) == set()

def test_the_option_traces():
    assert os.environ["AFXDP_POOL_TRACE"] == "1"
"""
    )
    assert "2 passed" in pytest_run(tmp_path, "-p", "no:xdist", "-p", "no:timeout", "--afxdp-trace")


def test_loading_it_takes_less_than_twenty_milliseconds() -> None:
    code = "import pytest, time; t = time.process_time(); import pytest_afxdp_pool; print(time.process_time() - t)"
    took = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in "abc"]
    assert min(took) < 0.02


def test_options_markers_and_fixtures_are_explained(tmp_path: Path) -> None:
    markers = pytest_run(tmp_path, "--markers")
    assert all(f"@pytest.mark.{name}(" in markers for name in ("veth_pair", "audited_pool", "fake_port"))
    (tmp_path / "test_none.py").touch()
    listed = subprocess.run(
        [sys.executable, "-m", "pytest", "--fixtures"], cwd=tmp_path, capture_output=True, text=True, check=False
    ).stdout
    for name in FIXTURES:
        assert re.search(rf"^{name}\b.*pytest_afxdp_pool", listed, re.MULTILINE), name
    assert "no docstring available" not in listed


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv, of util-linux")
def test_without_privileges_it_skips_and_says_why_or_fails_if_told(tmp_path: Path) -> None:
    (tmp_path / "test_real.py").write_text(
        "def test_it(veth_pair):\n    pass\n\ndef test_other(audited_pool):\n    pass\n"
    )
    bare = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    skipped = pytest_run(tmp_path, "-rs", before=bare)
    holds(skipped, "SKIPPED * needs root: CAP_NET_ADMIN and CAP_SYS_ADMIN and CAP_BPF lacking", "1 passed, 1 skipped")
    holds(pytest_run(tmp_path, "--afxdp-require", before=bare), "--afxdp-require: needs root: ", "1 passed, 1 error")


# Its parts, here ------------------------------------------------------------------------------------------------------


def test_the_map_tells_repeated_lines_once() -> None:
    states = np.zeros(64 * 5, np.uint8)
    states[64:70] = [1, 2, 3, 4, 1, 2]
    assert state.frame_map(states).splitlines()[1:] == [
        "     0 " + "." * 64,
        "    64 ofAtof" + "." * 58,
        "   128 " + "." * 64 + " (3 such lines)",
    ]


def test_settle_closes_what_is_open_and_proves_it() -> None:
    with ap.Umem(256) as umem:
        pool = ap.FramePool(umem)
        port = ap.Port.in_memory(pool, ap.PortConfig(fill_size=64, fill_level=32))
        port.fill()
        assert settle(umem).umem == 256
        assert pool.state == "closed"
        other = ap.FramePool(umem)
        batch = other.alloc(2)
        with pytest.raises(ap.AuditError, match="2 frames still out"):
            settle(umem)
        other.put(batch)
        settle(umem)


def test_only_open_umems_are_open() -> None:
    from afxdp_pool.umem import open_umems

    with ap.Umem(64) as umem:
        assert umem in open_umems()
        umem.audit().check(idle=True)
    assert umem not in open_umems()


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (SinkReport(packets=10, unique=10), ""),
        (SinkReport(packets=9, unique=9), "1 missing"),
        (SinkReport(packets=11, unique=10, duplicate=1), "1 duplicate"),
        (SinkReport(packets=12, unique=12), "2 not expected"),
        (SinkReport(packets=10, unique=9, corrupt=1), "1 missing, 1 corrupt"),
        (SinkReport(packets=10, unique=10, reordered=3), "3 reordered"),
    ],
)
def test_a_delivery_is_exact_or_says_what_is_wrong(seen: SinkReport, words: str) -> None:
    delivery = Delivery(10, 10, 10, 10, seen, 0.1, "a-far to b-far")
    assert delivery.exact is (words == "")
    if delivery.exact:
        assert delivery.check() is delivery
        return
    with pytest.raises(AssertionError, match=rf"a-far to b-far: 10 sent, \d+ of 10 arrived intact, {words}$"):
        delivery.check()
