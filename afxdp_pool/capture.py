"""`Capture`: what ports receive and send, in a pcapng file that Wireshark opens, while they forward. Extra `pcap`.

It owns a tap on each port, the rings between the taps and the writer's thread, and the file. The port's thread copies
each packet into a ring, as the block it will be in the file, and never waits: what the writer is too slow for is left
out and counted, and the packet goes on its way. Invariant: of every packet that passed a tap it is known
whether it was written, filtered out, or dropped, and the file says so in its interface statistics.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt

from afxdp_pool import netdev as netdevs
from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import DESC, Batch
from afxdp_pool.errors import AfXdpError, ConfigError, need_extra
from afxdp_pool.filters import Rule
from afxdp_pool.matching import Mask, matching
from afxdp_pool.metadata import tai_ahead_ns
from afxdp_pool.port import Port
from afxdp_pool.runner import Runner
from afxdp_pool.single import Single
from afxdp_pool.stats import KernelStats

log = logging.getLogger("afxdp_pool")
#: What no packet of a frame is longer than.
SNAPLEN = 65535
#: Seconds between two looks of the writer.
EVERY = 0.02
#: Bytes of a block beside its packet, and where the packet begins in it.
_OVERHEAD, _PACKET_AT = 52, 28
_ETHERNET = 1
_STAMPS = {"batch": 0, "arrival": lib.AFP_RX_ARRIVAL, "timestamp": lib.AFP_RX_TIMESTAMP}
Stamps = Literal["batch", "arrival", "timestamp"]
_WAYS = {"in": 1 << lib.AFP_IN, "out": 1 << lib.AFP_OUT, "both": 1 << lib.AFP_IN | 1 << lib.AFP_OUT}


@dataclass(frozen=True)
class CaptureStats:
    """Packets that passed the taps: `written` to the file, `filtered` out, or `dropped` for want of room."""

    written: int
    filtered: int
    dropped: int


class _Ring:
    """Between the taps of ports that one thread runs, and the writer."""

    def __init__(self, room: int) -> None:
        self._data = ffi.new("uint8_t[]", room)
        self.native = ffi.new("struct afp_tap_ring *", {"data": self._data, "size": room})
        self._room = room

    def take(self) -> bytearray:
        """All blocks that are in it now."""
        out = bytearray(min(int(self.native.head - self.native.tail), self._room))
        return out[: lib.afp_tap_take(self.native, ffi.from_buffer(out), len(out))]


class _Tap:
    """A port's tap, and what becomes of its packets. `interface` is its number in the file."""

    def __init__(self, port: Port, interface: int, ring: _Ring, snaplen: int, ways: int, stamps: Stamps | None) -> None:
        self.port = port
        self.interface = interface
        self.left_out = 0  # packets taken, and not written
        self.before = _received(port), _lost(port.kernel_stats())
        self.native = ffi.new(
            "struct afp_tap *",
            {
                "ring": ring.native,
                "interface": interface,
                "queue": port.queue,
                "snaplen": snaplen,
                "ways": ways,
                "stamp": _stamp(port, stamps),
                "tai_ahead_ns": tai_ahead_ns(),
            },
        )

    def counts(self) -> tuple[int, int]:
        """Packets taken and dropped so far."""
        out = ffi.new("uint64_t[2]")
        lib.afp_tap_counts(self.native, out)
        return int(out[0]), int(out[1])


