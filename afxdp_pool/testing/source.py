"""A `Source` sends numbered, checksummed test packets out of a link, by live frames.

It owns an XDP program (bpf/traffic_source.bpf.c), kept resident, a position (flow and sequence number, which
goes on from one `send` to the next) and at most one helper process.

Invariant: frame n of a source carries flow n % flows and sequence number n // flows, and `sent` is what the
program counted itself.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from afxdp_pool.bpf import BpfObject
from afxdp_pool.errors import AfXdpError, ConfigError, LabError
from afxdp_pool.loaded import run
from afxdp_pool.netdev import in_netns
from afxdp_pool.resident import Resident
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import LabLink
from afxdp_pool.tuning import pinned

_CONFIG = struct.Struct(f"={packets.HEAD}sIIII")  # struct source_config
_STATE = struct.Struct("=QQII")  # struct source_state

BATCH = 64  # frames; a veth ring has 256, and is emptied after each batch when its receiver runs on this CPU
SLICE = 0.001  # seconds between the runs of a paced source
LONG_RUN = 1 << 18  # frames a run of an unpaced source
CATCH_UP = 4  # slices that one run may make up for


@dataclass(frozen=True)
class SourceReport:
    """One send. `sent` frames were made and handed to the redirect, of which the link took `delivered`.

    `dropped` is the rest: the peer's ring was full (veth: 256), or the peer takes no redirected frames
    because it has no XDP program. Both are the link's own counts, so exact only while nobody else redirects
    out of it.
    """

    sent: int
    delivered: int
    seconds: float

    @property
    def dropped(self) -> int:
        """Frames the link did not take."""
        return self.sent - self.delivered

    @property
    def rate(self) -> float:
        """Frames sent a second."""
        return self.sent / self.seconds if self.seconds else 0.0


class Source:
    """Sends test packets out of a link by live frames: no socket, no copy, millions a second from one thread.

    Args:
        link: where the packets leave; they are received at the other end, which needs an XDP program.
        size: bytes of a frame, 64 to 3400.
        flows: number of flows, 1 to 256, sent in turn.
        target_mac, target_ip: written into the packets; without, those of the link's other end.
        seq_start: sequence number each flow begins with.
        cpu: pins the sending thread. Redirected frames go to the peer's queue `cpu % queues`.

    Raises:
        ConfigError: size or flows out of range.
        PrivilegeError: CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN are needed.
        ProgramLoadError: the kernel refused the program (live frames need Linux 5.18).
    Concurrency: one thread at a time.
    """

    def __init__(
        self,
        link: LabLink,
        *,
        size: int = 64,
        flows: int = 1,
        target_mac: bytes | None = None,
        target_ip: str | None = None,
        seq_start: int = 0,
        cpu: int | None = None,
    ) -> None:
        packets.check_size(size, flows)
        self.link, self.size, self.flows, self.cpu = link, size, flows, cpu
        self._helper: subprocess.Popen[str] | None = None
        self._held: list[Resident] = []
        self._addresses = addresses_of(link, target_mac, target_ip)
        self._frame, base_sum = packets.template(size, self._addresses)
        self._object = BpfObject("traffic_source")
        try:
            self._object.load()
            config = self._frame[: packets.HEAD], base_sum, link.ifindex, flows, packets.SOURCE_PORT
            self._object.map("source_config").update(0, _CONFIG.pack(*config))
            self._state = self._object.map("source_state")
            self._state.update(0, _STATE.pack(0, seq_start, 0, 0))
            self._program = self._object.program("traffic_source")
            self._held.append(Resident(self._program))
        except BaseException:
            self.close()
            raise

    def send(
        self,
        count: int | None = None,
        rate: float | None = None,
        *,
        seconds: float | None = None,
        stop: threading.Event | None = None,
        spin: bool = False,
    ) -> SourceReport:
        """Send `count` frames, or for so many `seconds`, or until `stop`; return when done.

        Args:
            rate: frames a second, in runs of about a millisecond; None = as fast as it goes.
            spin: send a batch of 64 as soon as it is due, and keep the CPU busy in between: even at millions a second.

        Raises:
            ConfigError: nothing says when to end, or the rate is not above 0.
            AfXdpError: the kernel refused a run; the link may be gone.
        Concurrency: releases the interpreter lock while the kernel sends.
        """
        if count is None and seconds is None and stop is None:
            raise ConfigError("say when to end: count, seconds or stop")
        if rate is not None and rate <= 0:
            raise ConfigError(f"a rate is above 0 frames a second, not {rate}")
        if self._helper is not None:
            raise LabError("it is sending already", subject=f"source on {self.link.name}")
        before = redirected(self.link)
        first = self._sent()
        wanted = (1 << 62) if count is None else count
        with in_netns(self.link.netns), pinned(self.cpu, "the source"):
            start = time.monotonic()
            end = start + seconds if seconds is not None else float("inf")
            while (sent := self._sent() - first) < wanted and not (stop and stop.is_set()):
                now = time.monotonic()
                if now >= end:
                    break
                due = LONG_RUN
                if rate is not None:
                    due = min(int((now - start) * rate) + 1 - sent, max(int(CATCH_UP * SLICE * rate), BATCH))
                    if spin and due < min(BATCH, wanted - sent):
                        continue
                    if due <= 0:
                        time.sleep(min(max((sent + 1) / rate - (now - start), 0), SLICE, end - now))
                        continue
                self._run(min(due, wanted - sent))
                if rate is not None and not spin:
                    time.sleep(max(0.0, min(now + SLICE, end) - time.monotonic()))
            took = time.monotonic() - start
        return SourceReport(self._sent() - first, redirected(self.link) - before, took)

    def burst(self, count: int) -> None:
        """Send `count` frames as fast as can be, and count nothing but them: `send` in a loop of small numbers.

        Raises: as `send`. Concurrency: as `send`.
        """
        if self._helper is not None:
            raise LabError("it is sending already", subject=f"source on {self.link.name}")
        with in_netns(self.link.netns), pinned(self.cpu, "the source"):
            end = self._sent() + count
            while (left := end - self._sent()) > 0:
                self._run(left)

    def start(self, count: int | None = None, rate: float | None = None, *, seconds: float | None = None) -> None:
        """Begin to send in a process of its own; `wait()` or `stop()` ends it. Arguments as for `send`.

        With neither count nor seconds it sends until stopped. It ends by itself when this process does.

        Raises:
            LabError: the process could not begin, or one is running already.
        """
        if self._helper is not None:
            raise LabError("it is sending already", subject=f"source on {self.link.name}")
        _, seq, flow, _ = self._position()
        order = {
            "link": {k: v.hex() if isinstance(v, bytes) else v for k, v in asdict(self.link).items()},
            "size": self.size,
            "flows": self.flows,
            "target_mac": self._addresses.target_mac.hex(),
            "target_ip": socket.inet_ntoa(self._addresses.target_ip),
            "cpu": self.cpu,
            "position": [seq, flow],
            "send": {"count": count, "rate": rate, "seconds": seconds},
        }
        self._helper = subprocess.Popen(
            [sys.executable, "-c", "from afxdp_pool.testing.source import helper_main; helper_main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # an interrupt from the terminal is for this process, which then ends the helper
        )
        assert self._helper.stdin is not None
        assert self._helper.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended, as is then found where its answer should be
                self._helper.stdin.write(json.dumps(order) + "\n")
                self._helper.stdin.flush()
            self._answer(self._helper.stdout.readline())
        except BaseException:
            self._end_helper()
            raise

    def wait(self, timeout: float | None = None) -> SourceReport:
        """Wait until what `start` began has ended by count or seconds.

        Raises:
            LabError: it failed, or nothing was started.
            TimeoutError: it is still sending after `timeout` seconds; it goes on.
        """
        helper = self._started()
        try:
            helper.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"the source on {self.link.name} is still sending") from error
        return self._finish(helper)

    def stop(self) -> SourceReport:
        """End what `start` began, within some milliseconds, and return its report."""
        helper = self._started()
        assert helper.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            helper.stdin.close()
        return self._finish(helper)

    def close(self) -> None:
        """Stop sending and unload. Idempotent."""
        self._end_helper()
        for held in self._held:
            held.close()
        self._held.clear()
        self._object.close()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, count: int) -> None:
        try:
            run(self._program, self._frame, repeat=count, live=True, batch=BATCH)
        except AfXdpError as error:
            if error.errno != errno.EINTR:  # the state says how far it came
                raise

    def _position(self) -> tuple[int, int, int, int]:
        raw = self._state.lookup(0)
        assert raw is not None
        sent, seq, flow, short = _STATE.unpack(raw)
        return sent, seq, flow, short

    def _sent(self) -> int:
        return self._position()[0]

    def _started(self) -> subprocess.Popen[str]:
        if self._helper is None:
            raise LabError("nothing was started", subject=f"source on {self.link.name}")
        return self._helper

    def _finish(self, helper: subprocess.Popen[str]) -> SourceReport:
        assert helper.stdout is not None
        try:
            told = self._answer(helper.stdout.readline())
        finally:
            self._end_helper()
        seq, flow = told["position"]
        self._state.update(0, _STATE.pack(self._sent(), seq, flow, 0))
        return SourceReport(**told["report"])

    def _answer(self, line: str) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in told:
            raise LabError(told["error"], subject=f"source on {self.link.name}")
        return told

    def _end_helper(self) -> None:
        helper, self._helper = self._helper, None
        if helper is not None:
            with helper:  # closes the pipes and waits; without its input it ends by itself
                assert helper.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    helper.stdin.close()


def helper_main() -> None:
    """The process behind `Source.start`: an order on standard input, answers on standard output, in JSON.

    The end of its input ends the sending, so it does not outlive who started it.
    """
    order = json.loads(sys.stdin.readline())
    stop = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        stop.set()

    try:
        fields = order["link"]
        link = LabLink(**fields | {name: bytes.fromhex(fields[name]) for name in ("mac", "peer_mac")})
        target = {"target_mac": bytes.fromhex(order["target_mac"]), "target_ip": order["target_ip"]}
        with Source(link, size=order["size"], flows=order["flows"], cpu=order["cpu"], **target) as source:
            source._state.update(0, _STATE.pack(0, *order["position"], 0))
            threading.Thread(target=watch, daemon=True).start()
            print(json.dumps({"started": True}), flush=True)
            report = source.send(**order["send"], stop=stop)
            position = source._position()[1:3]
        print(json.dumps({"report": asdict(report), "position": position}), flush=True)
    except BrokenPipeError:
        pass  # whoever asked has gone
    except (AfXdpError, OSError) as error:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"error": str(error)}), flush=True)
    os._exit(0)  # not through the interpreter's end, which would wait for the thread that reads the input


def addresses_of(link: LabLink, target_mac: bytes | None, target_ip: str | None) -> packets.Addresses:
    """Whom a packet out of `link` says it is from and to: the link, and, unless given, its other end."""
    return packets.Addresses(
        source_mac=link.mac,
        target_mac=target_mac or link.peer_mac,
        source_ip=socket.inet_aton(link.ipv4 or "198.18.0.2"),
        target_ip=socket.inet_aton(target_ip or link.peer_ipv4 or "198.18.0.1"),
    )


def redirected(link: LabLink) -> int:
    """Frames that XDP redirected out of a link since it was made, and the link took."""
    return link.counters().get("tx_xdp_xmit", 0)
