"""A broker among hostile clients, and a client before hostile brokers: the others go on, and nothing is leaked.

No AF_XDP socket is made here, so no privilege is needed; tests/veth/test_served.py is about those.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import gc
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afxdp_pool import (
    BrokerError,
    ConfigError,
    FramePool,
    MemoryLimitError,
    NoSuchInterfaceError,
    Options,
    Port,
    PortConfig,
    PrivilegeError,
    QueueBusyError,
    QueueRangeError,
    SharedMemory,
    Umem,
    UmemConfig,
    broker,
    lease,
    netdev,
    wire,
)
from afxdp_pool.allowing import Allowed, Peer
from afxdp_pool.broker import Broker
from afxdp_pool.memory import AnonymousMemory

SMALL = PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32)
REQUEST = wire.SocketRequest("lo", 0, UmemConfig(64), PortConfig(fill_size=64, fill_level=1), b"\0" * 8)


class Program:
    """What a broker asks of an XDP program."""

    mode = "native"
    rx_metadata = ()
    frags = False

    def __init__(self) -> None:
        self.netdev = netdev.find("lo")
        self.removed: list[int] = []

    def remove_socket(self, queue: int) -> None:
        self.removed.append(queue)


@contextmanager
def serving(tmp_path: Path, **changes: Any) -> Iterator[tuple[str, Broker]]:
    """A broker for ``lo`` and a listener; afterwards it is still serving, and has no descriptor more than before."""
    path = os.fspath(tmp_path / "s")
    uid = os.geteuid()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(64)
    served = Broker({"lo": Program()}, changes.pop("allowed", Allowed.parse([str(uid)])), **changes)  # type: ignore[dict-item]
    thread = threading.Thread(target=served.run, args=(listener,))
    thread.start()
    before = descriptors()
    try:
        yield path, served
        until(lambda: served.clients == 0)
        assert thread.is_alive()
        until(lambda: descriptors() == before)
    finally:
        served.stop()
        thread.join(20.0)
        assert not thread.is_alive()
        served.close()
        listener.close()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def descriptors() -> int:
    """How many this process has, without those of what nobody refers to any more: a test's before, for instance."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def raw(path: str) -> Iterator[socket.socket]:
    """A connection that has said nothing yet."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.connect(path)  # before the time-out: else it would not wait while the queue is full
        sock.settimeout(20.0)
        yield sock


@contextmanager
def greeted(path: str) -> Iterator[Callable[..., wire.Message]]:
    """A connection that was let in, as a function that asks and closes what comes with the answer."""

    def ask(text: str, *, stock: bytes = b"", fd: int = -1) -> wire.Message:
        wire.send(sock, text, stock=stock, fd=fd)
        answer = wire.receive(sock)
        assert answer is not None
        answer.close()
        return answer

    with raw(path) as sock:
        assert ask("/connect, pod-1").verb == "/host_ok"
        yield ask


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(64) == b""
    except ConnectionResetError:
        return True


# Clients --------------------------------------------------------------------------------------------------------------


def test_the_handshake_of_the_device_plugins(tmp_path: Path) -> None:
    with serving(tmp_path) as (path, _), greeted(path) as ask:
        assert ask("/xsk_map_fd, lo").verb == "/fd_nak"  # without --share-map
        assert ask("/nonsense").verb == "/nak"
        assert ask("/fin").verb == "/fin_ack"


def test_the_version_is_the_bare_number(tmp_path: Path) -> None:
    with serving(tmp_path) as (path, _), raw(path) as sock:
        sock.send(b"/connect,pod-1")
        assert sock.recv(64) == b"/host_ok"
        sock.send(b"/version")
        assert sock.recv(64) == b"0.1"


@pytest.mark.parametrize("first", [b"/version", b"/xsk_fd", b"/fin", b"/connectx, a"])
def test_without_a_greeting_nothing_is_answered(tmp_path: Path, first: bytes) -> None:
    with serving(tmp_path) as (path, _), raw(path) as sock:
        sock.send(first)
        assert sock.recv(64) == b"/host_nak"
        assert ended(sock)


def test_who_is_not_allowed_is_told_so(tmp_path: Path) -> None:
    nobody_else = Allowed.parse([str(os.geteuid() + 1)])
    with serving(tmp_path, allowed=nobody_else) as (path, _), pytest.raises(PrivilegeError, match=r"refuses user \d+"):
        lease.connect(path)


def test_busy_polling_is_for_xdp_sockets_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as (path, _), greeted(path) as ask, open(os.devnull) as file, socket.socket() as inet:
        for fd in (-1, file.fileno(), inet.fileno()):
            assert ask("/config_busy_poll, 20, 64", fd=fd).verb == "/config_busy_poll_nak"
        for words in ("", ", 1", ", a, b", ", -1, 64", ", 1, 99999999999999999999"):
            assert ask(f"/config_busy_poll{words}").verb == "/config_busy_poll_nak"


@pytest.fixture
def memory() -> Iterator[SharedMemory]:
    made = SharedMemory(64 * 4096)
    yield made
    made.close()


def refusal(path: str, request: wire.SocketRequest, fd: int) -> tuple[str, ...]:
    with greeted(path) as ask:
        answer = ask(request.text(), stock=request.stock, fd=fd)
        assert answer.verb == "/xsk_fd_nak"
        return answer.words


def test_only_what_is_served_is_given(tmp_path: Path, memory: SharedMemory) -> None:
    with serving(tmp_path, queues=[0]) as (path, _):
        assert refusal(path, replace(REQUEST, netdev="eth9"), memory.fd)[0] == "NoSuchInterfaceError"
        kind, text = refusal(path, replace(REQUEST, queue=1), memory.fd)[:2]
        assert kind == "QueueRangeError"
        assert "does not serve queue 1" in text
        assert refusal(path, replace(REQUEST, umem=UmemConfig(1 << 20)), memory.fd)[0] == "MemoryLimitError"


def test_memory_that_could_hurt_is_refused(tmp_path: Path, memory: SharedMemory) -> None:
    size = 64 * 4096
    unsealed = os.memfd_create("x", os.MFD_CLOEXEC)
    os.posix_fallocate(unsealed, 0, size)
    short, sparse = SharedMemory(size // 2), os.memfd_create("x", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(sparse, size)
    fcntl.fcntl(sparse, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    (tmp_path / "file").write_bytes(b"\0" * size)
    with serving(tmp_path) as (path, _), open(tmp_path / "file", "r+b") as file:
        for fd in (-1, unsealed, file.fileno()):
            assert "memfd with its size sealed" in ", ".join(refusal(path, REQUEST, fd))
        for fd in (short.fd, sparse):
            assert "not all of it is allocated" in ", ".join(refusal(path, REQUEST, fd))
    short.close()
    os.close(unsealed)
    os.close(sparse)


def test_receiving_takes_a_socket(tmp_path: Path) -> None:
    with serving(tmp_path) as (path, _), greeted(path) as ask:
        for verb in ("/xsk_resume", "/xsk_pause"):
            assert ask(verb).words[0] == "BrokerError"


HOSTILE = [
    b"x",
    b"/",
    b"\xff" * 64,
    b"/xsk_fd\0",
    b"/connect\0stock",
    b"/xsk_fd, lo, 0, auto" + b", frames=1" * 90,
    b"/" + b"a" * 2000,
    b"/xsk_fd, " + b"," * 1000,
    b"a" * 100_000,
]


@pytest.mark.parametrize("data", HOSTILE)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("fds", [0, 1, 7])
def test_hostile_messages(tmp_path: Path, data: bytes, before: bool, fds: int) -> None:
    with serving(tmp_path) as (path, _), raw(path) as sock, open(os.devnull) as file:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        if not before:
            sock.send(b"/connect, a")
            assert sock.recv(64) == b"/host_ok"
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * fds))]
        sock.sendmsg([data], rights if fds else [])
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):  # a refusal, or the end
            pass
        with greeted(path) as ask:  # and the next one is served
            assert ask("/fin").verb == "/fin_ack"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([b"/connect, a", b"/version", b"/xsk_fd", b"/xsk_pause", b"/fin", REQUEST.text().encode()])
        | st.binary(min_size=1, max_size=40),
        max_size=8,
    )
)
def test_any_conversation(talk: tuple[str, Broker], messages: list[bytes]) -> None:
    path, served = talk
    with raw(path) as sock:
        for data in messages:
            try:
                sock.send(data)
            except OSError:  # it has had enough
                break
    until(lambda: served.clients == 0)


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[tuple[str, Broker]]:
    with serving(tmp_path) as made:
        yield made


def test_who_says_nothing_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "HELLO_WITHIN", 0.05)
    monkeypatch.setattr(broker, "IDLE_WITHIN", 0.05)
    with serving(tmp_path) as (path, served), raw(path) as silent, raw(path) as idle:
        idle.send(b"/connect, a")
        assert idle.recv(64) == b"/host_ok"
        assert ended(silent)
        assert ended(idle)
        until(lambda: served.clients == 0)


def test_too_many_are_turned_away_and_the_others_stay(tmp_path: Path) -> None:
    with serving(tmp_path, max_clients=3) as (path, served), greeted(path) as ask:
        with raw(path), raw(path):
            until(lambda: served.clients == 3)
            with raw(path) as fourth:
                assert ended(fourth)
            assert ask("/xsk_pause").verb == "/xsk_nak"
        until(lambda: served.clients == 1)
        with raw(path):
            until(lambda: served.clients == 2)


def test_who_does_not_read_is_dropped(tmp_path: Path) -> None:
    with serving(tmp_path) as (path, served), raw(path) as deaf:
        deaf.settimeout(0.2)
        deaf.send(b"/connect, a")
        with contextlib.suppress(OSError):  # the broker has ended it, or will not read before its answers are
            for _ in range(100_000):
                deaf.send(b"/version")
        until(lambda: served.clients == 0)


def test_a_crowd_comes_and_goes(tmp_path: Path) -> None:
    chance = random.Random(1)

    def come_and_go() -> None:
        for _ in range(30):
            with raw(path) as sock:
                try:
                    for data in chance.sample([b"/connect, a", b"/version", b"/xsk_fd", b"junk"], chance.randrange(4)):
                        sock.send(data)
                except OSError:
                    pass

    with serving(tmp_path) as (path, _):
        crowd = [threading.Thread(target=come_and_go) for _ in range(8)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()


def test_a_broker_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="without a network device"):
        Broker({}, Allowed.parse(["0"]))


# Brokers --------------------------------------------------------------------------------------------------------------

Answer = tuple[bytes, int]


@contextmanager
def answering(tmp_path: Path, *answers: Answer | None) -> Iterator[str]:
    """One who answers each message of one client with the next of these, then hangs up; None: hangs up now."""

    def talk() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(20.0)
            for answer in answers:
                message = wire.receive(sock)
                if message is not None:
                    message.close()
                if message is None or answer is None:
                    return
                fds = [answer[1]] if answer[1] >= 0 else []
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                sock.sendmsg([answer[0]], rights)
            sock.recv(1 << 17)

    path = os.fspath(tmp_path / "b")
    before = descriptors()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=talk)
        thread.start()
        yield path
        thread.join(20.0)
        assert not thread.is_alive()
    assert descriptors() == before
    os.unlink(path)


HELLO: tuple[Answer, ...] = ((b"/host_ok", -1), (b"/xsk_fd_nak, ConfigError, what?", -1))


@pytest.mark.parametrize("answers", [(None,), (HELLO[0], None), ((b"garbage", -1),), (HELLO[0], (b"x" * 5000, -1))])
def test_who_hangs_up_or_babbles_is_no_broker(tmp_path: Path, answers: tuple[Answer | None, ...]) -> None:
    with answering(tmp_path, *answers) as path, pytest.raises(BrokerError):
        lease.connect(path)


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match=r"nothing: connecting to the broker failed: .*ENOENT.*; is it running\?"):
        lease.connect(tmp_path / "nothing")


def open_port(path: str, **changes: Any) -> Exception:
    """What opening a port through `path` raises; its frames are all home then."""
    memory = changes.pop("memory", None)
    with Umem(128, memory=SharedMemory(128 * 4096) if memory is None else memory) as umem, FramePool(umem) as pool:
        config = PortConfig(fill_size=64, comp_size=64, rx_size=64, tx_size=64, fill_level=32, bind_timeout=0.0)
        with pytest.raises(Exception) as raised:
            Port(pool, "eth9", via=path, config=changes.pop("config", config), **changes)
        assert not umem._ports
        umem.audit().check()
        assert pool.stats().inflight == 0 or umem.count_states()["fill"] == 0
    error = raised.value.with_traceback(None)
    error.__context__ = error.__cause__ = None
    del raised, umem, pool
    gc.collect()  # the memory's mapping has a descriptor of its own, and goes with the last view of it
    return error


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        ("QueueBusyError, it is taken", QueueBusyError, "says: it is taken"),
        ("NoSuchInterfaceError, a, b", NoSuchInterfaceError, "says: a, b"),
        ("QueueRangeError, no", QueueRangeError, "no"),
        ("MemoryLimitError, no", MemoryLimitError, "no"),
        ("SystemExit, no", BrokerError, "says: no"),
        ("os, no", BrokerError, "says: no"),
        ("", BrokerError, "answered /xsk_fd_nak"),
    ],
)
def test_a_refusal_is_the_error_it_names(tmp_path: Path, words: str, kind: type[Exception], text: str) -> None:
    with answering(tmp_path, *HELLO, (f"/xsk_fd_nak, {words}".encode(), -1)) as path:
        error = open_port(path)
    assert type(error) is kind
    assert text in str(error)


@pytest.mark.parametrize("fd", [-1, 0])
@pytest.mark.parametrize("data", [b"/xsk_fd_ack, veth, native", b"/xsk_fd_ack", b"/other"])
def test_a_socket_that_is_none(tmp_path: Path, data: bytes, fd: int) -> None:
    with open(os.devnull) as file, answering(tmp_path, *HELLO, (data, fd if fd < 0 else file.fileno())) as path:
        assert isinstance(open_port(path), BrokerError)


def test_a_broker_that_dies_while_it_makes_the_socket(tmp_path: Path) -> None:
    with answering(tmp_path, *HELLO, None) as path:
        error = open_port(path)
    assert isinstance(error, BrokerError)


def test_a_plugin_that_has_no_map_for_it(tmp_path: Path) -> None:
    plugin: tuple[Answer, ...] = ((b"/host_ok", -1), (b"/nak", -1), (b"/fd_nak", -1), (b"/fin_ack", -1))
    with answering(tmp_path, *plugin) as path:
        with pytest.raises(BrokerError, match="has no map for lo"):
            lease.MapLease(lease.connect(path), "lo")
        lease._plugins.pop(path).close()


def test_a_plugin_whose_map_is_none(tmp_path: Path) -> None:
    with open(os.devnull) as file:
        plugin: tuple[Answer, ...] = ((b"/host_ok", -1), (b"/nak", -1), (b"/fd_ack", file.fileno()), (b"/fin_ack", -1))
        with answering(tmp_path, *plugin) as path:
            with pytest.raises(Exception, match="map descriptor"):
                lease.MapLease(lease.connect(path), "lo")
            lease._plugins.pop(path).close()


def test_what_a_broker_cannot_do_is_refused_before(tmp_path: Path) -> None:
    with answering(tmp_path, *HELLO, (b"/fin_ack", -1)) as path:
        error = open_port(path, memory=AnonymousMemory(128 * 4096))
    assert isinstance(error, ConfigError)
    assert "Umem(128, memory=SharedMemory(128 * 4096))" in str(error)
    assert isinstance(open_port("/nothing", netns="x"), ConfigError)


@pytest.mark.parametrize("change", [{"netns": "x"}, {"force": True}, {"xdp_mode": "native"}, {"gro_flush_timeout": 0}])
def test_options_that_are_the_brokers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))} cannot be set through a broker"):
        Options(via="/run/x", **change)


def test_a_group_is_asked_for_as_well_as_a_user() -> None:
    allowed = Allowed.parse(["1000", "@27"])
    assert allowed.admits(Peer(1, 1000, frozenset({5})))
    assert allowed.admits(Peer(1, 5, frozenset({5, 27})))
    assert not allowed.admits(Peer(1, 27, frozenset({1000})))
