"""Handlers in machine code: the C loop calls them itself, once a batch or once a packet, without the interpreter.

`compiled` takes a Python function and compiles it with numba, or takes what is machine code: a numba ``@cfunc``,
a C function from ctypes or cffi, an address; `afxdp_pool.libraries` one of a shared library. A `Compiled` handler owns
what the code needs to stay alive, and the memory it works with.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from afxdp_pool import parts, signatures
from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import Batch, Bytes
from afxdp_pool.errors import ConfigError, need_extra
from afxdp_pool.handlers import FORWARD
from afxdp_pool.signatures import Per

#: A descriptor as compiled code sees it: laid out as `DESC`, but signed. numba adds uint64 and int to a float, as numpy
#: does, and no address or length comes near the sign bit.
COMPILED_DESC = np.dtype([("addr", "<i8"), ("len", "<i4"), ("options", "<u2"), ("gen", "<u2")])

FORWARD_0 = FORWARD(0)

#: What `compiled` compiles: ``handle(descs, umem, verdicts, port, user)``, or a packet's
#: ``handle(packet, length, port, user)``.
CompiledSource: TypeAlias = Callable[[Any, Bytes, Bytes, int, Any], None] | Callable[[Bytes, int, int, Any], int]


def be16(data: Any, at: int) -> Any:
    """The 16-bit number at byte `at`, in network order; for compiled handlers and other code."""
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])  # numba makes uint64 of int(), and floats of that


def be32(data: Any, at: int) -> Any:
    """The 32-bit number at byte `at`, in network order; for compiled handlers and other code."""
    return be16(data, at) << 16 | be16(data, at + 2)


class RxKnown(NamedTuple):
    """What is known of one packet beside its bytes, as numbers: see `RxColumns`, whose names these are."""

    hash: int
    hash_type: int
    timestamp: int
    arrival: int
    vlan_tci: int
    vlan_proto: int
    has_hash: bool
    has_timestamp: bool
    has_arrival: bool
    has_vlan: bool


def rx_known(packet: Any) -> RxKnown:
    """What is known of a packet, for compiled handlers: `packet` as such a handler gets it.

    In a batch's handler it is ``umem[addr : addr + length]``. It is read from the bytes in front of the packet: only of
    packets of a port with `PortConfig.rx_metadata`, and before anything is written there, or `addr` changed. In Python
    `Batch.rx_metadata` is the way.
    """
    import ctypes

    return _known(ctypes.string_at(packet.ctypes.data - _BEFORE, _BEFORE), _word_of)


_BEFORE = 32


def _word_of(record: Any, at: int) -> Any:
    """Number `at` of the four that a record's bytes are."""
    return int.from_bytes(record[8 * at : 8 * at + 8], "little")


def _known(packet: Any, word: Any) -> RxKnown:
    """Of struct afp_rx_metadata, as four numbers (afxdp_pool.h)."""
    facts, present = word(packet, 2), word(packet, 3) >> 16 & 0xFFFF
    return RxKnown(
        facts & 0xFFFFFFFF,
        facts >> 32 & 0xFFFF,
        word(packet, 0),
        word(packet, 1),
        facts >> 48 & 0xFFFF,
        word(packet, 3) & 0xFFFF,
        present & 1 != 0,
        present & 2 != 0,
        present & 8 != 0,
        present & 4 != 0,
    )


