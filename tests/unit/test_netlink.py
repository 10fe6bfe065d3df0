"""Netlink messages as bytes: what is asked, and what is cut or refused."""

from __future__ import annotations

import errno
import os
import socket
import struct
import subprocess
import sys

import pytest

from afxdp_pool import netlink


def test_attributes_go_in_as_they_come_out() -> None:
    nest = netlink.attribute(0x8000 | 5, netlink.attribute(1, 7) + netlink.attribute(2, b"abc"))
    data = netlink.attribute(3, b"eth1\0") + nest
    assert len(data) % 4 == 0
    found = netlink.attributes(data)
    assert found[3] == b"eth1\0"
    assert netlink.attributes(found[5]) == {1: b"\x07\0\0\0", 2: b"abc"}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"\x08\0\x04\0\x01\0\0\0\x02\0", {4: b"\x01\0\0\0"}),
        (b"\0\0\x04\0", {}),
        (b"\x09\0\x04\0\x01\0\0\0", {}),
        (b"", {}),
    ],
)
def test_attributes_of_a_message_that_is_cut(data: bytes, found: dict[int, bytes]) -> None:
    assert netlink.attributes(data) == found


def test_numbers_of_any_width() -> None:
    assert [netlink.number(struct.pack(f"={kind}", 200)) for kind in "BHIQ"] == [200] * 4
    assert (netlink.number(None), netlink.number(None, 3)) == (0, 3)


def test_what_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        netlink.family("no such family")
    assert netlink.family("nlctrl") == 16


def test_an_answer_without_content_is_none() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(bytes(17))
        with pytest.raises(OSError, match=os.strerror(errno.EBADMSG)):
            netlink.ask_on(ours, 18, b"")


def test_the_engine_starts_without_pyroute2() -> None:
    """Its import takes longer than all else of a start."""
    code = (
        "import sys, afxdp_pool as ap; ap.forward; ap.Watch; ap.clean; from afxdp_pool.netdev import find, xsk_queues\n"
    )
    code += "find('lo'); xsk_queues(); sys.exit('pyroute2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
