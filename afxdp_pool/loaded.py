"""BPF programs in the kernel, whoever loaded them: what one is (`ProgramInfo`), and what it does with a frame (`run`).

Nothing is owned here: a program is named by a descriptor that is the caller's, or by its number. Invariant: looking at
a program, and running it on a frame, changes nothing of it but its counters and maps.

Concurrency: any thread.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from afxdp_pool._native import ffi, lib
from afxdp_pool.bpf import failure, text


@dataclass(frozen=True)
class ProgramInfo:
    """What the kernel tells about a loaded program of anybody's.

    `load_time_ns` is CLOCK_BOOTTIME, `tag` a hash of its instructions. `run_time_ns` and `run_cnt` count only while
    the sysctl kernel.bpf_stats_enabled is set.
    """

    id: int
    name: str
    type: int
    load_time_ns: int
    map_ids: tuple[int, ...]
    tag: str
    run_time_ns: int
    run_cnt: int


def program_info(fd: int) -> ProgramInfo:
    """The kernel's description of the program behind `fd`."""
    info = ffi.new("struct afp_prog_info *")
    lib.afp_bpf_log_start()
    if (failed := lib.afp_prog_info(fd, info)) < 0:
        raise failure(failed, subject=f"program descriptor {fd}", doing="reading its description")
    ids = tuple(info.map_ids[i] for i in range(min(info.map_count, len(info.map_ids))))
    tag = bytes(info.tag).hex()
    return ProgramInfo(info.id, text(info.name), info.type, info.load_time_ns, ids, tag, info.run_time_ns, info.run_cnt)


def program_by_id(program_id: int) -> ProgramInfo | None:
    """The kernel's description of program `program_id`, or None when there is none (any more)."""
    lib.afp_bpf_log_start()
    fd = lib.bpf_prog_get_fd_by_id(program_id)
    if fd == -errno.ENOENT:
        return None
    if fd < 0:
        raise failure(fd, subject=f"BPF program {program_id}", doing="opening it")
    try:
        return program_info(fd)
    finally:
        os.close(fd)


@dataclass(frozen=True)
class RunResult:
    """What one BPF_PROG_RUN gave: the program's last return value and, if asked for, the frame after it."""

    retval: int
    duration_ns: int
    data: bytes


def run(
    program_fd: int,
    frame: bytes,
    *,
    repeat: int = 1,
    ifindex: int = 0,
    queue: int = 0,
    live: bool = False,
    batch: int = 0,
    room: int = 0,
) -> RunResult:
    """Run an XDP program on `frame` (bytes from the Ethernet header on) with BPF_PROG_RUN.

    Args:
        repeat: how many times. The call returns when all are done, or the thread gets a signal.
        ifindex: the interface the frame pretends to come from, in this thread's namespace; 0 = loopback.
        queue: the receive queue it pretends to come from.
        live: the verdict is carried out: REDIRECT and TX send, PASS goes up the stack (Linux 5.18).
        batch: frames per batch in live mode; 0 = the kernel's 64, at most 256.
        room: bytes of the frame to bring back in `RunResult.data`; 0 with `live`.

    The interpreter lock is released meanwhile. Source: Documentation/bpf/bpf_prog_run.rst.
    """
    request = ffi.new("struct afp_run *")
    request.repeat, request.batch, request.ifindex, request.queue = repeat, batch, ifindex, queue
    request.flags = lib.BPF_F_TEST_XDP_LIVE_FRAMES if live else 0
    out = ffi.new("char[]", room) if room else ffi.NULL
    request.out_size = room
    failed = lib.afp_prog_run(program_fd, frame, len(frame), out, request)
    if failed < 0:
        raise failure(failed, subject=f"program descriptor {program_fd}", doing="running it")
    data = bytes(ffi.buffer(out, min(room, request.out_size))) if room else b""
    return RunResult(request.retval, request.duration_ns, data)
