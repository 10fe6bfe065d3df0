"""The C alone, under sanitizers: each program of this directory is compiled into build/ with the engine, and run.

AddressSanitizer and UndefinedBehaviorSanitizer watch all of them, ThreadSanitizer those with threads. What each
proves is said in its source. One of them, or one test in it, by hand:  tests/native/build/asan/test_pool [test]
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "afxdp_pool" / "_native"
BUILD = HERE / "build"
#: What Python calls, itself and for BPF programs, has no part in pools, ports and loops; _ffi.c is made by cffi.
NOT_ENGINE = {"bpf_glue.c", "calls.c", "_ffi.c"}
FLAGS = ["-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror"]
SANITIZERS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    # What a compiler makes of a short memset() by itself, the sanitizer does not see.
    "tsan": ["-fsanitize=thread", "-fno-builtin"],
}
PROGRAMS = [("asan", path.stem) for path in sorted(HERE.glob("test_*.c"))] + [
    *(("tsan", name) for name in ("test_order", "test_tap", "test_threads")),
]


def compiler() -> str:
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler")
    return found


def run(*command: str, timeout: float = 100.0, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done


@cache
def packages(what: str) -> list[str]:
    return run("pkg-config", what, "libxdp", "libbpf").stdout.split()


def newer(source: Path, target: Path) -> bool:
    headers = [*NATIVE.glob("*.h"), *HERE.glob("*.h")]
    return not target.exists() or max(path.stat().st_mtime for path in [source, *headers]) > target.stat().st_mtime


def compile_one(source: Path, directory: Path, flags: list[str]) -> Path:
    target = directory / f"{source.stem}.o"
    if newer(source, target):
        started = time.time()
        includes = [f"-I{NATIVE}", f"-I{HERE}", *packages("--cflags")]
        run(compiler(), *FLAGS, *flags, *includes, "-c", str(source), "-o", str(target))
        os.utime(target, (started, started))  # a header changed meanwhile is newer
    return target


@cache
def engine(sanitizer: str) -> list[Path]:
    """The engine's objects under one sanitizer. Skips when the compiler has none."""
    directory = BUILD / sanitizer
    flags = SANITIZERS[sanitizer]
    probe = [compiler(), *flags, "-x", "c", "-", "-o", os.devnull]
    if subprocess.run(probe, input="int main(void){return 0;}", text=True, capture_output=True, check=False).returncode:
        pytest.skip(f"the compiler has no {sanitizer}")
    directory.mkdir(parents=True, exist_ok=True)
    sources = [path for path in sorted(NATIVE.glob("*.c")) if path.name not in NOT_ENGINE]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compile_one(source, directory, flags), sources))


@pytest.mark.parametrize(("sanitizer", "name"), PROGRAMS, ids=[f"{name}-{kind}" for kind, name in PROGRAMS])
def test_native(sanitizer: str, name: str) -> None:
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = engine(sanitizer)
        directory = BUILD / sanitizer
        main = compile_one(HERE / f"{name}.c", directory, SANITIZERS[sanitizer])
        program = directory / name
        inputs = [str(path) for path in (main, *objects)]
        run(compiler(), *SANITIZERS[sanitizer], *inputs, "-o", str(program), *packages("--libs"), "-pthread")
    # ThreadSanitizer of older compilers does not start under the address randomisation of newer kernels.
    still = [shutil.which("setarch") or "", "-R"] if sanitizer == "tsan" and shutil.which("setarch") else []
    done = run(*still, str(program), TSAN_OPTIONS="halt_on_error=1", ASAN_OPTIONS="detect_leaks=1")
    expected = (HERE / f"{name}.c").read_text().count('\n\t{"')
    assert done.stdout.count("ok ") == expected > 0
