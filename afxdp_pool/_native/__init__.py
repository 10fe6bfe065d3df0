"""The border to C: `ffi` and `lib` of the compiled module. Everything above imports them from here."""

from __future__ import annotations

from typing import Any

try:
    from afxdp_pool._native import _ffi  # type: ignore[attr-defined]
except ImportError as error:  # pragma: no cover - only in a broken installation
    raise ImportError(
        f"afxdp_pool's compiled part is missing or does not load ({error}). "
        "Build it with `pip install .` (needs gcc, clang, libxdp-dev, libbpf-dev)."
    ) from error

ffi: Any = _ffi.ffi
lib: Any = _ffi.lib

__all__ = ["ffi", "lib"]
