"""What a pool calls in Python when frames enter or leave it.

`Callbacks` owns the functions, the handle by which C finds them, and what they raised. Invariant: no exception goes
through C: it waits here for the pool's next call from Python.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi
from afxdp_pool.batch import DESC, Batch

if TYPE_CHECKING:
    from afxdp_pool.umem import Umem


class Callbacks:
    """A pool's Python callbacks, and what they raised. The C side has a handle to it, which the pool keeps."""

    def __init__(
        self,
        umem: Umem,
        init: Callable[[Batch], object] | None,
        event: Callable[[str, npt.NDArray[np.uint32]], object] | None,
    ) -> None:
        self._data, self._config = umem.data, umem.config
        self._init, self._event = init, event
        self._calling = umem._in_callback
        self.failed: BaseException | None = None

    def call(self, event: int, frames: npt.NDArray[np.uint32]) -> None:
        """Frames entered (0) or left (1)."""
        self._calling.add(threading.get_ident())
        try:
            if event == 0 and self._init is not None:
                descs = np.zeros(len(frames), DESC)
                config = self._config
                descs["addr"] = config.start_of(frames.astype(np.int64)) + config.headroom
                descs["len"] = config.frame_size - config.headroom
                self._init(Batch(descs, self._data, frame_size=0 if config.unaligned else config.frame_size))
            if self._event is not None:
                self._event("release" if event else "hold", frames)
        except BaseException as error:  # C is calling: it is raised by the next call from Python
            self.failed = error
        finally:
            self._calling.discard(threading.get_ident())

    def raise_failure(self) -> None:
        """Raise what a callback raised."""
        if self.failed is not None:
            failure, self.failed = self.failed, None
            raise failure


@ffi.def_extern(name="afp_python_hook")  # type: ignore[untyped-decorator]
def _hook(user: Any, event: int, frames: Any, n: int) -> None:
    numbers = np.frombuffer(ffi.buffer(frames, n * 4), np.uint32).copy()
    ffi.from_handle(user).call(event, numbers)
