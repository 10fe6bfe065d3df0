"""`StateDirectory`: small JSON files below /run, for what has to outlive a process that is killed.

It owns the directory's files. A file is replaced as a whole, and only by who holds the directory's lock, which the
kernel takes from a process that dies. Invariant: a directory or file that somebody but root and this user may write to,
or that is of an earlier boot, is not believed. Where there can be no directory, the state is kept in this process's
memory, which serves for all but `kill -9`; the log says so, once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from typing import Any

from afxdp_pool.errors import AfXdpError

log = logging.getLogger("afxdp_pool")
#: Seconds to wait for the lock; who holds it works for milliseconds.
LOCKED_FOR = 10.0
_LARGEST = 1 << 20
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class StateDirectory:
    """The directory at `path`; it is made, for this user alone to write to, when something is first written.

    Concurrency: any thread; a forked child starts with a lock of its own.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._memory: dict[str, Any] = {}
        self._told = False
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock = threading.Lock()

    def path(self, name: str) -> str:
        """Where a file is."""
        return f"{self._path}/{name}"

    @property
    def writable(self) -> bool:
        """Whether this process may write files there, or could make the directory."""
        return os.access(self._path if os.path.exists(self._path) else os.path.dirname(self._path), os.W_OK)

    def names(self) -> list[str]:
        """The files there are."""
        with contextlib.suppress(OSError), self._directory() as there:
            return sorted(name for name in os.listdir(there) if not name.startswith("."))
        return sorted(self._memory)

    def read(self, name: str) -> Any:
        """What was written last; None: nothing, or nothing to be believed."""
        with contextlib.suppress(FileNotFoundError):
            try:
                with self._directory() as there, _opened(name, _READ, there) as fd:
                    _ours(fd, self.path(name), stat.S_ISREG)
                    note = json.loads(os.read(fd, _LARGEST))
                return note["state"] if note["boot"] == _boot() else None
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                log.warning("%s is not believed: %s", self.path(name), error)
        return self._memory.get(name)

    def write(self, name: str, state: Any) -> None:
        """Replace the file; without any state (empty, None) remove it. To be called under the lock."""
        self._memory.pop(name, None)
        try:
            with self._directory(make=bool(state)) as there:
                if not state:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(name, dir_fd=there)
                    return
                fresh = f".{name}"
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(fresh, dir_fd=there)
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                with _opened(fresh, flags, there) as fd, open(fd, "wb", closefd=False) as file:
                    file.write(json.dumps({"boot": _boot(), "state": state}).encode())
                os.rename(fresh, name, src_dir_fd=there, dst_dir_fd=there)
        except OSError as error:
            if not state:
                return
            self._memory[name] = state
            if not self._told:
                self._told = True
                text = "%s: what is changed on devices cannot be written down, and would stay after kill -9: %s"
                log.warning(text, self._path, error)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all threads and processes.

        Raises:
            AfXdpError: somebody held the lock for seconds.
        """
        deadline = time.monotonic() + LOCKED_FOR
        if not self._lock.acquire(timeout=LOCKED_FOR):
            raise self._busy()
        try:
            with contextlib.ExitStack() as held:
                # A record lock: no forked child has it, and it goes with the process.
                with contextlib.suppress(OSError):
                    there = held.enter_context(self._directory(make=True))
                    lock = held.enter_context(_opened(".lock", os.O_RDWR | os.O_CREAT | _READ, there))
                    while not _try_lock(lock):
                        if time.monotonic() > deadline:
                            raise self._busy()
                        time.sleep(0.002)
                yield
        finally:
            self._lock.release()

    def _busy(self) -> AfXdpError:
        return AfXdpError(
            "another process has it locked", subject=self._path, hint="is one of our processes stopped (SIGSTOP)?"
        )

    @contextlib.contextmanager
    def _directory(self, *, make: bool = False) -> Iterator[int]:
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._path, 0o755)
        with _opened(self._path, _READ | os.O_DIRECTORY, None) as there:
            _ours(there, self._path, stat.S_ISDIR)
            yield there


@contextlib.contextmanager
def _opened(name: str, flags: int, there: int | None) -> Iterator[int]:
    fd = os.open(name, flags, 0o644, dir_fd=there)
    try:
        yield fd
    finally:
        os.close(fd)


def _ours(fd: int, path: str, kind: Any) -> None:
    """Raises PermissionError, unless only root and this user may write to what is open there."""
    found = os.fstat(fd)
    if not kind(found.st_mode) or found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others may write to it", path)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _boot() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
