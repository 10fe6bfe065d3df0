"""Why nothing arrived: what a run that received no packet can tell of the reason.

It reads counters and devices, and changes nothing. Where it cannot know it says where to look.
"""

from __future__ import annotations

import argparse

from afxdp_pool import PortReport, Report
from afxdp_pool import netdev as netdevs
from afxdp_pool.cli.meter import losses
from afxdp_pool.cli.output import outputs, ways
from afxdp_pool.errors import AfXdpError
from afxdp_pool.netdev import Netdev


def silence(args: argparse.Namespace, report: Report) -> tuple[str, ...]:
    """The likely causes, with what to do, a sentence an interface; none when packets came, or nobody waited for any."""
    if "rx" not in ways(args.command) or report.received:
        return ()
    names = [args.interface, *(outputs(args) if getattr(args, "both_ways", False) else [])]
    return tuple(
        said for name in names if (said := _of_device(name, args, [p for p in report.ports if _netdev(p) == name]))
    )


def _netdev(port: PortReport) -> str:
    return port.name.split(" queue ")[0]


def _of_device(name: str, args: argparse.Namespace, ports: list[PortReport]) -> str:
    """One interface's silence. Losses in the kernel are told by the summary: what was lost did arrive."""
    if any(losses(port.kernel) for port in ports):
        return ""
    try:
        place = netdevs.find(name, args.netns)
    except AfXdpError:
        return ""  # gone, which the run itself has said
    counters = next((port.program for port in ports if port.program), {})
    queues = sorted({int(port.name.split(" queue ")[1].split()[0]) for port in ports})
    prefix = f"ip netns exec {args.netns} " if args.netns and not args.netns.startswith("/") else ""
    return f"{name}: nothing arrived: " + (
        _elsewhere(place, counters, queues, prefix) or _never_came(place, queues, prefix)
    )


def _elsewhere(place: Netdev, counters: dict[str, int], queues: list[int], prefix: str) -> str:
    """Packets came as far as the XDP program, which left them to the kernel."""
    if n := counters.get("passed_no_socket"):
        return (
            f"{n:,} packets came in on queues other than {', '.join(map(str, queues))}: take all (-q all), "
            f"or have one ({prefix}ethtool -L {place.name} combined 1)"
        )
    if n := counters.get("passed_filter"):
        return (
            f"no rule wanted any of the {n:,} packets that came: see --port, --protocol, --network, --ethertype, --rule"
        )
    return ""


def _never_came(place: Netdev, queues: list[int], prefix: str) -> str:
    """No packet came as far as the XDP program."""
    if not place.up:
        return f"the interface is down: {prefix}ip link set {place.name} up"
    if not place.carrier:
        return "the link has no carrier: is its other end up, the cable in?"
    look = f"see whether its counters grow: {prefix}ip -s link show {place.name}"
    if place.promisc or place.driver == "veth":
        return f"nobody sent anything to this interface; {look}"
    return (
        f"nobody sent anything, or it was for other MAC addresses, which a NIC drops unless it is promiscuous "
        f"({prefix}ip link set {place.name} promisc on); {look}"
    )
