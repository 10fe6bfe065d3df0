"""What Python reads from others, each reader for any bytes: captures, a broker's messages, beacons, state files, test
packets, netlink's answers, rules of a NIC, command lines.

Each of `READERS` either understands them or says so by the errors it documents; anything else is a finding. By hand:
python tests/fuzz/readers.py FILE...
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from afxdp_pool import beacon, filters, flows, knob, netlink, sockets, wire
from afxdp_pool.cli import steer, traffic, words
from afxdp_pool.errors import BrokerError, ConfigError
from afxdp_pool.statedir import StateDirectory
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


def netlink_answer(data: bytes) -> None:
    assert all(isinstance(value, bytes) for value in netlink.attributes(data).values())


def nic_rule(data: bytes) -> None:
    rule = flows.FlowRule.unpack(data[:SPEC].ljust(SPEC, b"\0"))
    assert rule is None or flows.FlowRule.unpack(rule.pack()) is not None


SPEC = len(flows.FlowRule(queue=0, protocol=17, ip=4).pack())


@cache
def state_directory() -> tuple[StateDirectory, Path]:
    path = Path(tempfile.mkdtemp(prefix="afxdp-state-"))
    return StateDirectory(str(path)), path / "page"


def state_file(data: bytes) -> None:
    directory, page = state_directory()
    page.write_bytes(data)
    directory.read("page")


def device_file(data: bytes) -> None:
    """As `state_file`, of this boot."""
    with contextlib.suppress(ValueError, RecursionError):
        state = json.loads(data)
        directory, _ = state_directory()
        directory.write("page", state)
        before, knob._files = knob._files, directory
        try:
            for one in knob.read_page("page"):
                one.note()
        finally:
            knob._files = before


def word(read: Callable[[str], object]) -> Callable[[bytes], None]:
    """A word of the command line, in which no byte is 0."""

    def run(data: bytes) -> None:
        read(data.replace(b"\0", b" ").decode(errors="surrogateescape"))

    return run


def rule(text: str) -> None:
    assert len(filters.pack_rules([words.rule(text)])) == filters.RULES_SIZE


READERS: tuple[Callable[[bytes], None], ...] = (
    capture,
    message,
    beacon_file,
    test_packet,
    socket_seen,
    word(rule),
    word(words.mac_address),
    word(words.ipv4),
    word(words.cpu_list),
    word(words.listening),
    word(words.count),
    word(words.seconds),
    word(words.ethertype),
    word(words.queue),
    word(words.ring_size),
    word(words.metadata_names),
    word(words.worker_count),
    word(steer.flow_rule),
    netlink_answer,
    nic_rule,
    state_file,
    device_file,
)


def one(data: bytes) -> None:
    """The first byte says which reader; the rest is for it."""
    if data:
        with contextlib.suppress(ConfigError, BrokerError, argparse.ArgumentTypeError):
            READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    for name in sys.argv[1:]:
        one(Path(name).read_bytes())
