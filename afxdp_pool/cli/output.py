"""The words: numbers for people, progress lines, the summary at the end, and the JSON document."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from afxdp_pool import AfXdpError, Audit, Info, PortReport, PrivilegeError, Report, __version__
from afxdp_pool.cli.meter import FILL_EMPTY, Rate, losses
from afxdp_pool.report import scaled

if TYPE_CHECKING:
    from afxdp_pool.capture import Capture
    from afxdp_pool.cli.stamps import SendTimes

_STOPPED_BY = {"duration": "its duration", "count": "its count", "SIGINT": "Ctrl-C", "error": "an error"}


@dataclass(frozen=True)
class Proof:
    """That no frame was lost.

    Attributes:
        stopped: the audit when the loop had ended, the ports still open.
        closed: the audit when ports and pools were closed: every frame is back in the Umem.
        held: frames the pools held and did not release, hold - release; 0.
        kept: of these, frames of packets that a handler kept and has still; it may.
    """

    stopped: Audit
    closed: Audit
    held: int
    kept: int = 0

    @property
    def ok(self) -> bool:
        """Whether all of it holds."""
        return self.stopped.ok and self.closed.ok and self._away == 0 and self.held == self.kept

    @property
    def _away(self) -> int:
        return self.closed.fill + self.closed.app + self.closed.tx - self.kept

    def __str__(self) -> str:
        if self.ok:
            kept = f", {self.kept} of them kept by the handler to the end" if self.kept else ""
            return f"audit: {self.closed.frames} frames all accounted for{kept}"
        problems = list(self.stopped.problems or self.closed.problems)
        problems += [f"{self._away} frames did not come back"] if self._away else []
        problems += [f"the pools hold {self.held} frames they no longer have"] if self.held != self.kept else []
        return f"audit FAILED: {'; '.join(problems) or 'the states do not add up'}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ok": self.ok,
            "frames": self.closed.frames,
            "held": self.held,
            "kept": self.kept,
            "stopped": asdict(self.stopped),
            "closed": asdict(self.closed),
        }


@dataclass(frozen=True)
class Captured:
    """A capture that has ended: its file, and what became of the packets; see `CaptureStats`."""

    path: str
    written: int
    filtered: int
    dropped: int

    @classmethod
    def of(cls, capture: Capture) -> Captured:
        """Of this capture."""
        return cls(str(capture.path), **asdict(capture.stats()))

    def __str__(self) -> str:
        filtered = f", {self.filtered:,} left out" if self.filtered else ""
        dropped = f"; {self.dropped:,} more came too fast to be written" if self.dropped else ""
        return f"captured {self.written:,} packets in {self.path}{filtered}{dropped}"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its counters, the proof, what stopped it, and what went wrong if something did.

    `stopped_by` is ``"duration"``, ``"count"``, ``"error"`` or a signal's name; `silence` is why nothing arrived,
    `sent_at` when packets were sent that were asked.
    """

    report: Report
    proof: Proof
    stopped_by: str
    error: str | None = None
    notices: tuple[str, ...] = ()
    captured: Captured | None = None
    info: Info | None = None
    silence: tuple[str, ...] = ()
    sent_at: SendTimes | None = None


