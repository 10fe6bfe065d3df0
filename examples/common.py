"""What the examples share: their interfaces, named or made, and a run to its end.

Without interfaces an example makes a lab of veth pairs and plays the world around it, in a demo that ends by itself.
With interfaces the world is yours, and it runs for `--seconds`, or until Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from pyroute2 import IPRoute

import afxdp_pool as ap
from afxdp_pool.errors import AfXdpError
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import Lab, VethPair

NUD_PERMANENT = 0x80  # a neighbour that does not age


@dataclass(frozen=True)
class Place:
    """Where an example runs.

    Attributes:
        names: its interfaces.
        options: what the library's paths need to know of the place.
        seconds: how long to run, on interfaces of your own; None: until Ctrl-C.
        pairs: the cables of the lab, whose near ends the interfaces are; empty with interfaces of your own.
        args: the example's own arguments.
    """

    names: list[str]
    options: ap.Options
    seconds: float | None
    pairs: list[VethPair]
    args: argparse.Namespace

    def run(
        self,
        runner: ap.Runner,
        demo: Callable[..., None],
        *,
        packets: int | None = None,
        on_tick: Callable[[Any], None] | None = None,
        finish: Callable[[], None] = lambda: None,
    ) -> ap.Report:
        """Let `runner` run: in a lab until `demo`, called with its pairs, has played. Say what came of it, audited.

        With `packets` a lab's run ends when so many have been received, or 10 seconds after it began. `finish` is
        called between the run and the audit.
        """
        before = signal.signal(signal.SIGINT, lambda *_: runner.stop())
        try:
            if self.pairs:
                with ThreadPoolExecutor(1) as other:
                    playing = other.submit(demo, *self.pairs)
                    if packets is None:
                        playing.add_done_callback(lambda _: runner.stop())
                    report = runner.run(60 if packets else None, packets=packets, on_tick=on_tick)
                    playing.result()
            else:
                print(f"running on {', '.join(self.names)}; Ctrl-C ends it", flush=True)
                report = runner.run(self.seconds, on_tick=on_tick)
        finally:
            signal.signal(signal.SIGINT, before)
            finish()
        print(report)
        for port in report.ports:
            if port.kernel.rx_ring_full or port.kernel.rx_dropped:
                print(f"{port.name}: too slow for {port.kernel.rx_ring_full + port.kernel.rx_dropped} packets")
        print(runner.audit().check())
        return report


@contextlib.contextmanager
def place(
    doc: str | None,
    *pairs: str,
    many: bool = False,
    queues: int = 1,
    hosts: bool = False,
    mtu: int = 1500,
    parser: argparse.ArgumentParser | None = None,
    port: ap.PortConfig = ap.PortConfig(),  # noqa: B008
) -> Iterator[Place]:
    """The interfaces from the command line, or a lab with a cable for each name of `pairs`. Errors end the program.

    Args:
        doc: what the example is about.
        many: it takes more interfaces than `pairs`, too.
        queues: how many each interface has in the lab.
        hosts: the far end of each cable is a host of its own, with a kernel's stack.
        mtu: of the interfaces in the lab.
        parser: with arguments of its own.
        port: rings and mode of its ports.
    """
    parser = parser or argparse.ArgumentParser()
    parser.description = doc
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    wanted = f"{len(pairs)}{' or more' * many}"
    explained = f"{wanted}; without any, it makes a lab of veth pairs"
    parser.add_argument("interfaces", nargs="*", metavar="INTERFACE", help=explained)
    default = "%(default)s" if parser.get_default("seconds") else "until Ctrl-C"
    parser.add_argument("--seconds", type=float, help=f"how long to run on INTERFACE; default: {default}")
    parser.add_argument("--netns", help="the network namespace the interfaces are in")
    args = parser.parse_args()
    options = ap.Options(netns=args.netns, port=port)
    given = len(args.interfaces)
    if given and given != len(pairs) and not (many and given > len(pairs)):
        parser.error(f"name {wanted} interfaces, or none")
    try:
        if args.interfaces:
            yield Place(args.interfaces, options, args.seconds, [], args)
            return
        with Lab() as lab:
            made = [lab.veth(name, queues, mtu, host=hosts) for name in pairs]
            names = [pair.near.name for pair in made]
            yield Place(names, replace(options, netns=lab.engine_netns), args.seconds, made, args)
    except AfXdpError as error:
        raise SystemExit(str(error)) from None


def wire(a: VethPair, b: VethPair) -> None:
    """Let two hosts send to each other's MAC address, as they would if one cable joined them."""
    for here, there in ((a.far, b.far), (b.far, a.far)):
        with in_netns(here.netns), IPRoute() as ip:
            mac = there.mac.hex(":")
            ip.neigh("replace", dst=here.peer_ipv4, lladdr=mac, ifindex=here.ifindex, state=NUD_PERMANENT)


def ping(host: VethPair, *arguments: str) -> str:
    """What `ping` says when a host runs it: the first answer, in a line."""
    with in_netns(host.far.netns):
        done = subprocess.run(["ping", "-n", "-W2", *arguments], capture_output=True, text=True, check=False)
    return next((line for line in done.stdout.splitlines()[1:] if "ttl=" in line or "From" in line), "no answer")
