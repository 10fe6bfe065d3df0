"""Frames that C refused, as errors: which of a batch, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from afxdp_pool._native import lib
from afxdp_pool.batch import Batch, Bytes, need_batch
from afxdp_pool.errors import DoubleFreeError, ForeignFrameError, InvalidDescriptorError, PoolError

_REASONS: dict[int, tuple[type[PoolError], str]] = {
    1: (ForeignFrameError, "lies in no frame of this Umem"),
    2: (DoubleFreeError, "is not held by its caller: it is free, in a ring, or already sent"),
    3: (DoubleFreeError, "has gone round since: this descriptor is of an earlier life of its frame"),
    4: (InvalidDescriptorError, "would be refused by the kernel: no length, options set, or not inside one frame"),
    5: (PoolError, "has as many references as can be counted"),
    6: (PoolError, "could not be handed over, for want of memory"),
    8: (InvalidDescriptorError, "is of a packet in more frames than the device sends: see PortInfo.max_frames"),
    9: (InvalidDescriptorError, "is of a packet whose last frame is not there"),
    7: (PoolError, "is a fragment, which has but one reference: `Frames(batch)` takes that one over"),
}


def raise_refused(refused: Any, done: int, doing: str) -> NoReturn:
    """Raise the error for a C ``struct afp_refusals`` that is not empty."""
    items = list(refused.item)[: min(refused.n, lib.AFP_REFUSALS)]
    kind, text = _REASONS[items[0].reason]
    described = tuple((item.index, item.addr, _REASONS[item.reason][1]) for item in items)
    others = f" (and {refused.n - 1} more refused)" if refused.n > 1 else ""
    raise kind(
        f"{doing}: frame {items[0].index} of the batch, address {items[0].addr:#x}, {text}{others}",
        refused=described,
        done=done,
    )


def frames_call(call: Callable[..., int], table: Any, data: Bytes, batch: Batch, doing: str, done: Any = None) -> int:
    """Run one of C's calls over a batch's descriptors; raise for those it refused. `done`: see `Batch.giving`."""
    need_batch(batch)
    if batch.data is not data:
        raise ForeignFrameError("the batch is of another Umem")
    batch.require()
    pointer, frames = batch._moving()
    done = batch.giving(done) if doing == "put" else None
    refused = call(table, pointer, frames) if done is None else lib.afp_put_noted(table, pointer, frames, done)
    if refused:
        raise_refused(lib.afp_last_refusals(), frames - refused, doing)
    return len(batch)
