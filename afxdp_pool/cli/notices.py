"""`Notices`: what the library logs while a command runs, kept for the screen and the document, or printed at once."""

from __future__ import annotations

import logging
import sys
from typing import Self

_LOGGER = "afxdp_pool"


class Notices(logging.Handler):
    """Warnings of the library, in one line each.

    Attributes:
        all: every one so far.
        aloud: print each to stderr when it comes. Off while the screen is up.
    """

    def __init__(self, level: int = logging.WARNING, *, aloud: bool = True) -> None:
        super().__init__(level)
        self.all: list[str] = []
        self.aloud = aloud

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the record's text, and print it."""
        text = " ".join(record.getMessage().split())
        self.all.append(text)
        if self.aloud:
            print(f"afxdp-pool: {text}", file=sys.stderr)

    def __enter__(self) -> Self:
        logger = logging.getLogger(_LOGGER)
        self._before = logger.level, logger.propagate
        logger.addHandler(self)
        logger.setLevel(min(self.level, logger.level or self.level))
        logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        logger = logging.getLogger(_LOGGER)
        logger.removeHandler(self)
        logger.level, logger.propagate = self._before
