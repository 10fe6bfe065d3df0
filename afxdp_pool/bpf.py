"""A thin layer over libbpf: objects loaded from the package, their programs and maps.

A `BpfObject` owns everything loaded from one compiled file: closing it closes its programs and maps, and
what the kernel does not hold elsewhere (an attachment, a pin) goes away. A `BpfMap` made from an object
borrows the object's descriptor; one made by `BpfMap.from_id` owns its own. No call here knows what the
programs are for.

libbpf and libxdp print nothing; what they would have printed about a failing load is in the error's text.

Concurrency: any thread, except that an object is opened, loaded and closed by one thread.
"""

from __future__ import annotations

import errno as _errno
import mmap
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from afxdp_pool._native import ffi, lib
from afxdp_pool.errors import AfXdpError, PrivilegeError, ProgramLoadError

_PRIVILEGES = "run as root, or grant CAP_NET_ADMIN and CAP_BPF"

BPF_F_MMAPABLE = 1 << 10  # include/uapi/linux/bpf.h


def failure(
    code: int,
    *,
    subject: str,
    doing: str,
    kind: type[AfXdpError] = AfXdpError,
    hint: str = "",
    quote: bool = False,
) -> AfXdpError:
    """The error for a negative return of libbpf or libxdp; `quote` adds the last lines of its log."""
    number = abs(code)
    said = library_log() if quote else ""
    if number in (_errno.EPERM, _errno.EACCES) and "PROG LOAD LOG" not in said:
        kind, hint = PrivilegeError, hint or _PRIVILEGES
    if said:
        hint = f"{hint + chr(10) if hint else ''}libbpf's last lines:\n{said}"
    return kind(subject=subject, doing=doing, errno=number, hint=hint)


def library_log() -> str:
    """What libbpf and libxdp wanted to print in this thread since the last call that starts afresh."""
    return str(ffi.string(lib.afp_bpf_log()).decode(errors="replace").strip())


def text(raw: Any) -> str:
    """A name as the kernel has it: an array of characters."""
    return str(ffi.string(raw).decode(errors="replace"))


