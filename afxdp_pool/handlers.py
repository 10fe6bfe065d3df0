"""Verdicts: what becomes of a packet, and the handlers that decide it.

A handler is ``def handle(batch) -> verdicts``: one verdict for all packets, or an array of one a packet. Every frame of
the batch is accounted for by its verdict: dropped, sent, or kept by the application, which then holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from afxdp_pool.batch import Batch
from afxdp_pool.errors import ConfigError, VerdictError

#: Recycle the frame.
DROP = 0
#: Send the packet back out of the port it came from (XDP_TX).
TX = 1
#: The application holds the frame from now on, and puts or sends it later.
KEEP = 2

Verdicts: TypeAlias = int | npt.NDArray[Any] | list[int]
Handler: TypeAlias = Callable[[Batch], Verdicts]
PacketHandler: TypeAlias = Callable[[Any], int]

_FORWARD = 0x80


def FORWARD(port: int) -> int:
    """The verdict that sends a packet out of the forwarder's port number `port`, counted from 0 as it was given them.

    Raises:
        VerdictError: a forwarder has at most 64 ports.
    """
    if not 0 <= port < 64:
        raise VerdictError(f"there is no port {port}", hint="a forwarder's ports are numbered 0 to 63")
    return _FORWARD | port


def per_packet(handle: PacketHandler, *, view: Literal["memoryview", "numpy"] = "memoryview") -> Handler:
    """Make a handler of a function that sees one packet and returns its verdict.

    For convenience: it costs a Python call a packet, where a batch handler costs one a batch.

    Args:
        handle: sees the packet itself, writable, not a copy; what it keeps of it is worthless once it has returned.
        view: as what it sees it: a memoryview of bytes, the quickest for single bytes, slices and `struct`; or a uint8
            array, for arithmetic on many bytes.

    Raises:
        VerdictError: when called, and `handle` returns no verdict.
    """
    if view not in ("memoryview", "numpy"):
        raise ConfigError(f"a packet is not seen as {view!r}", hint='choose "memoryview" or "numpy"')

    def handle_batch(batch: Batch) -> Verdicts:
        data: Any = batch.data
        if view == "memoryview":
            data = memoryview(data)
        starts = batch.addr.tolist()
        ends = (batch.addr + batch.len).tolist()
        verdicts = [handle(data[start:end]) for start, end in zip(starts, ends, strict=True)]
        try:
            decided = bytes(verdicts)
        except (TypeError, ValueError):
            raise VerdictError(
                "the handler returned what is no verdict for one of its packets",
                hint="return DROP, TX, KEEP or FORWARD(port)",
            ) from None
        out: Any = batch.verdicts
        memoryview(out)[:] = decided
        return batch.verdicts

    return handle_batch


def write_verdicts(verdicts: Any, out: npt.NDArray[np.uint8]) -> None:
    """Write what a handler returned into `out`, one byte a packet.

    Raises:
        VerdictError: not an integer or an array of one integer a packet.
    """
    n = len(out)
    if verdicts is None:
        raise VerdictError(
            "the handler returned None", hint="return DROP, TX, KEEP, FORWARD(port), or an array of them"
        )
    if isinstance(verdicts, (int, np.integer)):
        if not 0 <= verdicts < 256:
            raise VerdictError(
                f"the handler returned {verdicts}, which is no verdict",
                hint="verdicts are DROP, TX, KEEP and FORWARD(port)",
            )
        out[:] = verdicts
        return
    array = np.asarray(verdicts)
    if array.shape != (n,):
        raise VerdictError(
            f"the handler returned verdicts of shape {array.shape} for {n} packets",
            hint=f"return one verdict, or an array of shape ({n},)",
        )
    if array.dtype.kind not in "iu":
        raise VerdictError(
            f"the handler returned verdicts of dtype {array.dtype}",
            hint="return integers: DROP, TX, KEEP, FORWARD(port)",
        )
    # All bits that any of them has: in one pass, whether one is negative or above 255.
    if array.dtype != np.uint8 and not 0 <= int(np.bitwise_or.reduce(array)) < 256:
        raise VerdictError(
            "the handler returned numbers that are no verdicts",
            hint="verdicts are DROP, TX, KEEP and FORWARD(port)",
        )
    out[:] = array
