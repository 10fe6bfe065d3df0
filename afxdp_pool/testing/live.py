"""`FakeLive`: plays the kernel and its program for a port that transmits live, for tests without root or network.

It gives a port made by `Port.in_memory` a stage of packets, and takes them out of it as BPF_PROG_RUN would, or as it
would if the device were full, gone or deaf. It owns the stage; the port must not outlive it. Invariant: `packets` is
what left by live frames, in order, each packet's bytes as they were then.
"""

from __future__ import annotations

import errno
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from afxdp_pool._native import ffi, lib
from afxdp_pool.port import Port
from afxdp_pool.stats import LiveStats, live_stats

_MASK = int(lib.AFP_LIVE_RING) - 1
_players: weakref.WeakValueDictionary[int, FakeLive] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class Answer:
    """How one run goes.

    Attributes:
        take: packets the program handles before the run ends; None: all it was asked for.
        deliver: of them, those the device takes; None: all. The rest it refuses if `refuse`, else nobody counts them.
        refuse: the device says that it dropped the rest.
        device_error: errno the device gives for that, 0 for a full ring.
        error: errno the run itself ends with.
    """

    take: int | None = None
    deliver: int | None = None
    refuse: bool = True
    device_error: int = 0
    error: int = 0


#: A run that goes well; a device whose ring is full; an end that takes no frames; a device that is gone; a signal.
WELL = Answer()
FULL = Answer(deliver=0)
DEAF = Answer(deliver=0, refuse=False)
GONE = Answer(deliver=0, device_error=errno.ENXIO)
SIGNAL = Answer(take=0, error=errno.EINTR)


class FakeLive:
    """Live transmit for one port in memory.

    Args:
        port: made by `Port.in_memory`, with nothing sent yet.
        answer: called for each run, with the packets it may take; says how it goes. None: all goes well.
        only: let every packet go live, not only batches large enough to pay; as ``transmit="live"``.

    Attributes:
        packets: what left by live frames.
        runs: packets of each run.

    Concurrency: the thread that runs the port.

    >>> from afxdp_pool import FramePool, Port, Umem
    >>> with Umem(frames=4096) as umem, FramePool(umem) as pool:
    ...     port = Port.in_memory(pool)
    ...     live = FakeLive(port)
    ...     batch = pool.alloc(100)
    ...     batch.descs["len"] = 60
    ...     print(port.transmit(batch), live.runs, port.complete(100))
    ...     port.close()
    100 [100] 100
    """

    def __init__(self, port: Port, answer: Callable[[int], Answer] | None = None, *, only: bool = False) -> None:
        self.port, self.answer = port, answer
        self.packets: list[bytes] = []
        self.runs: list[int] = []
        self._data = port.pool.umem.data
        self.ring = ffi.new("struct afp_live_ring *")
        self.native = ffi.new("struct afp_live *")
        lib.afp_live_init(self.native, self.ring, -1, 1 if only else lib.AFP_LIVE_LEAST)
        lib.afp_live_play(self.native, lib.afp_python_run, ffi.NULL)
        _players[int(ffi.cast("uintptr_t", self.native))] = self
        lib.afp_port_set_live(port.native, self.native)
        port._live = self  # type: ignore[assignment]

    def retry_now(self) -> None:
        """Let a second pass since the last trouble."""
        self.native.not_before_ns = 0

    def stats(self) -> LiveStats:
        """As of `LiveTransmit`."""
        return live_stats(self.native)

    def close(self) -> None:
        """As of `LiveTransmit`: the port has ended."""

    def _run(self, n: int, longest: int) -> int:
        self.runs.append(n)
        answer = self.answer(n) if self.answer is not None else WELL
        ring = self.ring
        taken = n if answer.take is None else min(n, answer.take)
        delivered = taken if answer.deliver is None else min(taken, answer.deliver)
        for i in range(taken):
            desc = ring.desc[(ring.consumer + i) & _MASK]
            assert desc.len <= longest
            if i < delivered:
                self.packets.append(self._data[desc.addr : desc.addr + desc.len].tobytes())
        ring.consumer = (ring.consumer + taken) & 0xFFFFFFFF
        ring.delivered += delivered
        ring.dropped += taken - delivered if answer.refuse else 0
        ring.error = -answer.device_error
        return -answer.error


@ffi.def_extern("afp_python_run", error=-errno.EIO)  # type: ignore[untyped-decorator]
def _python_run(live: Any, n: int, longest: int) -> int:
    return _players[int(ffi.cast("uintptr_t", live))]._run(n, longest)