class BpfMap:
    """One BPF map. Keys are bytes, or an int for the usual 4-byte key; values are bytes of `value_size`."""

    def __init__(self, fd: int, *, owns: bool = False) -> None:
        info = ffi.new("struct afp_map_info *")
        lib.afp_bpf_log_start()
        if (failed := lib.afp_map_info(fd, info)) < 0:
            raise failure(failed, subject=f"map descriptor {fd}", doing="reading the map's description")
        self.fd = fd
        self.id = int(info.id)
        self.name = text(info.name)
        self.key_size = int(info.key_size)
        self.value_size = int(info.value_size)
        self.max_entries = int(info.max_entries)
        self.flags = int(info.flags)
        self.kind = int(info.type)
        self._owns = owns

    @classmethod
    def array(cls, name: str, value_size: int, max_entries: int = 1, *, mappable: bool = False) -> BpfMap:
        """Make a new array map; a `mappable` one can be mapped with `mmap`. Ownership: close it."""
        lib.afp_bpf_log_start()
        flags = BPF_F_MMAPABLE if mappable else 0
        fd = lib.afp_map_create(lib.BPF_MAP_TYPE_ARRAY, name.encode(), 4, value_size, max_entries, flags)
        if fd < 0:
            raise failure(fd, subject=f"BPF map {name}", doing="making it", kind=ProgramLoadError)
        return cls(fd, owns=True)

    @classmethod
    def from_id(cls, map_id: int) -> BpfMap:
        """Open a map of anybody's by its kernel id. Ownership: close it."""
        lib.afp_bpf_log_start()
        fd = lib.bpf_map_get_fd_by_id(map_id)
        if fd < 0:
            raise failure(fd, subject=f"BPF map {map_id}", doing="opening the map")
        try:
            return cls(fd, owns=True)
        except AfXdpError:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close the descriptor if this object owns it. Idempotent."""
        if self._owns and self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    @property
    def per_cpu(self) -> bool:
        """Whether each key has one value a CPU."""
        return self.kind in (
            lib.BPF_MAP_TYPE_PERCPU_ARRAY,
            lib.BPF_MAP_TYPE_PERCPU_HASH,
            lib.BPF_MAP_TYPE_LRU_PERCPU_HASH,
        )

    def _key(self, key: bytes | int) -> bytes:
        raw = key.to_bytes(self.key_size, "little") if isinstance(key, int) else bytes(key)
        if len(raw) != self.key_size:
            raise ValueError(f"map {self.name} has keys of {self.key_size} bytes, not {len(raw)}")
        return raw

    def _subject(self, key: bytes) -> str:
        return f"BPF map {self.name} key {int.from_bytes(key, 'little') if len(key) <= 8 else key.hex()}"

    def lookup(self, key: bytes | int) -> bytes | None:
        """The value of `key`, or None when there is none. For a per-CPU map use `lookup_cpus`."""
        if self.per_cpu:
            raise TypeError(f"map {self.name} is per CPU: use lookup_cpus")
        raw = self._key(key)
        value = ffi.new("char[]", self.value_size)
        failed = lib.bpf_map_lookup_elem(self.fd, raw, value)
        if failed == -_errno.ENOENT:
            return None
        if failed < 0:
            raise failure(failed, subject=self._subject(raw), doing="reading the map")
        return bytes(ffi.buffer(value, self.value_size))

    def lookup_cpus(self, key: bytes | int, dtype: npt.DTypeLike = np.uint64) -> npt.NDArray[Any]:
        """The values of `key` on every possible CPU.

        Returns:
            Array of shape (cpus, value_size // itemsize) and of `dtype`.

        Raises:
            AfXdpError: the key does not exist.
        """
        raw = self._key(key)
        # The kernel pads each CPU's value to eight bytes.
        stride = (self.value_size + 7) // 8 * 8
        cells = np.zeros((lib.libbpf_num_possible_cpus(), stride), dtype=np.uint8)
        failed = lib.bpf_map_lookup_elem(self.fd, raw, ffi.from_buffer(cells))
        if failed < 0:
            raise failure(failed, subject=self._subject(raw), doing="reading the map")
        return np.ascontiguousarray(cells[:, : self.value_size]).view(dtype)

    def update(self, key: bytes | int, value: bytes | int, flags: int = 0) -> None:
        """Set `key` to `value`; a per-CPU map gets the same value on every CPU."""
        raw = self._key(key)
        data = value.to_bytes(self.value_size, "little") if isinstance(value, int) else bytes(value)
        if len(data) != self.value_size:
            raise ValueError(f"map {self.name} has values of {self.value_size} bytes, not {len(data)}")
        if self.per_cpu:
            data = data.ljust((self.value_size + 7) // 8 * 8, b"\0") * lib.libbpf_num_possible_cpus()
        failed = lib.bpf_map_update_elem(self.fd, raw, data, flags)
        if failed < 0:
            raise failure(failed, subject=self._subject(raw), doing="writing the map")

    def delete(self, key: bytes | int) -> bool:
        """Remove `key`; False when it was not there."""
        raw = self._key(key)
        failed = lib.bpf_map_delete_elem(self.fd, raw)
        if failed < 0 and failed != -_errno.ENOENT:
            raise failure(failed, subject=self._subject(raw), doing="deleting from the map")
        return bool(failed == 0)

    def mmap(self, *, writable: bool = True) -> mmap.mmap:
        """The values of an array map made with BPF_F_MMAPABLE, as shared memory of whole pages.

        Ownership: the mapping lives on after the map is closed, until it is closed itself.
        """
        size = (self.value_size + 7) // 8 * 8 * self.max_entries
        pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            return mmap.mmap(self.fd, pages, mmap.MAP_SHARED, access)
        except OSError as error:
            raise AfXdpError(
                subject=f"BPF map {self.name}", doing="mapping it into memory", errno=error.errno or 0
            ) from error


class BpfObject:
    """A compiled BPF file of this package: opened at construction, loaded by `load()`, closed by `close()`.

    Args:
        name: the source file in bpf/ without `.bpf.c`, e.g. ``"xdp_redirect"``.

    Between construction and `load()` a map can be resized and the initial value of a data section set.

    Raises:
        ProgramLoadError: the file is missing, or the kernel refused a program or map (its reason is quoted).
        PrivilegeError: loading needs CAP_BPF and CAP_NET_ADMIN.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.loaded = False
        file = Path(__file__).with_name("_bpf") / f"{name}.o"
        try:
            self._image = file.read_bytes()
        except OSError as error:
            raise ProgramLoadError(
                "the compiled program is missing from the installation",
                subject=f"BPF object {name}",
                doing="opening it",
                hint="build it with `pip install .` (needs clang)",
            ) from error
        lib.afp_bpf_log_start()
        self._object: Any = lib.afp_object_open(self._image, len(self._image), name.encode())
        if not self._object:
            raise failure(
                ffi.errno,
                subject=f"BPF object {name}",
                doing="opening it",
                kind=ProgramLoadError,
                quote=True,
            )

    @property
    def handle(self) -> Any:
        """The libbpf `struct bpf_object *`, for calls this layer does not have."""
        if not self._object:
            raise AfXdpError("it is closed", subject=f"BPF object {self.name}")
        return self._object

    def _map(self, name: str) -> Any:
        """The libbpf map of that name; a data section may be asked for as ``".bss"``."""
        found = lib.bpf_object__find_map_by_name(self.handle, name.encode())
        if not found:
            raise KeyError(f"BPF object {self.name} has no map {name}")
        return found

    def resize(self, map_name: str, max_entries: int) -> None:
        """Set a map's size; only before `load()`."""
        lib.afp_bpf_log_start()
        if (failed := lib.bpf_map__set_max_entries(self._map(map_name), max_entries)) < 0:
            raise failure(failed, subject=f"BPF map {map_name}", doing="setting its size")

    def reuse(self, map_name: str, other: BpfMap) -> None:
        """Let the object's map be this one, with its sizes; only before `load()`."""
        lib.afp_bpf_log_start()
        if (failed := lib.bpf_map__reuse_fd(self._map(map_name), other.fd)) < 0:
            raise failure(failed, subject=f"BPF map {map_name}", doing="using another in its place", quote=True)

    def bind_to(self, name: str, ifindex: int) -> None:
        """Have a program loaded for one device, whose driver it may then ask for metadata; only before `load()`.

        The kernel attaches it to that device only, and in native mode (BPF_F_XDP_DEV_BOUND_ONLY, Linux 6.3).
        """
        lib.afp_bpf_log_start()
        if (failed := lib.afp_program_bind(self._program(name), ifindex)) < 0:
            raise failure(failed, subject=f"BPF program {name}", doing="binding it to a device")

    def section(self, name: str) -> memoryview:
        """A data section (``".rodata"``, ``".data"``, ``".bss"``) as writable memory.

        This is the initial value: set it before `load()`; after it use `map(name)`. Ownership: the object's; do not use
        it after `close()`.
        """
        size = ffi.new("size_t *")
        start = lib.bpf_map__initial_value(self._map(name), size)
        if not start:
            raise KeyError(f"BPF object {self.name} has no contents for {name}")
        return memoryview(ffi.buffer(start, size[0]))

    def allow_frags(self, name: str) -> None:
        """Let an XDP program have packets in several buffers (BPF_F_XDP_HAS_FRAGS); only before `load()`."""
        found = self._program(name)
        failed = lib.bpf_program__set_flags(found, lib.bpf_program__flags(found) | lib.BPF_F_XDP_HAS_FRAGS)
        if failed < 0:
            raise failure(failed, subject=f"BPF program {name}", doing="allowing packets in several buffers")

    def load(self) -> None:
        """Load programs and maps into the kernel."""
        lib.afp_bpf_log_start()
        if (failed := lib.bpf_object__load(self.handle)) < 0:
            raise failure(
                failed,
                subject=f"BPF object {self.name}",
                doing="loading it into the kernel",
                kind=ProgramLoadError,
                quote=True,
            )
        self.loaded = True

    def program(self, name: str) -> int:
        """The descriptor of a loaded program. Ownership: the object's."""
        fd = int(lib.bpf_program__fd(self._program(name)))
        if fd < 0:
            raise AfXdpError("it is not loaded", subject=f"BPF program {name}")
        return fd

    def _program(self, name: str) -> Any:
        found = lib.bpf_object__find_program_by_name(self.handle, name.encode())
        if not found:
            raise KeyError(f"BPF object {self.name} has no program {name}")
        return found

    def map(self, name: str) -> BpfMap:
        """A loaded map, also a data section by its section name. Ownership: the object's."""
        fd = int(lib.bpf_map__fd(self._map(name)))
        if fd < 0:
            raise AfXdpError("it is not loaded", subject=f"BPF map {name}")
        return BpfMap(fd)

    def close(self) -> None:
        """Close programs and maps. Idempotent."""
        if self._object:
            lib.bpf_object__close(self._object)
            self._object = None

    def __enter__(self) -> BpfObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
