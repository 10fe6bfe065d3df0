"""Handlers in machine code: the C loop calls them itself, once a batch, without the interpreter and its lock.

`compiled` takes a Python function and compiles it with numba, or takes what is machine code: a numba ``@cfunc``,
a C function from ctypes or cffi, an address. A `Compiled` handler owns what the code needs to stay alive, and the array
it works with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi
from afxdp_pool.batch import Batch, Bytes
from afxdp_pool.errors import ConfigError, need_extra

#: A descriptor as compiled code sees it: laid out as `DESC`, but signed. numba adds uint64 and int to a float, as numpy
#: does, and no address or length comes near the sign bit.
COMPILED_DESC = np.dtype([("addr", "<i8"), ("len", "<i4"), ("options", "<u2"), ("gen", "<u2")])

#: The C signature of a compiled handler. n packets in `descs`, which lie in `size` bytes at `umem`; a verdict for each
#: into `verdicts`, all DROP before the call; `port`, the number of the port they came from; `user`, its own array.
C_SIGNATURE = (
    "void handle(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port, "
    "void *user)"
)

#: What `compiled` compiles: ``handle(descs, umem, verdicts, port, user)``.
CompiledSource: TypeAlias = Callable[[Any, Bytes, Bytes, int, Any], None]


def be16(data: Any, at: int) -> Any:
    """The 16-bit number at byte `at`, in network order; for compiled handlers and other code."""
    return np.int64(data[at]) << 8 | np.int64(data[at + 1])  # numba makes uint64 of int(), and floats of that


def be32(data: Any, at: int) -> Any:
    """The 32-bit number at byte `at`, in network order; for compiled handlers and other code."""
    return be16(data, at) << 16 | be16(data, at + 2)


class Compiled:
    """A handler in machine code. Made by `compiled`.

    It may be called as any handler, with a batch, and returns its verdicts: so it is tested without a forwarder.

    Attributes:
        address: of the machine code.
        user: the array it was given, or None. What the code writes there can be read at any time.

    Concurrency: the code runs in the worker's thread, without the interpreter's lock.
    Ownership: keeps the code and the array alive; of the packets, as every handler.
    """

    def __init__(self, address: int, user: npt.NDArray[Any] | None, keep: Any) -> None:
        self.address = address
        self.user = user
        self._keep = keep
        self.function = ffi.cast("afp_handler", address)
        self.user_pointer = ffi.NULL if user is None else ffi.from_buffer(user)

    def __call__(self, batch: Batch, port: int = 0) -> Bytes:
        """Decide the packets of a batch that came from port number `port`."""
        verdicts = batch.verdicts
        verdicts[:] = 0
        data = ffi.from_buffer("uint8_t[]", batch.data)
        out = ffi.from_buffer("uint8_t[]", verdicts)
        self.function(batch.pointer, len(batch), data, len(batch.data), out, port, self.user_pointer)
        return verdicts

    def __repr__(self) -> str:
        return f"<Compiled handler at {self.address:#x}>"


def signature(user: npt.NDArray[Any] | None = None) -> Any:
    """The signature for ``numba.cfunc``, whose `user` points to elements of that array: see `C_SIGNATURE`.

    Raises:
        MissingExtraError: numba is not installed.
    """
    numba = _numba()
    types = numba.types
    of_user = types.voidptr if user is None else types.CPointer(numba.from_dtype(user.dtype))
    octets = types.CPointer(types.uint8)
    descs = types.CPointer(numba.from_dtype(COMPILED_DESC))
    return types.void(descs, types.uint32, octets, types.uint64, octets, types.uint32, of_user)


@overload
def compiled(function: Any, *, user: npt.NDArray[Any] | None = None) -> Compiled: ...
@overload
def compiled(*, user: npt.NDArray[Any] | None = None) -> Callable[[Any], Compiled]: ...
def compiled(function: Any = None, *, user: npt.NDArray[Any] | None = None) -> Any:
    """Make a handler of machine code; also a decorator, ``@ap.compiled`` or ``@ap.compiled(user=counts)``.

    Args:
        function: ``def handle(descs, umem, verdicts, port, user)``, to be compiled with numba. `descs` is a record
            array of n packets (`COMPILED_DESC`), `umem` all the memory, `verdicts` n bytes that are DROP until they
            are written, `port` the number of the port they came from, `user` the array, empty without one. Or a
            function of `C_SIGNATURE`: a ``numba.cfunc(ap.signature())``, a pointer of ctypes or cffi, an address.
        user: the code's own array, for tables and counters; contiguous. It is used where it lies, not copied.

    What it does to memory outside of its packets nobody checks: indices are not bounded, as in C. An exception in a
    compiled Python function is reported by ``sys.unraisablehook``; packets without a verdict are dropped.

    Raises:
        MissingExtraError: a Python function, and numba is not installed. What numba raises when it cannot compile it.
        ConfigError: the array is not contiguous; or that is no function of the signature.

    >>> @compiled                                                               # doctest: +SKIP
    ... def only_udp(descs, umem, verdicts, port, user):
    ...     for i in range(len(descs)):
    ...         if umem[descs[i].addr + 23] == 17:
    ...             verdicts[i] = TX
    """
    if user is not None and not (isinstance(user, np.ndarray) and user.flags.c_contiguous):
        raise ConfigError("user is to be a contiguous array")
    if function is None:
        return lambda later: compiled(later, user=user)
    if isinstance(function, Compiled):
        raise ConfigError("that handler is compiled already")
    address, keep = _address(function, user)
    if address <= 0:
        raise ConfigError(f"{function!r} is no address of a function")
    return Compiled(address, user, keep)


def _address(function: Any, user: npt.NDArray[Any] | None) -> tuple[int, Any]:
    """The address of the machine code, and what keeps it there."""
    if isinstance(function, (int, np.integer)):
        return int(function), None
    if isinstance(function, ffi.CData):
        return int(ffi.cast("uintptr_t", function)), function
    if hasattr(function, "address") and hasattr(function, "native_name"):  # numba's CFunc
        wanted, got = signature(user).args, function._sig.args
        if len(got) != len(wanted):
            raise ConfigError(
                f"a cfunc of {len(got)} arguments is no handler", hint="declare it with numba.cfunc(ap.signature())"
            )
        return int(function.address), function
    if hasattr(function, "argtypes") and hasattr(function, "restype"):
        import ctypes

        return int(ctypes.cast(function, ctypes.c_void_p).value or 0), function
    if callable(function):
        made = _compile(function, user)
        return int(made.address), made
    raise ConfigError(f"{function!r} is no function", hint=f"give a Python function, or one of: {C_SIGNATURE}")


def _compile(function: Any, user: npt.NDArray[Any] | None) -> Any:
    """A ``numba.cfunc`` that makes arrays of the pointers and calls the function with them."""
    numba = _numba()
    carray = numba.carray
    body = function if hasattr(function, "py_func") else numba.njit(function)  # jitted by the caller already
    # numba takes these as constants.
    shape: Any = (0,) if user is None else user.shape
    given = user is not None

    if given:

        def handle(descs: Any, n: Any, umem: Any, size: Any, verdicts: Any, port: Any, user: Any) -> None:
            body(carray(descs, n), carray(umem, size), carray(verdicts, n), port, carray(user, shape))

    else:

        def handle(descs: Any, n: Any, umem: Any, size: Any, verdicts: Any, port: Any, user: Any) -> None:
            body(carray(descs, n), carray(umem, size), carray(verdicts, n), port, carray(verdicts, shape))

    return numba.cfunc(signature(user))(handle)


def _numba() -> Any:
    try:
        import numba
        from numba.extending import register_jitable
    except ImportError as error:
        raise need_extra("numba", "numba") from error
    for helper in (be16, be32):
        if not hasattr(helper, "numba_knows"):
            register_jitable(helper)
            helper.numba_knows = True  # type: ignore[attr-defined]
    return numba
