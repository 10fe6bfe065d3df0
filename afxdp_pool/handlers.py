"""Verdicts: what becomes of a packet, and the handlers that decide it.

A handler is ``def handle(batch) -> verdicts``: one verdict for all packets, or an array of one a packet. Every frame of
the batch is accounted for by its verdict: dropped, sent, or kept by the application, which then holds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from afxdp_pool.batch import Batch, Bytes
from afxdp_pool.errors import VerdictError

#: Recycle the frame.
DROP = 0
#: Send the packet back out of the port it came from (XDP_TX).
TX = 1
#: The application holds the frame from now on, and puts or sends it later.
KEEP = 2

Verdicts: TypeAlias = int | npt.NDArray[Any] | list[int]
Handler: TypeAlias = Callable[[Batch], Verdicts]
PacketHandler: TypeAlias = Callable[[Bytes], int]

_FORWARD = 0x80


def FORWARD(port: int) -> int:
    """The verdict that sends a packet out of the forwarder's port number `port`, counted from 0 as it was given them.

    Raises:
        VerdictError: a forwarder has at most 64 ports.
    """
    if not 0 <= port < 64:
        raise VerdictError(f"there is no port {port}", hint="a forwarder's ports are numbered 0 to 63")
    return _FORWARD | port


def per_packet(handle: PacketHandler) -> Handler:
    """Make a handler of a function that sees one packet (a writable uint8 view) and returns its verdict.

    For convenience: it costs a Python call a packet, where a batch handler costs one a batch.
    """

    def handle_batch(batch: Batch) -> list[int]:
        return [handle(packet) for packet in batch]

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
    if array.dtype != np.uint8 and n and (int(array.min()) < 0 or int(array.max()) > 255):
        raise VerdictError(
            "the handler returned numbers that are no verdicts",
            hint="verdicts are DROP, TX, KEEP and FORWARD(port)",
        )
    out[:] = array
