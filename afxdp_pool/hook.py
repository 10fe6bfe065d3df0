"""The XDP hook of a network device: who is on it, and how one gets on and off.

A device has one hook. On it is nothing, one program (attached over netlink, where it stays until somebody
takes it off, or by a BPF link, where it goes with the last descriptor of the link), or libxdp's dispatcher,
a program that calls several others. `look` says which, and whether a program is ours: ours carry an `Owner`
record among their read-only data, readable through the kernel by anybody with the privilege to attach.

All calls act in the network namespace the thread is in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afxdp_pool._native import ffi, lib
from afxdp_pool.bpf import BpfMap, BpfObject, failure, library_log
from afxdp_pool.errors import AfXdpError, PrivilegeError
from afxdp_pool.loaded import program_by_id, program_info

_OWNER = struct.Struct("=QQII")
_MAGIC = int.from_bytes(b"afxdpool", "little")
_FLAGS = {
    "native": lib.XDP_FLAGS_DRV_MODE,
    "generic": lib.XDP_FLAGS_SKB_MODE,
    "hardware": lib.XDP_FLAGS_HW_MODE,
}
_DISPATCHER = "xdp-dispatcher.o"
_BUNDLED = Path(__file__).resolve().parents[1] / "afxdp_pool.libs"  # where a wheel has libraries of its own
_LIBXDP_MODES = {"native": lib.XDP_MODE_NATIVE, "generic": lib.XDP_MODE_SKB, "hardware": lib.XDP_MODE_HW}


@dataclass(frozen=True)
class Owner:
    """The process that attached a program of ours: pid alone would be mistaken for a later process."""

    pid: int
    start_time: int
    pid_namespace: int

    @classmethod
    def current(cls) -> Owner:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Owner:
        """A process of this pid namespace. Process 1 runs as long as the machine, or the container."""
        return cls(pid, _start_time(pid) or 0, os.stat("/proc/self/ns/pid").st_ino)

    @property
    def alive(self) -> bool:
        """Whether that process still runs; taken for alive when it is in a pid namespace out of sight."""
        if self.pid_namespace != os.stat("/proc/self/ns/pid").st_ino:
            return True
        return _start_time(self.pid) == self.start_time

    def pack(self) -> bytes:
        """The record as bpf/redirect.h has it."""
        return _OWNER.pack(_MAGIC, self.start_time, self.pid, self.pid_namespace)

    @classmethod
    def unpack(cls, data: bytes | None) -> Owner | None:
        """The record at the start of `data`, or None when that is something else."""
        if data is None or len(data) < _OWNER.size:
            return None
        magic, start_time, pid, pid_namespace = _OWNER.unpack_from(data)
        return cls(pid, start_time, pid_namespace) if magic == _MAGIC else None


@dataclass(frozen=True)
class Attached:
    """One program on a hook; `owner` is None when it is not ours."""

    id: int
    name: str
    owner: Owner | None

    def __str__(self) -> str:
        return f"{self.name or 'unnamed'} (program {self.id})"


@dataclass(frozen=True)
class Hook:
    """What is on a device's XDP hook.

    Attributes:
        mode: ``"native"``, ``"generic"`` or ``"hardware"``; empty when nothing is attached.
        program: the program the kernel runs, None when nothing is attached.
        parts: the programs it calls, when it is libxdp's dispatcher.
        link_id: the BPF link that holds it, None when it was attached over netlink or cannot be told.
    """

    ifindex: int
    mode: str
    program: Attached | None
    parts: tuple[Attached, ...] = ()
    link_id: int | None = None


def dispatcher_places() -> list[Path]:
    """Where libxdp may find the object of its dispatcher: LIBXDP_OBJECT_PATH, if it is set, and nowhere else."""
    if "LIBXDP_OBJECT_PATH" in os.environ:
        return [Path(os.environ["LIBXDP_OBJECT_PATH"])]
    libraries = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64")
    return [Path(base, *part, "bpf") for base in libraries for part in ((), (f"{os.uname().machine}-linux-gnu",))]


def find_dispatcher() -> Path | None:
    """The object of libxdp's dispatcher, None where there is none.

    A libxdp inside a wheel looks only where the system it was built on has it; here it is told where this one does.
    """
    found = next((place for place in dispatcher_places() if (place / _DISPATCHER).exists()), None)
    if found and _BUNDLED.is_dir():
        os.environ.setdefault("LIBXDP_OBJECT_PATH", str(found))
    return found and found / _DISPATCHER


def look(ifindex: int) -> Hook:
    """Look who is on the hook of device `ifindex`."""
    seen = ffi.new("struct afp_hook *")
    lib.afp_bpf_log_start()
    failed = lib.afp_xdp_query(ifindex, seen)
    if failed == -errno.ENODEV:
        return Hook(ifindex, "", None)  # a device that is gone; libbpf before 1.2 says nothing of it
    if failed < 0:
        raise failure(failed, subject=f"interface {ifindex}", doing="asking for its XDP program")
    for mode, program_id in (
        ("native", seen.native_id),
        ("generic", seen.generic_id),
        ("hardware", seen.hardware_id),
    ):
        if program_id:
            program = _identify(program_id)
            parts = _dispatched(ifindex) if program.name == "xdp_dispatcher" else ()
            return Hook(ifindex, mode, program, parts, _link_of(program_id))
    return Hook(ifindex, "", None)


def attach_link(program_fd: int, ifindex: int, mode: str) -> int:
    """Attach by a BPF link; it lasts as long as the descriptor returned.

    Raises:
        AfXdpError: with the kernel's errno; EBUSY or EEXIST when the hook is taken.
    """
    fd = int(lib.afp_xdp_link(program_fd, ifindex, _FLAGS[mode]))
    if fd < 0:
        # A refused link says no more than a number; netlink brings the driver's sentence.
        hint = ""
        if fd not in (-errno.EBUSY, -errno.EEXIST):
            flags = _FLAGS[mode] | lib.XDP_FLAGS_UPDATE_IF_NOEXIST
            lib.afp_bpf_log_start()
            if lib.afp_xdp_attach(ifindex, program_fd, flags, -1) == 0:
                lib.afp_xdp_attach(ifindex, -1, _FLAGS[mode], program_fd)
            hint = _kernel_said()
        raise failure(fd, subject=f"interface {ifindex}", doing=f"attaching in {mode} mode", hint=hint)
    return fd


class LibxdpAttachment:
    """A program attached through libxdp: joins the dispatcher where there is one, and outlives the process.

    Loads `program_object`, which must not be loaded yet: in a dispatcher it becomes another kind of program.
    """

    def __init__(self, program_object: BpfObject, ifindex: int, mode: str) -> None:
        self.ifindex, self.mode = ifindex, mode
        subject = f"interface {ifindex}"
        dispatcher = find_dispatcher()
        lib.afp_bpf_log_start()
        self._program: Any = lib.xdp_program__from_bpf_obj(program_object.handle, b"xdp")
        if (failed := lib.libxdp_get_error(self._program)) != 0:
            raise failure(failed, subject=subject, doing="preparing the program for libxdp", quote=True)
        failed = lib.xdp_program__attach(self._program, ifindex, _LIBXDP_MODES[mode], 0)
        if failed < 0:
            hint = _kernel_said()
            if dispatcher is None and not hint:
                hint = f"{_DISPATCHER} is not installed: apt install libxdp1, dnf install libxdp; or attach by a link"
            self.close()
            raise failure(
                failed,
                subject=subject,
                doing=f"attaching in {mode} mode through libxdp",
                hint=hint,
                quote=not hint,
            )

    def detach(self) -> None:
        """Take the program off; no error when it is off already."""
        program_id = lib.xdp_program__id(self._program)
        hook = look(self.ifindex)
        if hook.program and hook.program.id == program_id:
            # Not through libxdp, which before 1.5 keeps a descriptor, and with it the program, at each detach.
            remove(hook)
        elif program_id in [part.id for part in hook.parts]:
            _leave_dispatcher(self._program, hook, f"program {program_id}")

    def close(self) -> None:
        """Give back the handle; the program stays where it is. Idempotent."""
        if self._program:
            lib.xdp_program__close(self._program)
            self._program = None


def remove(hook: Hook) -> None:
    """Take everything off the hook, if it still is what `hook` says."""
    assert hook.program is not None
    subject = f"interface {hook.ifindex}"
    doing = f"removing {hook.program}"
    lib.afp_bpf_log_start()
    if hook.link_id is not None:
        with _descriptor(lib.bpf_link_get_fd_by_id(hook.link_id)) as link:
            failed = lib.bpf_link_detach(link) if link >= 0 else link
    elif hook.parts:
        several = lib.xdp_multiprog__get_from_ifindex(hook.ifindex)
        failed = lib.libxdp_get_error(several)
        if failed == 0:
            failed = lib.xdp_multiprog__detach(several)
            lib.xdp_multiprog__close(several)
    else:
        with _descriptor(lib.bpf_prog_get_fd_by_id(hook.program.id)) as program:
            failed = program
            if program >= 0:
                failed = lib.afp_xdp_attach(hook.ifindex, -1, _FLAGS[hook.mode], program)
    if failed < 0:
        now = look(hook.ifindex).program
        if now and now.id == hook.program.id:
            raise failure(failed, subject=subject, doing=doing)


def remove_part(hook: Hook, part: Attached) -> None:
    """Take one program out of libxdp's dispatcher; the others stay."""
    lib.afp_bpf_log_start()
    with _descriptor(lib.bpf_prog_get_fd_by_id(part.id)) as fd:
        program = lib.xdp_program__from_fd(fd) if fd >= 0 else ffi.NULL
        if program and lib.libxdp_get_error(program) == 0:
            try:
                _leave_dispatcher(program, hook, str(part))
            finally:
                lib.xdp_program__close(program)


