"""What the library is made of: dependencies are listed with their licences, and pinned; the build downloads nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from afxdp_pool import _native

ROOT = Path(__file__).resolve().parents[2]
#: Shared objects every Linux program has; they are glibc's.
LIBC = {
    "libc.so.6",
    "libpthread.so.0",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}


def requirements() -> list[Requirement]:
    """Those of the build, of the library and of its extras, but the library itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    named = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(name for extra in extras for name in extra),
    ]
    return [made for made in map(Requirement, named) if made.name != "afxdp-pool"]


def listed() -> dict[str, str]:
    """First and last column of the tables of docs/licences.md that are about packages and libraries."""
    rows = re.findall(r"^\| ([\w-]+)[^|]* \|(.*)\|$", (ROOT / "docs" / "licences.md").read_text(), re.MULTILINE)
    return {canonicalize_name(name): cells for name, cells in rows if name not in ("package", "library")}


def pins() -> dict[str, str]:
    """Package and version, of scripts/constraints.txt."""
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    return {canonicalize_name(n): v for n, v in (line.split("==") for line in lines if line and line[0] != "#")}


def test_every_dependency_has_its_licence_listed() -> None:
    missing = {canonicalize_name(made.name) for made in requirements()} - set(listed())
    assert not missing


def test_no_licence_is_listed_of_what_is_not_used() -> None:
    used = {canonicalize_name(made.name) for made in requirements()}
    assert set(listed()) - used == {"libxdp", "libbpf", "libelf", "zlib", "libc"}


def test_every_linked_library_is_listed() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    (module,) = Path(str(_native.__file__)).parent.glob("_ffi*.so")
    done = subprocess.run(["readelf", "-d", str(module)], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", done.stdout)) - LIBC
    assert {re.sub(r"\.so.*|-[0-9a-f]{8}.*", "", name) for name in needed} <= set(listed())
    assert "libxdp" in {name.partition(".")[0].partition("-")[0] for name in needed}


def test_every_dependency_is_pinned_within_what_is_allowed() -> None:
    pinned = pins()
    for made in requirements():
        name = canonicalize_name(made.name)
        if name == "setuptools":  # pip brings the build its own
            continue
        assert name in pinned, name
        assert made.specifier.contains(pinned[name]), f"{made}, pinned to {pinned[name]}"


@pytest.mark.parametrize(
    "path", ["setup.py", "afxdp_pool/_native/build_ffi.py", "scripts/prepare.sh", "scripts/wheel.py"]
)
def test_the_build_downloads_nothing_by_itself(path: str) -> None:
    source = (ROOT / path).read_text()
    assert not re.findall(r"https?://|\b(?:curl|wget|urllib\.request|(?:import|from) requests|git clone)\b", source)


def test_bpf_programs_are_dual_licensed_as_the_kernel_wants() -> None:
    programs = sorted((ROOT / "bpf").glob("*.bpf.c"))
    assert programs
    for path in programs:
        source = path.read_text()
        assert "GPL-2.0-only OR BSD-3-Clause" in source.splitlines()[0], path.name
        assert '"Dual BSD/GPL"' in source, path.name
