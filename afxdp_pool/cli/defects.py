"""Kernels and drivers with defects that hit AF_XDP, for the doctor; docs/troubleshooting.md has the same, group K.

Only what is known from the kernel's own records is here: its CVE records (github.com/CVEProject/cvelistV5), its stable
announcements, its mailing lists. Invariant: what cannot hit this library, because it does not do what it takes, is not
warned of. Distributions repair under a version of their own, so a warning may be wrong.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from afxdp_pool.cli.finding import Finding

#: 6, 17, 3 of "6.17.3-1-amd64".
Version = tuple[int, ...]
_EVER = ((0, 0, 0),)


@dataclass(frozen=True)
class Defect:
    """A defect and where it is.

    Attributes:
        name: the CVE, or the kernel's commit, or the mail that reports it.
        text: what happens.
        since: the first releases with it: of stable series, and last the first of all later ones.
        fixed: the first releases without it, likewise; empty: none is known.
        fix: what to do.
        driver: only with this one; empty: with any.
        zero_copy: only where the driver offers zero-copy.
    """

    name: str
    text: str
    since: tuple[Version, ...]
    fixed: tuple[Version, ...]
    fix: str
    driver: str = ""
    zero_copy: bool = False

    def hits(self, release: Version) -> bool:
        """Whether this release has it."""
        return _reached(release, self.since) and not _reached(release, self.fixed)

    def finding(self) -> Finding:
        """As the doctor says it."""
        return Finding("known defects", "warn", f"{self.text} ({self.name})", self.fix)


def _reached(release: Version, marks: tuple[Version, ...]) -> bool:
    """Whether it is a release of one of these series and not before its mark, or not before the last mark."""
    same = any(release[:2] == mark[:2] and release >= mark for mark in marks)
    return same or (bool(marks) and release >= marks[-1])


DEFECTS = (
    Defect(
        "CVE-2025-40290",
        "sending in copy mode can crash the kernel",
        since=((6, 16, 8), (6, 17, 0)),
        fixed=((6, 17, 11), (6, 18, 0)),
        fix="run Linux 6.17.11, 6.18 or later",
    ),
    Defect(
        "CVE-2023-53240",
        "sending while the interface is down can crash the kernel",
        since=((5, 15, 33), (5, 16, 19), (5, 17, 2), (5, 18, 0)),
        fixed=((6, 1, 16), (6, 2, 3), (6, 3, 0)),
        fix="run Linux 6.1.16, 6.2.3, 6.3 or later",
    ),
    Defect(
        "fa349e396e48",
        "a veth may deliver an old descriptor again: it is counted (rx_bad) and touches nothing",
        since=_EVER,
        fixed=((5, 10, 163), (5, 15, 87), (6, 1, 5), (6, 2, 0)),
        fix="run Linux 5.10.163, 5.15.87, 6.1.5, 6.2 or later",
        driver="veth",
    ),
    Defect(
        "CVE-2026-31691",
        "a process killed in zero-copy mode can leave the device stuck: its transmit queue stalls for good",
        since=((6, 14, 0),),
        fixed=((6, 18, 23), (6, 19, 13), (7, 0, 0)),
        fix="run Linux 6.18.23, 6.19.13, 7.0 or later, or in copy mode (--copy)",
        driver="igb",
        zero_copy=True,
    ),
    Defect(
        "CVE-2026-43092",
        "zero-copy does not look whether packets of the MTU fit the frames, less what the kernel needs behind them",
        since=((6, 6, 0),),
        fixed=((6, 6, 136), (6, 12, 83), (6, 18, 24), (6, 19, 14), (7, 0, 0)),
        fix="keep to frames of 4096 bytes, as is the default",
        zero_copy=True,
    ),
    Defect(
        "netdev 20260512152658.2818805-1",
        "with frames of 2048 bytes in zero-copy, packets that the rules leave to the stack can overwrite kernel memory",
        since=((6, 14, 0),),
        fixed=(),
        fix="keep to frames of 4096 bytes, as is the default; or run in copy mode (--copy)",
        driver="ice",
        zero_copy=True,
    ),
    Defect(
        "xdp-newbies 2023-12-19",
        "in native mode nothing was received on a bond, and zero-copy it has not",
        since=_EVER,
        fixed=(),
        fix="open the ports on the bond's members, or use generic mode (--generic)",
        driver="bonding",
    ),
)


def known(release: str, driver: str = "", *, zero_copy: bool = False) -> list[Finding]:
    """What is known of this kernel by itself or, with `driver`, of this driver on it."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    if match is None:
        return []
    version = tuple(int(part or 0) for part in match.groups())
    return [one.finding() for one in DEFECTS if one.hits(version) and _concerns(one, driver, zero_copy)]


def _concerns(one: Defect, driver: str, zero_copy: bool) -> bool:
    if not driver:
        return not one.driver and not one.zero_copy
    return (one.driver == driver and zero_copy >= one.zero_copy) or (not one.driver and one.zero_copy and zero_copy)
