"""The two C signatures of a handler in machine code, and whether a function has one of them.

numba's cfuncs, ctypes' and cffi's functions say what they take and return: a wrong one is refused, with the right one
in the message, instead of called. An address says nothing, and is taken at its word.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from afxdp_pool._native import ffi
from afxdp_pool.errors import ConfigError

#: Called once for each of these.
Per: TypeAlias = Literal["batch", "packet"]


class Signature(NamedTuple):
    """What a handler takes and returns: pointers, or integers of so many bytes (None: nothing)."""

    c: str
    python: str
    takes: tuple[Literal["pointer"] | int, ...]
    returns: int | None


#: n packets in `descs`, which lie in `size` bytes at `umem`; a verdict for each into `verdicts`, all DROP before the
#: call; `port`, the number of the port they came from; `user`, its own memory.
BATCH = Signature(
    "void handle(struct afp_desc *descs, uint32_t n, uint8_t *umem, uint64_t size, uint8_t *verdicts, uint32_t port, "
    "void *user)",
    "handle(descs, umem, verdicts, port, user)",
    ("pointer", 4, "pointer", 8, "pointer", 4, "pointer"),
    None,
)
#: One packet; returns its verdict.
PACKET = Signature(
    "int handle(uint8_t *packet, uint32_t length, uint32_t port, void *user)",
    "handle(packet, length, port, user)",
    ("pointer", 4, 4, "pointer"),
    4,
)
SIGNATURES: dict[Per, Signature] = {"batch": BATCH, "packet": PACKET}


def choose(takes: Sequence[Any], returns: Any, per: Per | None, said: str) -> Per:
    """Which kind of handler a function is that takes and returns this; `said` is how it was declared.

    Raises:
        ConfigError: it is none, or not the one that `per` says.
    """
    for kind in ("batch", "packet") if per is None else (per,):
        if (tuple(takes), returns) == SIGNATURES[kind][2:]:
            return kind
    wanted = " or ".join(f"`{SIGNATURES[kind].c}`" for kind in SIGNATURES if per in (None, kind))
    raise ConfigError(f"{said} is no handler: it is to be {wanted}", hint=_HINT.get(per, _HINT[None]))


_HINT: dict[Per | None, str] = {
    "batch": "declare a cfunc with numba.cfunc(ap.signature(user))",
    "packet": 'declare a cfunc with numba.cfunc(ap.signature(user, per="packet"))',
    None: 'declare a cfunc with numba.cfunc(ap.signature(user)), or with ap.signature(user, per="packet")',
}


def of_python(function: Callable[..., Any], per: Per | None) -> Per:
    """Which kind a Python function is, by the number of its arguments.

    Raises:
        ConfigError: it is none.
    """
    source = getattr(function, "py_func", function)  # numba's dispatcher has none of its own
    try:
        parameters = inspect.signature(source).parameters
    except (TypeError, ValueError):
        return per or "batch"
    for kind in ("batch", "packet") if per is None else (per,):
        if len(parameters) == SIGNATURES[kind].python.count(",") + 1:
            return kind
    wanted = " or ".join(SIGNATURES[kind].python for kind in SIGNATURES if per in (None, kind))
    name = getattr(source, "__name__", "the function")
    raise ConfigError(
        f"{name}({', '.join(parameters)}) cannot be compiled as a handler: it is to be {wanted}",
        hint="a function of one argument, the batch, is not compiled: give it to ap.handle() as it is"
        if len(parameters) == 1
        else "",
    )


def of_cfunc(function: Any, per: Per | None) -> Per:
    """Which kind a numba cfunc is."""
    import numba

    types: Any = numba.types

    def one(kind: Any) -> Any:
        if isinstance(kind, (types.CPointer, types.RawPointer)):
            return "pointer"
        if isinstance(kind, types.Integer):
            return int(kind.bitwidth) // 8
        return None if kind in (types.void, types.none) else str(kind)

    declared = function._sig
    return choose([one(arg) for arg in declared.args], one(declared.return_type), per, f"a cfunc of {declared}")


def of_ctypes(function: Any, per: Per | None) -> Per:
    """Which kind a ctypes function is; one that declares no arguments is taken at its word."""
    import ctypes

    if function.argtypes is None:
        return per or "batch"

    def one(kind: Any) -> Any:
        if kind is None:
            return None
        if issubclass(kind, (ctypes._Pointer, ctypes.c_void_p, ctypes.c_char_p, ctypes._CFuncPtr)):  # type: ignore[attr-defined]
            return "pointer"
        return ctypes.sizeof(kind) if getattr(kind, "_type_", "f") in "bBhHiIlLqQ" else kind.__name__

    takes = [one(kind) for kind in function.argtypes]
    names = ", ".join(kind.__name__ for kind in function.argtypes)
    return choose(takes, one(function.restype), per, f"a ctypes function of ({names})")


def of_cffi(function: Any, per: Per | None) -> Per:
    """Which kind a cffi pointer is; one that is not to a function is taken at its word."""
    declared = ffi.typeof(function)
    if declared.kind != "function":
        return per or "batch"

    def one(kind: Any) -> Any:
        if kind.kind in ("pointer", "array"):
            return "pointer"
        if kind.kind == "void":
            return None
        return ffi.sizeof(kind) if kind.kind == "primitive" and kind.cname.startswith(_INTEGERS) else kind.cname

    return choose([one(kind) for kind in declared.args], one(declared.result), per, f"`{declared.cname}`")


_INTEGERS = ("int", "uint", "unsigned", "long", "short", "signed", "char", "size_t", "ssize_t")
