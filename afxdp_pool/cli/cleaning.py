"""`afxdp-pool clean`: take off an interface what a killed process left there, or put it back, and say so."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict

from afxdp_pool import clean, knobs
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
    changed = knobs.left(args.interface, args.netns)
    if args.json:
        found = {"command": "clean", "interface": args.interface, "netns": args.netns, "removed": removed, "left": left}
        print(json.dumps(found | {"napi": napi, "knobs": [asdict(one) for one in changed]}, indent=2))
        return 0
    for line in removed or [f"{args.interface}: nothing was left behind"]:
        print(line)
    for line in left:
        print(f"{line} (--force takes it off)")
    for one in changed:
        whose = f"process {one.pid} wants it so" if one.alive else "it goes back when a port is opened there"
        print(f"{args.interface}: left alone: {one.key} is {knobs.shown(one.value)}: {whose}")
    for name in napi.keys() - {one.key for one in changed}:  # whose it is nobody knows, so it is told and not touched
        print(f"{args.interface}: {name} is {napi[name]}; if nobody wants that")
        print(f"  -> {untune(args.interface, args.netns, name)}")
    return 0
