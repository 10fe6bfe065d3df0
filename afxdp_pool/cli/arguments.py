"""What may be typed: the parser, and the library's values made from it.

What can never mean anything, as a word (`afxdp_pool.cli.words`) or together with others, is refused as a usage error
(exit code 2). What is well formed but not possible, the library refuses (exit code 1).
"""

from __future__ import annotations

import argparse

from afxdp_pool import Options, PortConfig, Rule, __version__
from afxdp_pool.cli.usage import Parser
from afxdp_pool.cli.words import (
    count,
    cpu_list,
    ending,
    ethertype,
    ipv4,
    listening,
    mac_address,
    metadata_names,
    number,
    port_number,
    protocol,
    queue,
    request_names,
    ring_size,
    rule,
    rule_of,
    seconds,
    some,
    worker_count,
)
from afxdp_pool.config import RX_METADATA, TX_METADATA, Mode, Transmit
from afxdp_pool.forwarder import SPIN
from afxdp_pool.testing import packets

_EPILOG = """\
examples:
  afxdp-pool doctor -i eth1                     what stands in the way, and the command against it
  afxdp-pool drop -i eth1 --duration 10         receive, count, recycle
  afxdp-pool forward -i eth1 -o eth2 --both-ways
  afxdp-pool handle -i eth1 -o eth2 filter.py:handle
  afxdp-pool tx -i eth1 --rate 100k --json
  afxdp-pool drop -i eth1 --rule protocol=udp,port=53 --rule ethertype=arp
"""


def rules(args: argparse.Namespace) -> tuple[Rule, ...]:
    """The filter: one rule of the single flags together, and each --rule.

    Raises:
        argparse.ArgumentTypeError: the flags exclude each other.
    """
    flags = {name: getattr(args, name) for name in ("ethertype", "protocol", "port", "network")}
    together = () if all(value is None for value in flags.values()) else (rule_of(**flags),)
    return together + tuple(args.rule)


def options(args: argparse.Namespace) -> Options:
    """The library's options.

    Raises:
        ConfigError: a value the kernel could never take.
    """
    mode: Mode = args.socket_mode
    filled: dict[str, object] = {}
    if args.command != "tx":
        filled = {"rules": args.rules, "xdp_mode": args.xdp_mode, "attach": args.attach, "force": args.force}
    return Options(
        netns=args.netns,
        via=args.via,
        queues="all" if args.queue == ["all"] else tuple(args.queue or [0]),
        frames=args.frames,
        frame_size=args.frame_size,
        unaligned=args.unaligned,
        huge_pages=args.huge_pages,
        batch=args.batch,
        spin=SPIN if args.spin is None else args.spin,
        workers=args.workers,
        cpus=args.cpus,
        threaded_napi=args.threaded_napi,
        napi_defer_hard_irqs=args.napi_defer_hard_irqs,
        gro_flush_timeout=args.gro_flush_timeout,
        port=_port(mode, args),
        **filled,  # type: ignore[arg-type]
    )


def _port(mode: Mode, args: argparse.Namespace) -> PortConfig:
    default = PortConfig()
    ring = default.rx_size if args.ring_size is None else args.ring_size
    fill_size = 2 * ring
    level = min(default.fill_level, fill_size) if args.fill_level is None else args.fill_level
    while 0 < fill_size < level:
        fill_size *= 2
    return PortConfig(
        mode=mode,
        transmit=_transmit(args),
        fill_size=fill_size,
        comp_size=ring,
        rx_size=ring,
        tx_size=ring,
        fill_level=level,
        busy_poll_us=args.busy_poll or 0,
        busy_poll_budget=args.busy_poll_budget,
        rx_metadata=getattr(args, "rx_metadata", ()),
        multi_buffer=args.multi_buffer,
        tx_metadata=getattr(args, "tx_metadata", ()),
    )


