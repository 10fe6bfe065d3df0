"""`Frame`: one packet that somebody holds beyond its batch, as an object of its own.

It is a `Frames` of one, seen as the packet that it is: its bytes, its memory, its length. It owns what that owns, one
reference until it is sent or closed. Invariant: as of `Frames`; and a memoryview of it is taken away before its frame
is another's.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import Batch, Bytes, need_batch
from afxdp_pool.errors import (
    ConfigError,
    ForeignFrameError,
    FrameGoneError,
    InvalidDescriptorError,
    PoolClosedError,
)
from afxdp_pool.frames import Frames
from afxdp_pool.refusals import raise_refused
from afxdp_pool.single import Single

if TYPE_CHECKING:
    from afxdp_pool.pool import FramePool
    from afxdp_pool.port import Port


class Frame(Single):
    """One packet held: in a frame of the Umem, not copied, until it is sent or closed.

    It takes over the reference that the caller has to the one packet of `batch`; `Batch.keep` makes one with one of
    its own. ``bytes(frame)`` copies the packet out, ``len(frame)`` is its length in bytes. A packet longer than a frame
    lies in several, and is held as one (docs/large-packets.md).

    Raises:
        FrameGoneError, PoolClosedError: by everything that looks at the packet, once the frame was sent or closed, or
            its Umem was closed.

    Ownership: its own, until sent (``port.transmit(frame)``) or closed.
    Concurrency: one thread at a time, any thread.

    >>> from afxdp_pool import FramePool, Umem
    >>> with Umem(frames=256) as umem, FramePool(umem) as pool:
    ...     batch = pool.alloc(2)
    ...     batch.write(1, b"hello")
    ...     frame = batch.keep(1)
    ...     _ = pool.put(batch)
    ...     frame.view[0] = ord("j")
    ...     print(bytes(frame), len(frame), umem.audit().app)
    ...     frame.close()
    b'jello' 5 1
    """

    __slots__ = ("__weakref__", "_frames", "_handed")

    _instead_of_a_batch = "a frame is given back by frame.close(), sent by port.transmit(frame); frame.batch is a batch"

    def __init__(self, batch: Batch) -> None:
        need_batch(batch)
        if len(batch) != 1:
            raise ConfigError(f"a Frame is one packet, not {len(batch)}", hint="Frames(batch) holds several")
        self._frames = batch if isinstance(batch, Frames) else Frames(batch)
        self._handed: list[memoryview] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __bytes__(self) -> bytes:
        return self.batch.whole(0)

    def __buffer__(self, flags: int) -> memoryview:
        """For ``memoryview(frame)``, ``socket.send(frame)`` and the like, from Python 3.12 on."""
        return memoryview(bytes(self)) if self.parts > 1 else self.memory

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        whole = np.frombuffer(bytes(self), np.uint8) if self.parts > 1 else self.view
        return np.array(whole, dtype) if copy or dtype not in (None, np.uint8) else whole

    def __len__(self) -> int:
        return int(self.batch.lengths[0])

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"a Frame has no {name!r}: it is sent by port.transmit(frame), given back by frame.close(), "
                "and as a batch it is frame.batch"
            )

    def __repr__(self) -> str:
        if self.closed or self._frames.umem is None or not self._frames.umem._open:
            return "<Frame, given away>"
        return f"<Frame {self.number} of {len(self)} bytes>"

    @property
    def closed(self) -> bool:
        """Whether it was closed or sent."""
        return not self._frames.left

    @property
    def batch(self) -> Frames:
        """The packet as a batch of one, for header fields, and to change its start or length.

        Raises:
            FrameGoneError: it was closed or sent. PoolClosedError: the Umem is closed.
        """
        frames = self._frames
        if not frames.left:
            raise FrameGoneError("the frame was closed or sent, and is looked at")
        if frames.umem is None or not frames.umem._open:
            raise PoolClosedError("the frame's Umem is closed")
        return frames

    @property
    def parts(self) -> int:
        """How many frames the packet lies in: one, if it is not longer than that."""
        return int(self.batch.starts[-1])

    @property
    def view(self) -> Bytes:
        """The packet itself, uint8, shape ``(len(frame),)``, writable. Not to be used once the frame is closed.

        Of a packet in several frames it is what lies in the first, as `memory`; ``frame.batch.parts`` has all.
        """
        view: Bytes = self.batch[0]
        return view

    @property
    def memory(self) -> memoryview:
        """The packet itself as a memoryview, writable. Closing the frame takes it away: it raises ValueError then."""
        view: Any = self.view
        self._handed.append(memoryview(view))
        return self._handed[-1]

    @property
    def addr(self) -> int:
        """Where the packet starts, bytes into the Umem."""
        return int(self.batch.addr[0])

    @property
    def number(self) -> int:
        """The number of its frame in the Umem."""
        return self.batch.frames(self.batch.frame_size)[0]

    @property
    def port(self) -> Port | None:
        """The port the packet came from, or None."""
        return self._frames.port

    @property
    def pool(self) -> FramePool | None:
        """The pool that owns the frame, to which it will go home; None if nobody has that pool object any more."""
        return self.batch.umem.owner_of(self.number)  # type: ignore[union-attr]

    def write(self, packet: bytes | bytearray | memoryview | Bytes) -> None:
        """Replace the packet's bytes and length.

        Raises:
            InvalidDescriptorError: it would reach beyond its frame.
        """
        self.batch.write(0, packet)

    def clone(self) -> Frame:
        """One more reference to the same packet, as a Frame of its own: to send it and have it still, say.

        Raises:
            PoolError: a fragment has one reference only.
        """
        return self.batch.keep(0)

    def close(self) -> None:
        """Give the reference back. Idempotent. Concurrency: any thread; not in a callback of a pool."""
        self._revoke()
        self._frames.close()

    def _revoke(self) -> None:
        """Take the memoryviews away; one that numpy looks through stays."""
        while self._handed:
            with contextlib.suppress(BufferError):
                self._handed.pop().release()


def keep(batch: Batch, key: Any) -> Any:
    """`Batch.keep`."""
    umem = batch.umem
    if umem is None:
        raise InvalidDescriptorError("descriptors made by hand, of no Umem, cannot be kept")
    one = isinstance(key, (int, np.integer))
    if one:
        _ = batch.descs[int(key)]  # or IndexError
        at = int(key) % len(batch)
        key = slice(at, at + 1)
    part = batch[key]
    if batch.data is not umem.data:
        raise ForeignFrameError("the batch is of another Umem")
    part.require()
    held = Frames.__new__(Frames)
    held._prepare(part)
    done = ffi.new("uint32_t *")
    held._told = done, np.arange(len(part)), held._chain, False
    if lib.afp_keep_all(umem.table, *held._moving(), done):
        raise_refused(lib.afp_last_refusals(), 0, "keep")
    held._note()
    return Frame(held) if one else held
