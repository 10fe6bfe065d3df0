"""`Listener`: the UNIX socket a service listens on, and the file it has, or what systemd hands over in its place.

It owns the socket, the file, and a lock beside it for as long as it lives. Invariant: of two servers at one path one is
refused, a file that a dead one left is replaced, and nothing that is not a socket is ever removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
from pathlib import Path
from typing import Self

from afxdp_pool.allowing import Allowed
from afxdp_pool.errors import BrokerError, ConfigError

_BACKLOG = 64
_FIRST_PASSED_FD = 3  # SD_LISTEN_FDS_START
_SO_ACCEPTCONN = 30


class Listener:
    """A listening SOCK_SEQPACKET socket at `path`.

    The file's mode is the first fence (its owner the one allowed user, or its group the one allowed group, else
    anybody), the peer's credentials are the second; see `Allowed`. A missing directory is made, mode 0755.

    Raises:
        BrokerError: another server listens there, or something that is no socket is in the way.
        ConfigError: the path is too long, or others may write to its directory: they could put their own socket there.
    """

    def __init__(self, path: str | os.PathLike[str], allowed: Allowed) -> None:
        self.path = Path(os.path.abspath(path))
        if len(os.fsencode(self.path)) > 107:
            raise ConfigError("a UNIX socket's path has at most 107 bytes", subject=str(self.path))
        self._made_directory = False
        self._lock = -1
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._check_directory()
            self._take_lock()
            self._listen(allowed)
        except OSError as error:
            self.close()
            raise BrokerError(subject=str(self.path), doing="listening", errno=error.errno or 0) from error
        except BaseException:
            self.close()
            raise

    def _check_directory(self) -> None:
        directory = self.path.parent
        if not directory.exists():
            directory.mkdir(mode=0o755)
            self._made_directory = True
        status = directory.stat()
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise ConfigError(
                "others may put their own socket there",
                subject=str(directory),
                hint="use a directory like /run/afxdp-pool",
            )

    def _take_lock(self) -> None:
        """The lock is a file, since only it outlives neither its holder nor a reboot; its name goes with the holder."""
        name = f"{self.path}.lock"
        while True:
            lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(lock), os.stat(name)):
                        self._lock = lock
                        return
            except BlockingIOError:
                raise BrokerError("another server listens there", subject=str(self.path)) from None
            finally:
                if self._lock != lock:
                    os.close(lock)

    def _listen(self, allowed: Allowed) -> None:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(self.path.lstat().st_mode):
                raise BrokerError("something that is no socket is in the way", subject=str(self.path))
            self.path.unlink()
        mask = os.umask(0o177)  # nobody but us until owner and group are right
        try:
            self.socket.bind(os.fspath(self.path))
        finally:
            os.umask(mask)
        mode = 0o666
        if len(allowed.uids) == 1 and not allowed.gids:
            os.chown(self.path, next(iter(allowed.uids)), -1)
            mode = 0o600
        elif len(allowed.gids) == 1 and allowed.uids <= {0}:
            os.chown(self.path, -1, next(iter(allowed.gids)))
            mode = 0o660
        os.chmod(self.path, mode)
        self.socket.listen(_BACKLOG)

    def close(self) -> None:
        """Stop listening and remove the file. Idempotent."""
        listening = self.socket.fileno() >= 0 and bool(self.socket.getsockname())
        self.socket.close()
        if self._lock < 0:
            return
        with contextlib.suppress(OSError):  # as another user it may not be ours to remove any more; it is found stale
            if listening:
                self.path.unlink()
        with contextlib.suppress(OSError):
            os.unlink(f"{self.path}.lock")
        os.close(self._lock)
        self._lock = -1
        if self._made_directory:
            with contextlib.suppress(OSError):
                self.path.parent.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def passed_listener() -> socket.socket | None:
    """The socket that systemd listens on for this service (sd_listen_fds(3)), or None when it does not.

    Raises:
        BrokerError: what it passed is not one listening SOCK_SEQPACKET socket.
    """
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    sock = None
    if os.environ.get("LISTEN_FDS") == "1":
        with contextlib.suppress(OSError):
            os.set_inheritable(_FIRST_PASSED_FD, False)
            sock = socket.socket(fileno=_FIRST_PASSED_FD)
    if (
        sock is None
        or (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET)
        or not sock.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN)
    ):
        raise BrokerError("systemd passed no listening socket", hint="the unit needs one ListenSequentialPacket=")
    return sock


def tell_systemd(state: str) -> None:
    """Tell the service manager, if there is one (sd_notify(3)), such as ``"READY=1"``."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
