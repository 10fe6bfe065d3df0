"""`Frames`: packets that somebody holds beyond their batch, and that give themselves back.

They own one reference to each of their packets until it is sent, put, or given back by `close()`. Forgotten ones are
given back when Python collects them, with a ResourceWarning. Invariant: each reference is given away once, in whichever
way and through whichever part of them it goes; what was given away is known, and refused the second time.

That holds too when a signal's handler raises, as Ctrl-C's does. Python runs it after a call, at the start of a function
or in a loop: so C itself writes down what it took or gave, and what passes from object to object does so between calls.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi
from afxdp_pool.batch import Batch, need_batch
from afxdp_pool.chain import Chain, packets_of
from afxdp_pool.errors import ConfigError, ForeignFrameError, FrameGoneError, InvalidDescriptorError, PoolError

if TYPE_CHECKING:
    from afxdp_pool.frame import Frame


class Frames(Batch):
    """Packets held: a batch that gives itself back, as a context manager, by `close()`, or when it is forgotten.

    It takes over the reference that the caller has to each packet of `batch`; `Batch.keep` makes one with references of
    its own. It is used as any batch; slices and masks of it are batches whose packets stay its own until they are sent
    or put. ``Frames(frames[mask])`` moves some into an object of their own.

    Args:
        batch: packets whose frames the caller holds.
        lent: do not warn when it is forgotten: somebody else sees to it.

    Raises:
        FrameGoneError: a frame is not held, or was given away already. InvalidDescriptorError: descriptors of no Umem.
        ConfigError: it is no batch.

    Ownership: its own, until sent, put or closed. The caller's `batch` is not to be put or sent any more.
    Concurrency: one thread at a time, any thread; it may be forgotten anywhere.

    >>> from afxdp_pool import FramePool, Umem
    >>> with Umem(frames=256) as umem, FramePool(umem) as pool:
    ...     with Frames(pool.alloc(3)) as frames:
    ...         sent = pool.put(frames[:1])
    ...         print(frames.left)
    ...     print(umem.audit().app)
    2
    0
    """

    __slots__ = ("__weakref__", "_given", "_lent", "_taken", "_told")

    _direct = False

    def __init__(self, batch: Batch, *, lent: bool = False) -> None:
        need_batch(batch)
        if batch.umem is None:
            raise InvalidDescriptorError("descriptors made by hand, of no Umem, cannot be held")
        batch.require()
        batch._look(0, len(batch))
        self._prepare(batch, lent=lent)
        whole, places = (batch, slice(None)) if isinstance(batch, Frames) else batch._owner or (None, None)
        self._take(whole, places, slice(None))
        self._note()

    def _prepare(self, batch: Batch, *, lent: bool = False) -> None:
        """Be about these packets, and hold none of them yet."""
        Batch.__init__(self, batch.descs.copy(), batch.data, batch.port, frame_size=batch.frame_size, umem=batch.umem)
        self._take_chain(batch._chain)
        self._given = np.ones(len(batch), np.bool_)  # what is not, or no longer, held
        self._told: Any = None  # where C writes how many frames it gives away or takes, and of which packets
        self._taken: Any = None
        self._lent = lent

    def _take(self, whole: Frames | None, places: Any, at: slice) -> None:
        """Hold those `at` from now on, which were `whole`'s until now. No call may come between the two stores."""
        if whole is not None:
            whole._given[places] = True
        self._given[at] = False

    def _note(self) -> None:
        assert self.umem is not None
        if self.umem.tracer is not None:
            self._taken = self.umem.tracer.note(self)

    @classmethod
    def join(cls, held: Iterable[Frames | Frame]) -> Frames:
        """All packets of several, in order, in one; what those held is this one's. To send many at once.

        Raises:
            ConfigError: there is none; or a plain batch, whose packets nobody keeps count of. FrameGoneError: one is
                there twice. ForeignFrameError: they are of several Umems.
        """
        from afxdp_pool.frame import Frame  # it builds on this module

        parts = [one.batch if isinstance(one, Frame) else one for one in held]
        if not parts:
            raise ConfigError("nothing to join")
        for part in parts:
            if not isinstance(part, Frames):
                hint = "Frames(batch) takes its packets over"
                raise ConfigError(f"a {type(part).__name__} cannot be joined", hint=hint)
        if len(set(map(id, parts))) < len(parts):
            raise FrameGoneError("the same frames are to be joined twice")
        first = parts[0]
        if any(part.umem is not first.umem for part in parts):
            raise ForeignFrameError("frames of several Umems cannot be in one batch")
        assert first.umem is not None
        descs = np.concatenate([part._left_frames() for part in parts])
        made = cls.__new__(cls)
        made._prepare(Batch.of_frames(descs, first.data, first.port, umem=first.umem))
        made._look(0, len(made))
        at = 0
        for part in parts:
            end = at + part.left
            made._take(part, slice(None), slice(at, end))
            at = end
        made._note()
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _part(self, key: Any) -> Batch:
        part = super()._part(key)
        part._owner = self, np.arange(self._count)[key]
        return part

    def copy(self) -> Batch:
        """A part that is all of them, under descriptors of its own."""
        made = super().copy()
        made._owner = self, np.arange(self._count)
        return made

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name == "_descs":  # gone since close(): every way to the packets leads here
                raise FrameGoneError("these packets were given back, and are looked at")
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"<Frames, {self.left} of {self._count} held>" if self.left else f"<Frames, {self._count} given away>"

    @property
    def left(self) -> int:
        """Packets it still holds."""
        return int(np.count_nonzero(self._held()))

    @property
    def closed(self) -> bool:
        """Whether it was closed: nothing of it can be looked at any more."""
        try:
            return self._descs is None
        except FrameGoneError:
            return True

    def require(self) -> None:
        """None of these packets must have been given away already.

        Raises:
            FrameGoneError: some have.
        """
        if self.left < self._count:
            self._require(np.arange(self._count))

    def giving(self, done: Any = None) -> Any:
        """As `Batch.giving`: somebody keeps count of these."""
        return self._giving(np.arange(self._count), self._chain, done)

    def _giving(self, places: npt.NDArray[np.intp], chain: Chain | None, done: Any) -> Any:
        done = ffi.new("uint32_t *") if done is None else done
        self._told = done, places, chain, True
        return done

    def _held(self) -> npt.NDArray[np.bool_]:
        """Which it holds, by what C wrote meanwhile."""
        if self._told is not None:
            done, places, chain, given = self._told
            n = packets_of(chain, done[0])
            self._given[places[:n]] = given
            self._told = None
        return ~self._given

    def _require(self, places: npt.NDArray[np.intp]) -> None:
        if not self._held()[places].all():
            first = int(places[np.argmax(self._given[places])])
            raise FrameGoneError(
                f"packet {first} of these frames was sent or given back already",
                hint="go on with the rest: frames = frames[sent:]",
            )
        if (places[1:] <= places[:-1]).any() and len(np.unique(places)) < len(places):
            raise FrameGoneError(
                "a packet of these frames is in the batch twice, and can be given away once",
                hint="keep() takes one more reference to it",
            )

    def _left_frames(self) -> npt.NDArray[Any]:
        """The descriptors of all frames of the packets that are still held."""
        if self._chain is None:
            return self._descs[self._held()]
        self._chain.sync(self._descs)
        return self._chain.part(self._held()).frames

    def close(self) -> None:
        """Give back what is still held. Idempotent. Looking at its packets afterwards raises `FrameGoneError`.

        Raises:
            DoubleFreeError: somebody else put these frames, with references that were not his.

        Concurrency: any thread; not in a callback of a pool.
        """
        if self.closed:
            return
        assert self.umem is not None
        try:
            if self.left and self.umem._open:
                self.umem.put(self._part(self._held()))
        finally:
            if not self.left or not self.umem._open:  # else it was interrupted, and can be closed again
                self._given[:] = True
                del self._descs
                self._chain = None
                self._pointer = self._fields = self._views = None

    def __del__(self) -> None:
        if sys.is_finalizing() or not getattr(self, "left", 0) or self.umem is None or not self.umem._open:
            return  # at the end of the interpreter numpy is half gone, and the frames go with the process
        umem = self.umem
        rest = Batch.of_frames(self._left_frames(), self.data, self.port, umem=umem)
        shown = ", ".join(map(str, rest.frames(rest.frame_size)[:8])) + (", ..." if len(rest) > 8 else "")
        what, which = ("1 packet", "frame") if len(rest) == 1 else (f"{len(rest)} packets", "frames")
        message = f"{what} forgotten that had been kept, and given back just now: {which} {shown}"
        if threading.get_ident() in umem._in_callback:
            umem._late.append(rest)  # under the locks of the call that C makes: the next reap() puts them
        else:
            with contextlib.suppress(PoolError):
                umem.put(rest)
        if self._lent:
            return
        if self._taken is None:
            message += "; run with AFXDP_POOL_TRACE=1 to see where they were kept"
        else:
            message += f"; kept {self._taken}"
        warnings.warn(message, ResourceWarning, stacklevel=2, source=self)