class Compiled:
    """A handler in machine code. Made by `compiled` and `from_library`.

    It may be called as any handler, with a batch, and returns its verdicts: so it is tested without a forwarder.

    Attributes:
        address: of the machine code.
        per: ``"batch"`` or ``"packet"``: for what it is called.
        user: the array or buffer it was given, or None. What the code writes there can be read at any time.

    Concurrency: the code runs in the worker's thread, without the interpreter's lock.
    Ownership: keeps the code and `user` alive; of the packets, as every handler.
    """

    def __init__(self, address: int, per: Per, user: Any, keep: Any) -> None:
        self.address = address
        self.per = per
        self.user = user
        self._keep = keep
        #: What the loop calls, and gives it.
        self.function = ffi.cast("afp_handler", address)
        self.user_pointer = ffi.NULL if user is None else ffi.from_buffer(user)
        if per == "packet":
            each = {"handle": ffi.cast("afp_packet_handler", address), "user": self.user_pointer}
            self._keep = keep, self.user_pointer
            self.function = ffi.addressof(lib, "afp_call_per_packet")
            self.user_pointer = ffi.new("struct afp_per_packet *", each)

    def __call__(self, batch: Batch, port: int = 0) -> Bytes:
        """Decide the packets of a batch that came from port number `port`."""
        verdicts = batch.verdicts
        verdicts[:] = 0
        shown = self._show_parts(batch)
        data = ffi.from_buffer("uint8_t[]", batch.data)
        out = ffi.from_buffer("uint8_t[]", verdicts)
        self.function(batch.pointer, len(batch), data, len(batch.data), out, port, self.user_pointer)
        del shown  # it was read during the call
        return verdicts

    @staticmethod
    def _show_parts(batch: Batch) -> Any:
        """Tell the code of packets in several frames, as the loop does; what that points to."""
        multi = batch.port is not None and batch.port.config.multi_buffer
        if batch.umem is None or not (multi or batch._chain is not None):
            return None
        frames, _ = batch._moving()
        starts = batch.starts.astype(np.uint32)
        lib.afp_show_parts(batch.umem.table, frames, ffi.from_buffer("uint32_t[]", starts), len(batch))
        return frames

    def __repr__(self) -> str:
        return f"<Compiled handler at {self.address:#x}, called once a {self.per}>"


def signature(user: npt.NDArray[Any] | None = None, *, per: Per = "batch") -> Any:
    """The signature for ``numba.cfunc``, whose `user` points to elements of that array: see `afxdp_pool.signatures`.

    Raises:
        MissingExtraError: numba is not installed.
    """
    numba = _numba()
    types = numba.types
    of_user = types.voidptr if user is None else types.CPointer(numba.from_dtype(user.dtype))
    octets = types.CPointer(types.uint8)
    if per == "packet":
        return types.int32(octets, types.uint32, types.uint32, of_user)
    descs = types.CPointer(numba.from_dtype(COMPILED_DESC))
    return types.void(descs, types.uint32, octets, types.uint64, octets, types.uint32, of_user)


@overload
def compiled(function: Any, *, user: Any = None, per: Per | None = None) -> Compiled: ...
@overload
def compiled(*, user: Any = None, per: Per | None = None) -> Callable[[Any], Compiled]: ...
def compiled(function: Any = None, *, user: Any = None, per: Per | None = None) -> Any:
    """Make a handler of machine code; also a decorator, ``@ap.compiled`` or ``@ap.compiled(user=counts)``.

    Args:
        function: to be compiled with numba, and called once a packet, ``def handle(packet, length, port, user)``, which
            returns a verdict; or once a batch, ``def handle(descs, umem, verdicts, port, user)``. `packet` is an array
            of its `length` bytes, `port` the number of the port it came from, `user` the array, empty without one.
            `descs` is a record array of n packets (`COMPILED_DESC`), `umem` all the memory, `verdicts` n bytes that are
            DROP until they are written. Or machine code of that C signature (``afxdp_pool.h`` in `include_dir()`): a
            ``numba.cfunc(ap.signature())``, a pointer of ctypes or cffi, an address.
        user: the code's own array, for tables and counters; contiguous. It is used where it lies, not copied. For
            machine code any contiguous buffer.
        per: ``"packet"`` or ``"batch"``; None: as the function says, by its arguments. An address says nothing, and is
            called once a batch.

    What it does to memory outside of its packets nobody checks: indices are not bounded, as in C. An exception in a
    compiled Python function is reported by ``sys.unraisablehook``; packets without a verdict are dropped.

    Raises:
        MissingExtraError: a Python function, and numba is not installed. What numba raises when it cannot compile it.
        ConfigError: the array is not contiguous; or that is no function of either signature.

    >>> @compiled                                                               # doctest: +SKIP
    ... def only_udp(packet, length, port, user):
    ...     return TX if length > 23 and packet[23] == 17 else DROP
    """
    if per not in (None, "batch", "packet"):
        raise ConfigError(f"a handler is not called once a {per!r}", hint='choose "batch" or "packet"')
    check_user(user)
    if function is None:
        return lambda later: compiled(later, user=user, per=per)
    if isinstance(function, Compiled):
        raise ConfigError("that handler is compiled already")
    address, kind, keep = _machine_code(function, user, per)
    if address <= 0:
        raise ConfigError(f"{function!r} is no address of a function")
    return Compiled(address, kind, user, keep)


