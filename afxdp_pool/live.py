"""`LiveTransmit`: a port's second way out, for netdevs where a socket has to copy: see docs/live-transmit.md.

It owns the XDP program that copies frames out of the Umem (bpf/live_transmit.bpf.c), the two tracing programs that
count what became of them, and the ring that the port stages its packets in. The Umem must lie in a BPF array map
(`BpfMemory`), so that the program sees its frames. Invariant: frames = delivered + dropped, counted by the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from afxdp_pool import netdev as netdevs
from afxdp_pool._native import ffi, lib
from afxdp_pool.bpf import BpfObject, failure
from afxdp_pool.errors import AfXdpError, ModeUnsupportedError, PrivilegeError
from afxdp_pool.loaded import run
from afxdp_pool.memory import BpfMemory
from afxdp_pool.resident import Resident
from afxdp_pool.stats import LiveStats, live_stats

if TYPE_CHECKING:
    from afxdp_pool.umem import Umem

log = logging.getLogger("afxdp_pool")

#: Bytes a program can address in a map from a variable offset (BPF_MAX_VAR_OFF, include/linux/bpf_verifier.h).
LARGEST_UMEM = 1 << 29
#: Bytes of the longest packet that goes live; longer ones go by the socket.
LONGEST = int(lib.AFP_LIVE_LONGEST)
#: The same where the kernel is built with more fragments a packet (CONFIG_MAX_SKB_FRAGS up to 45).
LONGEST_WITH_MORE_FRAGMENTS = 2900
#: Bytes of an Ethernet header with a VLAN tag: what a device takes beyond its MTU (xdp_ok_fwd_dev(), net/core/dev.h).
BEYOND_MTU = 18
_TROUBLES = {
    lib.AFP_LIVE_SILENT: "the other end takes no redirected frames (a veth's peer needs an XDP program, or GRO on)",
    lib.AFP_LIVE_UNABLE: "the device refuses redirected frames",
    lib.AFP_LIVE_FAILED: "the kernel refused to run the program",
    lib.AFP_LIVE_POOLED: "frames stay in the receiver's queues, and their memory with the kernel, beyond the run",
}


@dataclass(frozen=True)
class Refused:
    """Why a port cannot transmit live. `chosen`: by what the user asked for, so there is nothing to warn about."""

    reason: str
    chosen: bool = False


def unfit(umem: Umem) -> Refused | None:
    """What speaks against live transmit before anything is tried; None: nothing.

    Whether a device takes redirected frames is not asked: many say so only while an XDP program is on them, or, a veth,
    on their peer. A run tells, and loses nothing.
    """
    memory = umem.memory
    if not isinstance(memory, BpfMemory):
        return Refused("the Umem's memory is no BPF array map; make it with memory=BpfMemory(bytes)", chosen=True)
    if umem.config.unaligned:
        return Refused("frames are no power of two", chosen=True)
    if len(umem.data) > LARGEST_UMEM:
        return Refused(f"the Umem is larger than the {LARGEST_UMEM >> 20} MB a BPF program can reach", chosen=True)
    if not os.path.exists("/sys/kernel/btf/vmlinux"):
        return Refused("this kernel has no BTF (CONFIG_DEBUG_INFO_BTF), so the frames could not be counted")
    return None


class LiveTransmit:
    """Sends packets staged in its ring out of network device `netdev`, when the port's thread says so.

    Args:
        umem: with memory of a BPF array map.
        netdev: where the packets leave.
        only: let every packet that fits go live, not only batches large enough to pay for a run.

    Raises:
        ModeUnsupportedError: the kernel cannot (live frames need Linux 5.18).
        PrivilegeError: CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN and CAP_SYS_ADMIN are needed.

    Concurrency: the port's thread, one at a time. `stats`: any.
    """

    def __init__(self, umem: Umem, netdev: netdevs.Netdev, netns: str | None, *, only: bool = False) -> None:
        assert isinstance(umem.memory, BpfMemory)
        self.name = f"{netdev.name} in namespace {netns}" if netns else netdev.name
        self._undo = contextlib.ExitStack()
        self._last: LiveStats | None = None
        try:
            self._load(umem, umem.memory, netdev, netns)
        except BaseException as error:
            self._undo.close()
            if isinstance(error, AfXdpError) and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOENT):
                if not _may_trace():  # the verifier says of a helper only that this program cannot use it
                    raise PrivilegeError(
                        subject=self.name,
                        doing="loading the program for live transmit",
                        errno=errno.EPERM,
                        hint="run as root, or grant CAP_PERFMON",
                    ) from error
                raise ModeUnsupportedError(
                    "this kernel has no live-frame transmit", subject=self.name, errno=error.errno, hint=str(error)
                ) from error
            raise
        self.native = ffi.new("struct afp_live *")
        least = 1 if only else lib.AFP_LIVE_LEAST
        lib.afp_live_init(self.native, self._ring, self._object.program("live_transmit"), least)
        self.native.longest = self._longest

    def _load(self, umem: Umem, memory: BpfMemory, netdev: netdevs.Netdev, netns: str | None) -> None:
        self._object = self._undo.enter_context(BpfObject("live_transmit"))
        self._object.reuse("live_umem", memory.map)
        struct.pack_into("=Q", self._object.section(".rodata"), 0, len(umem.data))
        self._object.load()
        with netdevs.in_netns(netns):
            self._object.map("live_device").update(0, netdev.index)
        # Looking first: no frame leaves uncounted.
        for name in ("live_xmit", "live_pool"):
            fd = int(lib.bpf_raw_tracepoint_open(ffi.NULL, self._object.program(name)))
            if fd < 0:
                raise failure(fd, subject=f"tracing program {name}", doing="attaching it")
            self._undo.callback(os.close, fd)
        self._undo.callback(Resident(self._object.program("live_transmit")).close)
        mapping = self._object.map("live_ring").mmap()
        self._undo.callback(_unmap, mapping)
        # Packets that the device is not given, it would not count either.
        self._longest = min(_longest(self._object.program("live_transmit")), netdev.mtu + BEYOND_MTU)
        self._ring = ffi.cast("struct afp_live_ring *", ffi.from_buffer(mapping))
        self._mapping = mapping

    def stats(self) -> LiveStats:
        """What went live, and what became of it. Concurrency: any thread."""
        return self._last or live_stats(self.native)

    def close(self) -> None:
        """Unload the programs. The port that uses it must have ended. Idempotent."""
        if self._last is None:
            self._last = live_stats(self.native)
        self._undo.close()


def describe(native: Any) -> str:
    """The last trouble of a C live transmitter, as a sentence; empty for none."""
    text = _TROUBLES.get(native.trouble, "")
    return f"{text} ({os.strerror(native.error)})" if text and native.error else text


def _may_trace() -> bool:
    """Whether this thread has CAP_PERFMON, or CAP_SYS_ADMIN, which stands in for it."""
    with open("/proc/thread-self/status") as status:
        effective = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return bool(effective & (1 << 38 | 1 << 21))


def _longest(program: int) -> int:
    """Bytes of the longest packet that a run takes, found by runs with nothing to send.

    Raises:
        AfXdpError: a run is not possible.
    """
    for longest in (LONGEST, LONGEST_WITH_MORE_FRAGMENTS):
        try:
            run(program, bytes(longest), live=True)
        except AfXdpError as error:
            if error.errno != errno.EINVAL or longest != LONGEST:
                raise
        else:
            break
    return longest


def _unmap(mapping: mmap.mmap) -> None:
    with contextlib.suppress(BufferError):  # cffi's view of it goes with the last reference
        mapping.close()