def _leave_dispatcher(program: Any, hook: Hook, what: str) -> None:
    find_dispatcher()  # the programs that stay get a new one
    lib.afp_bpf_log_start()
    failed = lib.xdp_program__detach(program, hook.ifindex, lib.XDP_MODE_UNSPEC, 0)
    if failed < 0 and failed != -errno.ENOENT:
        raise failure(
            failed, subject=f"interface {hook.ifindex}", doing=f"taking {what} off the dispatcher", quote=True
        )


def link_holders(link_id: int) -> list[int]:
    """The processes that hold a BPF link open, as far as /proc shows them."""
    wanted = f"link_id:\t{link_id}\n"
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if any(wanted in info.read_text() for info in (process / "fdinfo").iterdir()):
                holders.append(int(process.name))
    return sorted(holders)


def stale_pins(hook: Hook) -> list[tuple[Path, list[Attached]]]:
    """Directories libxdp pinned for a dispatcher on this device number that is not on the hook now.

    Device numbers repeat from one network namespace to the next while the pins are shared, so a directory may
    belong to another device: only the owners of the programs in it tell whether it is left behind.
    """
    base = Path(os.environ.get("LIBXDP_BPFFS", "/sys/fs/bpf")) / "xdp"
    current = hook.program.id if hook.program else 0
    found = []
    for directory in sorted(base.glob(f"dispatch-{hook.ifindex}-*")):
        if directory.name == f"dispatch-{hook.ifindex}-{current}":
            continue
        inside = []
        for pin in sorted(directory.glob("prog*-prog")):
            with _descriptor(lib.bpf_obj_get(str(pin).encode())) as fd:
                if fd >= 0:
                    inside.append(_identify(program_info(fd).id))
        found.append((directory, inside))
    return found


