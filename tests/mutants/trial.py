"""One bug, tried: planted in a copy of the library, and the tests run there until one fails.

A test in C takes no more than a compiler: the file with the bug, linked to what test_native.py built of the others. Any
other test is run by pytest, in a copy of the tests.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mutant import Mutant

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"
sys.path.append(str(NATIVE))

import test_native  # noqa: E402

#: What pytest needs beside the library.
PARTS = ("tests", "bpf", "pyproject.toml", "pytest_afxdp_pool.py")
#: What is tried on a mutant that its own tests let live.
REST = (
    *(f"{name}:{sanitizer}" for sanitizer, name in test_native.PROGRAMS),
    *(f"fuzz:{name}" for name in ("rings", "engine", "packets")),
)
SECONDS = 100
#: What pytest returns when it ran no test: wrong usage, none found, an error of its own.
NOT_RUN = {3, 4, 5}
ENDLESS = "it did not end"
#: What says that it was no check of the test's own.
WATCHERS = {
    "ERROR: AddressSanitizer": "AddressSanitizer",
    "WARNING: ThreadSanitizer": "ThreadSanitizer",
    "ERROR: LeakSanitizer": "LeakSanitizer",
    ": runtime error:": "UndefinedBehaviorSanitizer",
    "Failed: Timeout": ENDLESS,
}


class Trial:
    """The library with one bug, below `directory`; None is the library as it is, in which every test has to pass."""

    def __init__(self, directory: Path, mutant: Mutant | None) -> None:
        self.mutant = mutant
        self.root = directory / (mutant.name if mutant else "pristine")
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "afxdp_pool", self.root / "afxdp_pool", ignore=ignore)
        if mutant is not None:
            path = self.root / "afxdp_pool" / mutant.file
            source = path.read_text()
            if source.count(mutant.before) != 1:
                raise SystemExit(f"{mutant.name}: {mutant.file} has {source.count(mutant.before)}: {mutant.before!r}")
            path.write_text(source.replace(mutant.before, mutant.after))

    def killer(self, only_named: bool) -> str | None:
        """The first test that fails, and by what; None if none does."""
        assert self.mutant is not None
        named = [test if ":" in test or "/" in test else f"{test}:asan" for test in self.mutant.tests]
        more = not only_named and self.mutant.file.startswith("_native")
        rest = [test for test in REST if test not in named] if more else []
        found = next((seen for test in (*named, *rest) if (seen := self.fails(test))), None)
        shutil.rmtree(self.root)
        return found

    def fails(self, test: str) -> str | None:
        """Which part of that test fails, and by what, if it does. One that cannot be run at all is an error."""
        by_pytest = "/" in test or test.startswith("fuzz:")
        failed, output = self._pytest(test) if by_pytest else self._program(*test.split(":"))
        if not failed:
            return None
        if self.mutant is None:
            raise SystemExit(f"{test} fails as it is\n{output}")
        return seen_by(test, output)

    def _program(self, name: str, sanitizer: str) -> tuple[bool, str]:
        test_native.BUILD.mkdir(exist_ok=True)
        with (test_native.BUILD / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            objects = [
                *test_native.engine(sanitizer),
                test_native.compile_one(
                    NATIVE / f"{name}.c", test_native.BUILD / sanitizer, test_native.SANITIZERS[sanitizer]
                ),
            ]
        flags = [*test_native.FLAGS, *test_native.SANITIZERS[sanitizer]]
        target = self.root / sanitizer
        target.mkdir(exist_ok=True)
        ours = [self._object(one, target, flags) for one in objects]
        program = target / name
        libraries = [*test_native.packages("--libs"), "-pthread"]
        test_native.run(test_native.compiler(), *flags, *map(str, ours), "-o", str(program), *libraries)
        still = ["setarch", "-R"] if sanitizer == "tsan" and shutil.which("setarch") else []
        options = {"TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"}
        try:
            done = subprocess.run(
                [*still, str(program)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=SECONDS,
                env=os.environ | options,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            return True, (said if isinstance(said, str) else said.decode()) + "Failed: Timeout"
        return done.returncode != 0, done.stdout

    def _object(self, built: Path, target: Path, flags: list[str]) -> Path:
        """The object with the bug in it, or the one that was built without, if the bug is not in its source."""
        file = Path(self.mutant.file) if self.mutant else Path()
        if file.suffix != ".h" and file.name != f"{built.stem}.c":
            return built
        made = target / built.name
        if not made.exists():
            native = self.root / "afxdp_pool" / "_native"
            source = native / f"{built.stem}.c"
            source = source if source.exists() else NATIVE / source.name
            includes = [f"-I{native}", f"-I{NATIVE}", *test_native.packages("--cflags")]
            test_native.run(test_native.compiler(), *flags, *includes, "-c", str(source), "-o", str(made))
        return made

    def _pytest(self, test: str) -> tuple[bool, str]:
        for part in PARTS:
            if not (self.root / part).exists():
                copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy2
                copy(ROOT / part, self.root / part)
        what = f"tests/{test}"
        if test.startswith("fuzz:"):
            what = f"tests/fuzz/test_fuzz.py::test_nothing_breaks_within_seconds[{test[5:]}]"
        words = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--timeout={SECONDS}", what]
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        done = subprocess.run(
            words, cwd=self.root, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        if done.returncode in NOT_RUN or (done.returncode == 0 and " passed" not in done.stdout):
            raise SystemExit(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.returncode != 0, done.stdout  # the interpreter may be gone as well


def seen_by(test: str, output: str) -> str:
    """Which test it was that failed, and by what."""
    by = next((f" ({name})" for words, name in WATCHERS.items() if words in output), "")
    if test.startswith("fuzz:"):
        return f"tests/fuzz/fuzz_{test[5:]}.c{by}"
    if "/" in test:
        failed = re.search(r"^(?:FAILED|ERROR) ([^\s[]+)", output, re.MULTILINE)
        return f"{failed[1] if failed else 'tests/' + test}{by}"
    program = test.partition(":")[0]
    names = re.findall(r'^\t\{"(\w+)"', (NATIVE / f"{program}.c").read_text(), re.MULTILINE)
    done = re.findall(r"^ok (\w+)$", output, re.MULTILINE)
    last = next((f"::{name}" for name in names if name not in done), "")
    return f"tests/native/{program}.c{last}{by}"
