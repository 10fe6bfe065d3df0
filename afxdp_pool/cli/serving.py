"""`afxdp-pool serve`: the privileged half in a small process of its own, and what may be typed for it.

The order is the point: listen (which locks the path), attach the programs, give up what only that needed, then serve.
Whatever ends it, programs come off and the socket's file goes.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
from types import FrameType

from afxdp_pool import privileges
from afxdp_pool.allowing import Allowed
from afxdp_pool.broker import Broker
from afxdp_pool.cli.arguments import add_filter, add_hook
from afxdp_pool.cli.notices import Notices
from afxdp_pool.cli.words import count
from afxdp_pool.listening import Listener, passed_listener, tell_systemd
from afxdp_pool.netdev import enter_netns
from afxdp_pool.program import XdpProgram

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
#: What serving takes: a socket (CAP_NET_RAW), and registering memory beyond the limit (CAP_IPC_LOCK).
_TO_SERVE = ("CAP_NET_RAW", "CAP_IPC_LOCK")


def add_parser(serve: argparse.ArgumentParser) -> None:
    """The flags of ``serve``."""
    serve.set_defaults(interface=None)
    add = serve.add_argument
    add("-i", "--interface", dest="interfaces", metavar="IF", action="append", required=True,
        help="a network interface to serve; again for more")  # fmt: skip
    add(
        "-q", "--queue", metavar="N", type=count, action="append", help="a queue to serve; again for more; default: all"
    )
    add("--socket", metavar="PATH", default="/run/afxdp-pool/serve.sock",
        help="where to listen; default %(default)s; under systemd's socket activation its own")  # fmt: skip
    add("--allow", metavar="WHO", action="append", required=True,
        help="who may connect: users, and groups with an @, by name or number, such as 1000,@netdev")  # fmt: skip
    add("--netns", metavar="NAME", help="the network namespace of the interfaces")
    add("--user", metavar="NAME", help="run as this user once all is set up")
    add("--max-memory", metavar="BYTES", type=count, default=1 << 30, help="that one user may register; default 1 GiB")
    add("--max-clients", metavar="N", type=count, default=256, help="connections at once; default %(default)s")
    add("--share-map", action="store_true",
        help="give clients the XSKMAP too, as device plugins for Kubernetes do: that is all queues")  # fmt: skip
    add("--multi-buffer", action="store_true", help="packets longer than a frame too; see docs/large-packets.md")
    add("--allow-busy-poll", action="store_true", help="let clients have busy polling; keeps CAP_NET_ADMIN for it")
    add("--quiet", action="store_true", help="only warnings")
    mode = serve.add_argument_group("mode", "default: the best the driver has")
    add_hook(mode)
    add_filter(serve)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP. Returns the exit code.

    Raises:
        AfXdpError: it could not begin.
    """
    _one_thread()
    allowed = Allowed.parse(name for names in args.allow for name in names.split(","))
    with Notices(logging.WARNING if args.quiet else logging.INFO), contextlib.ExitStack() as stack:
        if args.netns:
            enter_netns(args.netns)  # for good: it takes a privilege to come back
        listener = passed_listener() or stack.enter_context(Listener(args.socket, allowed)).socket
        programs = {
            name: stack.enter_context(
                XdpProgram(
                    name,
                    mode=args.xdp_mode,
                    attach=args.attach,
                    force=args.force,
                    rules=args.rules,
                    rx_metadata=args.rx_metadata,
                    frags=args.multi_buffer,
                )
            )
            for name in dict.fromkeys(args.interfaces)
        }
        keep = _kept(args, programs)
        broker = stack.enter_context(
            Broker(
                programs,
                allowed,
                queues=args.queue,
                share_maps=args.share_map,
                max_memory=args.max_memory,
                max_clients=args.max_clients,
            )
        )

        def end(number: int, frame: FrameType | None) -> None:
            broker.stop()

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, end)
        if args.user:
            privileges.become(args.user, keep)
        else:
            privileges.limit(keep)
        served = ", ".join(f"{name} ({program.mode})" for name, program in programs.items())
        if not args.quiet:
            print(f"afxdp-pool: serving {served} at {listener.getsockname()}, with {', '.join(keep)}", flush=True)
        tell_systemd("READY=1")
        broker.run(listener)
        tell_systemd("STOPPING=1")
    return 0


def _kept(args: argparse.Namespace, programs: dict[str, XdpProgram]) -> tuple[str, ...]:
    """The capabilities that are still needed when the programs are attached."""
    keep: tuple[str, ...] = _TO_SERVE
    if args.allow_busy_poll:
        keep += ("CAP_NET_ADMIN",)
    if not privileges.unprivileged_maps():
        keep += ("CAP_BPF",)
    if any(program.attach_kind == "libxdp" for program in programs.values()):
        keep += ("CAP_NET_ADMIN", "CAP_BPF", "CAP_SYS_ADMIN")  # to take it off again
    return tuple(dict.fromkeys(keep))


def _one_thread() -> None:
    """Start anew if importing numpy has started threads: each has capabilities that only itself can give up."""
    if len(os.listdir("/proc/self/task")) > 1 and any(os.environ.get(name) != "1" for name in _ONE_THREAD):
        # Not by name: this user need not be able to reach it.
        os.execve("/proc/self/exe", [sys.executable, "-m", "afxdp_pool.cli", *sys.argv[1:]], os.environ | _ONE_THREAD)
