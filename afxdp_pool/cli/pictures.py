"""Pictures of a run: a thread that notes where every frame is, and the files drawn of it at the end."""

from __future__ import annotations

import argparse
import threading
from typing import Self

import afxdp_pool as ap
from afxdp_pool.cli.output import places
from afxdp_pool.picture import Recorder, animate_umem, draw_umem, require_plot

#: Seconds between two samples at first, and how many are kept.
EVERY, MOST = 0.02, 400


class Pictures:
    """Samples from `with` to its end, which draws what is wanted.

    Raises:
        MissingExtraError: when made, matplotlib is not installed. At the end: AfXdpError, the file cannot be written.
    """

    def __init__(self, args: argparse.Namespace, umem: ap.Umem) -> None:
        require_plot()
        self._files = [(args.picture, draw_umem), (args.animation, animate_umem)]
        self._heading = f"{args.command} {places(args)}"
        self._recorder = Recorder(umem, f"{umem.frames} frames", most=MOST)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="afxdp-pool pictures", daemon=True)

    def _work(self) -> None:
        self._recorder.sample()
        while not self._ended.wait(EVERY):
            self._recorder.sample()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def draw(self) -> None:
        """Draw the files, when sampling has ended."""
        for path, draw in self._files:
            if path is not None:
                draw([self._recorder], path, self._heading)
