"""`afxdp-pool steer`: how an interface chooses the queue of a packet: show it, set it, put it back.

What is set stays until ``--restore``; behind ``--`` a command can be given, and then it stays as long as that runs.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial

from afxdp_pool import knobs
from afxdp_pool.access import RSS_KEY, RSS_KEY_SYMMETRIC
from afxdp_pool.cli.words import count, ethertype, fields_of, port_number, protocol, queue_number, some
from afxdp_pool.errors import ConfigError
from afxdp_pool.flows import FlowRule
from afxdp_pool.numa import ranges
from afxdp_pool.steering import Steering, SteeringState, steering_state

_KEYS = {"default": RSS_KEY, "symmetric": RSS_KEY_SYMMETRIC}
_NOT_FOUND = 127


def flow_rule(text: str) -> FlowRule:
    """A rule from ``"protocol=udp,port=4242,queue=3"``: the fields of `FlowRule`, with - or _ in their names."""
    readers: dict[str, Callable[[str], int | str]] = {
        "queue": lambda value: value if value == "drop" else queue_number(value),
        **dict.fromkeys(("port", "source_port"), port_number),
        **dict.fromkeys(("network", "source_network", "mac", "source_mac"), str),
        **dict.fromkeys(("ip", "vlan", "vlan_priority", "location"), count),
        "protocol": protocol,
        "ethertype": ethertype,
    }
    fields = fields_of(text, readers)
    if "queue" not in fields:
        raise argparse.ArgumentTypeError(f"{text!r} says not where to: add queue=N, or queue=drop")
    try:
        return FlowRule(**fields)  # type: ignore[arg-type]
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def numbers(text: str) -> tuple[int, ...]:
    """Numbers with commas between."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 3,1,0") from None


def hash_of(text: str) -> tuple[str, str]:
    """Kind of packet and fields from ``"udp4=sdfn"``."""
    flow, equals, fields = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not as udp4=sdfn")
    return flow, fields


