"""What a planted bug is: where it goes, in place of what, and the tests that should see it first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One bug: in `file` of afxdp_pool, `before` (there once) becomes `after`.

    `tests` are tried in turn, before all others: NAME of tests/native/NAME.c under AddressSanitizer, NAME:tsan,
    fuzz:NAME of tests/fuzz, or a path below tests.
    """

    name: str
    kind: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def c(name: str, kind: str, file: str, before: str, after: str, *tests: str) -> Mutant:
    return Mutant(name, kind, f"_native/{file if '.' in file else file + '.c'}", before, after, tests)


def p(name: str, kind: str, file: str, before: str, after: str, *tests: str) -> Mutant:
    return Mutant(name, kind, file, before, after, tests)
