"""`import afxdp_pool` is quick, and brings nothing along that only some of its users need."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import afxdp_pool

pytestmark = pytest.mark.timeout(300)
ROOT = Path(__file__).resolve().parents[2]
#: The optional ones, and what is heavy and needed by a few functions only.
NOT_IMPORTED = {
    *("anyio", "asyncio", "dpkt", "http", "matplotlib", "mypy", "numba", "pcapng", "prometheus_client"),
    *("email", "importlib.resources", "lzma", "pyroute2", "pytest", "rich", "scapy", "trio"),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bytecode")


def python(code: str, cache: Path) -> str:
    """Run `code` in an interpreter of its own that keeps its bytecode, as one that has been used before."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"PYTHONPYCACHEPREFIX": str(cache)},
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["afxdp_pool", "afxdp_pool.cli"])
def test_what_few_need_is_not_imported(module: str, cache: Path) -> None:
    before = set(python("import sys; print(*sys.modules)", cache).split())
    after = set(python(f"import sys, {module}; print(*sys.modules)", cache).split())
    assert module in after
    new = after - before
    assert sorted((new | {name.split(".")[0] for name in new}) & NOT_IMPORTED) == []


def test_the_import_alone_brings_nothing_that_takes_time(cache: Path) -> None:
    before = set(python("import sys; print(*sys.modules)", cache).split())
    after = set(python("import sys, afxdp_pool; print(*sys.modules)", cache).split())
    assert {name for name in after - before if name.startswith("afxdp_pool")} == {"afxdp_pool"}
    assert not {"numpy", "cffi", "_cffi_backend", "socket", "dataclasses", "ctypes", "logging"} & (after - before)


def test_every_name_is_there_when_it_is_asked_for(cache: Path) -> None:
    told = python(
        "import sys, afxdp_pool as ap\n"
        "unseen = [name for name in ap.__all__ if name not in dir(ap)]\n"
        "ap.errors.ConfigError\n"
        "early = 'numpy' in sys.modules\n"
        "missing = [name for name in ap.__all__ if not hasattr(ap, name)]\n"
        "print(unseen, early, missing, ap.paths.drop is ap.drop, hasattr(ap, 'Forwarders'), hasattr(ap, 'nothing'))\n",
        cache,
    )
    assert told == "[] False [] True False False\n"
    told = python("from afxdp_pool import *; print(FramePool, PortConfig().rx_size, DROP, FORWARD(1))", cache)
    assert told == "<class 'afxdp_pool.pool.FramePool'> 2048 0 129\n"


def test_what_is_imported_later_is_what_type_checkers_and_readers_see() -> None:
    """The names stand in three lists: imports that only a type checker runs, the table of modules, and `__all__`."""
    tree = ast.parse(Path(afxdp_pool.__file__).read_text())
    imported = {
        (alias.name, node.module.removeprefix("afxdp_pool."))
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("afxdp_pool.")
        for alias in node.names
    }
    assert imported == set(afxdp_pool._HOMES.items())  # type: ignore[attr-defined]
    assert sorted(afxdp_pool.__all__) == sorted(name for name, _ in imported)


def test_each_module_can_be_the_first(cache: Path) -> None:
    names = sorted(path.stem for path in Path(afxdp_pool.__file__).parent.glob("[a-z]*.py"))
    told = python(
        "import os, numpy\n"
        f"for name in {names}:\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        code = 1\n"
        "        try:\n"
        "            __import__('afxdp_pool.' + name)\n"
        "            code = 0\n"
        "        finally:\n"
        "            os._exit(code)\n"
        "    if os.waitpid(pid, 0)[1]: print(name)\n",
        cache,
    )
    assert told == ""


def test_what_the_first_use_costs(cache: Path) -> None:
    """Compared with numpy's import, by the CPU's time at best: a busy machine is slower at both, but not by as much."""
    clock = "import time; began = time.process_time(); {}; print(time.process_time() - began)"
    most = {
        "import afxdp_pool": 0.3,
        "import afxdp_pool; afxdp_pool.FramePool": 2,
        "import afxdp_pool; afxdp_pool.Port": 2.5,
    }
    best = dict.fromkeys(["import numpy", *most], float("inf"))
    for tried in range(16):
        for statement in best:
            best[statement] = min(best[statement], float(python(clock.format(statement), cache)))
        dear = {statement for statement, times in most.items() if best[statement] >= times * best["import numpy"]}
        if tried >= 3 and not dear:
            break
    told = ", ".join(f"{statement}: {seconds * 1e3:.0f} ms" for statement, seconds in best.items())
    print(told)
    assert not dear, told
