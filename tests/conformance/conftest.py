"""Each case in each world: on veth here, on NICs in the guest that tests/nic boots. And what came of it, as JSON."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cables import IN_GUEST, NICS, VETH, Cable, World

HERE = Path(__file__).resolve().parent
#: Where the results go, if anywhere.
RESULTS = os.environ.get("AFXDP_CONFORMANCE_RESULTS", "")

_found: dict[str, dict[str, Any]] = {}


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the cases' own XDP programs, compiled as the library's are."""
    made = tmp_path_factory.mktemp("conform")
    shutil.copy(HERE / "conform.bpf.c", made)
    include = next(iter(sorted(Path("/usr/include").glob("*-linux-gnu"))), Path("/usr/include"))
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror", f"-I{include}", "-c",
         "conform.bpf.c", "-o", "conform.o"],
        cwd=made,
        check=True,
        timeout=120,
    )  # fmt: skip
    return made


@pytest.fixture(params=NICS if IN_GUEST else VETH, ids=lambda world: world.name.replace(" ", "-"))
def cable(request: pytest.FixtureRequest, objects: Path) -> Iterator[Cable]:
    """A cable in one of the worlds; when the test is over, everything of it is closed and every frame home."""
    world: World = request.param
    made = nic_cable(world, objects) if IN_GUEST else veth_cable(world, request, objects)
    try:
        yield made
    finally:
        made.close()


def veth_cable(world: World, request: pytest.FixtureRequest, objects: Path) -> Cable:
    pair = request.getfixturevalue("lab").veth("cable", queues=3)
    return Cable(world, pair.near, pair.far, objects)


def nic_cable(world: World, objects: Path) -> Cable:
    import nics  # only the guest has them

    near = nics.DRIVERS[world.driver]
    far = nics.far_of(near)
    return Cable(world, nics.link(near), nics.link(far), objects, lambda: nics.up(near, far))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if not RESULTS or (report.when != "call" and report.outcome == "passed"):
        return
    function, _, world = report.nodeid.rpartition("::")[2].rstrip("]").partition("[")
    why = str(report.longrepr[2]).removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    _found.setdefault(world, {})[function] = [report.outcome, why] if why else [report.outcome]


def pytest_sessionfinish() -> None:
    if RESULTS and _found:
        about = {"kernel": os.uname().release, "date": time.strftime("%Y-%m-%d")}
        told = {world: {**about, "tests": dict(sorted(tests.items()))} for world, tests in _found.items()}
        Path(RESULTS).write_text(json.dumps(told, indent=1) + "\n")
