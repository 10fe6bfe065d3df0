"""Verdicts: what becomes of a packet, and the handlers that decide it.

A handler is ``def handle(batch) -> verdicts``: one verdict for all packets, or an array of one a packet. Every frame of
the batch is accounted for by its verdict: dropped, sent, or kept by the application, which then holds it.
"""

from __future__ import annotations

import inspect
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
            # bytes() takes bools. Who returns one returns them for all, so one look is enough, and costs no time.
            decided = None if isinstance(verdicts[0], bool) else bytes(verdicts)
        except (TypeError, ValueError):
            decided = None
        if decided is None:
            wrong = next((one for one in verdicts if type(one) is not int or not 0 <= one < 256), verdicts[0])
            raise VerdictError(
                f"the handler returned {_name(wrong)} for one of its packets, which is no verdict", hint=_VERDICTS
            )
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
    if isinstance(verdicts, (int, np.integer)) and not isinstance(verdicts, bool):
        if not 0 <= verdicts < 256:
            raise VerdictError(f"the handler returned {verdicts}, which is no verdict", hint=_VERDICTS)
        out[:] = verdicts
        return
    if not isinstance(verdicts, (np.ndarray, list, tuple)):
        raise VerdictError(f"the handler returned {_name(verdicts)}, which is no verdict", hint=_hint(verdicts))
    array = np.asarray(verdicts)
    if array.shape != (n,):
        raise VerdictError(
            f"the handler returned verdicts of shape {array.shape} for {n} packets",
            hint=f"return one verdict, or an array of shape ({n},), the length of the batch",
        )
    if array.dtype.kind not in "iu":
        raise VerdictError(
            f"the handler returned verdicts of dtype {array.dtype}",
            hint="a mask says which packets, not what becomes of them: return np.where(mask, TX, DROP)"
            if array.dtype == np.bool_
            else "return integers, best of dtype uint8: DROP, TX, KEEP, FORWARD(port)",
        )
    # All bits that any of them has: in one pass, whether one is negative or above 255.
    if array.dtype != np.uint8 and not 0 <= int(np.bitwise_or.reduce(array)) < 256:
        raise VerdictError("the handler returned numbers that are no verdicts", hint=_VERDICTS)
    out[:] = array


_VERDICTS = "verdicts are DROP, TX, KEEP and FORWARD(port)"


def _name(wrong: Any) -> str:
    """What somebody returned, in few words."""
    return repr(wrong) if wrong is None or isinstance(wrong, (bool, int, float, str)) else f"a {type(wrong).__name__}"


def _hint(wrong: Any) -> str:
    if inspect.iscoroutine(wrong):
        wrong.close()
        return "a handler is a plain function: def, not async def"
    if inspect.isgenerator(wrong):
        return "a handler returns its verdicts, it does not yield them"
    return "return DROP, TX, KEEP, FORWARD(port), or an array of them, on every path"


def check_handler(handler: Any) -> None:
    """See that a handler can be called with a batch, and nothing else: before there are packets.

    Raises:
        ConfigError: it cannot.
    """
    if not callable(handler):
        raise ConfigError(f"{_name(handler)} is no handler", hint="give a function of one argument, the batch")
    if hasattr(handler, "native_name") or hasattr(handler, "argtypes"):  # of numba, of ctypes
        raise ConfigError("machine code is a handler once compiled() has taken it", hint="give ap.compiled(function)")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some builtins do not tell
        return
    try:
        signature.bind(None)
    except TypeError:
        hint = _OF_ARGUMENTS.get(len(signature.parameters), "def handle(batch), which returns verdicts")
        raise ConfigError(f"a handler takes one argument, the batch, and this one {signature}", hint=hint) from None


_OF_ARGUMENTS = {
    4: "one that is compiled, and called once a packet, is decorated with @ap.compiled",
    5: "one that is compiled is decorated with @ap.compiled",
}
