"""A port in memory with a descriptor that is readable while packets wait, as a socket is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from afxdp_pool import Batch, Port
from afxdp_pool.testing.rings import FakeKernel


class Doorbell(FakeKernel):
    """A kernel that rings when it has delivered; the bell is silent again once RX is empty."""

    def __init__(self, port: Port, **options: Any) -> None:
        super().__init__(port, **options)
        self.bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        port.native.fd = self.bell
        receive = port.receive

        def quietly(n: int = 64) -> Batch:
            batch = receive(n)
            if not port.ring_levels()["rx"]:
                self.silence()
            return batch

        port.receive = quietly  # type: ignore[method-assign]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.port.close()
        os.close(self.bell)

    def silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)

    def deliver(
        self, packets: int | Sequence[bytes], headroom: int = 256, *, metadata: Mapping[str, int] | None = None
    ) -> int:
        done = super().deliver(packets, headroom, metadata=metadata)
        if done:
            os.eventfd_write(self.bell, 1)
        return done