def _transmit(args: argparse.Namespace) -> Transmit:
    wanted: Transmit = getattr(args, "transmit", "auto")
    return "socket" if wanted == "auto" and args.user else wanted  # live frames take privileges for each slice


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line. Exits with code 2 when it makes no sense."""
    top = parser()
    args = top.parse_args(argv)
    if "ethertype" in args:
        try:
            args.rules = rules(args)
        except argparse.ArgumentTypeError as error:
            top.error(str(error))
    if "all" in (getattr(args, "queue", None) or ()) and len(args.queue) > 1:
        top.error("-q all goes alone")
    if "capture" in args and args.capture is None:
        given = [flag for flag, value in (("packets", args.capture_packets), ("rule", args.capture_rule)) if value]
        if given:
            top.error(f"--capture-{given[0]} goes with --capture FILE")
    return args


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = Parser(prog="afxdp-pool", description="AF_XDP packet I/O on a UMEM frame pool.", epilog=_EPILOG)
    top.add_argument("--version", action="version", version=f"afxdp-pool {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, what: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")

    drop = command("drop", "receive packets, count them, recycle their frames")
    _add_path(drop, sends=False)

    forward = command("forward", "send what one interface receives out of another, without a copy")
    _add_path(forward)
    forward.add_argument("-o", "--output", metavar="IF", required=True, help="where the packets leave")
    forward.add_argument("--both-ways", action="store_true", help="the other way round as well")
    forward.add_argument("--swap-mac", action="store_true", help="exchange source and destination MAC")
    forward.add_argument("--set-dst", metavar="MAC", type=mac_address, help="set the destination MAC")
    forward.add_argument("--set-src", metavar="MAC", type=mac_address, help="set the source MAC")

    reflect = command("reflect", "send every packet back out of the interface it came in by")
    _add_path(reflect)
    reflect.add_argument("--no-swap-mac", dest="swap_mac", action="store_false", help="leave the MAC addresses alone")

    handle = command("handle", "ask a function of yours what becomes of each packet")
    _add_path(handle)
    _add_requests(handle, "what the handler may ask of devices for packets that it sends")
    add = handle.add_argument
    add("handler", metavar="HANDLER",
        help="file.py:function, module:function or library.so:function; see docs/handlers.md")  # fmt: skip
    add("-o", "--output", metavar="IF", action="append", default=[],
        help="where FORWARD(1) leads; give it again for FORWARD(2), and so on")  # fmt: skip
    add("--both-ways", action="store_true", help="receive on the outputs as well")
    add("--per", choices=("packet", "batch"),
        help="what it is called for, where it does not say; a Python function by default for a batch")  # fmt: skip

    tx = command("tx", "send test packets, or those of a capture file")
    _add_path(tx, receives=False)
    _add_traffic(tx)
    _add_requests(tx, "what to ask of the device for each packet")

    doctor = command("doctor", "what this machine and an interface allow, and what to do about it")
    _add_place(doctor, required=False)
    doctor.add_argument("--json", action="store_true", help="the findings as one JSON document")

    top_ = command("top", "every AF_XDP socket and XDP program on this machine")
    top_.set_defaults(interface=None)
    top_.add_argument("--netns", metavar="NAME", help="only this network namespace; default: all there are")
    top_.add_argument("--once", action="store_true", help="print it and end; so does all that is no terminal")
    top_.add_argument("--json", action="store_true", help="once, as one JSON document")
    top_.add_argument("--interval", metavar="S", type=seconds, default=2.0, help="from one look to the next; default 2")

    from afxdp_pool.cli import serving, steer

    serving.add_parser(command("serve", "make sockets for processes that have no privileges"))
    steer.add_parser(command("steer", "how an interface chooses queues: show it, set it, put it back"))

    clean = command("clean", "remove, or put back, what a killed process left on an interface")
    _add_place(clean)
    clean.add_argument("--force", action="store_true", help="whatever XDP program is there, in use or not ours")
    clean.add_argument("--json", action="store_true", help="what was removed as one JSON document")
    return top


def _add_place(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    command.add_argument("-i", "--interface", metavar="IF", required=required, help="the network interface")
    command.add_argument("--netns", metavar="NAME", help="the network namespace it is in")


def _add_path(command: argparse.ArgumentParser, *, receives: bool = True, sends: bool = True) -> None:
    _add_place(command)
    add = command.add_argument
    add(
        "-q",
        "--queue",
        "--queues",
        metavar="N",
        type=queue,
        action="append",
        help="a queue, default 0; give it again for more; all: every one that there is",
    )
    add("--duration", metavar="S", type=seconds, help="stop after so many seconds; default: on Ctrl-C")
    add("--json", action="store_true", help="one JSON document with every counter on stdout, at the end")
    shown = command.add_mutually_exclusive_group()
    shown.add_argument("--live", action=argparse.BooleanOptionalAction,
        help="the live view; default: on a terminal, if the extra tui (rich) is installed")  # fmt: skip
    shown.add_argument("--quiet", action="store_true", help="nothing but errors, and with --json the document")

    add("--metrics", metavar="[ADDR:]PORT", type=listening,
        help="serve Prometheus metrics there while it runs, by default on 127.0.0.1 (extra metrics)")  # fmt: skip

    rights = command.add_argument_group("privileges", "see docs/privileges.md")
    rights.add_argument("--via", metavar="PATH", help="have a broker make the sockets (afxdp-pool serve); needs none")
    rights.add_argument("--user", metavar="NAME", help="run as this user, without privileges, once all is open")

    memory = command.add_argument_group("memory")
    memory.add_argument("--frames", metavar="N", type=count, help="frames of the UMEM; default: what the rings need")
    memory.add_argument("--frame-size", metavar="BYTES", type=count, default=4096,
        help="2048 or 4096 (default); with --unaligned any between")  # fmt: skip
    memory.add_argument("--unaligned", action="store_true", help="frames that are no power of two; in copy mode")
    memory.add_argument("--multi-buffer", action="store_true",
        help="packets longer than a frame, in several (Linux 6.6); see docs/large-packets.md")  # fmt: skip
    memory.add_argument("--batch", metavar="N", type=count, default=64, help="most packets in a round; default 64")
    memory.add_argument("--huge-pages", action="store_true", help="2 MB pages, if there are enough")

    loop = command.add_argument_group("loop", "see docs/workers.md for what pays when")
    add = loop.add_argument
    add("--workers", metavar="N", type=worker_count, default=1,
        help='threads, each with its share of the queues; "queues": one a queue. Default 1')  # fmt: skip
    add("--cpus", metavar="LIST", type=cpu_list, help="pin the workers, one CPU each, such as 2,3 or 4-7")
    add("--spin", metavar="ROUNDS", type=count, help=f"rounds without work before a worker sleeps; default {SPIN}")
    add(
        "--ring-size",
        metavar="N",
        type=ring_size,
        help="entries of RX, TX and COMPLETION, half of FILL's; default 2048",
    )
    add("--fill-level", metavar="N", type=count, help="frames to keep in FILL; default 2048")
    add("--busy-poll", metavar="US", type=count, help="the worker runs the driver itself (SO_BUSY_POLL); 0 is off")
    add("--busy-poll-budget", metavar="N", type=count, default=64, help="packets of one such run; default 64")
    add("--threaded-napi", action=argparse.BooleanOptionalAction, help="the driver in kernel threads, while it runs")
    add("--napi-defer-hard-irqs", metavar="N", type=count, help="set while it runs; with --busy-poll, such as 2")
    add("--gro-flush-timeout", metavar="NS", type=count, help="set while it runs; with --busy-poll, such as 200000")

    drawn = command.add_argument_group("pictures", "where every frame of the UMEM was (extra plot)")
    drawn.add_argument("--picture", metavar="FILE", type=ending(".png", ".svg", ".pdf"),
        help="a map of all frames over time: .png, .svg or .pdf")  # fmt: skip
    drawn.add_argument("--animation", metavar="FILE", type=ending(".gif", ".png", ".webp"),
        help="every frame at its place: .gif, .png or .webp")  # fmt: skip

    copies = command.add_argument_group("capture", "packets copied to a pcapng file on their way (extra pcap)")
    add = copies.add_argument
    add("--capture", metavar="FILE", help="write what is received and sent; Wireshark opens it")
    add("--capture-packets", metavar="N", type=some, help="stop capturing after so many; default: no end")
    add("--capture-snaplen", metavar="BYTES", type=count, default=65535, help="of each packet; default: all")
    add("--capture-stamps", choices=("batch", "arrival", "timestamp"),
        help="the time of a received packet; the last two take --rx-metadata. Default arrival, if learnt")  # fmt: skip
    add("--capture-direction", choices=("in", "out", "both"), default="both", help="default both")
    add("--capture-rule", metavar="RULE", type=rule, action="append", default=[],
        help="only these packets, as --rule; again for more")  # fmt: skip

    mode = command.add_argument_group("mode", "default: the best the driver has")
    socket_mode = mode.add_mutually_exclusive_group()
    command.set_defaults(socket_mode="auto", xdp_mode="auto")
    for flag, value in (("--copy", "copy"), ("--zero-copy", "zero-copy")):
        socket_mode.add_argument(
            flag, dest="socket_mode", action="store_const", const=value, help=f"demand {value} mode"
        )
    if sends:
        mode.add_argument(
            "--transmit",
            choices=("auto", "socket", "live"),
            default="auto",
            help="send by the socket, by live frames, or by whichever is cheaper for each batch (default)",
        )
    if not receives:
        return
    add_hook(mode)
    add_filter(command)


def add_hook(mode: argparse._ArgumentGroup) -> None:
    """How the XDP program comes onto the interface."""
    xdp_mode = mode.add_mutually_exclusive_group()
    for flag, value in (("--native", "native"), ("--generic", "generic")):
        xdp_mode.add_argument(
            flag, dest="xdp_mode", action="store_const", const=value, default="auto", help=f"demand {value} XDP"
        )
    mode.add_argument(
        "--attach",
        choices=("auto", "link", "libxdp"),
        default="auto",
        help="how to take the XDP hook: by a BPF link (default), or through libxdp beside other programs",
    )
    mode.add_argument("--force", action="store_true", help="replace an XDP program that is not ours")
    mode.add_argument("--rx-metadata", metavar="LIST", type=metadata_names, default=(),
        help=f"what to learn of packets beside their bytes: {','.join(RX_METADATA)}; see docs/metadata.md")  # fmt: skip


def add_filter(command: argparse.ArgumentParser) -> None:
    """Which packets to take."""
    wanted = command.add_argument_group(
        "filter", "which packets to take; the rest goes to the kernel's stack. Flags combine to one rule"
    )
    wanted.add_argument("--ethertype", metavar="TYPE", type=ethertype, help="such as arp or 0x88f7")
    wanted.add_argument("--protocol", metavar="PROTO", type=protocol, help="IP protocol, such as udp or 17")
    wanted.add_argument("--port", metavar="PORT", type=port_number, help="UDP or TCP destination port")
    wanted.add_argument("--network", metavar="NET", help="destination address or network, such as 10.0.0.0/8")
    wanted.add_argument(
        "--rule", metavar="RULE", type=rule, action="append", default=[], help="protocol=udp,port=53; again for more"
    )


def _add_requests(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("--tx-metadata", metavar="LIST", type=request_names, default=(),
        help=f"{what}: {','.join(TX_METADATA)}; see docs/metadata.md")  # fmt: skip


def _add_traffic(tx: argparse.ArgumentParser) -> None:
    traffic = tx.add_argument_group("packets", "numbered, checksummed UDP packets, unless --pcap is given")
    add = traffic.add_argument
    add("--size", metavar="BYTES", type=count, help=f"of a packet without FCS, {packets.MIN_SIZE} (default) or more")
    add("--rate", metavar="PPS", type=number, default=0.0, help="packets a second, such as 100k; default: all that go")
    add("--count", metavar="N", type=some, help="stop after so many; default: no end, with --pcap the file once")
    add("--dst-mac", metavar="MAC", type=mac_address, help="default 02:00:00:00:00:01, which is nobody's")
    add("--src-mac", metavar="MAC", type=mac_address, help="default: the interface's own")
    add("--dst-ip", metavar="IP", type=ipv4, help="default 198.18.0.1, of the range for benchmarks (RFC 2544)")
    add("--src-ip", metavar="IP", type=ipv4, help="default 198.18.0.2")
    add("--dst-port", metavar="PORT", type=port_number, help=f"default {packets.PORT}, discard (RFC 863)")
    add("--src-port", metavar="PORT", type=port_number, help=f"default {packets.SOURCE_PORT}")
    add("--pcap", metavar="FILE", help="send the packets of a pcap or pcapng file instead, in turn")
