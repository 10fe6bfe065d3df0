"""Fuzzing of what Python reads from others: captures, a broker's messages, beacons, test packets, command lines.

Each of `READERS` takes any bytes, and either understands them or says so by the errors it documents; anything else is a
finding. Run by fuzzing.py, or by hand with the options of libFuzzer:  python tests/fuzz/parsers.py -max_total_time=60
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["afxdp_pool", "dpkt"]):
    from afxdp_pool import beacon, filters, sockets, wire
    from afxdp_pool.cli import arguments, traffic
    from afxdp_pool.errors import BrokerError, ConfigError
    from afxdp_pool.testing import packets


class InMemory:
    """As much of a `Path` as reading needs."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def capture(data: bytes) -> None:
    path: Any = InMemory(data)
    assert all(traffic.read_capture(path))


def message(data: bytes) -> None:
    made = wire.Message.parse(data)
    if len(data) < wire.LINE_MAX // 3:  # blanks make it longer
        assert wire.Message.parse(wire.line(made.verb, *made.words).encode()).words == made.words
    if made.verb == wire.SOCKET:
        wire.SocketRequest.read(made)


def beacon_file(data: bytes) -> None:
    fd = os.memfd_create("beacon")
    try:
        os.write(fd, data)
        beacon.read(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_packet(data: bytes) -> None:
    found = packets.parse(data)
    assert found is None or found.size == len(data)


def socket_seen(data: bytes) -> None:
    if len(data) >= 16:  # the kernel's message has its head whole
        sockets.parse(data)


def word(read: Callable[[str], object]) -> Callable[[bytes], None]:
    """A word of the command line, in which no byte is 0."""

    def run(data: bytes) -> None:
        read(data.replace(b"\0", b" ").decode(errors="surrogateescape"))

    return run


def rule(text: str) -> None:
    assert len(filters.pack_rules([arguments.rule(text)])) == filters.RULES_SIZE


READERS: tuple[Callable[[bytes], None], ...] = (
    capture,
    message,
    beacon_file,
    test_packet,
    socket_seen,
    word(rule),
    word(arguments.mac_address),
    word(arguments.ipv4),
    word(arguments.cpu_list),
    word(arguments.listening),
    word(arguments.count),
    word(arguments.seconds),
    word(arguments.ethertype),
)


def one(data: bytes) -> None:
    """The first byte says which reader; the rest is for it."""
    if data:
        with contextlib.suppress(ConfigError, BrokerError, argparse.ArgumentTypeError):
            READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
