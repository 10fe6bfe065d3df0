"""Handlers out of shared libraries: C, or what speaks its calling convention, compiled ahead and taken by name.

``afxdp_pool.h``, in `include_dir()`, declares what such a function takes and returns; its macros leave a mark beside
the function that says which kind it is, and for which version of that file. Invariant: a function is taken only if its
mark, or the caller, says what it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afxdp_pool.compiling import Compiled, check_user
from afxdp_pool.errors import ConfigError
from afxdp_pool.signatures import Per

#: AFXDP_POOL_ABI of the header.
_ABI = 1
_MARK = "{}_afxdp_pool"
_KINDS: dict[int, Per] = {ord("b"): "batch", ord("p"): "packet"}


def include_dir() -> str:
    """Where ``afxdp_pool.h`` is, for ``cc -I``."""
    return str(Path(__file__).resolve().parent / "include")


def from_library(path: str | Path, name: str = "handle", *, user: Any = None, per: Per | None = None) -> Compiled:
    """Take a handler by name out of a shared library: see `compiled` for what it is given.

    Args:
        path: the library's file.
        name: of the function.
        user: memory for its tables and counters: an array, or another contiguous buffer. Not copied.
        per: ``"batch"`` or ``"packet"``, for a function that was declared without the macros of ``afxdp_pool.h``.

    Raises:
        ConfigError: there is no such file, or no shared library in it; no function of that name; nobody says what it is
            called for, or two say differently.

    Ownership: the library stays loaded as long as the process runs.
    """
    import ctypes

    check_user(user)
    file = Path(path)
    if not file.is_file():
        raise ConfigError("there is no such file", subject=str(path), hint="give the path of a shared library")
    try:
        library = ctypes.CDLL(str(file.resolve()))
    except OSError as error:
        raise ConfigError(
            f"it is no library that can be loaded ({error})", subject=str(path), hint=how_to_compile(file)
        ) from None
    try:
        function = library[name]
    except AttributeError:
        raise ConfigError(
            f"it has no function {name}",
            subject=str(path),
            hint=f"define it with AFP_PACKET_HANDLER({name}) of afxdp_pool.h, or see that it is not static, "
            'and extern "C" in C++',
        ) from None
    kind = _kind(library, name, per, str(path))
    return Compiled(int(ctypes.cast(function, ctypes.c_void_p).value or 0), kind, user, library)


def _kind(library: Any, name: str, per: Per | None, path: str) -> Per:
    import ctypes

    try:
        mark = ctypes.c_uint32.in_dll(library, _MARK.format(name)).value
    except ValueError:
        if per is None:
            raise ConfigError(
                f"nothing says whether {name} is called once a batch or once a packet",
                subject=path,
                hint=f"define it with AFP_BATCH_HANDLER({name}) or AFP_PACKET_HANDLER({name}) of afxdp_pool.h, "
                "or say per=",
            ) from None
        return per
    kind = _KINDS.get(mark & 0xFF)
    if mark >> 8 != _ABI or kind is None:
        raise ConfigError(
            f"{name} was compiled for version {mark >> 8} of afxdp_pool.h, this is version {_ABI}",
            subject=path,
            hint="compile it again",
        )
    if per not in (None, kind):
        raise ConfigError(f"{name} is called once a {kind}, not once a {per}", subject=path, hint="leave out per=")
    return kind


def how_to_compile(file: Path) -> str:
    """The command that makes a library of that source file."""
    library = file.with_suffix(".so").name
    return f"compile one: cc -O2 -shared -fPIC -I{include_dir()} -o {library} {file.with_suffix('.c').name}"
