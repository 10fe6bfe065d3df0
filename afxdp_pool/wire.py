"""`Message` and `SocketRequest`: what a broker and its clients say to each other over a UNIX socket (SOCK_SEQPACKET).

A message is one line of ASCII, ``/verb, word, word``, and with it at most one file descriptor (SCM_RIGHTS). The verbs
of handshake version 0.1 are those of the AF_XDP plugins for Kubernetes (constants/constants.go of
intel/afxdp-plugins-for-kubernetes), which DPDK's af_xdp driver speaks too; ``/xsk_fd``, ``/xsk_resume`` and
``/xsk_pause`` are our own. Invariant: a received descriptor is in the message returned, or closed.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from dataclasses import dataclass, field

from afxdp_pool.config import RX_METADATA, TX_METADATA, Mode, PortConfig, UmemConfig, from_bits, to_bits
from afxdp_pool.errors import BrokerError, ConfigError

VERSION = "0.1"
CONNECT, HOST_OK, HOST_NAK = "/connect", "/host_ok", "/host_nak"
ASK_VERSION, FIN, FIN_ACK = "/version", "/fin", "/fin_ack"
MAP_FD, MAP_FD_ACK, MAP_FD_NAK = "/xsk_map_fd", "/fd_ack", "/fd_nak"
BUSY_POLL, BUSY_POLL_ACK, BUSY_POLL_NAK = "/config_busy_poll", "/config_busy_poll_ack", "/config_busy_poll_nak"
UNKNOWN, FAILED = "/nak", "/error"
SOCKET, SOCKET_ACK, SOCKET_NAK = "/xsk_fd", "/xsk_fd_ack", "/xsk_fd_nak"
RESUME, PAUSE, ACK, NAK = "/xsk_resume", "/xsk_pause", "/xsk_ack", "/xsk_nak"

#: Longest line, and most addresses for FILL behind the one that asks for a socket.
LINE_MAX = 1024
STOCK_MAX = 8192
_MESSAGE_MAX = LINE_MAX + 1 + 8 * STOCK_MAX
_MODES: tuple[Mode, ...] = ("auto", "copy", "zero-copy")


@dataclass
class Message:
    """One message.

    Attributes:
        verb: with its slash.
        words: what follows it, without the blanks around.
        stock: what stands behind the line and a zero byte; only ``/xsk_fd`` has that.
        fd: a descriptor that came along, or -1. `close()` closes it, unless `take_fd()` took it.
    """

    verb: str
    words: tuple[str, ...] = ()
    stock: bytes = b""
    fd: int = -1

    @classmethod
    def parse(cls, data: bytes) -> Message:
        """Read a message.

        Raises:
            BrokerError: it is none.
        """
        line, zero, stock = data.partition(b"\0")
        try:
            text = line.decode("ascii")
        except UnicodeDecodeError:
            raise BrokerError("a message is not ASCII") from None
        if len(text) > LINE_MAX or not text.startswith("/") or not text.isprintable():
            raise BrokerError(f"{text[:40]!r} is no message")
        verb, *words = (word.strip() for word in text.split(","))
        if zero and verb != SOCKET:
            raise BrokerError(f"{verb} has something behind its line")
        return cls(verb, tuple(words), stock)

    def take_fd(self) -> int:
        """The descriptor, which is now the caller's; or -1."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor, if there is one. Idempotent."""
        if self.fd >= 0:
            os.close(self.take_fd())

    def __enter__(self) -> Message:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def line(verb: str, *words: object) -> str:
    """A message's text, of words that may hold anything: what cannot stand in a line becomes a blank."""
    text = ", ".join([verb, *(str(word) for word in words)])
    return "".join(char if char.isascii() and char.isprintable() else " " for char in text)[:LINE_MAX]


def send(sock: socket.socket, text: str, *, stock: bytes = b"", fd: int = -1) -> None:
    """Send one message whole.

    Raises:
        BrokerError: the other side has gone, or does not read (in the socket's time-out).

    Ownership: `fd` stays the caller's.
    """
    data = text.encode("ascii") + (b"\0" + stock if stock else b"")
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
    try:
        sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
    except OSError as error:
        raise BrokerError(doing=f"sending {text.partition(',')[0]}", errno=error.errno or 0) from error


