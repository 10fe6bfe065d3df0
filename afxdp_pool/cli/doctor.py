"""`afxdp-pool doctor`: what the machine and an interface allow, each lack with the one command against it.

It looks and changes nothing. In particular it binds no socket to a queue: on an interface in use that would disturb.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict

from afxdp_pool.cli.finding import Finding

_COLOURS = {"ok": "32", "warn": "33", "missing": "31"}


def run(args: argparse.Namespace) -> int:
    """Examine, and print what was found. Returns 0 when everything needed is there, else 1.

    Raises:
        AfXdpError: the namespace is not there or cannot be entered.
    """
    from afxdp_pool.cli import doctor_machine, doctor_netdev

    found = {"machine": doctor_machine.examine()}
    if args.interface:
        found[args.interface] = doctor_netdev.examine(args.interface, args.netns)
    usable = all(finding.level != "missing" for findings in found.values() for finding in findings)
    if args.json:
        plain = {subject: [asdict(finding) for finding in findings] for subject, findings in found.items()}
        told = {"command": "doctor", "interface": args.interface, "netns": args.netns, "usable": usable}
        print(json.dumps(told | {"kernel": os.uname().release, "findings": plain}, indent=2))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        for subject, findings in found.items():
            print(*report(subject, findings, colour=colour), sep="\n")
        print("usable" if usable else "not usable yet: see what is missing")
    return 0 if usable else 1


def report(subject: str, findings: list[Finding], *, colour: bool) -> list[str]:
    """The findings as lines for people."""
    lines = [subject]
    wide = max(len(finding.what) for finding in findings)
    for finding in findings:
        level = f"{finding.level:7}"
        shown = f"\x1b[{_COLOURS[finding.level]}m{level}\x1b[0m" if colour else level
        lines.append(f"  {shown}  {finding.what:{wide}}  {finding.text}")
        if finding.fix:
            lines.append(f"  {'':7}  {'':{wide}}  -> {finding.fix}")
    return lines