def key(text: str) -> bytes:
    """A key: by name, or its bytes as ethtool writes them."""
    try:
        return _KEYS.get(text) or bytes.fromhex(text.replace(":", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no key: give default, symmetric, or bytes as 6d:5a:..."
        ) from None


def add_parser(steer: argparse.ArgumentParser) -> None:
    """The flags of ``steer``."""
    add = steer.add_argument
    add("-i", "--interface", metavar="IF", required=True, help="the network interface")
    add("--netns", metavar="NAME", help="the network namespace it is in")
    add("--json", action="store_true", help="how it is then as one JSON document")
    add("--restore", action="store_true", help="put back what was set before, by this command or a killed process")
    add("while_runs", metavar="COMMAND", nargs="*",
        help="behind --: keep what is set only while this runs, such as: -- afxdp-pool drop -i eth1 -q 3")  # fmt: skip
    queues = steer.add_argument_group("queues")
    queues.add_argument("--channels", metavar="N", type=some, help="so many queues that receive and send (ethtool -L)")
    queues.add_argument("--rx-channels", metavar="N", type=some, help="receiving ones, where the driver has them apart")
    queues.add_argument("--tx-channels", metavar="N", type=some, help="sending ones, the same")
    queues.add_argument("--rx-ring", metavar="N", type=some, help="descriptors of each receiving ring (ethtool -G)")
    queues.add_argument("--tx-ring", metavar="N", type=some, help="descriptors of each sending ring")
    spread = steer.add_argument_group("spreading by a hash (RSS)")
    how = spread.add_mutually_exclusive_group()
    how.add_argument("--spread", metavar="N", type=some, help="over so many queues alike (ethtool -X equal N)")
    how.add_argument("--weights", metavar="LIST", type=numbers, help="by these, one a queue, such as 3,1,0")
    how.add_argument("--table", metavar="LIST", type=numbers, help="the table itself: a queue for each place")
    spread.add_argument("--first", metavar="N", type=count, default=0, help="the first queue of --spread and --weights")
    spread.add_argument("--hash", metavar="FLOW=FIELDS", type=hash_of, action="append", default=[],
        help="such as udp4=sdfn: addresses and ports (ethtool -N rx-flow-hash); again for more")  # fmt: skip
    spread.add_argument("--key", type=key, help="of the hash: default, symmetric, or bytes such as 6d:5a:...")
    rules = steer.add_argument_group("flow rules (ethtool -N)")
    rules.add_argument("--rule", metavar="RULE", type=flow_rule, action="append", default=[],
        help="protocol=udp,port=4242,queue=3; queue=drop; again for more")  # fmt: skip
    rules.add_argument("--delete", metavar="PLACE", type=count, action="append", default=[],
        help="take the rule at that place away; again for more")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Show, set or put back. Returns the exit code; that of the command, if there is one.

    Raises:
        AfXdpError: see `Steering`.
    """
    wanted = list(changes(args))
    said = print if not args.json else (lambda _: None)
    if args.restore:
        with Steering(args.interface, args.netns, kept=True) as steering:
            done = steering.put_back() or [f"{args.interface}: nothing was set"]
            for line in done:
                said(line)
    if wanted or args.while_runs:
        with Steering(args.interface, args.netns, kept=not args.while_runs) as steering:
            for what, change in wanted:
                change(steering)
                said(f"{args.interface}: {what}")
            if args.while_runs:
                return _run(args.while_runs)
    state = steering_state(args.interface, args.netns)
    if args.json:
        found = {"command": "steer", "interface": args.interface, "netns": args.netns}
        print(json.dumps(found | state.as_dict(), indent=2))
    elif not wanted and not args.restore:
        print(*report(args.interface, state), sep="\n")
        for one in knobs.left(args.interface, args.netns):
            if one.kind == "steering":
                whose = "until afxdp-pool steer --restore" if one.pid == 1 else f"by process {one.pid}"
                print(f"  changed      {one.key.partition(' like ')[0]}, {whose}")
    return 0


Change = tuple[str, Callable[[Steering], object]]


def changes(args: argparse.Namespace) -> Iterator[Change]:
    """What the command line asks for, in an order that can work: rules rest on the table, and that on the queues."""
    rings = {"rx": args.rx_ring, "tx": args.tx_ring}
    if any(rings.values()):
        yield f"rings: {_given(rings)}", partial(Steering.set_rings, **rings)
    queues = {"combined": args.channels, "rx": args.rx_channels, "tx": args.tx_channels}
    channels: list[Change] = []
    if any(queues.values()):
        channels = [(f"queues: {_given(queues)}", partial(Steering.set_channels, **queues))]
    table: list[Change] = []
    if args.spread or args.weights or args.table:
        how = {"weights": args.weights, "first": args.first, "table": args.table}
        shown = args.table or args.weights or f"{args.spread} queues from {args.first} on"
        table = [(f"spread over {shown}", partial(Steering.spread, queues=args.spread, **how))]
    # No queue can go that the table leads to, and the table cannot lead to one that is not there yet.
    now = steering_state(args.interface, args.netns).channels if channels and table else None
    fewer = now is not None and any(asked is not None and asked < getattr(now, kind) for kind, asked in queues.items())
    yield from (*table, *channels) if fewer else (*channels, *table)
    for flow, fields in args.hash:
        yield f"hash of {flow}: {fields}", partial(Steering.set_hash, flow=flow, fields=fields)
    if args.key:
        yield "key", partial(Steering.set_key, key=args.key)
    for place in args.delete:
        yield f"rule {place} deleted", partial(Steering.delete, location=place)
    for rule in args.rule:
        yield f"rule {rule}", partial(Steering.add, rule=rule)


def _given(values: dict[str, int | None]) -> str:
    return ", ".join(f"{value} {kind}" for kind, value in values.items() if value is not None)


def _run(command: list[str]) -> int:
    """Run it. A Ctrl-C it gets from the terminal itself; whatever ends it, we put back afterwards."""
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        print(f"afxdp-pool: {command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_FOUND
    before = {signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        before[number] = signal.signal(number, lambda number, _: process.send_signal(number))
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def report(interface: str, state: SteeringState) -> list[str]:
    """How it is, as lines for people."""
    none = "not told by the driver"
    lines = [interface]
    if (channels := state.channels) is None:
        lines.append(f"  queues       {none}")
    else:
        kinds = [
            (kind, getattr(channels, kind), getattr(channels, f"most_{kind}")) for kind in ("combined", "rx", "tx")
        ]
        lines.append("  queues       " + ", ".join(f"{now} {kind} (of {most})" for kind, now, most in kinds if most))
    if (rings := state.rings) is None:
        lines.append(f"  rings        {none}")
    else:
        lines.append(f"  rings        rx {rings.rx} (of {rings.most_rx}), tx {rings.tx} (of {rings.most_tx})")
    if (rss := state.rss) is None:
        lines.append("  spreading    not by a table that can be set")
    else:
        shares = {queue: rss.table.count(queue) for queue in sorted(set(rss.table))}
        equal = len(set(shares.values())) <= 1 or max(shares.values()) - min(shares.values()) == 1
        over = f"queues {ranges(shares)} alike" if equal else ", ".join(f"queue {q}: {n}" for q, n in shares.items())
        lines.append(f"  spreading    {rss.function or 'a hash'}, {len(rss.table)} places: {over}")
        lines.append(f"  key          {rss.key.hex(':')}")
    for flow, letters in state.hash_fields.items():
        lines.append(f"  hash         {flow}: {letters}")
    if state.ntuple is not None:
        lines.append(f"  flow rules   {'on' if state.ntuple else 'off'}")
    lines += [f"  rule         {rule}" for rule in state.rules]
    lines += [f"  rule         location={place}, by fields that have no name here" for place in state.other_rules]
    return lines
