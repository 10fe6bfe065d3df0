"""`PortRings`: the four rings of a port as its user sees them: FILL and TX take frames, RX and COMPLETION bring them.

It is that part of `Port`, and owns nothing: the rings are the port's, and a frame is the kernel's from when it is put
into FILL or TX until it comes out of RX or COMPLETION. Invariant: a full or empty ring is a number, never an error; of
a batch that is refused in part, the number of packets sent is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from afxdp_pool._native import ffi, lib
from afxdp_pool.batch import DESC, Batch, need_batch
from afxdp_pool.binding import link_gone
from afxdp_pool.chain import packets_of
from afxdp_pool.config import MAX_COUNT, PortConfig, check_count
from afxdp_pool.errors import ForeignFrameError, InvalidDescriptorError, LinkGoneError
from afxdp_pool.frame import Frame
from afxdp_pool.refusals import raise_refused
from afxdp_pool.requests import TxStamps, take_stamps
from afxdp_pool.stats import port_stats

if TYPE_CHECKING:
    from afxdp_pool.live import LiveTransmit
    from afxdp_pool.pool import FramePool


class PortRings:
    """What a `Port` does with frames: hands them to the kernel, and takes them back."""

    _live: LiveTransmit | None
    config: PortConfig
    name: Any
    native: Any
    pool: FramePool
    look_for_trouble: Callable[[], None]

    def fill(self, n: int | None = None) -> int:
        """Hand up to `n` frames of the pool to the kernel to receive into; default: up to the fill level.

        Returns how many; less when the ring is full or the pool empty.

        Raises:
            WrongThreadError: another thread owns the pool. PoolClosedError: the pool is closed.

        Ownership: the frames are the kernel's until received.
        """
        port = self.native
        self.pool.umem.not_in_callback()
        _ = self.pool.native  # or it raises: the number of a closed pool may be another's by now
        if n is None:
            n = max(0, int(port.fill_level) - port_stats(port).in_fill)
        got = lib.afp_port_fill(port, check_count(n))
        if got < 0:
            raise self.pool._refusal(got, f"{self.name}: fill")
        lib.afp_port_wake_rx(port)  # a driver that found FILL empty may have stopped looking
        return int(got)

    def receive(self, n: int = 64) -> Batch:
        """Up to `n` packets that have arrived; an empty batch when none has. Never waits.

        Ownership: the caller holds the frames until put, sent or kept.
        """
        umem = self.pool.umem
        if self.config.multi_buffer:
            return self._receive_packets(check_count(n))
        batch = Batch(np.empty(check_count(n), DESC), umem.data, self, frame_size=umem.frame_size, umem=umem)  # type: ignore[arg-type]
        got = lib.afp_port_receive(self.native, batch.pointer, n)
        batch = batch[:got]
        if got and umem.tracer is not None:
            umem.tracer.note(batch)
        return batch

    def _receive_packets(self, n: int) -> Batch:
        """`receive`, of packets that may lie in several frames."""
        umem = self.pool.umem
        room = min(4 * n, MAX_COUNT // 2) + lib.AFP_PACKET_FRAMES
        frames = np.empty(min(room, umem.frames), DESC)
        got = lib.afp_receive_packets(self.native, ffi.from_buffer("struct afp_desc[]", frames), len(frames), n)
        batch = Batch.of_frames(frames[:got], umem.data, self, umem=umem)  # type: ignore[arg-type]
        if got and umem.tracer is not None:
            umem.tracer.note(batch)
        return batch

    def transmit(self, batch: Batch | Frame) -> int:
        """Put the packets into the TX ring, in order, and wake the kernel. Returns how many there was room for.

        A `Frame`, and `Frames` as far as they are sent, are given away by it. ``batch[sent:]`` is the rest. Of a packet
        in several frames all go, or none.

        Raises:
            DoubleFreeError: a frame the caller does not hold; ForeignFrameError, InvalidDescriptorError: a descriptor
                that points outside the Umem, has no length, or leaves its frame; a packet in more frames than
                `PortInfo.max_frames`, or in several without `PortConfig.multi_buffer`. Those before it are sent
                (``error.done`` of them); it and those behind it are the caller's still.
            LinkGoneError: the device is down or gone; ``error.done`` frames are with the port, until it is closed.

        Ownership: one reference to each frame sent is the kernel's, until `complete()` on this port.
        """
        if isinstance(batch, Frame):
            frame, batch = batch, batch.batch
            sent = self.transmit(batch)
            if sent:
                frame._revoke()
            return sent
        need_batch(batch)
        if batch.data is not self.pool.umem.data:
            raise ForeignFrameError("the batch is of another Umem")
        return self._send(batch)

    def _send(self, batch: Batch, done: Any = None) -> int:
        """`transmit`, of a batch on this Umem; C writes to `done` how many frames were sent."""
        batch.require()
        if batch._chain is not None and not self.config.multi_buffer:
            raise InvalidDescriptorError(
                f"{self.name}: a packet of several frames",
                hint="such packets leave by ports opened with PortConfig(multi_buffer=True)",
            )
        refused = ffi.new("struct afp_refusals *")
        pointer, frames = batch._moving()
        done = batch.giving(done)
        if done is None:
            sent = int(lib.afp_port_transmit(self.native, pointer, frames, refused))
        else:
            sent = int(lib.afp_port_transmit_noted(self.native, pointer, frames, refused, done))
        sent = packets_of(batch._chain, sent)
        try:
            self.kick()
        except LinkGoneError as error:
            error.done = sent
            raise
        if refused.n:
            raise_refused(refused, sent, f"{self.name}: transmit")
        return sent

    def complete(self, n: int = 64) -> int:
        """Take up to `n` completions: each frame goes home to the pool that owns it. Returns how many.

        Frames that went live are home already, and are counted here all the same. What still waits to go is kicked.

        Raises:
            LinkGoneError: as `kick`, of a port that transmits live.
        """
        self.pool.umem.not_in_callback()
        if self._live is not None and self.ring_levels()["tx"]:
            self.kick()
        return int(lib.afp_port_complete(self.native, check_count(n)))

    def take_timestamps(self, n: int = 64) -> TxStamps:
        """When packets were sent whose `Batch.request_timestamps` asked for it: up to `n`, the first completed first.

        It keeps 8192 until they are taken. Concurrency: one thread, any. None after the port is closed.
        """
        return take_stamps(self.native, check_count(n))

    def kick(self) -> None:
        """Tell the kernel that there is something to send. A full queue is no error: what is left is sent later.

        Raises:
            LinkGoneError: the network device is down or gone.
        """
        code = -lib.afp_port_kick(self.native)
        if code:
            raise link_gone(self.name, code)
        if self._live is not None and self._live.native.trouble:
            self.look_for_trouble()

    def ring_levels(self) -> dict[str, int]:
        """Entries in each ring now: `fill` and `tx` wait for the kernel, `comp` and `rx` for us."""
        out = ffi.new("uint32_t[4]")
        lib.afp_port_ring_levels(self.native, out)
        return dict(zip(("fill", "comp", "rx", "tx"), out, strict=True))