def _identify(program_id: int) -> Attached:
    try:
        info = program_by_id(program_id)
    except PrivilegeError:
        info = None
    if info is None:
        return Attached(program_id, "", None)
    owner = None
    for map_id in info.map_ids:
        with contextlib.suppress(AfXdpError), contextlib.closing(BpfMap.from_id(map_id)) as data:
            if data.name.endswith(".rodata") and not data.per_cpu:
                owner = owner or Owner.unpack(data.lookup(0))
    return Attached(info.id, info.name, owner)


def _dispatched(ifindex: int) -> tuple[Attached, ...]:
    several = lib.xdp_multiprog__get_from_ifindex(ifindex)
    if lib.libxdp_get_error(several) != 0:
        return ()
    try:
        ids = []
        program = lib.xdp_multiprog__next_prog(ffi.NULL, several)
        while program:
            ids.append(lib.xdp_program__id(program))
            program = lib.xdp_multiprog__next_prog(program, several)
    finally:
        lib.xdp_multiprog__close(several)
    return tuple(_identify(program_id) for program_id in ids)


def _link_of(program_id: int) -> int | None:
    link_id = ffi.new("uint32_t *")
    info = ffi.new("struct afp_link_info *")
    while lib.bpf_link_get_next_id(link_id[0], link_id) == 0:
        with _descriptor(lib.bpf_link_get_fd_by_id(link_id[0])) as fd:
            known = fd >= 0 and lib.afp_link_info(fd, info) == 0
            if known and info.type == lib.BPF_LINK_TYPE_XDP and info.prog_id == program_id:
                return int(link_id[0])
    return None


@contextlib.contextmanager
def _descriptor(fd: int) -> Iterator[int]:
    """A descriptor for the length of a block; a negative number passes through."""
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def _kernel_said() -> str:
    said = [line for line in library_log().splitlines() if "Kernel error message:" in line]
    return said[-1].split("Kernel error message:", 1)[1].strip() if said else ""


def _start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when it does not run (any more)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])
