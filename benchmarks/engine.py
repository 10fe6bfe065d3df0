"""Runs one job of the library as a process, for run.py: says "ready", runs until SIGTERM, prints its report as JSON."""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys

import afxdp_pool as ap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("drop", "forward"))
    parser.add_argument("--netns", required=True)
    parser.add_argument("-i", dest="source", required=True)
    parser.add_argument("-o", dest="target")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--fill", type=int, default=2048)
    arguments = parser.parse_args()
    options = ap.Options(netns=arguments.netns, batch=arguments.batch, port=ap.PortConfig(fill_level=arguments.fill))
    if arguments.job == "drop":
        forwarder = ap.drop(arguments.source, options=options)
    else:
        forwarder = ap.forward(arguments.source, arguments.target, options=options)
    with forwarder:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: forwarder.stop())
        print("ready", file=sys.stderr, flush=True)
        report = forwarder.run()
        forwarder.audit().check()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(report.as_dict() | {"user_seconds": usage.ru_utime, "sys_seconds": usage.ru_stime}))


if __name__ == "__main__":
    main()
