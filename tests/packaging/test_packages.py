"""The wheel runs where nothing of it is installed; the sdist builds where there is only what the distribution has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from cleanroot import MACHINE, debian, lacking, run_in, wheels

ROOT = Path(__file__).resolve().parents[2]
BUILD = ("gcc", "libc6-dev", "clang", "pkg-config", "libxdp-dev", "libbpf-dev", "python3-dev", "python3-pip",
         "python3-wheel", "python3-setuptools", "python3-cffi", "python3-numpy", "python3-pyroute2")  # fmt: skip

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel and the sdist it was made from."""
    pytest.importorskip("auditwheel", reason="needs the extra package: pip install 'afxdp-pool[package]'")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/wheel.py", out], capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def only(directory: Path, pattern: str) -> Path:
    (found,) = directory.glob(pattern)
    return found


@pytest.fixture(scope="module")
def dependencies() -> Path:
    """Wheels of what the package depends on, for the Python of Debian 13."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return wheels(*project["dependencies"])


@pytest.fixture(scope="module")
def installed(built: Path, dependencies: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A clean root, and a directory that is /mnt there, with the wheel installed in /mnt/venv, offline."""
    reason = lacking()
    if reason:
        pytest.skip(reason)
    root, work = debian(), tmp_path_factory.mktemp("clean")
    for file in (only(built, "*.whl"), *dependencies.iterdir()):
        shutil.copy(file, work)
    shutil.copytree(ROOT / "examples", work / "examples")
    run_in(root, work, "python3", "-m", "venv", "venv")
    run_in(root, work, "venv/bin/pip", "install", "--quiet", "--no-index", "--find-links", "/mnt", "afxdp-pool")
    return root, work


def test_the_wheel_has_its_libraries_and_their_licences(built: Path) -> None:
    wheel = only(built, "*.whl")
    assert re.fullmatch(rf"afxdp_pool-[\d.]+-cp311-abi3-manylinux_2_\d+_{MACHINE}\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (notice,) = (file.read(name).decode() for name in names if name.endswith("licenses/bundled/NOTICE"))
        (record,) = (file.read(name).decode() for name in names if name.endswith("/RECORD"))
    libraries = [name for name in names if name.startswith("afxdp_pool.libs/") and ".so" in name]
    for library in ("libxdp", "libbpf", "libelf"):
        assert any(f"/{library}-" in name for name in libraries), library
        assert any("licenses/bundled/" in name and library in name for name in names), library
        assert library in notice
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("licenses/bpf/LICENSE") for name in names)
    assert any(name.endswith("licenses/bundled/LGPL-2.1") for name in names)
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "afxdp_pool").rglob("*.py*") if path.suffix != ".pyc"}
    assert modules | {"pytest_afxdp_pool.py", "afxdp_pool/_native/_ffi.abi3.so"} <= set(names)
    assert len([name for name in names if name.startswith("afxdp_pool/_bpf/") and name.endswith(".o")]) >= 5
    assert all(name in record for name in names if not name.endswith("/"))
    assert not any(name.startswith(("tests/", "benchmarks/", "bpf/")) for name in names)


def test_the_sdist_is_complete(built: Path) -> None:
    """What git has, but for what only the repository needs."""
    with tarfile.open(only(built, "*.tar.gz")) as file:
        packed = {name.partition("/")[2] for name in file.getnames()}
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("needs git, and a checkout")
    outside = re.compile(r"(.*/)?\.(ci|github|gitignore|clang-format)|benchmarks/results/|demo/umem\.\w+$")
    missing = sorted(
        name for name in listed.stdout.split("\n") if name and name not in packed and not outside.match(name)
    )
    assert missing == []
    assert not any(name.endswith((".o", ".so", ".pyc", "_ffi.c")) for name in packed)


def test_nothing_of_it_is_on_the_clean_root(installed: tuple[Path, Path]) -> None:
    root, _ = installed
    for pattern in ("usr/lib/**/libxdp*", "usr/lib/**/libbpf*", "usr/lib/**/libelf*", "usr/bin/clang*", "usr/bin/gcc*"):
        assert list(root.glob(pattern)) == [], pattern


def test_the_wheel_loads_its_own_libraries(installed: tuple[Path, Path]) -> None:
    code = "import afxdp_pool._native; print([line.split()[-1] for line in open('/proc/self/maps') if '.so' in line])"
    loaded = run_in(*installed, "venv/bin/python", "-c", code)
    for library in ("libxdp", "libbpf", "libelf"):
        assert re.search(rf"/mnt/venv/lib/python3\.13/site-packages/afxdp_pool\.libs/{library}-", loaded), loaded


def test_the_doctor_finds_nothing_missing(installed: tuple[Path, Path]) -> None:
    said = run_in(*installed, "venv/bin/afxdp-pool", "doctor")
    assert "missing" not in said, said
    assert "libxdp1" in said, "how to have the dispatcher's object, which is not in the wheel"


def test_packets_are_forwarded_and_counted(installed: tuple[Path, Path]) -> None:
    said = run_in(*installed, "venv/bin/python", "examples/02_forward.py")
    assert "sent 50000, completed 50000" in said, said
    assert "far end: 50000 packets of 4 flows, 0 lost, 0 reordered" in said


def test_without_the_dispatcher_it_says_how_to_have_it(installed: tuple[Path, Path]) -> None:
    code = """
from afxdp_pool.testing import Lab
import afxdp_pool as ap
with Lab() as lab:
    pair = lab.veth("a")
    try:
        ap.XdpProgram(pair.near.name, netns=lab.engine_netns, attach="libxdp")
    except ap.AfXdpError as error:
        print(error)
"""
    said = run_in(*installed, "venv/bin/python", "-c", code)
    assert "xdp-dispatcher.o is not installed: apt install libxdp1" in said, said


def test_the_sdist_builds_from_packages_of_the_distribution_alone(
    built: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reason = lacking()
    if reason:
        pytest.skip(reason)
    root, work = debian(*BUILD), tmp_path_factory.mktemp("build")
    sdist = only(built, "*.tar.gz")
    shutil.copy(sdist, work)
    shutil.copytree(ROOT / "examples", work / "examples")
    run_in(root, work, "python3", "-m", "venv", "--system-site-packages", "venv")
    install = ("venv/bin/pip", "install", "--no-index", "--no-build-isolation")
    run_in(root, work, *install, f"/mnt/{sdist.name}")
    said = run_in(root, work, "venv/bin/python", "examples/02_forward.py")
    assert "far end: 50000 packets of 4 flows, 0 lost, 0 reordered" in said, said
