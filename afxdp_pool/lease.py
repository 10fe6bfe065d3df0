"""`Lease`: a socket that a broker made for this process, and the right to receive through it; `connect()` asks for one.

A lease owns its connection to the broker (see `afxdp_pool.broker`), and is over when the connection ends: at
`close()`, or with either process. The socket is the port's. Where the other side is a device plugin for Kubernetes, it
has the XSKMAP to give and no sockets: then a `MapLease` puts this process's own socket into that map.

Invariant: what the other side sends is checked, and a descriptor it sent is owned here or closed.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading

from afxdp_pool import errors, wire
from afxdp_pool.bpf import BpfMap
from afxdp_pool.errors import AfXdpError, BrokerError, PrivilegeError
from afxdp_pool.xsk import is_xdp_socket

#: Seconds to wait for the broker's answer; binding a zero-copy socket takes a driver up to some of them.
TIMEOUT = 10.0
#: And for the answer to a goodbye, which only makes sure that the queue is free.
GOODBYE = 1.0
_BPF_MAP_TYPE_XSKMAP = 17


class Connection:
    """A connection to a broker, or to a device plugin. Requests go one at a time.

    Args:
        path: the broker's UNIX socket.
        timeout: seconds to wait for each answer.

    Attributes:
        makes_sockets: it is a broker of ours; else it has maps alone, as the plugins.

    Raises:
        BrokerError: nobody listens there, or it speaks something else.
        PrivilegeError: the broker, or the socket's mode, does not allow this user.

    Concurrency: any thread.
    """

    def __init__(self, path: str, timeout: float = TIMEOUT) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            # Not by settimeout(): connecting would not wait then while others are before us in the queue.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@qq", int(timeout), 0))
            self._connect()
            self._socket.settimeout(timeout)
            with self.ask(wire.line(wire.CONNECT, socket.gethostname()[:40])) as answer:
                if answer.verb != wire.HOST_OK:
                    raise PrivilegeError(
                        f"the broker at {path} refuses user {os.geteuid()}",
                        hint="whoever runs it names who may: afxdp-pool serve --allow USER",
                    )
            with self.ask(wire.SOCKET) as answer:
                self.makes_sockets = answer.verb == wire.SOCKET_NAK
        except BaseException:
            self._socket.close()
            raise

    def _connect(self) -> None:
        try:
            self._socket.connect(self.path)
        except PermissionError as error:
            raise PrivilegeError(
                subject=self.path,
                doing="connecting to the broker",
                errno=error.errno or 0,
                hint="its mode admits those its broker was told to allow",
            ) from None
        except OSError as error:
            raise BrokerError(
                subject=self.path,
                doing="connecting to the broker",
                errno=error.errno or 0,
                hint="is it running? As root: afxdp-pool serve --socket PATH --allow USER -i IF",
            ) from None

    def ask(self, text: str, *, stock: bytes = b"", fd: int = -1) -> wire.Message:
        """Send a request, return the answer; its descriptor, if any, is the caller's to close.

        Raises:
            BrokerError: no answer, or none that is a message.
        """
        with self._lock:
            try:
                wire.send(self._socket, text, stock=stock, fd=fd)
                answer = wire.receive(self._socket)
            except BaseException:
                self._socket.close()  # a late answer would be taken for the next one's
                raise
        if answer is None:
            raise BrokerError("the broker ended the connection", subject=self.path)
        return answer

    def ended(self) -> bool:
        """Whether the other side has gone."""
        if self._socket.fileno() < 0:
            return True
        waiting = select.poll()
        waiting.register(self._socket, select.POLLRDHUP)
        return bool(waiting.poll(0))

    def close(self) -> None:
        """Say goodbye and close. Idempotent."""
        if self._socket.fileno() >= 0:
            with contextlib.suppress(BrokerError):
                self._socket.settimeout(GOODBYE)
                self.ask(wire.FIN).close()
            self._socket.close()

    def abandon(self) -> None:
        """In a forked child: the conversation is its parent's."""
        self._socket.close()


