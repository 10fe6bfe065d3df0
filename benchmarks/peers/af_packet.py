"""The AF_PACKET loop in Python that people write today: one packet a call, received into one buffer and sent from it.

    ip netns exec NS python -m benchmarks.peers.af_packet drop|reflect -i IF
    ip netns exec NS python -m benchmarks.peers.af_packet forward -i IF -o IF
    ip netns exec NS python -m benchmarks.peers.af_packet tx -i IF --size 64

It keeps to the contract of the engines in benchmarks/native (README.md there): "ready" on stderr, until SIGTERM,
SIGINT or --duration, one JSON object on stdout.

Invariant: a packet is counted as received before it is sent, and as sent only when the kernel took it.
"""

from __future__ import annotations

import argparse
import errno
import json
import resource
import signal
import socket
import struct
import sys
import time
from types import FrameType

from afxdp_pool.testing import packets
from benchmarks.peers.tap import tap_link

JOBS = ("drop", "forward", "reflect", "tx")
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_STATISTICS, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING = 6, 20, 23
SO_RCVBUFFORCE = 33
BUFFER = 65536
RECEIVE_MEMORY = 4 << 20  # bytes of socket buffers, which are some 800 each for a small packet
WAKE_AFTER = 100_000  # microseconds without a packet after which the loop looks whether to stop
MAX_SECONDS = 600.0
DRAIN = 0.2  # seconds the loop goes on after the stop, while packets are waiting


class Loop:
    """Two sockets (one, unless it forwards) and the counts. Owns the sockets; they end with the process."""

    def __init__(self, source: str, target: str | None, *, receive: bool) -> None:
        self.received = self.sent = self.not_sent = 0
        self.running = True
        self.rx = self._socket(source, receive=receive)
        self.tx = self._socket(target, receive=False) if target else self.rx

    @staticmethod
    def _socket(interface: str, *, receive: bool) -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        if receive:
            made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)  # else reflect would receive what it sends
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_MEMORY)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, WAKE_AFTER))
        made.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        made.bind((interface, ETH_P_ALL if receive else 0))
        return made

    def stop(self, _signal: int = 0, _frame: FrameType | None = None) -> None:
        """End the loop; also a signal handler."""
        self.running = False

    def receive(self, job: str) -> None:
        """Drop, forward or reflect until stopped; then for DRAIN seconds at most while packets are waiting."""
        buffer = bytearray(BUFFER)
        view = memoryview(buffer)
        loop = {"drop": self._drop, "forward": self._forward, "reflect": self._reflect}[job]
        while self.running:
            loop(buffer, view, 0.0)
        loop(buffer, view, time.monotonic() + DRAIN)

    # Each loop ends when nothing comes, and once stopped at the deadline; only then is the clock read.

    def _drop(self, buffer: bytearray, _view: memoryview, deadline: float) -> None:
        receive, received = self.rx.recv_into, self.received
        try:
            while self.running or time.monotonic() < deadline:
                receive(buffer)
                received += 1
        except BlockingIOError:
            pass
        self.received = received

    def _forward(self, buffer: bytearray, view: memoryview, deadline: float) -> None:
        receive, send = self.rx.recv_into, self.tx.send
        try:
            while self.running or time.monotonic() < deadline:
                length = receive(buffer)
                self.received += 1
                try:
                    send(view[:length])
                    self.sent += 1
                except OSError as error:
                    self._refused(error)
        except BlockingIOError:
            pass

    def _reflect(self, buffer: bytearray, view: memoryview, deadline: float) -> None:
        receive, send = self.rx.recv_into, self.tx.send
        try:
            while self.running or time.monotonic() < deadline:
                length = receive(buffer)
                self.received += 1
                buffer[:12] = buffer[6:12] + buffer[:6]
                try:
                    send(view[:length])
                    self.sent += 1
                except OSError as error:
                    self._refused(error)
        except BlockingIOError:
            pass

    def transmit(self, packet: bytes) -> None:
        """Send one packet over and over until stopped."""
        send = self.tx.send
        while self.running:
            try:
                send(packet)
                self.sent += 1
            except OSError as error:
                self._refused(error)

    def _refused(self, error: OSError) -> None:
        """A device that is full drops the packet and says ENOBUFS; all else is an error."""
        if error.errno not in (errno.ENOBUFS, errno.EAGAIN):
            raise error
        self.not_sent += 1

    def dropped(self) -> int:
        """Packets the kernel had no room for in the socket's buffer, since this was last asked."""
        _, drops = struct.unpack("=II", self.rx.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        return int(drops)


def build(interface: str, size: int, target: str, template: str) -> bytes:
    """The packet of job tx: a test packet from the interface's own address, under the template."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as asked:
        asked.bind((interface, 0))
        own = asked.getsockname()[4]
    packet = packets.build(size, addresses=packets.Addresses(own, bytes.fromhex(target.replace(":", ""))))
    over = bytes.fromhex(template)
    return (over + packet[len(over) :])[:size]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("-i", "--in", dest="source", required=True, help="interface to receive from (tx: to send to)")
    parser.add_argument("-o", "--out", dest="target", help="interface to forward to")
    parser.add_argument("-d", "--duration", type=float, default=0.0, help="seconds, at most 600; 0 = until a signal")
    parser.add_argument("--host", action="store_true", help="leave the link as it is, with the host's stack behind it")
    parser.add_argument("--size", type=int, default=64, help="bytes of a sent packet, without FCS (64)")
    parser.add_argument("--dst-mac", default="02:00:00:00:00:02")
    parser.add_argument("--template-hex", default="", help="bytes to lay over the start of the sent packet")
    arguments = parser.parse_args()
    if (arguments.job == "forward") != bool(arguments.target):
        parser.error("-o is for job forward, and needed there")
    if not 0 <= arguments.duration <= MAX_SECONDS:
        parser.error("--duration is at most 600 seconds")
    receives = arguments.job != "tx"
    loop = Loop(arguments.source, arguments.target, receive=receives)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, loop.stop)
    if receives and not arguments.host:
        tap_link(arguments.source)
    print("ready", file=sys.stderr, flush=True)
    signal.setitimer(signal.ITIMER_REAL, arguments.duration or MAX_SECONDS)
    start = time.monotonic()
    if receives:
        loop.receive(arguments.job)
    else:
        loop.transmit(build(arguments.source, arguments.size, arguments.dst_mac, arguments.template_hex))
    seconds = time.monotonic() - start
    dropped = loop.dropped() if receives else 0
    usage = resource.getrusage(resource.RUSAGE_SELF)
    report = {
        "engine": "af_packet",
        "job": arguments.job,
        "received": loop.received,
        "sent": loop.sent,
        "not_sent": loop.not_sent,
        "rx_dropped": dropped,
        "rx_ring_full": 0,
        "kernel_dropped": dropped,
        "seconds": seconds,
        "user_seconds": usage.ru_utime,
        "sys_seconds": usage.ru_stime,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