class Capture(Single):
    """Write what passes through ports into a pcapng file, from now until `close()`.

    Args:
        path: the file; one that is there is overwritten. A named pipe will do.
        ports: a `Runner`, whose ports are tapped, or ports.
        snaplen: bytes of each packet to keep.
        packets: write so many, then stop; None: no end.
        direction: ``"in"`` what is received, ``"out"`` what is sent, ``"both"``: a forwarded packet twice.
        rules: write only what one of these wants; none: everything.
        keep: write only these: called in the writer's thread with a batch of copies, returns a bool array of one each.
        room: bytes of each ring, one for the ports that a thread runs; a power of two.
        stamps: which time of a received packet, in nanoseconds: ``"batch"``, when its batch was received; of what its
            port learns (`PortConfig.rx_metadata`) ``"arrival"``, or ``"timestamp"`` by the device's own clock, whatever
            that shows. None: the arrival, where the port learns it. What is sent has the time it was handed over.

    A packet that a handler changes is written as it was received and as it is sent. Each port is an interface of the
    file, and each packet tells its direction and queue.

    Raises:
        MissingExtraError: python-pcapng is not installed.
        AfXdpError: the file cannot be opened.
        ConfigError: no ports, a port that is tapped already, numbers that mean nothing.
        PoolClosedError: a port is closed.

    Concurrency: made and closed by any thread, while the ports run. Each of several given ports may have a thread of
    its own. Ownership: the ports are not its own.
    """

    def __init__(
        self,
        path: str | Path,
        ports: Runner | Iterable[Port],
        *,
        snaplen: int = SNAPLEN,
        packets: int | None = None,
        direction: Literal["in", "out", "both"] = "both",
        rules: Sequence[Rule] = (),
        keep: Callable[[Batch], Mask] | None = None,
        room: int = 8 << 20,
        stamps: Stamps | None = None,
    ) -> None:
        try:
            import pcapng
        except ImportError:
            raise need_extra("pcap", "python-pcapng") from None
        if snaplen < 1 or (packets is not None and packets < 1) or direction not in _WAYS:
            raise ConfigError(f"a capture of {packets} packets, {snaplen} bytes each, {direction!r} is not possible")
        if not 1 << 17 <= room <= 1 << 31 or room & (room - 1):
            raise ConfigError(f"a ring of {room} bytes is not possible", hint="choose a power of two, 128 KiB to 2 GiB")
        self.path = Path(path)
        self._rules, self._keep, self._most = tuple(rules), keep, packets
        self._written = 0
        self._process = os.getpid()
        self._failure: Exception | None = None
        self._closing = threading.Event()
        self._done = threading.Event()
        self._closed = False
        self._taps: list[_Tap] = []
        self._rings: list[_Ring] = []
        for group in _groups(ports):
            self._rings.append(_Ring(room))
            for port in group:
                if port.native.tap != ffi.NULL:
                    raise ConfigError("another capture is on it", subject=port.name, hint="close that one first")
                number, kept = len(self._taps), min(snaplen, SNAPLEN)
                self._taps.append(_Tap(port, number, self._rings[-1], kept, _WAYS[direction], stamps))
        if not self._taps:
            raise ConfigError("a capture needs a port")
        self._started = time.time_ns()
        self._section = _section(pcapng.blocks, self._taps, min(snaplen, SNAPLEN))
        try:
            self._file: BinaryIO = self.path.open("wb")
            self._writer = pcapng.FileWriter(self._file, self._section)
            self._file.flush()
        except OSError as error:
            raise AfXdpError(subject=str(path), doing="opening the capture", errno=error.errno or 0) from None
        self._thread = threading.Thread(target=self._work, name="afxdp-pool capture", daemon=True)
        self._thread.start()
        for tap in self._taps:
            lib.afp_port_set_tap(tap.port.native, tap.native)

    @property
    def done(self) -> bool:
        """Whether nothing more will be written: there are as many packets as were wanted, or writing failed."""
        return self._done.is_set()

    def stats(self) -> CaptureStats:
        """What became of the packets so far. Concurrency: any thread."""
        dropped = sum(tap.counts()[1] for tap in self._taps)
        return CaptureStats(self._written, sum(tap.left_out for tap in self._taps), dropped)

    def close(self) -> None:
        """Take the taps off, write what they took, and the statistics. Idempotent.

        Raises:
            AfXdpError: the file could not be written. Whatever `keep` raised.
        """
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._process:  # a forked child: thread and file are its parent's
            return
        self._take_off()
        self._closing.set()
        self._thread.join()
        try:
            if self._failure is None:
                self._write_statistics()
        except OSError as error:
            self._failure = self._failed(error)
        finally:
            try:
                self._file.close()
            except OSError as error:
                self._failure = self._failure or self._failed(error)
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Capture of {', '.join(tap.port.name for tap in self._taps)} to {self.path}>"

    # The writer -----------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        last = False
        while not last:
            last = self._closing.wait(EVERY)
            try:
                self._drain()
            except Exception as error:  # told by close()
                self._failure = self._failed(error) if isinstance(error, OSError) else error
                log.warning("the capture ends here: %s", self._failure)
                self._stop()
                return

    def _failed(self, error: OSError) -> AfXdpError:
        return AfXdpError(subject=str(self.path), doing="writing the capture", errno=error.errno or 0)

    def _stop(self) -> None:
        self._done.set()
        self._take_off()

    def _take_off(self) -> None:
        for tap in self._taps:
            port = tap.port._port
            if port is not None and port.tap == tap.native:
                lib.afp_port_set_tap(port, ffi.NULL)

    def _drain(self) -> None:
        """Write what is in the rings, in the order of time."""
        chunk = bytearray().join(ring.take() for ring in self._rings)
        if not chunk:
            return
        starts = np.empty(len(chunk) // _OVERHEAD + 1, np.uint32)
        starts = starts[: lib.afp_tap_walk(ffi.from_buffer(chunk), len(chunk), ffi.from_buffer("uint32_t[]", starts))]
        words = np.frombuffer(chunk, np.uint32)
        chosen = self._choose(chunk, words, starts)
        if len(self._rings) > 1:
            at = starts[chosen] // 4
            chosen = chosen[np.argsort(words[at + 3].astype(np.uint64) << np.uint64(32) | words[at + 4], kind="stable")]
        if self._most is not None:
            chosen = chosen[: self._most - self._written]
        if len(chosen) < len(starts):
            out = np.ones(len(starts), bool)
            out[chosen] = False
            interfaces = np.bincount(words[starts[out] // 4 + 2], minlength=len(self._taps))
            for tap, count in zip(self._taps, interfaces.tolist(), strict=True):
                tap.left_out += count
        if len(chosen) == len(starts) and len(self._rings) == 1:
            self._file.write(chunk)
        else:
            view, begins = memoryview(chunk), starts[chosen]
            ends = begins + words[begins // 4 + 1]
            self._file.write(b"".join([view[a:b] for a, b in zip(begins.tolist(), ends.tolist(), strict=True)]))
        self._file.flush()
        self._written += len(chosen)
        if self._most is not None and self._written >= self._most and not self.done:
            self._stop()

    def _choose(self, chunk: bytearray, words: npt.NDArray[np.uint32], starts: npt.NDArray[np.uint32]) -> Any:
        """The numbers of the blocks that the filter wants."""
        if not self._rules and self._keep is None:
            return np.arange(len(starts))
        descs = np.zeros(len(starts), DESC)
        descs["addr"] = starts + _PACKET_AT
        descs["len"] = words[starts // 4 + 5]
        batch = Batch(descs, np.frombuffer(chunk, np.uint8))
        wanted = matching(self._rules, batch)
        if self._keep is not None:
            wanted &= np.asarray(self._keep(batch), bool)
        return np.flatnonzero(wanted)

    def _write_statistics(self) -> None:
        now = time.time_ns()
        for tap in self._taps:
            taken, dropped = tap.counts()
            received, lost = _received(tap.port) - tap.before[0], _lost(tap.port.kernel_stats()) - tap.before[1]
            block = self._section.new_member(
                sys.modules["pcapng"].blocks.InterfaceStatistics,
                interface_id=tap.interface,
                timestamp_high=now >> 32,
                timestamp_low=now & 0xFFFFFFFF,
                options={
                    "isb_starttime": _halves(self._started),
                    "isb_endtime": _halves(now),
                    "isb_ifrecv": received + lost,
                    "isb_ifdrop": lost,
                    "isb_filteraccept": taken + dropped - tap.left_out,
                    "isb_osdrop": dropped,
                    "isb_usrdeliv": taken - tap.left_out,
                },
            )
            self._writer.write_block(block)


def _stamp(port: Port, stamps: Stamps | None) -> int:
    """Which time, as C has it.

    Raises:
        ConfigError: there is no such time, or the port does not learn it.
    """
    learns = port.config.rx_metadata if port.config.receive else ()
    if stamps is None:
        stamps = "arrival" if "arrival" in learns else "batch"
    if stamps not in _STAMPS:
        raise ConfigError(f"stamps {stamps!r} are unknown", hint=f"choose {', '.join(_STAMPS)}")
    if stamps != "batch" and port.config.receive and stamps not in learns:
        raise ConfigError(
            f"it does not learn the {stamps} of packets",
            subject=port.name,
            hint=f'open it with PortConfig(rx_metadata=("{stamps}",))',
        )
    return int(_STAMPS[stamps])


def _groups(ports: Runner | Iterable[Port]) -> list[list[Port]]:
    """Ports that one thread runs are together."""
    if not isinstance(ports, Runner):
        return [[port] for port in ports]
    return [list(part.ports) for part in getattr(ports, "forwarders", [ports])]


def _received(port: Port) -> int:
    return port.stats().rx_packets


def _lost(kernel: KernelStats) -> int:
    return kernel.rx_dropped + kernel.rx_ring_full + kernel.rx_invalid_descs


def _halves(time_ns: int) -> int:
    """A time as pcapng has it, the high half first in either byte order, for a writer that takes a 64-bit number."""
    return time_ns if sys.byteorder == "big" else (time_ns & 0xFFFFFFFF) << 32 | time_ns >> 32


def _section(blocks: Any, taps: Sequence[_Tap], snaplen: int) -> Any:
    """The file's head: who wrote it, and an interface for each port."""
    kernel = os.uname()
    section = blocks.SectionHeader(
        endianness="<" if sys.byteorder == "little" else ">",
        options={
            "shb_hardware": kernel.machine,
            "shb_os": f"{kernel.sysname} {kernel.release}",
            "shb_userappl": "afxdp_pool",
        },
    )
    for tap in taps:
        port, info = tap.port, tap.port.info
        said = [port.name, info.driver, info.mode, f"{info.xdp_mode} XDP" if info.xdp_mode else "sends only"]
        options = {
            "if_name": port.netdev,
            "if_description": ", ".join(filter(None, said)),
            "if_tsresol": b"\x09",  # nanoseconds
            "if_os": f"{kernel.sysname} {kernel.release}",
        }
        if port.fileno() >= 0:
            mac = netdevs.find(port.netdev, port._netns).mac
            if len(mac) == 6:
                options["if_MACaddr"] = ":".join(f"{byte:02x}" for byte in mac)
        section.new_member(blocks.InterfaceDescription, link_type=_ETHERNET, snaplen=snaplen, options=options)
    return section
