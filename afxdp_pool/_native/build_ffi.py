"""Builds `afxdp_pool._native._ffi` (cffi, API mode, stable ABI).

What Python may call is declared in cdef.h (pool, ports, engine) and cdef_bpf.h (libbpf and libxdp).
libxdp and libbpf come from the system, found through pkg-config.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = (
    "table.c",
    "pool.c",
    "alloc.c",
    "put.c",
    "box.c",
    "fragment.c",
    "audit.c",
    "port.c",
    "lend.c",
    "multi.c",
    "tap.c",
    "socket.c",
    "lease.c",
    "release.c",
    "live.c",
    "generate.c",
    "engine.c",
    "dispatch.c",
    "handler.c",
    "fields.c",
    "headers.c",
    "checksum.c",
    "hash.c",
    "metadata.c",
    "requests.c",
    "bpf_glue.c",
    "calls.c",
)
PACKAGES = {
    "libxdp": ("libxdp-dev", "libxdp-devel"),
    "libbpf": ("libbpf-dev", "libbpf-devel"),
}


def pkg_config(*arguments: str) -> list[str]:
    """Ask pkg-config, or leave with a sentence that names the package to install."""
    if shutil.which("pkg-config") is None:
        sys.exit(
            "afxdp-pool: pkg-config is missing. Debian/Ubuntu: apt install pkg-config; Fedora: dnf install pkgconf"
        )
    for name, (apt, dnf) in PACKAGES.items():
        if subprocess.run(["pkg-config", "--exists", name], check=False).returncode != 0:
            sys.exit(f"afxdp-pool: {name} is missing. Debian/Ubuntu: apt install {apt}; Fedora/RHEL: dnf install {dnf}")
    done = subprocess.run(["pkg-config", *arguments, *PACKAGES], check=True, capture_output=True, text=True)
    return done.stdout.split()


# The pool's loops are fastest in the order they are written in (docs/performance.md): gcc must not mix their steps.
OPTIMISE = ("-O3", "-fno-schedule-insns2")

ffi = FFI()
for cdef in ("cdef.h", "cdef_bpf.h"):
    ffi.cdef((HERE / cdef).read_text())

ffi.set_source(
    "afxdp_pool._native._ffi",
    '#include "engine.h"\n#include "headers.h"\n#include "requests.h"\n#include "metadata.h"\n#include "bpf_glue.h"\n',
    # Relative, because setuptools refuses absolute paths; the build runs in the project's root.
    sources=[f"afxdp_pool/_native/{name}" for name in SOURCES],
    depends=[str(path) for path in sorted(HERE.glob("*.h")) + sorted(HERE.glob("../include/*.h"))],
    include_dirs=["afxdp_pool/_native"],
    extra_compile_args=["-std=gnu11", *OPTIMISE, "-fvisibility=hidden", "-Wall", *pkg_config("--cflags")],
    extra_link_args=[*pkg_config("--libs"), "-pthread"],
    define_macros=[("_GNU_SOURCE", "1")],
    py_limited_api=True,
)
