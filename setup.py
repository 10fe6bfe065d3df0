"""Build steps that pyproject.toml cannot express: the cffi module and the BPF objects."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BPF_SOURCES = sorted((ROOT / "bpf").glob("*.bpf.c"))


def multiarch_include() -> list[str]:
    """Where Debian and Ubuntu keep asm/types.h, which clang does not search for target bpf."""
    found = sorted(Path("/usr/include").glob("*-linux-gnu/asm/types.h"))
    return [f"-I{path.parent.parent}" for path in found[:1]]


def compile_bpf(target: Path) -> None:
    """Compile every bpf/*.bpf.c into `target`, as the objects the package loads from memory."""
    clang = shutil.which("clang")
    if clang is None:
        sys.exit(
            "afxdp-pool: clang is needed to compile the XDP programs in bpf/.\n"
            "  Debian/Ubuntu: apt install clang\n  Fedora/RHEL:   dnf install clang"
        )
    target.mkdir(parents=True, exist_ok=True)
    for source in BPF_SOURCES:
        subprocess.run(
            [clang, "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Werror",
             *multiarch_include(), "-c", str(source), "-o", str(target / f"{source.name[:-6]}.o")],
            check=True,
        )  # fmt: skip


class BuildExt(build_ext):
    """The extension, and beside it the BPF objects."""

    def run(self) -> None:
        super().run()
        base = ROOT if self.inplace else Path(self.build_lib).resolve()
        compile_bpf(base / "afxdp_pool" / "_bpf")


setup(
    cffi_modules=["afxdp_pool/_native/build_ffi.py:ffi"],
    cmdclass={"build_ext": BuildExt},
)
