"""mypy --strict on a user's program finds its deliberate mistakes, and nothing else."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import afxdp_pool

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("user_program.py")


@pytest.mark.timeout(300)
def test_mypy_finds_the_mistakes_and_nothing_else() -> None:
    pytest.importorskip("mypy", reason="needs the extra dev: pip install 'afxdp-pool[dev]'")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent"]
    command += [f"--cache-dir={ROOT / '.mypy_cache' / 'user'}", "--no-error-summary", str(PROGRAM)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"MYPYPATH": str(ROOT)}, timeout=280, check=False
    )
    assert not done.stderr
    found = {int(line): text for line, text in re.findall(r"user_program\.py:(\d+): error: (.*)", done.stdout)}
    lines = PROGRAM.read_text().splitlines()
    wanted = {number for number, line in enumerate(lines, 1) if "# mistake" in line}
    assert len(wanted) >= 12
    missed = [f"{number}: {lines[number - 1].strip()}" for number in sorted(wanted - set(found))]
    wrongly = [f"{number}: {found[number]}" for number in sorted(set(found) - wanted)]
    assert (missed, wrongly) == ([], [])


def test_the_program_uses_every_public_class() -> None:
    text = PROGRAM.read_text()
    classes = [name for name in afxdp_pool.__all__ if inspect.isclass(getattr(afxdp_pool, name))]
    errors = {name for name in classes if issubclass(getattr(afxdp_pool, name), Exception)}
    assert [name for name in classes if name not in errors and f"ap.{name}" not in text] == []
    assert len(text.splitlines()) < 200


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(afxdp_pool.__file__).parent / "py.typed").exists()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["afxdp_pool"]
    assert {"py.typed", "_native/*.pyi"} <= set(shipped), "and the wheel too"
