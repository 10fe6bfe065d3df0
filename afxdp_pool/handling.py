"""The forwarder's loop with a handler: batches lent out of the engine's memory, verdicts carried out.

It owns the `Batch` objects of a run: one for each number of packets and port that came up, used again and again with
their arrays, so that a run under way allocates nothing. A batch that somebody still refers to when its call is over is
not used again, and refuses from then on. Invariant: whatever a handler does with a batch or keeps of it, the frames it
brought are accounted for by the engine's own copy of the descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from sys import getrefcount
from typing import Any, NoReturn

import numpy as np

from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import DESC, Batch
from afxdp_pool.chain import Chain
from afxdp_pool.columns import Columns
from afxdp_pool.compiling import Compiled
from afxdp_pool.errors import FrameGoneError, VerdictError
from afxdp_pool.handlers import Handler, write_verdicts
from afxdp_pool.port import Port
from afxdp_pool.umem import Umem

#: Runs the engine until a time (CLOCK_MONOTONIC, ns): an ``enum afp_why``.
Slice = Callable[[Any, int], int]


class OverBatch(Batch):
    """What a lent batch that was kept becomes when the call it was lent for is over: every use of it is an error."""

    __slots__ = ()

    def _refuse(self, *_: Any) -> NoReturn:
        raise FrameGoneError(
            "the batch was lent to a handler, whose call is over",
            hint="in the handler, keep() the packets needed longer, or return KEEP and hold a copy() of the batch",
        )

    __len__ = __iter__ = __getitem__ = _refuse

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__") or name == "_refuse":
            return object.__getattribute__(self, name)
        self._refuse()

    def __repr__(self) -> str:
        return "<Batch that was lent to a handler, whose call is over>"


class _Lent(dict[int, Batch]):
    """The batches of a run, by what `afp_engine_turn` returns: port << 16 | packets."""

    def __init__(self, engine: Any, umem: Umem, ports: Sequence[Port]) -> None:
        super().__init__()
        # Views of the engine's memory; they keep it alive, should a handler keep one of them.
        memory = ffi.buffer(engine)
        self._descs = np.frombuffer(memory, DESC, lib.AFP_BATCH_MAX, ffi.offsetof("struct afp_engine", "descs"))
        self._verdicts = np.frombuffer(
            memory, np.uint8, lib.AFP_BATCH_MAX, ffi.offsetof("struct afp_engine", "verdicts")
        )
        self._origin = np.frombuffer(memory, DESC, lib.AFP_BATCH_MAX, ffi.offsetof("struct afp_engine", "origin"))
        self._starts = np.frombuffer(
            memory, np.uint32, lib.AFP_BATCH_MAX + 1, ffi.offsetof("struct afp_engine", "start")
        )
        self._engine = engine
        self._pointer = ffi.from_buffer("struct afp_desc[]", self._descs)
        self._columns = Columns(umem.data, engine.batch)
        self._umem = umem
        self._ports = tuple(ports)

    def __missing__(self, code: int) -> Batch:
        n = code & 0xFFFF
        batch = Batch(
            self._descs[:n],
            self._umem.data,
            self._ports[code >> 16],
            frame_size=self._umem.frame_size,
            umem=self._umem,
        )
        batch.lend(self._pointer, self._verdicts[:n], self._columns, self._ports)
        self[code] = batch
        return batch

    def with_chain(self, code: int) -> Batch:
        """The batch, where ports have packets of several frames: which frames those are is copied for each call."""
        batch = self[code]
        n, frames = code & 0xFFFF, self._engine.busy_frames
        batch._chain = None
        if frames > n:
            batch._chain = Chain(self._origin[:frames].copy(), self._starts[: n + 1].astype(np.intp))
        return batch

    def retire(self, code: int) -> None:
        """Somebody kept the batch, beyond its call."""
        kept = self[code]
        self[code] = kept.lend_again()
        kept.__class__ = OverBatch


def slices(handler: Handler, engine: Any, umem: Umem, ports: Sequence[Port]) -> Slice:
    """The loop that asks `handler`: a function that runs it for a slice of time, raising what the handler raises."""
    if isinstance(handler, Compiled):
        function, user = handler.function, handler.user_pointer
        return lambda engine, end_ns: int(lib.afp_engine_run_compiled(engine, end_ns, function, user))
    lent = _Lent(engine, umem, ports)
    turn = lib.afp_engine_turn
    take = lent.with_chain if engine.multi else lent.__getitem__

    def one_slice(engine: Any, end_ns: int) -> int:
        alike = -1
        while (code := turn(engine, end_ns, alike)) >= 0:
            batch = take(code)
            known = getrefcount(batch)
            try:
                verdicts = handler(batch)
                alike = -1
                if verdicts is not batch._verdicts:
                    if type(verdicts) is int and 0 <= verdicts < 256:
                        alike = verdicts
                    else:
                        write_verdicts(verdicts, batch.verdicts)
            except BaseException:  # the drain drops the batch
                lent.retire(code)
                raise
            if getrefcount(batch) != known:
                lent.retire(code)
            for port in ports:
                if port._port is None:
                    _ = port.native  # raises: the handler closed it
        return int(~code)

    return one_slice


def bad_verdicts(count: int, ports: int) -> VerdictError:
    """The error for verdicts that were carried out as DROP, because they mean nothing."""
    return VerdictError(
        f"the handler returned {count} verdicts that lead to no port that sends; their packets were dropped",
        hint=f"this forwarder's ports are 0 to {ports - 1}",
    )
