"""What a link needs so that AF_PACKET is all that handles its packets; see benchmarks/native/tap.h.

Two BPF programs of two instructions, attached by links that end with this process, however it ends.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys

PROG_SCHED_CLS, PROG_XDP = 3, 6  # enum bpf_prog_type
ATTACH_XDP, ATTACH_TCX_INGRESS = 37, 46  # enum bpf_attach_type; tcx from Linux 6.6
XDP_PASS, TC_ACT_SHOT = 2, 2


def tap_link(interface: str) -> None:
    """Let packets that XDP redirects into a veth arrive, and keep all packets from the host's stack behind the tap.

    Raises:
        OSError: the kernel refused the XDP program. Without tcx it goes on, and says so.
    """
    _attach(interface, PROG_XDP, ATTACH_XDP, XDP_PASS)
    try:
        _attach(interface, PROG_SCHED_CLS, ATTACH_TCX_INGRESS, TC_ACT_SHOT)
    except OSError as error:
        print(f"{interface}: the host's stack sees every packet, too (no tcx: {error})", file=sys.stderr)


def _attach(interface: str, kind: int, where: int, verdict: int) -> None:
    """A program that returns `verdict`; its link's descriptor stays open until the process ends."""
    libbpf = ctypes.CDLL("libbpf.so.1", use_errno=True)
    returns = struct.pack("=BBhiBBhi", 0xB7, 0, 0, verdict, 0x95, 0, 0, 0)  # r0 = verdict; exit
    program = libbpf.bpf_prog_load(kind, b"tap", b"Dual BSD/GPL", returns, ctypes.c_size_t(2), None)
    link = program if program < 0 else libbpf.bpf_link_create(program, socket.if_nametoindex(interface), where, None)
    if link < 0:
        raise OSError(-link, os.strerror(-link), interface)
