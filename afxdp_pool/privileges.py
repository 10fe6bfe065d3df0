"""What this process may do beyond an ordinary user, given up for good: capabilities, and the user it runs as.

It owns nothing. Invariant: when `limit` or `become` returns, no thread of the process has a capability beyond those
named, and no program it starts can get one (PR_SET_NO_NEW_PRIVS); when one of them raises, do not go on.

Source: capabilities(7), prctl(2). A thread has capabilities of its own, and capset(2) changes the calling one's alone;
setresuid(2) of the C library changes all threads, and a thread that leaves user 0 loses its own (unless it keeps them).
"""

from __future__ import annotations

import ctypes
import os
import pwd
import re
from collections.abc import Iterable
from pathlib import Path

from afxdp_pool.allowing import user
from afxdp_pool.errors import ConfigError, PrivilegeError

#: Those that AF_XDP has to do with; include/uapi/linux/capability.h.
CAPABILITIES = {
    "CAP_NET_ADMIN": 12,
    "CAP_NET_RAW": 13,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}
_ALL = range(64)
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two words of 32 bits for each set
_libc = ctypes.CDLL(None, use_errno=True)


def held(pid: int | str = "self", thread: int | None = None) -> frozenset[int]:
    """The effective capabilities of a process's main thread, or of another thread, as numbers."""
    where = Path("/proc", str(pid), *(["task", str(thread)] if thread else []), "status")
    found = re.search(r"^CapEff:\s*(\w+)$", where.read_text(), re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return frozenset(number for number in _ALL if mask >> number & 1)


def unprivileged_maps() -> bool:
    """Whether a process without CAP_BPF may use the BPF maps it has descriptors of (Linux >= 5.19, or by sysctl)."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release and (int(release[1]), int(release[2])) >= (5, 19):
        return True
    setting = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    return setting.exists() and setting.read_text().strip() == "0"


def limit(keep: Iterable[str] = ()) -> None:
    """Give up every capability but those named, of those this process has.

    Raises:
        PrivilegeError: another thread has more. numpy's BLAS starts threads when it is imported;
            ``OPENBLAS_NUM_THREADS=1`` in the environment keeps it from that.

    Concurrency: from the main thread, before others are started.
    """
    wanted = {CAPABILITIES[name] for name in keep}
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in _ALL:
        if number not in wanted:
            # Only a second fence, after no_new_privs; it needs CAP_SETPCAP, and numbers the kernel has not are refused.
            _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    left = sum(1 << number for number in wanted & _permitted())
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    words = (left & 0xFFFFFFFF, left >> 32)
    sets = (ctypes.c_uint32 * 6)(words[0], words[0], 0, words[1], words[1], 0)  # effective, permitted, inheritable
    if _libc.capset(header, sets):
        raise PrivilegeError(doing="giving up capabilities", errno=ctypes.get_errno())
    for thread in os.listdir("/proc/self/task"):
        if more := held(thread=int(thread)) - wanted:
            raise PrivilegeError(
                f"thread {thread} of this process keeps capabilities {sorted(more)}",
                hint="start it with OPENBLAS_NUM_THREADS=1, and drop privileges before other threads are started",
            )


def become(name: str, keep: Iterable[str] = ()) -> None:
    """Run as another user, with its groups, and with no capability but those named.

    Args:
        name: of the user, or its number.

    Raises:
        ConfigError: there is no such user, or it is root.
        PrivilegeError: this process may not change its user (CAP_SETUID, CAP_SETGID); or see `limit`.

    Concurrency: as `limit`; all threads change their user.
    """
    number = user(name)
    if number == 0:
        raise ConfigError("root is no user without privileges", hint="name another")
    try:
        entry = pwd.getpwuid(number)
        groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
        gid = entry.pw_gid
    except KeyError:  # a number nobody has a name for, as in containers
        groups, gid = [], number
    keep = tuple(keep)
    try:
        _prctl(_PR_SET_KEEPCAPS, int(bool(keep)))
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(number, number, number)
    except OSError as error:
        raise PrivilegeError(
            subject=f"user {name}",
            doing="becoming it",
            errno=error.errno or 0,
            hint="it needs CAP_SETUID and CAP_SETGID",
        ) from None
    limit(keep)


def _permitted() -> set[int]:
    found = re.search(r"^CapPrm:\s*(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    mask = int(found[1], 16) if found else 0
    return {number for number in _ALL if mask >> number & 1}


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise PrivilegeError(doing=f"prctl {option}", errno=ctypes.get_errno())