def check_user(user: Any) -> None:
    """See that compiled code can use it.

    Raises:
        ConfigError: it cannot.
    """
    if user is None:
        return
    try:
        fits = memoryview(user).c_contiguous
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ConfigError("user is to be a contiguous array, or another contiguous buffer")


def _machine_code(function: Any, user: Any, per: Per | None) -> tuple[int, Per, Any]:
    """The address of the machine code, what it is called for, and what keeps it there."""
    if isinstance(function, (int, np.integer)):
        return int(function), per or "batch", None
    if isinstance(function, ffi.CData):
        return int(ffi.cast("uintptr_t", function)), signatures.of_cffi(function, per), function
    if hasattr(function, "address") and hasattr(function, "native_name"):  # numba's CFunc
        return int(function.address), signatures.of_cfunc(function, per), function
    if hasattr(function, "argtypes") and hasattr(function, "restype"):
        import ctypes

        kind = signatures.of_ctypes(function, per)
        return int(ctypes.cast(function, ctypes.c_void_p).value or 0), kind, function
    if callable(function):
        kind = signatures.of_python(function, per)
        if user is not None and not isinstance(user, np.ndarray):
            raise ConfigError("user of a function that is compiled is to be a contiguous array of numpy")
        made = _compile(function, user, kind)
        return int(made.address), kind, made
    raise ConfigError(
        f"{function!r} is no function",
        hint=f"give a Python function, or one of: {signatures.PACKET.c}; {signatures.BATCH.c}",
    )


def _compile(function: Any, user: npt.NDArray[Any] | None, per: Per) -> Any:
    """A ``numba.cfunc`` that makes arrays of the pointers and calls the function with them."""
    numba = _numba()
    carray = numba.carray
    body = function if hasattr(function, "py_func") else numba.njit(function)  # jitted by the caller already
    # numba takes these as constants.
    shape: Any = (0,) if user is None else user.shape
    handle: Any

    if per == "packet" and user is not None:

        def handle(packet: Any, length: Any, port: Any, user: Any) -> Any:
            return body(carray(packet, length), length, port, carray(user, shape))

    elif per == "packet":

        def handle(packet: Any, length: Any, port: Any, user: Any) -> Any:
            return body(carray(packet, length), length, port, carray(packet, shape))

    elif user is not None:

        def handle(descs: Any, n: Any, umem: Any, size: Any, verdicts: Any, port: Any, user: Any) -> None:
            body(carray(descs, n), carray(umem, size), carray(verdicts, n), port, carray(user, shape))

    else:

        def handle(descs: Any, n: Any, umem: Any, size: Any, verdicts: Any, port: Any, user: Any) -> None:
            body(carray(descs, n), carray(umem, size), carray(verdicts, n), port, carray(verdicts, shape))

    try:
        return numba.cfunc(signature(user, per=per))(handle)
    except numba.core.errors.NumbaError as error:
        if per == "packet":
            error.add_note("ap.compiled: a packet's handler returns a verdict on every path: ap.DROP, ap.TX, ...")
        raise


def _numba() -> Any:
    try:
        import numba
    except ImportError as error:
        raise need_extra("jit", "numba") from error
    _teach()
    return numba


@cache
def _teach() -> None:
    """Tell numba of what handlers call."""
    from numba.core import cgutils, types
    from numba.extending import intrinsic, overload, register_jitable

    for helper in (be16, be32, _known):
        register_jitable(helper)

    @intrinsic
    def word(_context: Any, packet: Any, at: Any) -> Any:
        """Number `at` of the record in front of an array of bytes."""

        def load(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = context.make_array(packet)(context, builder, args[0]).data
            distance = builder.sub(builder.mul(args[1], args[1].type(8)), args[1].type(_BEFORE))
            where = builder.bitcast(builder.gep(data, [distance]), cgutils.intp_t.as_pointer())
            return builder.load(where, align=1)

        return types.int64(packet, types.int64), load

    parts.teach()
    overload(rx_known)(lambda packet: lambda packet: _known(packet, word))
    # Without FORWARD's check, which the loop makes too.
    overload(FORWARD)(lambda port: lambda port: FORWARD_0 | port)