def duration(ns: float) -> str:
    """A time of three figures with its unit: ``12.3 us``."""
    for step, unit in ((1e9, "s"), (1e6, "ms"), (1e3, "us")):
        if ns >= step:
            return f"{ns / step:.3g} {unit}"
    return f"{ns:.0f} ns"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as on a watch."""
    whole = int(seconds)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}"


def ways(command: str) -> tuple[str, ...]:
    """The directions in which a path moves packets."""
    return {"drop": ("rx",), "tx": ("tx",)}.get(command, ("rx", "tx"))


def places(args: argparse.Namespace) -> str:
    """What the command acts on: ``eth1``, ``eth1 -> eth2``."""
    to = outputs(args)
    if not to:
        return str(args.interface)
    return f"{args.interface} {'<->' if args.both_ways else '->'} {', '.join(to)}"


def outputs(args: argparse.Namespace) -> list[str]:
    """The other interfaces of the command."""
    to = getattr(args, "output", None) or []
    return [to] if isinstance(to, str) else list(to)


def sentence(error: BaseException, interface: str) -> str:
    """An error as the one line a person reads: the interface, the reason, what to do."""
    if isinstance(error, OSError) and not isinstance(error, AfXdpError):
        subject = str(error.filename or "")
        text = ": ".join(filter(None, (subject, error.strerror or str(error))))
    else:
        subject = getattr(error, "subject", "")
        # What the libraries printed follows on lines of its own; of a lacking privilege it tells nothing more.
        told = str(error).partition("\n")[0] if isinstance(error, PrivilegeError) else str(error)
        text = " ".join(told.split()) or type(error).__name__
    return f"{interface}: {text}" if interface and (not subject or subject.startswith("BPF ")) else text


def progress(command: str, report: Report, rates: Sequence[Rate]) -> str:
    """One line of the plain view: the sums of all ports."""
    parts = [clock(report.seconds)]
    for name in ways(command):
        packets, bits = (sum(getattr(rate, f"{name}_{unit}") for rate in rates) for unit in ("pps", "bps"))
        parts.append(f"{name} {scaled(packets, 'pps')} {scaled(bits, 'bit/s')}")
    if "rx" in ways(command):
        parts.append(f"received {report.received:,}")
    if "tx" in ways(command):
        parts.append(f"sent {report.sent:,} completed {report.completed:,}")
    parts.append(f"kernel dropped {sum(sum(losses(port.kernel).values()) for port in report.ports):,}")
    parts.append("frames " + " ".join(f"{state} {n}" for state, n in report.frames.items()))
    return "  ".join(parts)


def summary(args: argparse.Namespace, outcome: Outcome) -> list[str]:
    """The last lines a person sees: what moved, what was lost and why, and the audit."""
    report, why = outcome.report, _STOPPED_BY.get(outcome.stopped_by, outcome.stopped_by)
    lines = [f"{args.command} {places(args)}: stopped by {why} after {report.seconds:.1f} s"]
    seconds = report.seconds or float("inf")
    stats = [port.stats for port in report.ports]
    sums = {
        "received": (report.received, sum(one.rx_bytes for one in stats), sum(one.rx_parts for one in stats)),
        "sent": (report.sent, sum(one.tx_bytes for one in stats), sum(one.tx_parts for one in stats)),
        "completed": (report.completed, 0, sum(one.tx_completed_parts for one in stats)),
    }
    for name, (packets, octets, parts) in sums.items():
        if _way(name) not in ways(args.command):
            continue
        line = f"  {name:9} {packets:>15,} packets  {scaled(packets / seconds, 'pps'):>10}"
        line += f"  {scaled(octets * 8 / seconds, 'bit/s'):>12}" if octets else " " * 14 * bool(parts)
        lines.append(line + (f"  in {packets + parts:,} frames" if parts else ""))
    for worker in report.workers:
        where = f" on CPU {worker.cpu}" if worker.cpu is not None else ""
        moved = ", ".join(f"{name} {getattr(worker, name):,}" for name in sums if _way(name) in ways(args.command))
        lines.append(f"  {worker.name}{where}: {moved}")
    lines += [f"  {text}" for text in troubles(report)]
    lines += [f"  {text}" for text in outcome.silence]
    if outcome.proof.kept:
        lines.append(
            f"  the handler kept {outcome.proof.kept:,} frames and never gave them back: close() them when done"
        )
    lines += [f"  {outcome.sent_at}"] if outcome.sent_at else []
    lines += [f"  {outcome.captured}"] if outcome.captured else []
    lines.append(f"  {outcome.proof}")
    return lines


def _way(name: str) -> str:
    return "rx" if name == "received" else "tx"


def troubles(report: Report) -> list[str]:
    """What did not go its way, by port and cause; what the filter let pass is among it."""
    lines = []
    for port in report.ports:
        name = port.name.split(" in namespace ")[0]
        if lost := losses(port.kernel):
            lines += [f"{name}: kernel dropped {count:,}: {cause}" for cause, count in lost.items()]
        if port.kernel.rx_fill_ring_empty_descs and FILL_EMPTY not in lost:
            lines.append(f"{name}: FILL ring found empty {port.kernel.rx_fill_ring_empty_descs:,} times")
        lines += [f"{name}: {text}" for text in live_troubles(port)]
        bad = {field: getattr(port.stats, field) for field in ("rx_bad", "completion_bad", "tx_errors")}
        lines += [f"{name}: {field} {count:,}" for field, count in bad.items() if count]
    programs = {port.name.split(" queue ")[0]: port.program for port in report.ports if port.program}
    for netdev, counters in programs.items():
        for field, why in (("passed_filter", "no rule wanted them"), ("passed_no_socket", "no socket on their queue")):
            if counters.get(field):
                lines.append(f"{netdev}: left to the kernel's stack {counters[field]:,}: {why}")
    if report.engine.refused:
        lines.append(f"could not be sent, dropped here {report.engine.refused:,}")
    if report.engine.handler_slow:
        longest, timed = report.engine.handler_longest_ns / 1e6, report.engine.handler_timed
        lines.append(
            f"the handler is slow: {report.engine.handler_slow:,} of {timed:,} calls timed took over 1 ms, the longest "
            f"{longest:.1f} ms"
        )
    return lines


def live_troubles(port: PortReport) -> list[str]:
    """What became of packets sent live, if not all is well; and what kept some from going that way."""
    live = port.live
    if live is None:
        return []
    lines = [f"the device dropped {live.dropped:,} of {live.frames:,} packets sent live"] if live.dropped else []
    if live.resent:
        lines.append(f"sent again by the socket {live.resent:,}: no device took them live")
    if live.pools_left_most:
        lines.append(f"a receiver held on to the pages of up to {live.pools_left_most} runs; {live.pools_left} still")
    if live.stalls:
        longest = live.longest_ns / 1e6
        lines.append(f"{live.stalls:,} of {live.slices:,} live runs stalled, the longest for {longest:.1f} ms")
    return lines


def document(args: argparse.Namespace, outcome: Outcome) -> dict[str, Any]:
    """The JSON document: every counter, and the circumstances."""
    return {
        "command": args.command,
        "interface": args.interface,
        "output": getattr(args, "output", None),
        "netns": args.netns,
        "version": __version__,
        "kernel": os.uname().release,
        "stopped_by": outcome.stopped_by,
        "error": outcome.error,
        "notices": list(outcome.notices),
        "silence": list(outcome.silence),
        "info": outcome.info.as_dict() if outcome.info else None,
        **outcome.report.as_dict(),
        "tx_timestamps": asdict(outcome.sent_at) if outcome.sent_at else None,
        "capture": asdict(outcome.captured) if outcome.captured else None,
        "audit": outcome.proof.as_dict(),
    }
