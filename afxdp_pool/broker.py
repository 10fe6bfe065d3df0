"""`Broker`: the privileged half of ports, for processes that have no privileges: programs, XSKMAPs, sockets.

It owns the XDP programs on the network devices it serves and the connections of its clients. A client that is allowed
sends a descriptor of its frames' memory; the broker registers that memory, binds a socket to the queue asked for, and
sends the socket back. The client gets it bound, so that it can use that queue and nothing else: a bound socket cannot
be bound again (xsk_bind() in net/xdp/xsk.c), and an unbound one could be bound to any queue of the namespace.

Invariant: the broker keeps nothing of a socket but its cookie, so that it is gone when its client is, also when the
broker is not running at that moment. Whatever a client sends or fails to send, nobody else notices.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from afxdp_pool import wire
from afxdp_pool._native import ffi, lib
from afxdp_pool.allowing import Allowed, Peer, peer_of
from afxdp_pool.binding import check_place, check_program, native_config, open_error
from afxdp_pool.errors import (
    AfXdpError,
    BrokerError,
    ConfigError,
    LinkGoneError,
    MemoryLimitError,
    NoSuchInterfaceError,
    QueueRangeError,
)
from afxdp_pool.program import XdpProgram
from afxdp_pool.requests import for_requests
from afxdp_pool.xsk import cookie, is_xdp_socket

log = logging.getLogger("afxdp_pool")

#: Seconds for a new client to say who it is, and for one without a socket to say anything at all.
HELLO_WITHIN, IDLE_WITHIN = 5.0, 60.0
#: Descriptors that are not clients' connections.
_SPARE_FDS = 64


@dataclass(frozen=True)
class _Grant:
    """A socket that was made for a client."""

    netdev: str
    queue: int
    cookie: int
    size: int


@dataclass(eq=False)
class _Client:
    """One connection."""

    sock: socket.socket
    peer: Peer
    deadline: float | None
    greeted: bool = False
    grant: _Grant | None = None

    def __str__(self) -> str:
        return f"process {self.peer.pid} of user {self.peer.uid}"


class Broker:
    """Makes sockets on some network devices for processes of some users.

    Args:
        programs: the XDP program of each network device served, by its name. All in the calling thread's namespace.
        allowed: who may.
        queues: which queues; None: all.
        share_maps: also give clients the XSKMAP itself, as the device plugins for Kubernetes do. It is all queues.
        max_memory: bytes that the sockets of one user may register.
        max_clients: connections at once.

    Concurrency: `run` in one thread; `stop` from any, also from a signal handler.
    Ownership: the programs stay the caller's. `close()` ends the connections.
    """

    def __init__(
        self,
        programs: dict[str, XdpProgram],
        allowed: Allowed,
        *,
        queues: Sequence[int] | None = None,
        share_maps: bool = False,
        max_memory: int = 1 << 30,
        max_clients: int = 256,
    ) -> None:
        if not programs:
            raise ConfigError("a broker without a network device is of no use")
        self._programs = programs
        self._allowed = allowed
        self._queues = queues
        self._share_maps = share_maps
        self._max_memory = max_memory
        self._max_clients = _room_for(max_clients)
        self._clients: set[_Client] = set()
        self._holders: dict[tuple[str, int], _Client] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._stopping = False
        self._requests: dict[str, Callable[[_Client, wire.Message], tuple[str, int]]] = {
            wire.ASK_VERSION: lambda client, message: (wire.VERSION, -1),
            wire.FIN: self._fin,
            wire.SOCKET: self._socket,
            wire.RESUME: self._resume,
            wire.PAUSE: self._pause,
            wire.MAP_FD: self._map_fd,
            wire.BUSY_POLL: self._busy_poll,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def clients(self) -> int:
        """Connections now."""
        return len(self._clients)

    def stop(self) -> None:
        """Let `run` return soon."""
        self._stopping = True
        with contextlib.suppress(OSError):  # it was told already, or has ended
            self._wake.send(b"x")

    def run(self, listener: socket.socket) -> None:
        """Serve whoever connects, until `stop()`. Ownership: the listener stays the caller's."""
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        try:
            while not self._stopping:
                for key, _ in self._selector.select(self._patience()):
                    if key.fileobj is listener:
                        self._accept(listener)
                    elif isinstance(key.data, _Client) and key.data in self._clients:
                        self._serve(key.data)
                now = time.monotonic()
                for client in [c for c in self._clients if c.deadline is not None and c.deadline <= now]:
                    self._end(client, "silent for too long")
        finally:
            self._selector.unregister(listener)

    def close(self) -> None:
        """End all connections. Idempotent."""
        for client in list(self._clients):
            self._end(client, "the broker ends")
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def _patience(self) -> float | None:
        deadlines = [client.deadline for client in self._clients if client.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:  # it was faster gone than accepted
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EINTR):
                log.error("accepting a client failed: %s", error)
            return
        sock.setblocking(False)
        if len(self._clients) >= self._max_clients:
            log.warning("refused a client: %d are connected", len(self._clients))
            sock.close()
            return
        client = _Client(sock, peer_of(sock), time.monotonic() + HELLO_WITHIN)
        self._clients.add(client)
        self._selector.register(sock, selectors.EVENT_READ, client)

    def _end(self, client: _Client, why: str) -> None:
        """Forget a client: its queue's packets go to the kernel's stack, unless another client has the queue by now."""
        self._release(client)
        self._selector.unregister(client.sock)
        client.sock.close()
        self._clients.discard(client)
        log.debug("%s: connection ended: %s", client, why)

    def _release(self, client: _Client) -> None:
        grant, client.grant = client.grant, None
        if grant is None or self._holders.get((grant.netdev, grant.queue)) is not client:
            return
        del self._holders[grant.netdev, grant.queue]
        try:
            self._programs[grant.netdev].remove_socket(grant.queue)
        except AfXdpError as error:
            log.error("%s queue %d: %s", grant.netdev, grant.queue, error)
        log.info("%s queue %d: free again", grant.netdev, grant.queue)

    def _serve(self, client: _Client) -> None:
        """Read one request and answer it."""
        try:
            message = wire.receive(client.sock)
        except BlockingIOError:
            return
        except BrokerError as error:
            log.warning("%s: %s", client, error)
            self._end(client, "no message")
            return
        if message is None:
            self._end(client, "closed by the client")
            return
        fd = -1
        try:
            with message:
                text, fd = self._answer(client, message)
            wire.send(client.sock, text, fd=fd)
        except (BrokerError, BlockingIOError) as error:
            self._end(client, str(error))
        except Exception:  # a mistake of ours must not end the others
            log.exception("%s: answering failed", client)
            self._end(client, "a failure of the broker")
        else:
            if text in (wire.FIN_ACK, wire.HOST_NAK):
                self._end(client, "goodbye")
            else:
                client.deadline = None if client.grant else time.monotonic() + IDLE_WITHIN
        finally:
            if fd >= 0 and message.verb == wire.SOCKET:
                os.close(fd)  # the client's now; the map's is the program's

    def _answer(self, client: _Client, message: wire.Message) -> tuple[str, int]:
        if not client.greeted:
            return self._greet(client, message), -1
        request = self._requests.get(message.verb)
        if request is None:
            return wire.UNKNOWN, -1
        try:
            return request(client, message)
        except AfXdpError as error:
            if message.words or message.verb != wire.SOCKET:  # without words it only asks whether there are sockets
                log.info("%s: %s refused: %s", client, message.verb, error)
            nak = wire.SOCKET_NAK if message.verb == wire.SOCKET else wire.NAK
            return wire.line(nak, type(error).__name__, error), -1

    def _greet(self, client: _Client, message: wire.Message) -> str:
        if message.verb != wire.CONNECT or not self._allowed.admits(client.peer):
            log.warning("%s is refused", client)
            return wire.HOST_NAK
        client.greeted = True
        return wire.HOST_OK

    def _fin(self, client: _Client, message: wire.Message) -> tuple[str, int]:
        # Before the answer: who got it can open the queue again at once.
        self._release(client)
        return wire.FIN_ACK, -1

    # A socket, and receiving through it -----------------------------------------------------------------------------

    def _socket(self, client: _Client, message: wire.Message) -> tuple[str, int]:
        request = wire.SocketRequest.read(message)
        if client.grant is not None:
            raise ConfigError("one connection gets one socket", hint="connect again for the next")
        program = self._programs.get(request.netdev)
        if program is None:
            raise NoSuchInterfaceError(
                "the broker does not serve it", subject=request.netdev, hint=f"it serves {', '.join(self._programs)}"
            )
        if self._queues is not None and request.queue not in self._queues:
            raise QueueRangeError(
                f"the broker does not serve queue {request.queue}",
                subject=request.netdev,
                hint=f"it serves {', '.join(map(str, self._queues))}",
            )
        place = check_place(request.netdev, request.queue, None)
        if place.index != program.netdev.index:
            raise LinkGoneError("the interface was made anew", subject=request.netdev, hint="start the broker anew")
        wanted = request.port
        check_program(request.netdev, program, wanted.rx_metadata, wanted.multi_buffer and wanted.receive)
        size = request.umem.frames * request.umem.frame_size
        taken = sum(c.grant.size for c in self._clients if c.grant and c.peer.uid == client.peer.uid)
        if taken + size > self._max_memory:
            raise MemoryLimitError(
                f"{size} bytes are more than user {client.peer.uid} may have, {self._max_memory - taken} more",
                hint="use fewer frames, or raise its --max-memory",
            )
        request = replace(request, port=for_requests(place, request.port))
        fd = _make(request, message.fd, size, place.driver)
        client.grant = _Grant(request.netdev, request.queue, cookie(fd), size)
        # Whoever had the queue before has let it go, or the bind had failed.
        self._holders[request.netdev, request.queue] = client
        log.info("%s queue %d: given to %s", request.netdev, request.queue, client)
        return wire.line(wire.SOCKET_ACK, place.driver or "none", program.mode), fd

    def _held(self, client: _Client) -> tuple[_Grant, XdpProgram]:
        grant = client.grant
        if grant is None or self._holders.get((grant.netdev, grant.queue)) is not client:
            raise BrokerError("this connection has no socket, or its queue is another's by now")
        return grant, self._programs[grant.netdev]

    def _resume(self, client: _Client, message: wire.Message) -> tuple[str, int]:
        grant, program = self._held(client)
        if not is_xdp_socket(message.fd) or cookie(message.fd) != grant.cookie:
            raise BrokerError("that is not the socket of this connection")
        program.add_socket(grant.queue, message.fd)
        return wire.ACK, -1

    def _pause(self, client: _Client, message: wire.Message) -> tuple[str, int]:
        grant, program = self._held(client)
        program.remove_socket(grant.queue)
        return wire.ACK, -1

    # What the clients of device plugins ask -------------------------------------------------------------------------

    def _map_fd(self, client: _Client, message: wire.Message) -> tuple[str, int]:
        program = self._programs.get(message.words[0]) if len(message.words) == 1 else None
        if program is None or not self._share_maps:
            log.info("%s: no map for %s", client, message.words)
            return wire.MAP_FD_NAK, -1
        return wire.MAP_FD_ACK, program.map_fd

    def _busy_poll(self, client: _Client, message: wire.Message) -> tuple[str, int]:
        try:
            us, budget = (int(word) for word in message.words)
            native = ffi.new("struct afp_port_config *", {"busy_poll_us": us, "busy_poll_budget": budget})
            failed = us <= 0 or budget <= 0 or not is_xdp_socket(message.fd)
            failed = failed or bool(lib.afp_socket_tune(message.fd, native, ffi.new("int *")))
        except (ValueError, OverflowError):
            failed = True
        return (wire.BUSY_POLL_NAK if failed else wire.BUSY_POLL_ACK), -1


