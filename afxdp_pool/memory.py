"""What a Umem's memory is made of: the providers under the pool.

A provider maps memory that the kernel can register for AF_XDP: whole pages, page-aligned. It owns the mapping until
`close()`; a Umem closes the provider it was given. In the kernel this place is taken by the page allocator, or by a
page_pool's memory provider (include/net/page_pool/memory_provider.h).
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import mmap
import os
import weakref
from typing import Protocol

from afxdp_pool.errors import MemoryLimitError

log = logging.getLogger("afxdp_pool")

HUGE_PAGE = 2 << 20
_MAP_HUGETLB = 0x40000  # asm-generic/mman-common.h; mmap gains the name in Python 3.13
_MADV_DONTFORK = 10
_MAP_NORESERVE, _MAP_FIXED_NOREPLACE = 0x4000, 0x100000


#: Mappings that a forked child does not have, with where they are.
_not_inherited: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, int]] = weakref.WeakKeyDictionary()


class Memory(Protocol):
    """What a Umem needs of its memory.

    Attributes:
        buffer: writable, page-aligned, at least as long as asked for; anything with the buffer protocol.
        description: what it is made of, for people, e.g. ``"4 KB pages"``.
    """

    @property
    def buffer(self) -> mmap.mmap:
        """The mapping."""

    @property
    def description(self) -> str:
        """What it is made of."""

    def close(self) -> None:
        """Let go of the memory. Idempotent. Views that numpy still has keep it alive."""


class _Mapping:
    """A mapping, which no forked child has, and what it is made of."""

    def __init__(self, buffer: mmap.mmap, description: str) -> None:
        buffer.madvise(_MADV_DONTFORK)
        _not_inherited[buffer] = ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer)
        self.buffer = buffer
        self.description = description

    def close(self) -> None:
        """Let go of the memory. Idempotent. Views that numpy still has keep it alive."""
        with contextlib.suppress(BufferError):  # numpy views of it are alive; it goes with the last of them
            self.buffer.close()


class AnonymousMemory(_Mapping):
    """Private memory of 4 KB pages, not inherited by forked children: the NIC writes to it.

    Args:
        size: bytes.
        prefault: touch all of it now, not when the first port registers it.

    Raises:
        MemoryLimitError: the kernel has not so much.
    """

    def __init__(self, size: int, *, prefault: bool = False) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | (mmap.MAP_POPULATE if prefault else 0)
        try:
            buffer = mmap.mmap(-1, size, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryLimitError(
                subject=f"{size} bytes",
                doing="mapping the memory",
                errno=getattr(error, "errno", 0) or 0,
                hint="ask for fewer frames",
            ) from error
        super().__init__(buffer, "4 KB pages")


class HugePageMemory(_Mapping):
    """Private memory of 2 MB pages; fewer entries of the TLB, and of the device's IOMMU.

    Raises:
        MemoryLimitError: there are not so many huge pages free; the text says how to have them.
    """

    def __init__(self, size: int, *, prefault: bool = False) -> None:
        pages = -(-size // HUGE_PAGE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_HUGETLB | (mmap.MAP_POPULATE if prefault else 0)
        try:
            buffer = mmap.mmap(-1, pages * HUGE_PAGE, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise MemoryLimitError(
                f"{pages} huge pages of 2 MB are needed and there are not so many free",
                hint=f"to have them: sysctl vm.nr_hugepages={pages}",
            ) from error
        super().__init__(buffer, "2 MB pages")


class SharedMemory(_Mapping):
    """Memory behind a descriptor (memfd_create), so that a broker can register it for this process.

    Its size is sealed, so that whoever maps it cannot be made to fault by a file that shrinks. All of it is touched at
    once: the pages are charged to the control group of who touches them first. See docs/privileges.md.

    Args:
        size: bytes.
        huge_pages: of 2 MB pages.

    Attributes:
        fd: the descriptor, to be passed on. Owned by this object.

    Raises:
        MemoryLimitError: there is not so much memory, or too few huge pages are free.

    Concurrency: any thread; `close()` when no other thread uses it.
    """

    def __init__(self, size: int, *, huge_pages: bool = False) -> None:
        if size > os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):  # the kernel would try, at others' cost
            raise MemoryLimitError("the machine has not so much memory", subject=f"{size} bytes")
        page, flags = 4096, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if huge_pages:
            page, flags = HUGE_PAGE, flags | os.MFD_HUGETLB | os.MFD_HUGE_2MB
        size = -(-size // page) * page
        self.fd = os.memfd_create("afxdp_umem", flags)
        try:
            os.posix_fallocate(self.fd, 0, size)
            buffer = mmap.mmap(self.fd, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except (OSError, ValueError, OverflowError) as error:
            os.close(self.fd)
            raise MemoryLimitError(
                subject=f"{size} bytes",
                doing="allocating the shared memory",
                errno=getattr(error, "errno", 0) or 0,
                hint=f"have more: sysctl vm.nr_hugepages={size // page}" if huge_pages else "ask for fewer frames",
            ) from error
        super().__init__(buffer, f"{'2 MB' if huge_pages else '4 KB'} pages, shared")

    def close(self) -> None:
        """Let go of the memory and the descriptor. Idempotent."""
        super().close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class BpfMemory(_Mapping):
    """The value of a memory-mapped BPF array map, so that a BPF program sees the same frames as the socket.

    The value is one frame longer than asked for, so that a program may copy a whole frame from any offset in range and
    the verifier can see that it stays inside.

    Attributes:
        map: the map, for programs to use. Owned by this object.

    Raises:
        PrivilegeError, ProgramLoadError: the map was refused: it takes CAP_BPF, and at most 2 GB.

    Concurrency: any thread; `close()` when no other thread uses it.
    """

    def __init__(self, size: int, *, spare: int = 4096) -> None:
        from afxdp_pool.bpf import BpfMap

        self.map = BpfMap.array("afxdp_umem", size + spare, mappable=True)
        try:
            super().__init__(self.map.mmap(), "a BPF array map")
        except BaseException:
            self.map.close()
            raise

    def close(self) -> None:
        """Let go of the memory and of the map. Idempotent."""
        super().close()
        self.map.close()


def best_memory(size: int, *, huge_pages: bool, prefault: bool) -> Memory:
    """Memory of 2 MB pages if they are asked for and there are enough, else of 4 KB pages, with a line saying so."""
    if huge_pages:
        try:
            return HugePageMemory(size, prefault=prefault)
        except MemoryLimitError as error:
            log.warning("%s; using 4 KB pages", error)
    return AnonymousMemory(size, prefault=prefault)


def _in_child() -> None:
    """Put zeros where the parent's frames are.

    Whoever still looks there finds nothing, and is not killed. Without them the place would be given to other memory of
    the child's, which would go when Python drops the child's copy of the parent's mapping.
    """
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE
    for buffer, (address, size) in list(_not_inherited.items()):
        if not buffer.closed:
            got = libc.mmap(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
            if got not in (address, ctypes.c_void_p(-1).value):  # before Linux 4.17 the place is but a wish
                libc.munmap(got, size)
    _not_inherited.clear()  # a child of the child's inherits the zeros


os.register_at_fork(after_in_child=_in_child)
