"""Where a measurement was made: hardware, kernel, versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any


def machine() -> dict[str, Any]:
    """CPU, cores, kernel, and the versions of what the engines stand on; "" for what is not installed."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numpy": _package("numpy"),
        "numba": _package("numba"),
        "libxdp": _library("libxdp"),
        "libbpf": _library("libbpf"),
        "dpdk": _library("libdpdk"),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _library(name: str) -> str:
    try:
        asked = subprocess.run(["pkg-config", "--modversion", name], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return asked.stdout.strip()