def receive(sock: socket.socket) -> Message | None:
    """Receive one message; None when the other side has closed.

    Raises:
        BrokerError: the message is cut, has several descriptors, or is none; or none came in the socket's time-out.
        BlockingIOError: the socket does not wait, and there is none.

    Ownership: the message has the descriptor that came along; of a refused message it is closed.
    """
    try:
        # Room for several descriptors, so that a sender of too many is told so.
        data, rights, flags, _ = sock.recvmsg(_MESSAGE_MAX, socket.CMSG_SPACE(16), socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except TimeoutError:
        raise BrokerError("no answer came in time", hint="is the broker still running?") from None
    except OSError as error:
        raise BrokerError(doing="receiving a message", errno=error.errno or 0) from error
    fds = array.array("i")
    for level, kind, content in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    with contextlib.ExitStack() as undo:
        for fd in fds:
            undo.callback(os.close, fd)
        if not data:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > 1:
            raise BrokerError("a message is too long, or has more than one descriptor")
        message = Message.parse(data)
        if fds:
            message.fd = fds[0]
        undo.pop_all()
        return message


@dataclass(frozen=True)
class SocketRequest:
    """What a client asks for with ``/xsk_fd``: a socket on a queue, over memory that comes along.

    Attributes:
        netdev, queue: where.
        umem: frames, frame size and headroom.
        port: rings and mode; its `fill_level` is how many addresses are in `stock`.
        stock: the addresses for FILL, 8 bytes each in this machine's order.
    """

    netdev: str
    queue: int
    umem: UmemConfig
    port: PortConfig
    stock: bytes = field(repr=False)

    def text(self) -> str:
        """The line that asks for it."""
        u, p = self.umem, self.port
        numbers = {
            "frames": u.frames,
            "frame_size": u.frame_size,
            "headroom": u.headroom,
            "fill": p.fill_size,
            "comp": p.comp_size,
            "rx": p.rx_size if p.receive else 0,
            "tx": p.tx_size if p.transmit else 0,
            "need_wakeup": int(p.need_wakeup),
            "tx_budget": p.tx_budget,
            "busy_poll_us": p.busy_poll_us,
            "busy_poll_budget": p.busy_poll_budget,
        }
        # A broker that never heard of these need not, unless they are wanted.
        if p.receive and p.rx_metadata:
            numbers["rx_metadata"] = to_bits(p.rx_metadata, RX_METADATA)
        if p.transmit and p.tx_metadata:
            numbers["tx_metadata"] = to_bits(p.tx_metadata, TX_METADATA)
        if p.multi_buffer:
            numbers["multi_buffer"] = 1
        return line(SOCKET, self.netdev, self.queue, p.mode, *(f"{name}={value}" for name, value in numbers.items()))

    @classmethod
    def read(cls, message: Message) -> SocketRequest:
        """The request in a message.

        Raises:
            ConfigError: it makes no sense; also what `UmemConfig` and `PortConfig` refuse.
        """
        if len(message.words) < 3:
            raise ConfigError(f"{SOCKET} needs a netdev, a queue, a mode and sizes")
        netdev, queue, mode, *rest = message.words
        numbers: dict[str, int] = {}
        for word in rest:
            name, equals, value = word.partition("=")
            if name not in _NUMBERS | _MORE or name in numbers or not equals:
                raise ConfigError(f"{word!r} is no part of {SOCKET}, or there twice")
            numbers[name] = _number(value)
        if missing := _NUMBERS - numbers.keys():
            raise ConfigError(f"{SOCKET} lacks {', '.join(sorted(missing))}")
        if mode not in _MODES:
            raise ConfigError(f"mode {mode!r} is unknown")
        n = numbers
        stocked, odd = divmod(len(message.stock), 8)
        if odd or stocked > min(n["fill"], STOCK_MAX):
            raise ConfigError(f"{len(message.stock)} bytes of addresses do not fit a FILL ring of {n['fill']}")
        return cls(
            netdev,
            _number(queue),
            UmemConfig(n["frames"], n["frame_size"], n["headroom"]),
            PortConfig(
                fill_size=n["fill"],
                comp_size=n["comp"],
                rx_size=n["rx"] or 2,
                tx_size=n["tx"] or 2,
                fill_level=max(1, stocked),
                mode=mode,
                need_wakeup=bool(n["need_wakeup"]),
                tx_budget=n["tx_budget"],
                receive=n["rx"] > 0,
                transmit="socket" if n["tx"] else False,
                busy_poll_us=n["busy_poll_us"],
                busy_poll_budget=n["busy_poll_budget"],
                rx_metadata=from_bits(n.get("rx_metadata", 0), RX_METADATA),
                tx_metadata=from_bits(n.get("tx_metadata", 0), TX_METADATA),
                multi_buffer=bool(n.get("multi_buffer")),
            ),
            message.stock,
        )


_NUMBERS = frozenset(
    {"frames", "frame_size", "headroom", "fill", "comp", "rx", "tx"}
    | {"need_wakeup", "tx_budget", "busy_poll_us", "busy_poll_budget"}
)
_MORE = frozenset({"rx_metadata", "tx_metadata", "multi_buffer"})


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise ConfigError(f"{text[:20]!r} is not a number")
    return int(text)
