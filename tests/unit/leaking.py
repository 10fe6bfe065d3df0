"""Cycles that leave something behind each time, the least there is of each kind; test_growth.py has to find it."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import threading

from holding import growth

LEFT: list[object] = []
malloc = ctypes.CDLL(None).malloc


def threads() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, daemon=True)
    thread.start()
    LEFT.append(thread)


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "nothing": growth(lambda: None, 20),
                "in_use": growth(lambda: malloc(1), 20),
                "blocks": growth(lambda: LEFT.append(bytes(20)), 20),
                "descriptors": growth(lambda: LEFT.append(os.dup(0)), 20),
                "mappings": growth(lambda: LEFT.append(mmap.mmap(-1, 8192, flags=mmap.MAP_SHARED)), 20),
                "threads": growth(threads, 20),
            }
        )
    )
