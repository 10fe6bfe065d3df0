"""A path from its opening to its proof: signals, the worker thread, the views, the audits.

The worker's loop runs in a thread of its own, so that drawing never delays a packet; the main thread waits, shows, and
takes the signals. Invariant: whatever ends the run, everything opened is closed, and before that the frames are
counted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType
from typing import TYPE_CHECKING, Self

import afxdp_pool as ap
from afxdp_pool.cli import arguments, loading, traffic
from afxdp_pool.cli.meter import Meter
from afxdp_pool.cli.notices import Notices
from afxdp_pool.cli.output import Captured, Outcome, Proof, document, sentence, summary
from afxdp_pool.cli.silence import silence
from afxdp_pool.cli.stamps import SendTimes, Stamps
from afxdp_pool.cli.views import View, choose_view
from afxdp_pool.errors import ConfigError

if TYPE_CHECKING:
    from afxdp_pool.capture import Capture, CaptureStats
    from afxdp_pool.cli.pictures import Pictures
    from afxdp_pool.metrics import Endpoint

#: Seconds between two looks whether the interfaces are still there.
LOOK_EVERY = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """The first Ctrl-C, SIGTERM or SIGHUP stops the run; the second Ctrl-C aborts it.

    Attributes:
        received: the name of the first, or None.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._forwarder: ap.Runner | None = None
        self._before: dict[signal.Signals, object] = {}

    def stops(self, forwarder: ap.Runner | None) -> None:
        """From now on a signal stops this forwarder; one that came already does so at once."""
        self._forwarder = forwarder
        if forwarder is not None and self.received:
            forwarder.stop()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name
        if self._forwarder is not None:
            self._forwarder.stop()

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


class Worker:
    """The thread a forwarder runs in. `done` is set when the loop has ended, well or not."""

    def __init__(
        self, forwarder: ap.Runner, duration: float | None, on_tick: Callable[[ap.Runner], None] | None = None
    ) -> None:
        self.forwarder = forwarder
        self.done = threading.Event()
        self.failure: BaseException | None = None
        self._duration = duration
        self._on_tick = on_tick
        self._thread = threading.Thread(target=self._work, name="afxdp-pool worker")

    def _work(self) -> None:
        try:
            self.forwarder.run(self._duration, on_tick=self._on_tick)
        except BaseException as error:  # told by the main thread
            self.failure = error
        finally:
            self.done.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        while self._thread.is_alive():
            self.forwarder.stop()
            self._thread.join(0.1)


def open_path(args: argparse.Namespace) -> ap.Runner:
    """Open what the command needs.

    Raises:
        AfXdpError: see `afxdp_pool.paths`. OSError: the capture file cannot be opened.
    """
    options = arguments.options(args)
    if args.command == "drop":
        return ap.drop(args.interface, options=options)
    if args.command == "reflect":
        return ap.reflect(args.interface, swap_mac=args.swap_mac, options=options)
    if args.command == "forward":
        rewrite = ap.Rewrite(swap=args.swap_mac, dst=args.set_dst, src=args.set_src)
        return ap.forward(args.interface, args.output, both_ways=args.both_ways, rewrite=rewrite, options=options)
    if args.command == "handle":
        handler = loading.load(args.handler, args.per)
        receiving, sending = ([], args.output) if not args.both_ways else (args.output, [])
        return ap.handle([args.interface, *receiving], handler, outputs=sending, options=options)
    template, number = traffic.template(args)
    return ap.transmit(args.interface, template, count=number, rate=args.rate, options=options)


def open_capture(args: argparse.Namespace, forwarder: ap.Runner) -> Capture | None:
    """The capture, if one is wanted.

    Raises:
        AfXdpError: see `Capture`.
    """
    if args.capture is None:
        return None
    from afxdp_pool.capture import Capture

    return Capture(
        args.capture,
        forwarder,
        snaplen=args.capture_snaplen,
        packets=args.capture_packets,
        direction=args.capture_direction,
        rules=args.capture_rule,
        stamps=args.capture_stamps,
    )


def open_metrics(args: argparse.Namespace, forwarder: ap.Runner) -> Endpoint | None:
    """The metrics' endpoint, if one is wanted; says where it is.

    Raises:
        AfXdpError: see `afxdp_pool.metrics.serve`.
    """
    if args.metrics is None:
        return None
    from afxdp_pool.metrics import serve

    address, port = args.metrics
    endpoint = serve(forwarder, port, address)
    if not args.quiet:
        print(f"metrics on {endpoint.url}", file=sys.stderr, flush=True)
    return endpoint


def _beside(metrics: Endpoint | None, capture: Capture | None) -> list[Callable[[], str]]:
    """What to say of them while it runs."""
    said: list[Callable[[], str]] = []
    if metrics is not None:
        url = metrics.url
        said.append(lambda: f"metrics on {url}")
    if capture is not None:
        said.append(lambda: _captured(capture.stats()))
    return said


def _captured(stats: CaptureStats) -> str:
    return f"{stats.written:,} packets captured" + (f", {stats.dropped:,} dropped" if stats.dropped else "")


