"""The border to C: `ffi`, `lib` and `calls` of the compiled library. Everything above imports them from here."""

from __future__ import annotations

from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from typing import TYPE_CHECKING, Any

try:
    from afxdp_pool._native import _ffi  # type: ignore[attr-defined]
except ImportError as error:  # pragma: no cover - only in a broken installation
    raise ImportError(
        f"afxdp_pool's compiled part is missing or does not load ({error}). "
        "Build it with `pip install .` (needs gcc, clang, libxdp-dev, libbpf-dev)."
    ) from error

ffi: Any = _ffi.ffi
lib: Any = _ffi.lib


def _second_module(name: str) -> Any:
    """A module that has its own ``PyInit_name`` in cffi's library."""
    loader = ExtensionFileLoader(f"{__name__}.{name}", _ffi.__file__)
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None  # it has a loader
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


#: What `Batch` and `FramePool` inherit from: quicker than through `lib`; calls.c.
if TYPE_CHECKING:
    from afxdp_pool._native import _calls as calls
else:
    calls = _second_module("_calls")

__all__ = ["calls", "ffi", "lib"]