class Lease:
    """A socket asked for, and received through by the broker's XDP program.

    Attributes:
        driver: of the network device.
        xdp_mode: of the broker's program.

    Raises:
        As the broker's side raised it: QueueBusyError, NoSuchInterfaceError, ModeUnsupportedError ...
        BrokerError: its answer makes no sense.

    Ownership: owns the connection. The socket is handed out once, by `take_fd`.
    """

    def __init__(self, connection: Connection, request: wire.SocketRequest, memory: int) -> None:
        self.connection = connection
        with connection.ask(request.text(), stock=request.stock, fd=memory) as answer:
            if answer.verb != wire.SOCKET_ACK:
                raise _refused(answer, wire.SOCKET_NAK, connection.path)
            if len(answer.words) != 2 or not is_xdp_socket(answer.fd):
                raise BrokerError("the broker sent no AF_XDP socket", subject=connection.path)
            self.driver, self.xdp_mode = answer.words
            self._fd = answer.take_fd()

    def take_fd(self) -> int:
        """The socket, bound. Ownership: the caller's."""
        fd, self._fd = self._fd, -1
        return fd

    def add_socket(self, queue: int, fd: int) -> None:
        """Let the queue's packets come to the socket; it must be the one of this lease."""
        self._tell(wire.RESUME, fd)

    def remove_socket(self, queue: int) -> None:
        """Let the queue's packets go to the kernel's stack again. Nothing is left to do when the broker has gone."""
        if not self.connection.ended():
            self._tell(wire.PAUSE)

    def _tell(self, verb: str, fd: int = -1) -> None:
        with self.connection.ask(verb, fd=fd) as answer:
            if answer.verb != wire.ACK:
                raise _refused(answer, wire.NAK, self.connection.path)

    def ended(self) -> bool:
        """Whether the broker has gone: then no packets come any more, while sending goes on."""
        return self.connection.ended()

    def close(self) -> None:
        """End the lease. Idempotent."""
        self._drop_fd()
        self.connection.close()

    def abandon(self) -> None:
        """In a forked child: the lease is its parent's."""
        self._drop_fd()
        self.connection.abandon()

    def _drop_fd(self) -> None:
        if self._fd >= 0:
            os.close(self.take_fd())


class MapLease:
    """The XSKMAP of one network device, from a device plugin, for sockets this process makes itself.

    Source: the AF_XDP plugins for Kubernetes, internal/udsserver. Such a server takes one connection in its life, so
    the process's ports share it, and the maps that came through it; both are kept until the process ends.
    """

    def __init__(self, connection: Connection, netdev: str) -> None:
        self.connection = connection
        known = _maps.get((connection.path, netdev))
        if known is None:
            with connection.ask(wire.line(wire.MAP_FD, netdev)) as answer:
                if answer.verb != wire.MAP_FD_ACK or answer.fd < 0:
                    raise BrokerError(
                        f"it has no map for {netdev}", subject=connection.path, hint="is that the pod's device?"
                    )
                known = BpfMap(answer.fd, owns=True)
                if known.kind != _BPF_MAP_TYPE_XSKMAP:
                    raise BrokerError("it sent a BPF map that is no XSKMAP", subject=connection.path)
                answer.take_fd()
            _maps[connection.path, netdev] = known
        self._map = known

    def add_socket(self, queue: int, fd: int) -> None:
        """As `XdpProgram.add_socket`."""
        self._map.update(queue, fd)

    def remove_socket(self, queue: int) -> None:
        """As `XdpProgram.remove_socket`."""
        self._map.delete(queue)

    def busy_poll(self, fd: int, us: int, budget: int) -> None:
        """Have busy polling turned on for a socket of this process, which itself lacks CAP_NET_ADMIN."""
        with self.connection.ask(wire.line(wire.BUSY_POLL, us, budget), fd=fd) as answer:
            if answer.verb != wire.BUSY_POLL_ACK:
                raise errors.ModeUnsupportedError("busy polling was refused", subject=self.connection.path)

    def ended(self) -> bool:
        """Never: the map works without the one who gave it."""
        return False

    def close(self) -> None:
        """Nothing: the connection is shared."""


_plugins: dict[str, Connection] = {}
_maps: dict[tuple[str, str], BpfMap] = {}


def connect(path: str | os.PathLike[str]) -> Connection:
    """A connection to the broker at `path`: a new one, or to a plugin the one there is.

    Raises:
        BrokerError, PrivilegeError: see `Connection`.
    """
    path = os.fspath(path)
    connection = _plugins.get(path) or Connection(path)
    if not connection.makes_sockets:
        _plugins[path] = connection
    return connection


def _refused(answer: wire.Message, nak: str, path: str) -> AfXdpError:
    """The error that a refusal names, or one that says that it makes no sense."""
    if answer.verb == nak and len(answer.words) >= 2:
        kind = getattr(errors, answer.words[0], None)
        if not (isinstance(kind, type) and issubclass(kind, AfXdpError)):
            kind = BrokerError
        return kind(f"the broker at {path} says: {', '.join(answer.words[1:])}")
    return BrokerError(f"the broker answered {answer.verb}", subject=path)