def open_pictures(args: argparse.Namespace, forwarder: ap.Runner) -> Pictures | None:
    """What samples for pictures, if any is wanted.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if args.picture is None and args.animation is None:
        return None
    from afxdp_pool.cli.pictures import Pictures

    return Pictures(args, forwarder.umem)


def _end(last: Callable[[], None]) -> ap.AfXdpError | None:
    """Do what is to be done at the end; the error, for the run itself went well."""
    try:
        last()
    except ap.AfXdpError as error:
        return error
    return None


def prove(forwarder: ap.Runner, *, may_keep: bool = False) -> Proof:
    """Audit the frames, close ports and pools, and audit again: then all of them must be back in the Umem.

    With `may_keep` a handler's code may have some still.
    """
    pools = forwarder.pools
    stopped = forwarder.audit()
    for port in forwarder.ports:
        port.close()
    for pool in pools:
        pool.close()
    closed = forwarder.audit()
    return Proof(stopped, closed, sum(pool.stats().inflight for pool in pools), closed.app if may_keep else 0)


def run(args: argparse.Namespace) -> int:
    """Run one of the paths. Returns the exit code.

    Raises:
        AfXdpError, OSError: it could not begin. KeyboardInterrupt: aborted.
    """
    with Notices(aloud=not args.quiet) as notices, Signals() as signals:
        # Once its sockets are open packets come in, so everything else is made before.
        view = choose_view(args, notices)
        with open_path(args) as forwarder:
            pictures = open_pictures(args, forwarder)
            with pictures or nullcontext():
                with open_metrics(args, forwarder) or nullcontext() as metrics:
                    capture = open_capture(args, forwarder)
                    view.beside = _beside(metrics, capture)
                    stamps = Stamps.of(args, forwarder)
                    try:
                        if args.user:
                            _drop_privileges(args, forwarder)
                        error = _watch(args, forwarder, view, signals, stamps)
                    finally:
                        signals.stops(None)
                        failed = _end(capture.close) if capture else None
                report, info = forwarder.snapshot(), forwarder.info()
                sent_at = _last(stamps)
                why_silent = () if error else silence(args, report)
                proof = prove(forwarder, may_keep=args.command == "handle")
            failed = failed or (_end(pictures.draw) if pictures else None)
        if isinstance(error, BrokenPipeError):
            raise error
        error = error or failed
        said = sentence(error, args.interface) if error else None
        captured = Captured.of(capture) if capture else None
        outcome = Outcome(
            report,
            proof,
            _reason(args, report, signals, error),
            said,
            tuple(notices.all),
            captured,
            info,
            why_silent,
            sent_at,
        )
        return _finish(args, outcome, error)


def _last(stamps: Stamps | None) -> SendTimes | None:
    """What the timestamps came to, those of the end among them."""
    if stamps is None:
        return None
    stamps.take()
    return stamps.times()


def _watch(
    args: argparse.Namespace, forwarder: ap.Runner, view: View, signals: Signals, stamps: Stamps | None
) -> BaseException | None:
    """Run and show until it ends. Returns what ended it, if that was an error."""
    meter = Meter()
    with Worker(forwarder, args.duration, stamps.take if stamps else None) as worker:
        signals.stops(forwarder)
        try:
            with view.of(forwarder):
                looked = time.monotonic()
                while not worker.done.wait(view.every):
                    now = time.monotonic()
                    report = forwarder.snapshot()
                    view.show(report, meter.add(now, report), meter.history)
                    if now - looked >= LOOK_EVERY:
                        looked = now
                        _look(forwarder)
        except (BrokenPipeError, ap.AfXdpError) as error:
            return error
    return worker.failure


def _look(forwarder: ap.Runner) -> None:
    """Raise if an interface or the broker has gone: a loop that only receives cannot tell."""
    for port in forwarder.ports:
        port.check()


def _drop_privileges(args: argparse.Namespace, forwarder: ap.Runner) -> None:
    """Become the user asked for. What is still to be done as root keeps what it takes.

    Raises:
        ConfigError: the XDP program could not be taken off again. Others as `privileges.become`.
    """
    from afxdp_pool import privileges

    if any(port.program and port.program.attach_kind == "libxdp" for port in forwarder.ports):
        raise ConfigError(
            "a program that shares the interface through libxdp takes root to come off",
            hint="leave --user out, or have a broker make the sockets (--via)",
        )
    live = any(port.info.transmit == "live" for port in forwarder.ports)
    keep: tuple[str, ...] = ("CAP_NET_ADMIN", "CAP_BPF") if live else ()
    if not privileges.unprivileged_maps():
        keep += ("CAP_BPF",)
    privileges.become(args.user, keep)


def _reason(args: argparse.Namespace, report: ap.Report, signals: Signals, error: BaseException | None) -> str:
    if error is not None:
        return "error"
    if signals.received:
        return signals.received
    sent_all = args.command == "tx" and (args.duration is None or report.seconds < args.duration)
    return "count" if sent_all else "duration"


def _finish(args: argparse.Namespace, outcome: Outcome, error: BaseException | None) -> int:
    if not args.quiet:
        print(*summary(args, outcome), sep="\n", file=sys.stderr if args.json else sys.stdout)
    if args.json:
        print(json.dumps(document(args, outcome), indent=2))
    if error is not None:
        raise error
    if not outcome.proof.ok:
        raise ap.AuditError(str(outcome.proof), hint="please report this: it is a defect of this program")
    return 0
