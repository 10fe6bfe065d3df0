"""The kernel's ceiling for tx as an engine: the live-frame `Source`, which builds its packets where they are sent."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import threading

from afxdp_pool import netdev
from afxdp_pool.testing import LabLink, Source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--netns", required=True)
    parser.add_argument("-i", dest="netdev", required=True)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    found = netdev.find(arguments.netdev, arguments.netns)
    mac = found.mac
    link = LabLink(found.name, arguments.netns, mac, "", found.index, 1, found.mtu, mac, "")
    (cpu,) = os.sched_getaffinity(0)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with Source(link, size=arguments.size, cpu=cpu) as source:
        print("ready", file=sys.stderr, flush=True)
        sent = source.send(stop=stop)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "received": 0,
                "sent": sent.delivered,
                "rx_dropped": 0,
                "rx_ring_full": 0,
                "kernel_dropped": 0,
                "user_seconds": usage.ru_utime,
                "sys_seconds": usage.ru_stime,
            }
        )
    )


if __name__ == "__main__":
    main()
