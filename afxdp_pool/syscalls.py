"""System calls that neither Python nor every libc has a function for. It owns nothing."""

from __future__ import annotations

import ctypes
import functools
import os


def syscall(number: int, *arguments: object) -> int:
    """One system call by its number on this architecture; arguments as ctypes takes them.

    Raises:
        OSError: as the kernel says.

    Concurrency: any thread.
    """
    got = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if got < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return got


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc
