"""The doctor's look at the machine: kernel, privileges, memory, libraries."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
from pathlib import Path

from afxdp_pool import PortConfig
from afxdp_pool.cli.defects import known
from afxdp_pool.cli.finding import Finding
from afxdp_pool.hook import find_dispatcher
from afxdp_pool.info import library_version

_AF_XDP = getattr(socket, "AF_XDP", 44)
#: BPF links for XDP, which take the program off when its process ends.
_OLDEST = (5, 9)
_CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "IPC_LOCK": 14, "SYS_ADMIN": 21, "BPF": 39}


def examine() -> list[Finding]:
    """All findings, in the order in which to mend them."""
    held = capabilities(Path("/proc/self/status").read_text())
    return [
        _kernel(os.uname().release),
        _af_xdp(),
        *known(os.uname().release),
        _privileges(held),
        _locked_memory(held),
        _huge_pages(Path("/proc/meminfo").read_text()),
        _jit(),
        *_libraries(Path("/proc/self/maps").read_text()),
        _dispatcher(),
        _live(held),
    ]


def version(release: str) -> tuple[int, ...]:
    """``"6.17.3-1-amd64"`` as (6, 17, 3)."""
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", release)
    return tuple(int(part or 0) for part in match.groups()) if match else ()


def capabilities(status: str) -> set[str]:
    """The effective ones of those that matter here, from the text of /proc/self/status."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    return {name for name, bit in _CAPABILITIES.items() if effective >> bit & 1}


def _kernel(release: str) -> Finding:
    if version(release)[:2] < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        return Finding("kernel", "missing", f"{release}: no BPF links for XDP", f"run Linux {oldest} or later")
    return Finding("kernel", "ok", release)


def _af_xdp() -> Finding:
    try:
        socket.socket(_AF_XDP, socket.SOCK_RAW).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            fix = "use a kernel built with CONFIG_XDP_SOCKETS=y"
            return Finding("AF_XDP sockets", "missing", "the kernel is built without them", fix)
        if error.errno in (errno.EPERM, errno.EACCES):
            return Finding("AF_XDP sockets", "ok", "the kernel has them (and asks for CAP_NET_RAW)")
        return Finding("AF_XDP sockets", "missing", str(error.strerror), "see whether a sandbox forbids them")
    return Finding("AF_XDP sockets", "ok", "can be made")


def _privileges(held: set[str]) -> Finding:
    needed = {"NET_RAW", "NET_ADMIN"} | (set() if "SYS_ADMIN" in held else {"BPF"})
    lacking = sorted(needed - held)
    if lacking:
        names = ", ".join(f"CAP_{name}" for name in lacking)
        return Finding("privileges", "missing", f"{names} not held", "run it with sudo, or as root")
    if "SYS_ADMIN" not in held:
        return Finding("privileges", "warn", "CAP_SYS_ADMIN not held: --netns will not work", "run it with sudo")
    return Finding("privileges", "ok", "CAP_NET_RAW, CAP_NET_ADMIN, CAP_BPF or CAP_SYS_ADMIN held")


def _locked_memory(held: set[str]) -> Finding:
    if "IPC_LOCK" in held:
        return Finding("locked memory", "ok", "CAP_IPC_LOCK held: no limit")
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    needed = 4096 * (1 << (PortConfig().frames_needed - 1).bit_length())  # one receiving port's frames
    if limit in (resource.RLIM_INFINITY, -1) or limit >= 2 * needed:
        return Finding("locked memory", "ok", "the limit is high enough")
    text = f"limited to {limit >> 20} MB; one port takes {needed >> 20} MB by default"
    return Finding("locked memory", "missing" if limit < needed else "warn", text, "ulimit -l unlimited")


def _huge_pages(meminfo: str) -> Finding:
    match = re.search(r"^HugePages_Free:\s*(\d+)", meminfo, re.MULTILINE)
    size = re.search(r"^Hugepagesize:\s*(\d+)", meminfo, re.MULTILINE)
    if match is None or size is None or size[1] != "2048":
        return Finding("huge pages", "warn", "this kernel has none of 2 MB; only --huge-pages wants them")
    if int(match[1]) == 0:
        return Finding("huge pages", "warn", "none free; only --huge-pages wants them", "sysctl vm.nr_hugepages=32")
    return Finding("huge pages", "ok", f"{match[1]} of 2 MB free")


def _jit() -> Finding:
    path = Path("/proc/sys/net/core/bpf_jit_enable")
    try:
        on = path.read_text().strip() != "0"
    except OSError:
        return Finding("BPF compiler", "ok", "on, or not for us to see")
    if on:
        return Finding("BPF compiler", "ok", "on")
    return Finding("BPF compiler", "warn", "off: XDP programs are interpreted", "sysctl net.core.bpf_jit_enable=1")


def _libraries(maps: str) -> list[Finding]:
    """The versions of the libraries this process runs with, from the files it has mapped."""
    found = []
    for name in ("libxdp", "libbpf"):
        found.append(Finding(name, "ok", library_version(name, maps) or "linked in"))
    return found


def _live(held: set[str]) -> Finding:
    """Whether ports can send by live frames, where their sockets would have to copy."""
    what, alone = "live transmit", "so ports without zero-copy send by their sockets, a socket buffer a packet"
    if version(os.uname().release)[:2] < (5, 18):
        return Finding(what, "warn", f"needs Linux 5.18, {alone}")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return Finding(
            what, "warn", f"the kernel has no BTF, {alone}", "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        )
    if "SYS_ADMIN" not in held:
        return Finding(what, "warn", f"CAP_SYS_ADMIN not held, {alone}", "run it with sudo")
    return Finding(what, "ok", "possible (--transmit auto)")


def _dispatcher() -> Finding:
    """Whether libxdp can put several programs on one hook: wants freplace, a bpffs and its dispatcher's object."""
    what, alone = "shared XDP hook", "so this program must have an interface's XDP hook for itself"
    if version(os.uname().release)[:2] < (5, 10):
        return Finding(what, "warn", f"needs Linux 5.10, {alone}")
    if not Path("/sys/kernel/btf/vmlinux").exists():
        fix = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        return Finding(what, "warn", f"the kernel has no BTF, {alone}", fix)
    if find_dispatcher() is None:
        fix = "apt install libxdp1 (Debian, Ubuntu), dnf install libxdp (Fedora)"
        return Finding(what, "warn", f"xdp-dispatcher.o is not installed, {alone}", fix)
    if not re.search(r" - bpf ", Path("/proc/self/mountinfo").read_text()):
        return Finding(what, "warn", f"no bpffs is mounted, {alone}", "mount -t bpf bpf /sys/fs/bpf")
    return Finding(what, "ok", "possible through libxdp's dispatcher (--attach libxdp)")
