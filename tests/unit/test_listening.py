"""Where a broker listens and whom it admits: the file's mode, the lock, what is stale and what is somebody else's."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from afxdp_pool import BrokerError, ConfigError
from afxdp_pool.allowing import Allowed, Peer, peer_of
from afxdp_pool.listening import Listener, passed_listener, tell_systemd

ME = Allowed.parse([str(os.geteuid())])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_users_and_groups_by_name_and_number() -> None:
    allowed = Allowed.parse(["root", "1000", "@root", "@27"])
    assert allowed == Allowed(frozenset({0, 1000}), frozenset({0, 27}))
    assert allowed.admits(Peer(1, 1000, frozenset()))
    assert allowed.admits(Peer(1, 5, frozenset({5, 27})))
    assert not allowed.admits(Peer(1, 27, frozenset({1000})))


@pytest.mark.parametrize("names", [["nobody-of-that-name"], ["@nobody-of-that-name"], [], [""], ["-1"], ["4294967295"]])
def test_nobody_is_not_somebody(names: list[str]) -> None:
    with pytest.raises(ConfigError):
        Allowed.parse(names)


def test_a_peer_is_known_by_the_kernel() -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        assert peer_of(one) == Peer(os.getpid(), os.geteuid(), frozenset({os.getegid(), *os.getgroups()}))


def test_its_file_comes_and_goes_with_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "serve.sock"
    with Listener(path, ME) as listener:
        assert mode(path) == 0o600
        assert mode(path.parent) == 0o755
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(os.fspath(path))
            listener.socket.accept()[0].close()
    listener.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["@{gid}"], 0o660), (["0", "@{gid}"], 0o660), (["{uid}", "12345"], 0o666), (["@{gid}", "@12345"], 0o666)],
)
def test_the_mode_admits_those_who_may(tmp_path: Path, names: list[str], expected: int) -> None:
    allowed = Allowed.parse(name.format(uid=os.geteuid(), gid=os.getegid()) for name in names)
    if allowed.uids == {os.geteuid()} and expected == 0o660 and os.geteuid():
        pytest.skip("as another user than root this is two who may")
    with Listener(tmp_path / "s", allowed):
        assert mode(tmp_path / "s") == expected
        assert (tmp_path / "s").stat().st_gid == os.getegid()


def test_two_servers_cannot_have_one_path(tmp_path: Path) -> None:
    with Listener(tmp_path / "s", ME):
        with pytest.raises(BrokerError, match="another server listens there"):
            Listener(tmp_path / "s", ME)
        assert (tmp_path / "s").exists()
    with Listener(tmp_path / "s", ME):
        pass


def test_what_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    program = f"""
        import os
        from afxdp_pool.allowing import Allowed
        from afxdp_pool.listening import Listener
        Listener({str(tmp_path / "s")!r}, Allowed.parse([str(os.geteuid())]))
        os.kill(os.getpid(), 9)
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False).returncode == -9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s", "s.lock"]
    with Listener(tmp_path / "s", ME):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(BrokerError, match="no socket is in the way"):
        Listener(tmp_path / "s", ME)
    assert (tmp_path / "s").read_text() == "precious"
    assert not (tmp_path / "s.lock").exists()


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokerError, match="ELOOP"):
        Listener(tmp_path / "s", ME)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("bits", [0o777, 0o1777, 0o770])
def test_a_directory_others_may_write_to_is_refused(tmp_path: Path, bits: int) -> None:
    tmp_path.chmod(bits)
    with pytest.raises(ConfigError, match="put their own socket there"):
        Listener(tmp_path / "s", ME)
    assert list(tmp_path.iterdir()) == []


def test_a_path_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="107 bytes"):
        Listener(tmp_path / ("x" * 108), ME)


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="ENOENT"):
        Listener(tmp_path / "a" / "b" / "s", ME)


# systemd ------------------------------------------------------------------------------------------------------------

PASSED = """
import os, socket
from afxdp_pool.listening import passed_listener
os.environ["LISTEN_PID"] = str(os.getpid())
sock = passed_listener()
print(sock.family.name, sock.type.name, sock.getsockname(), os.get_inheritable(sock.fileno()))
"""


def passed(*sockets: socket.socket) -> subprocess.CompletedProcess[str]:
    """A process that finds these at 3, as systemd passes them."""

    def place() -> None:
        for number, fd in enumerate(saved):
            os.dup2(fd, 3 + number)

    saved = [sock.fileno() for sock in sockets]
    environment = {**os.environ, "LISTEN_FDS": str(len(sockets))}
    return subprocess.run(
        [sys.executable, "-c", PASSED],
        env=environment,
        preexec_fn=place,
        close_fds=False,
        capture_output=True,
        text=True,
        check=False,
    )


def test_systemd_passes_the_socket(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(os.fspath(tmp_path / "s"))
        sock.listen()
        done = passed(sock)
    assert done.stdout.split() == ["AF_UNIX", "SOCK_SEQPACKET", str(tmp_path / "s"), "False"], done.stderr


def test_systemd_passes_something_else(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream, socket.socket() as inet:
        stream.bind(os.fspath(tmp_path / "s"))
        stream.listen()
        for sockets in ([stream], [inet], [stream, inet]):
            assert "ListenSequentialPacket" in passed(*sockets).stderr


def test_without_systemd_nothing_is_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_PID", str(os.getpid() + 1))
    assert passed_listener() is None
    monkeypatch.delenv("LISTEN_PID")
    assert passed_listener() is None


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.fspath(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "n"))
        tell_systemd("READY=1")
        assert manager.recv(64) == b"READY=1"
    tell_systemd("READY=1")  # a manager that has gone is no error
    monkeypatch.delenv("NOTIFY_SOCKET")
    tell_systemd("READY=1")