def _make(request: wire.SocketRequest, memory: int, size: int, driver: str) -> int:
    """A socket bound as requested. Ownership: the caller's."""
    _check_memory(memory, size)
    config = native_config(request.netdev, request.queue, request.port)
    stock = ffi.from_buffer("uint64_t[]", request.stock)
    stage = ffi.new("int *")
    try:
        area = mmap.mmap(memory, size, mmap.MAP_SHARED)
    except OSError as error:
        raise MemoryLimitError(doing="mapping the client's memory", errno=error.errno or 0) from error
    try:
        # Never read or written here. The kernel keeps the pages; the mapping is for the registration alone.
        address = ffi.from_buffer(area)
        umem = request.umem
        fd = int(lib.afp_lease_make(address, size, umem.frame_size, umem.headroom, stock, len(stock), config, stage))
        ffi.release(address)
    finally:
        area.close()
    if fd < 0:
        name = f"{request.netdev} queue {request.queue}"
        raise open_error(name, driver, request.port, -fd, stage[0])
    return fd


def _check_memory(fd: int, size: int) -> None:
    """Refuse memory that could hurt.

    Only a memfd cannot hang who touches it, as a file in a user's own file system can; only one that cannot shrink
    stays what it is; and only pages that exist are charged to the client's control group, not to this process's.
    """
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS) if fd >= 0 else 0
    except OSError:
        seals = 0
    if not seals & fcntl.F_SEAL_SHRINK:
        raise ConfigError("the memory is not a memfd with its size sealed", hint="use afxdp_pool.SharedMemory")
    status = os.fstat(fd)
    if min(status.st_size, status.st_blocks * 512) < size:
        raise ConfigError(f"the memory is not {size} bytes, or not all of it is allocated")


def _room_for(clients: int) -> int:
    """So many connections, or as many as this process may have descriptors for."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(clients, soft - _SPARE_FDS))
