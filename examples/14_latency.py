"""A traffic generator that measures latency, one way: each packet carries the time at which it was sent.

Out of the first interface, back in by the second. The times are those of this program, just before it sends and just
after it has received: what its own loop and the kernel's sockets take is part of the figure.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.errors import need_extra
from afxdp_pool.testing import packets

SENT_AT = packets.SEQUENCE_AT  # where test packets have their number: nanoseconds of CLOCK_MONOTONIC
STEPS = 16  # buckets between a time and its double: they tell it to 4.4 percent
LATE = 1.0  # seconds after which what is not back is lost


@dataclass
class Histogram:
    """Times by their logarithm."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(STEPS * 64, np.int64))

    def add(self, ns: npt.NDArray[np.uint64]) -> None:
        """Count these."""
        buckets = (np.log2(np.maximum(ns, 1)) * STEPS).astype(np.int64)
        self.counts += np.bincount(buckets, minlength=len(self.counts))

    def percentile(self, percent: float) -> float:
        """So many percent took no longer than this; microseconds."""
        bucket = np.searchsorted(self.counts.cumsum(), self.counts.sum() * percent / 100)
        return float(2 ** ((bucket + 1) / STEPS) / 1000)

    def __str__(self) -> str:
        halves = self.counts.reshape(-1, STEPS // 2).sum(axis=1)  # a row for every half of a doubling
        used = halves.nonzero()[0]
        named = "  ".join(f"p{percent:g} {self.percentile(percent):.1f}" for percent in (50, 90, 99, 99.9, 100))
        rows = [
            f"{2 ** (row / 2) / 1000:10.1f} us {halves[row]:8} {'#' * round(50 * halves[row] / halves.max())}"
            for row in range(used[0], used[-1] + 1)
        ]
        return "\n".join([f"microseconds: {named}", *rows])

    def save(self, path: Path) -> None:
        """As a picture. Needs the extra `plot`."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise need_extra("plot", "matplotlib") from error
        used = self.counts.nonzero()[0]
        edges = 2 ** (np.arange(used[0], used[-1] + 2) / STEPS) / 1000
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        axes.stairs(self.counts[used[0] : used[-1] + 1], edges, fill=True)
        axes.set(xscale="log", yscale="log", xlabel="one way, microseconds", ylabel="packets")
        for percent in (50, 99, 99.9):
            axes.axvline(self.percentile(percent), color="black", linewidth=0.8, linestyle=":")
            axes.text(self.percentile(percent), 0.98, f" p{percent:g}", va="top", transform=axes.get_xaxis_transform())
        figure.savefig(path)


def measure(out: ap.Port, back: ap.Port, packet: bytes, rate: float, seconds: float) -> tuple[int, Histogram]:
    """Send `packet` at a rate and take the times of what returns; how many were sent, and those times."""
    pool, times = out.pool, Histogram()
    content, places = np.frombuffer(packet, np.uint8), np.arange(len(packet), dtype=np.uint64)
    sent, start = 0, time.monotonic()
    while sent < rate * seconds or (times.counts.sum() < sent and time.monotonic() < start + seconds + LATE):
        due = int(min((time.monotonic() - start) * rate + 1, rate * seconds)) - sent
        if due > 0:
            batch = pool.alloc(min(due, 64))
            batch.data[batch.addr[:, None] + places] = content
            batch.len[:] = len(packet)
            batch.store(SENT_AT, ">u8", time.monotonic_ns())
            went = out.transmit(batch)
            pool.put(batch[went:])  # no room in the TX ring
            sent += went
        ap.wait([out, back], timeout=min(max(start + sent / rate - time.monotonic(), 0), 0.01))
        came = back.receive()
        ours = came.load(packets.HEADERS, ">u4") == packets.MAGIC
        times.add((np.uint64(time.monotonic_ns()) - came.load(SENT_AT, ">u8"))[ours])
        pool.put(came)
    return sent, times


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.set_defaults(seconds=2.0)
    parser.add_argument("--rate", type=float, default=5000, help="packets a second")
    parser.add_argument("--size", type=int, default=128, help="bytes a packet")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the histogram")
    with common.place(__doc__, "out", "back", parser=parser) as here, contextlib.ExitStack() as stack:
        netns, args = here.options.netns, here.args
        if here.pairs:  # what is measured: from one far end to the other by a forwarder
            far = [pair.far.name for pair in here.pairs]
            stack.enter_context(ap.forward(*far, options=ap.Options(netns=here.pairs[0].far.netns))).start()
        umem = stack.enter_context(ap.Umem(8192))
        pool = stack.enter_context(ap.FramePool(umem))
        out = stack.enter_context(ap.Port(pool, here.names[0], netns=netns, config=ap.PortConfig(receive=False)))
        back = stack.enter_context(ap.Port(pool, here.names[1], netns=netns, config=ap.PortConfig(transmit=False)))
        packet = bytearray(packets.build(args.size))
        packet[packets.CHECKSUM_AT : packets.CHECKSUM_AT + 2] = b"\0\0"  # none, in IPv4 (RFC 768)
        sent, times = measure(out, back, bytes(packet), args.rate, args.seconds)
        came = int(times.counts.sum())
        print(f"{sent} sent, {came} came back, {sent - came} lost")
        print(times if came else "nothing came back: is there a way from the first interface to the second?")
        if args.png and came:
            times.save(args.png)
        print(umem.audit().check())
