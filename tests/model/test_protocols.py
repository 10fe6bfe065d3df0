"""The protocols between threads, explored by spin over every interleaving; docs/concurrency.md explains them.

A model that holds must hold in every state there is. Each mutant, the same model with one rule taken away, must fail,
and by the property named: so a property that has lost its teeth is noticed. Each limit, something that is not promised,
must fail too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODELS = Path(__file__).resolve().parent
SECONDS = 60  # for one step; each takes one or two, the longest search a few
MEGABYTES = 1024

pytestmark = [
    pytest.mark.skipif(shutil.which("spin") is None, reason="needs spin: apt install spin"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc: apt install gcc"),
]


@dataclass(frozen=True)
class Search:
    """What pan said."""

    errors: int
    complete: bool
    reason: str  # of the first error
    output: str


def run(command: list[str], where: Path) -> str:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def search(where: Path, model: str, rules: str, *, cycles: bool = False, level: str = "-O1") -> Search:
    """Explore `model` with the macros `rules`: for safety and deadlock or, with `cycles`, for endless executions.

    `level` is gcc's: a short search is over sooner when its program is not optimised.
    """
    defines = [f"-D{rule}" for rule in rules.split()]
    said = run(["spin", "-a", *defines, str(MODELS / model)], where)
    assert "Error" not in said, said
    kind = "-DNP" if cycles else "-DSAFETY"
    run(["gcc", level, "-w", kind, f"-DMEMLIM={MEGABYTES}", "-o", "pan", "pan.c"], where)
    output = run(["./pan", "-m100000", "-w20", *(["-l"] if cycles else [])], where)
    counted = re.search(r"errors: (\d+)", output)
    assert counted, output
    first = re.search(r"^pan:\d+: (.*) \(at depth \d+\)$", output, re.MULTILINE)
    cut_short = "max search depth too small" in output or "out of memory" in output or "memory limit" in output
    return Search(
        errors=int(counted[1]),
        complete=not cut_short and "Search not completed" not in output,
        reason=first[1] if first else "",
        output=output,
    )


HOLDS = [
    ("return.pml", ""),
    ("return.pml", "NO_CLAIM"),
    ("return.pml", "REPORTED"),
    ("refs.pml", ""),
    ("refs.pml", "SENT_AND_PUT=OWNER COMES_HOME ONLY_ONCE"),
    ("refs.pml", "SENT_AND_PUT=SENDER COMES_HOME ONLY_ONCE"),
    ("life.pml", ""),
]


@pytest.mark.parametrize(("model", "rules"), HOLDS)
def test_holds_in_every_interleaving(tmp_path: Path, model: str, rules: str) -> None:
    found = search(tmp_path, model, rules)
    assert found.errors == 0, found.output
    assert found.complete, found.output


@pytest.mark.parametrize("model", ["return.pml", "refs.pml", "life.pml"])
def test_every_execution_ends(tmp_path: Path, model: str) -> None:
    """No loop goes on for ever; with the properties at the end: every post is at some time taken or refused."""
    found = search(tmp_path, model, "LIVES=2", cycles=True)
    assert found.errors == 0, found.output
    assert found.complete, found.output


HOME_ONCE = "homes==1"  # the assertion at the end of refs.pml
FAILS = [
    # Mutants: a rule taken away.
    ("return.pml", "NO_GENERATION", "mistaken|begun|honoured"),
    ("return.pml", "NO_STATE", "honoured"),
    ("return.pml", "PLAIN_TAKE", "underway"),
    ("return.pml", "PLAIN_PUSH", "underway|mistaken"),
    ("return.pml", "OWNER_IGNORES_CLAIM", "raced"),
    ("refs.pml", "PLAIN_DECREMENT", HOME_ONCE),
    ("refs.pml", "PLAIN_LEND", HOME_ONCE),
    ("refs.pml", "DECIDES_ONCE", HOME_ONCE),
    ("refs.pml", "STAYS_TX", "violated 0|" + HOME_ONCE),
    ("life.pml", "WEAK_LIFE", "inbox==0"),
    ("life.pml", "LIFE_AFTER_LOOK", "inbox==0"),
    ("life.pml", "LIFE_BEFORE_POST", "inbox==0"),
    ("life.pml", "DETACH_OUTSIDE_LOCK", "ring"),
    ("life.pml", "REAP_UNLOCKED", "ring"),
    ("life.pml", "BIND_LOOKS_ONCE", "ring"),
    ("life.pml", "CREATE_CLEARS_OWNER", "using"),
    ("return.pml", "REPORTED CLAIM_CLEARED", "ok"),
    ("refs.pml", "SENT_AND_PUT=SENDER PLAIN_SEND ONLY_ONCE", "cache<2"),
    ("refs.pml", "SENT_AND_PUT=OWNER CLAIM_STOPS_COMPLETION COMES_HOME", "cache>0"),
    # Limits: what is not promised.
    ("return.pml", "GENERATIONS=2", "ok|begun|mistaken|honoured"),
    ("life.pml", "OLD_HANDLE", "incarnation"),
]


@pytest.mark.parametrize(("model", "rules", "by"), FAILS)
def test_fails_without_the_rule(tmp_path: Path, model: str, rules: str, by: str) -> None:
    found = search(tmp_path, model, rules, level="-O0")
    assert found.errors == 1, found.output
    assert re.search(by, found.reason), f"failed, but by {found.reason!r}, not {by!r}"


def test_the_page_names_every_model_and_rule() -> None:
    page = (MODELS.parent.parent / "docs" / "concurrency.md").read_text()
    for model, rules, *_ in [*HOLDS, *FAILS]:
        for word in [model, *rules.split()]:
            assert word in page, f"docs/concurrency.md does not name {word}"
