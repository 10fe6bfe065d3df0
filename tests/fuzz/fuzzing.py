"""Fuzzing: each fuzz_*.c of this directory, built with libFuzzer and the sanitizers, and readers.py, by atheris.

What each of them feeds to the engine, and what has to hold, is said in its source. An input that breaks it is left in
build/, and replayed by  tests/fuzz/build/fuzz_NAME FILE.  Inputs that reach something new are kept in build/found/, and
go into corpus/, which is committed, with --keep.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "afxdp_pool" / "_native"
BUILD = HERE / "build"
CORPUS = HERE / "corpus"
#: As in tests/native: what Python calls itself has no part in pools, ports and loops.
NOT_ENGINE = {"bpf_glue.c", "calls.c", "_ffi.c"}
FLAGS = [
    *("-std=gnu11", "-D_GNU_SOURCE", "-g", "-O1", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *(f"-I{NATIVE}", f"-I{HERE.parent / 'native'}", f"-I{HERE}"),
]
NAMES = sorted(path.stem.removeprefix("fuzz_") for path in HERE.glob("fuzz_*.c"))
#: What Python reads, readers.py, is one more.
PARSERS = "parsers"
#: Bytes of an input at most: some hundred steps of a program.
LONGEST = 1024


def lacking(name: str) -> str | None:
    """Why that one cannot be run here, if so."""
    if name == PARSERS:
        return None if importlib.util.find_spec("atheris") else "atheris is not installed: the extra fuzz"
    if shutil.which("clang") is None:
        return "no clang"
    probe = ["clang", "-fsanitize=fuzzer", "-x", "c", "-", "-o", os.devnull]
    source = "int LLVMFuzzerTestOneInput(const char *d, unsigned long n){return !d && n;}"
    if subprocess.run(probe, input=source, text=True, capture_output=True, check=False).returncode:
        return "clang has no libFuzzer (Debian: libclang-rt-dev)"
    return None


def command(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return done.stdout


def build_object(source: Path, mode: str) -> Path:
    target = BUILD / f"{source.stem}.o"
    headers = [*NATIVE.glob("*.h"), *NATIVE.glob("../include/*.h"), *HERE.glob("*.h"), *HERE.glob("../native/*.h")]
    newest = max(path.stat().st_mtime for path in (source, Path(__file__), *headers))
    if not target.exists() or target.stat().st_mtime < newest:
        started = time.time()
        libraries = command("pkg-config", "--cflags", "libxdp", "libbpf").split()
        command("clang", *FLAGS, f"-fsanitize={mode}", *libraries, "-c", str(source), "-o", str(target))
        os.utime(target, (started, started))  # a header changed meanwhile is newer
    return target


@cache
def engine() -> list[Path]:
    BUILD.mkdir(exist_ok=True)
    sources = [path for path in sorted(NATIVE.glob("*.c")) if path.name not in NOT_ENGINE]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: build_object(source, "fuzzer-no-link"), sources))


def program(name: str) -> Path:
    """Build the fuzzer of that name, unless it is built."""
    objects = [*engine(), build_object(HERE / f"fuzz_{name}.c", "fuzzer-no-link")]
    target = BUILD / f"fuzz_{name}"
    if not target.exists() or target.stat().st_mtime < max(path.stat().st_mtime for path in objects):
        libraries = command("pkg-config", "--libs", "libxdp", "libbpf").split()
        inputs = [str(path) for path in objects]
        command("clang", *FLAGS, "-fsanitize=fuzzer", *inputs, "-o", str(target), *libraries, "-pthread")
    return target


def fuzzer(name: str) -> list[str]:
    """The words that start it."""
    return [sys.executable, str(HERE / "parsers.py")] if name == PARSERS else [str(program(name))]


def run(name: str, seconds: int) -> subprocess.CompletedProcess[str]:
    """Everything of the corpus, then new inputs, for that long. Its return code says whether all held."""
    found = BUILD / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    words = [*fuzzer(name), f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-timeout=20", "-len_control=20"]
    words += [f"-artifact_prefix={BUILD}/{name}-", "-print_final_stats=1", str(found), str(CORPUS / name)]
    return subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=seconds + 120
    )


def keep(name: str) -> None:
    """Into the corpus: what was found, and reaches code that nothing there does."""
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    command(
        *fuzzer(name),
        "-merge=1",
        "-use_counters=0",
        f"-max_len={LONGEST}",
        str(corpus),
        str(BUILD / "found" / name),
    )


def summary(output: str) -> str:
    """The one line that says how much was tried."""
    stats = dict(line[6:].split(":", 1) for line in output.splitlines() if line.startswith("stat::"))
    covered = [line.split("cov: ")[1].split()[0] for line in output.splitlines() if "cov: " in line]
    runs = int(stats.get("number_of_executed_units", "0"))
    return f"{runs} inputs, {covered[-1] if covered else 0} edges reached"


def main() -> int:
    """Run them all, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which: {', '.join([*NAMES, PARSERS])}; all of them unless named"
    )
    parser.add_argument("--seconds", type=int, default=600, help="in all (600)")
    parser.add_argument("--keep", action="store_true", help="what reaches new code goes into the corpus")
    arguments = parser.parse_args()
    names = arguments.names or [*NAMES, PARSERS]
    if unknown := set(names) - {*NAMES, PARSERS}:
        parser.error(f"no fuzzer {', '.join(sorted(unknown))}")
    failed = 0
    for name in names:
        if reason := lacking(name):
            sys.exit(f"{name}: {reason}")
        done = run(name, max(1, arguments.seconds // len(names)))
        print(f"{name}: {summary(done.stdout)}", flush=True)
        if done.returncode:
            failed = 1
            print(done.stdout[-6000:])
        elif arguments.keep:
            keep(name)
    return failed


if __name__ == "__main__":
    sys.exit(main())
