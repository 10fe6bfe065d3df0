"""`afxdp-pool clean`: take off an interface what a killed process left there, and say so."""

from __future__ import annotations

import argparse
import json
import logging

from afxdp_pool import clean
from afxdp_pool.cli.notices import Notices
from afxdp_pool.tuning import tuned, untune


def run(args: argparse.Namespace) -> int:
    """Clean, and say what was removed and what was left alone. Returns the exit code.

    Raises:
        AfXdpError: see `afxdp_pool.clean`.
    """
    with Notices(logging.INFO, aloud=False) as notices:
        removed = clean(args.interface, netns=args.netns, force=args.force)
    left = [notice for notice in notices.all if "left alone" in notice]
    napi = tuned(args.interface, args.netns) or {}
    if args.json:
        found = {"command": "clean", "interface": args.interface, "netns": args.netns, "removed": removed, "left": left}
        print(json.dumps(found | {"napi": napi}, indent=2))
        return 0
    for line in removed or [f"{args.interface}: nothing was left behind"]:
        print(line)
    for line in left:
        print(f"{line} (--force takes it off)")
    for name, value in napi.items():  # whose it is nobody knows, so it is told and not touched
        print(f"{args.interface}: {name} is {value}; if nobody wants that")
        print(f"  -> {untune(args.interface, args.netns, name)}")
    return 0
