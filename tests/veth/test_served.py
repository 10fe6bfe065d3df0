"""Sockets for processes without privileges: real packets through a broker; what such a process can and cannot do."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_lab import perfect, wait_for

import afxdp_pool as ap
from afxdp_pool import lease, wire
from afxdp_pool.allowing import Allowed
from afxdp_pool.bpf import BpfMap
from afxdp_pool.broker import Broker
from afxdp_pool.netdev import in_netns
from afxdp_pool.privileges import CAPABILITIES, held
from afxdp_pool.testing.lab import Lab, VethPair
from afxdp_pool.testing.traffic import Sink, Source

COMMAND = [sys.executable, "-m", "afxdp_pool.cli"]
#: A user that exists nowhere, without group, capability or a way to any.
NOBODY = 64321
UNPRIVILEGED = [
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all"),
    "--no-new-privs",
]
SMALL = ap.PortConfig(fill_size=512, comp_size=256, rx_size=256, tx_size=256, fill_level=256, transmit="socket")


class Process:
    """A process that says a line when it is ready, and what it says after; killed if it does not end by itself."""

    def __init__(self, words: list[str], within: float = 20.0) -> None:
        self.popen = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
        self.pid, self._within = self.popen.pid, within
        assert self.popen.stdout is not None
        self.ready = self.popen.stdout.readline()

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        self.popen.send_signal(number)
        out, err = self.popen.communicate(timeout=self._within)
        return self.popen.returncode, out, err

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a", queues=2)


@pytest.fixture
def path() -> Iterator[Path]:
    """Where a broker of root's can listen and a process without privileges can connect."""
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="afxdp-pool-test-", dir="/run"))
    directory.chmod(0o755)
    yield directory / "serve.sock"
    shutil.rmtree(directory)


def serve(pair: VethPair, path: Path, *words: str, allow: str = str(NOBODY)) -> Process:
    near = pair.near
    place = ["-i", near.name, "--netns", near.netns, "--socket", str(path), "--allow", allow]
    served = Process([*COMMAND, "serve", *place, *words])
    assert served.ready.startswith(f"afxdp-pool: serving {near.name} (native)"), served.end()
    return served


def program(path: Path, pair: VethPair, body: str) -> list[str]:
    """A Python program of a process without privileges, with a pool and the names it needs."""
    start = f"""
        import os, sys, errno, time
        import afxdp_pool as ap
        VIA, NETDEV, FRAMES = {str(path)!r}, {pair.near.name!r}, 1024
        SMALL = ap.PortConfig(fill_size=512, comp_size=256, rx_size=256, tx_size=256, fill_level=256, transmit="socket")
        umem = ap.Umem(FRAMES, memory=ap.SharedMemory(FRAMES * 4096))
        pool = ap.FramePool(umem)
        def home():
            for port in list(umem._ports):
                port.close()
            pool.close()
            umem.audit().check(idle=True)
    """
    return [*UNPRIVILEGED, sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(body)]


@contextlib.contextmanager
def asking(words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Such a program, which has said that it is ready and goes on when it is told something."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "ready\n", client.communicate()
            yield client
        finally:
            client.kill()


def capabilities(pid: int) -> set[int]:
    """Those of all threads of a process."""
    return {number for thread in os.listdir(f"/proc/{pid}/task") for number in held(pid, int(thread))}


def reflects(client: Process, pair: VethPair, sink: Sink, *, rate: int) -> None:
    """All of 5000 packets come back from it, and when it has ended it says so itself."""
    with Source(pair.far, cpu=0) as source:
        for goal in range(250, 5001, 250):  # fewer at once than any ring on the way holds
            source.send(250, rate=rate)
            seen = sink.wait(goal)
    perfect(seen, 5000)
    code, out, err = client.end()
    assert code == 0, err
    for line in ("received", "sent", "completed"):
        assert re.search(rf"{line} +5,000 packets", out), out
    assert "all accounted for" in out


def test_packets_go_round_in_a_process_without_privileges(pair: VethPair, path: Path) -> None:
    with serve(pair, path) as broker:
        assert capabilities(broker.pid) == {CAPABILITIES["CAP_NET_RAW"], CAPABILITIES["CAP_IPC_LOCK"]}
        words = ["reflect", "-i", pair.near.name, "--via", str(path), "--ring-size", "512"]
        # Its first line of figures comes when it has its sockets.
        with Process([*UNPRIVILEGED, *COMMAND, *words]) as client, Sink(pair.far) as sink:
            assert "rx 0 pps" in client.ready
            assert capabilities(client.pid) == set()
            reflects(client, pair, sink, rate=20_000)
        words = ["drop", "-i", pair.near.name, "--via", str(path), "--json", "--duration", "0.2"]
        done = subprocess.run([*UNPRIVILEGED, *COMMAND, *words], capture_output=True, text=True, timeout=20, check=True)
        found = json.loads(done.stdout)
        assert found["audit"]["ok"]
        assert found["info"]["ports"][0]["xdp_mode"] == "native"
        code, _, err = broker.end()
    assert code == 0, err
    assert f"given to process {client.pid} of user {NOBODY}" in err
    assert list(path.parent.iterdir()) == []


def test_what_it_cannot_do(pair: VethPair, path: Path) -> None:
    """Attach, make sockets, use the one it has elsewhere, and read what comes to another queue."""
    body = """
        import ctypes, socket, struct
        def refused(call, *kinds):
            try:
                call()
            except kinds as error:
                return error.errno
            raise SystemExit("it was not refused")
        try:
            ap.XdpProgram("lo")
            raise SystemExit("it attached a program")
        except ap.AfXdpError as error:
            assert error.errno in (errno.EPERM, errno.EACCES), error
        assert refused(lambda: socket.socket(44, socket.SOCK_RAW), OSError) == errno.EPERM
        port = ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
        libc = ctypes.CDLL(None, use_errno=True)
        for index in (1, port_index):
            for queue in (0, 1):
                address = struct.pack("=HHIII", 44, 0, index, queue, 0)
                assert libc.bind(port.fileno(), address, len(address)) == -1
                assert ctypes.get_errno() == errno.EBUSY
        try:
            ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
            raise SystemExit("it got a queue twice")
        except ap.QueueBusyError as error:
            print(error, file=sys.stderr)
        other = ap.Port(pool, NETDEV, 1, config=SMALL, via=VIA, paused=True)
        try:
            port._lease.add_socket(1, other.fileno())
            raise SystemExit("it received with another's socket")
        except ap.BrokerError as error:
            assert "not the socket of this connection" in str(error)
        try:
            port._lease.add_socket(1, os.open("/dev/null", os.O_RDONLY))
            raise SystemExit("it received with no socket")
        except ap.BrokerError:
            pass
        other.close()
        print("ready", flush=True)
        sys.stdin.read()
        batch = port.receive(256)
        got = len(batch)
        umem.put(batch)
        home()
        print(got, flush=True)
    """
    body = body.replace("port_index", str(pair.near.ifindex))
    with serve(pair, path), asking(program(path, pair, body)) as client:
        # A source pinned to a CPU sends into the queue of that number; those of queue 1 go to the kernel's stack.
        for cpu, number in ((0, 100), (1, 50)):
            with Source(pair.far, cpu=cpu) as source:
                source.send(number, rate=10_000)
        out, err = client.communicate("go", timeout=20)
        assert client.returncode == 0, err
        assert int(out) == 100
        assert "another AF_XDP socket has this queue" in err


def test_who_is_killed_leaves_the_queue_free(pair: VethPair, path: Path) -> None:
    body = """
        port = ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
        print("ready", flush=True)
        time.sleep(60)
    """
    with serve(pair, path) as broker:
        fds = len(os.listdir(f"/proc/{broker.pid}/fd"))
        for _ in range(5):
            with Process(program(path, pair, body)) as client:
                assert client.ready == "ready\n"
                assert client.end(signal.SIGKILL)[0] == -signal.SIGKILL
        assert wait_for(lambda: len(os.listdir(f"/proc/{broker.pid}/fd")) == fds)
        # Nobody has the queue: its packets go to the stack, to the last one.
        before = pair.near.counters()["rx_packets"]
        with Source(pair.far) as source:
            source.send(100, rate=10_000)
        assert wait_for(lambda: pair.near.counters()["rx_packets"] >= before + 100)


def test_a_broker_that_is_killed(pair: VethPair, path: Path) -> None:
    """Its program goes with it; the client is told, can send still, and its frames come home."""
    body = """
        port = ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
        port.check()
        print("ready", flush=True)
        sys.stdin.read()
        try:
            port.check()
        except ap.BrokerError as error:
            print("told", flush=True)
        import numpy as np
        from afxdp_pool.testing import packets
        addresses = packets.Addresses(source_mac=MACS[0], target_mac=MACS[1])
        batch = pool.alloc(10)
        batch.descs["len"] = 64
        for seq, addr in enumerate(batch.descs["addr"].tolist()):
            umem.data[addr : addr + 64] = np.frombuffer(packets.build(64, seq=seq, addresses=addresses), np.uint8)
        assert port.transmit(batch) == 10
        deadline = time.monotonic() + 20
        while port.stats().tx_completed < 10:
            assert time.monotonic() < deadline
            port.complete(64)
        home()
    """
    body = body.replace("MACS", repr((pair.near.mac, pair.far.mac)))
    with serve(pair, path) as broker, Sink(pair.far) as sink, asking(program(path, pair, body)) as client:
        broker.end(signal.SIGKILL)
        out, err = client.communicate("go", timeout=20)
        assert (client.returncode, out) == (0, "told\n"), err
        perfect(sink.wait(10), 10)
    with serve(pair, path):  # its lock and file are no obstacle
        pass


def test_a_broker_that_hangs(pair: VethPair, path: Path) -> None:
    """Closing does not need it: the kernel lets go of everything with the client's descriptor."""
    body = """
        from afxdp_pool import lease
        lease.TIMEOUT = 0.5
        port = ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
        port._lease.connection._socket.settimeout(0.5)
        print("ready", flush=True)
        sys.stdin.read()
        home()
        print("home", flush=True)
    """
    with serve(pair, path) as broker, asking(program(path, pair, body)) as client:
        os.kill(broker.pid, signal.SIGSTOP)
        try:
            out, err = client.communicate("go", timeout=20)
            assert (client.returncode, out) == (0, "home\n"), err
            # The queue is free while the broker still stands still.
            with ap.Umem(1024) as umem, ap.FramePool(umem) as pool:
                config = ap.PortConfig(receive=False, fill_level=64, transmit="socket")
                with ap.Port(pool, pair.near.name, netns=pair.near.netns, config=config):
                    pass
                umem.audit().check()
        finally:
            os.kill(broker.pid, signal.SIGCONT)


def test_memory_has_a_limit_and_needs_no_ulimit(pair: VethPair, path: Path) -> None:
    body = """
        import resource
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 4096))
        port = ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
        try:
            ap.Port(pool, NETDEV, 1, config=SMALL, via=VIA)
        except ap.MemoryLimitError as error:
            print(error, flush=True)
        home()
    """
    with serve(pair, path, "--max-memory", str(6 << 20)), Process(program(path, pair, body)) as client:
        assert client.popen.wait(20) == 0
        assert f"4194304 bytes are more than user {NOBODY} may have, 2097152 more" in client.ready


def test_who_is_not_named_does_not_get_in(pair: VethPair, path: Path) -> None:
    body = """
        try:
            ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
        except ap.PrivilegeError as error:
            print(error, flush=True)
    """
    for allow, said in ((str(NOBODY + 1), "EACCES"), (f"{NOBODY + 1},{NOBODY + 2}", f"refuses user {NOBODY}")):
        with serve(pair, path, allow=allow), Process(program(path, pair, body)) as client:
            assert said in client.ready, client.end()
    with serve(pair, path, allow=f"@{NOBODY}"), Process(program(path, pair, "print('in'); home()")) as client:
        assert client.ready == "in\n"


def test_the_broker_runs_as_another_user(pair: VethPair, path: Path) -> None:
    with serve(pair, path, "--user", str(NOBODY + 5)) as broker:
        assert os.stat(f"/proc/{broker.pid}").st_uid in (0, NOBODY + 5)  # root's when it may not dump core
        status = Path(f"/proc/{broker.pid}/status").read_text()
        assert f"Uid:\t{NOBODY + 5}\t{NOBODY + 5}\t{NOBODY + 5}\t{NOBODY + 5}" in status
        assert "NoNewPrivs:\t1" in status
        assert capabilities(broker.pid) == {CAPABILITIES["CAP_NET_RAW"], CAPABILITIES["CAP_IPC_LOCK"]}
        body = "port = ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA); home(); print('home', flush=True)"
        with Process(program(path, pair, body)) as client:
            assert client.ready == "home\n", client.end()


def test_the_broker_starts_with_the_capabilities_that_are_documented(pair: VethPair, path: Path) -> None:
    names = "+net_admin,+net_raw,+bpf,+perfmon,+ipc_lock"
    os.chown(path.parent, NOBODY + 5, NOBODY + 5)
    words = [
        *("nsenter", f"--net=/run/netns/{pair.near.netns}", "setpriv", f"--reuid={NOBODY + 5}"),
        *(f"--regid={NOBODY + 5}", "--clear-groups", f"--inh-caps=-all,{names}"),
        *(f"--ambient-caps=-all,{names}", f"--bounding-set=-all,{names}", *COMMAND, "serve"),
        *("-i", pair.near.name, "--socket", str(path), "--allow", f"{NOBODY},{NOBODY + 1}"),
    ]
    with Process(words) as broker:
        assert "serving" in broker.ready, broker.end()
        assert capabilities(broker.pid) == {CAPABILITIES["CAP_NET_RAW"], CAPABILITIES["CAP_IPC_LOCK"]}
        body = "port = ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA); home(); print('home', flush=True)"
        with Process(program(path, pair, body)) as client:
            assert client.ready == "home\n", client.end()


# The protocol of the device plugins -----------------------------------------------------------------------------------


@contextlib.contextmanager
def plugin(path: Path, xdp: ap.XdpProgram) -> Iterator[None]:
    """A device plugin as those for Kubernetes are: one connection, its map, and a /nak for all it does not know."""

    def talk() -> None:
        sock, _ = listener.accept()
        with sock:
            while (message := wire.receive(sock)) is not None:
                with message:
                    if message.verb == wire.CONNECT:
                        sock.send(b"/host_ok")
                    elif message.verb == wire.MAP_FD and message.words == (xdp.netdev.name,):
                        socket.send_fds(sock, [b"/fd_ack"], [xdp.map_fd])
                    elif message.verb == wire.BUSY_POLL:
                        assert message.fd >= 0
                        sock.send(b"/config_busy_poll_ack")
                    else:
                        sock.send(b"/nak" if message.verb != wire.FIN else b"/fin_ack")

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(os.fspath(path))
        listener.listen()
        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield
        lease._plugins.pop(os.fspath(path)).close()
        lease._maps.pop((os.fspath(path), xdp.netdev.name)).close()
        thread.join(20.0)
        assert not thread.is_alive()


def test_a_pod_uses_the_map_of_a_device_plugin(pair: VethPair, path: Path) -> None:
    near, far = pair.near, pair.far
    with in_netns(near.netns), ap.XdpProgram(near.name) as xdp, plugin(path, xdp):
        umem = ap.Umem(2048)
        pool = ap.FramePool(umem)
        config = ap.PortConfig(fill_level=256, transmit="socket", busy_poll_us=20)
        with ap.Port(pool, near.name, 0, via=path, config=config) as port, Source(far, cpu=0) as source:
            with ap.Port(pool, near.name, 1, via=path, config=config, paused=True):  # the same connection
                pass
            source.send(200, rate=10_000)
            assert port.info.xdp_mode is None
            got = 0

            def receive() -> bool:
                nonlocal got
                batch = port.receive(64)
                got += len(batch)
                umem.put(batch)
                return got == 200

            assert wait_for(receive)
            umem.audit().check()
        pool.close()
        umem.audit().check(idle=True)
        umem.close()


def test_metadata_comes_through_a_broker_whose_program_tells_it(lab: Lab, path: Path) -> None:
    pair = lab.veth("a")  # one queue: a kernel's stack takes any of several
    body = """
        config = dataclasses.replace(SMALL, rx_metadata=("arrival", "hash"))
        try:
            ap.Port(pool, NETDEV, via=VIA, config=dataclasses.replace(SMALL, rx_metadata=("vlan",)))
        except ap.ConfigError as error:
            assert "tells no vlan" in str(error), error
        port = ap.Port(pool, NETDEV, via=VIA, config=config)
        print("ready", flush=True)
        assert port.poll(timeout=20)
        batch = port.receive()
        known = batch.rx_metadata()
        print(known.has_arrival.tolist(), known.has_hash.tolist(), known.arrival[0])
        pool.put(batch)
        home()
    """
    with serve(pair, path, "--rx-metadata", "hash,arrival"):
        words = program(path, pair, "import dataclasses\n" + textwrap.dedent(body))
        client = Process(words)
        assert client.ready == "ready\n", client.end()
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        with in_netns(pair.far.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", (pair.near.ipv4, 9))
        with client:
            out, err = client.popen.communicate(timeout=20)
        assert out.startswith("[True] [True] "), (out, err)
        assert before < int(out.split()[2]) < time.clock_gettime_ns(time.CLOCK_TAI)


def test_a_client_of_device_plugins_gets_the_map(pair: VethPair, path: Path) -> None:
    """As DPDK's af_xdp driver asks with use_cni (uds_get_xskmap_fd() in drivers/net/af_xdp/rte_eth_af_xdp.c)."""
    with in_netns(pair.near.netns), ap.XdpProgram(pair.near.name) as xdp:
        allowed = Allowed.parse([str(os.geteuid())])
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(os.fspath(path))
            listener.listen()
            with Broker({pair.near.name: xdp}, allowed, share_maps=True) as broker:
                thread = threading.Thread(target=broker.run, args=(listener,))
                thread.start()
                try:
                    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                        client.connect(os.fspath(path))
                        client.send(b"/connect,pod-1")
                        assert client.recv(64) == b"/host_ok"
                        client.send(b"/version")
                        assert client.recv(64) == b"0.1"
                        client.send(f"/xsk_map_fd,{pair.near.name}".encode())
                        data, fds, _, _ = socket.recv_fds(client, 64, 1)
                        assert data == b"/fd_ack"
                        assert BpfMap(fds[0]).id == BpfMap(xdp.map_fd).id
                        os.close(fds[0])
                        client.send(b"/xsk_map_fd, eth9")
                        assert client.recv(64) == b"/fd_nak"
                        client.send(b"/fin")
                        assert client.recv(64) == b"/fin_ack"
                        assert client.recv(64) == b""
                finally:
                    broker.stop()
                    thread.join(20.0)


def test_a_device_that_was_made_anew_needs_a_broker_made_anew(lab: Lab, pair: VethPair, path: Path) -> None:
    body = """
        try:
            ap.Port(pool, NETDEV, 0, config=SMALL, via=VIA)
        except ap.AfXdpError as error:
            print(type(error).__name__, error, flush=True)
    """
    with serve(pair, path):
        with in_netns(pair.near.netns):
            subprocess.run(["ip", "link", "del", pair.near.name], check=True)
            kind = ["type", "veth", "peer", "name", "other"]
            subprocess.run(["ip", "link", "add", pair.near.name, "numrxqueues", "1", *kind], check=True)
            subprocess.run(["ip", "link", "set", pair.near.name, "up"], check=True)
        with Process(program(path, pair, body)) as client:
            assert client.ready.startswith("LinkGoneError"), client.end()
        with in_netns(pair.near.netns):
            subprocess.run(["ip", "link", "del", pair.near.name], check=True)


# Privileges given up after the start ----------------------------------------------------------------------------------


def user_of(pid: int) -> set[str]:
    """The users, real to file system, of all threads of a process."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        status = Path(f"/proc/{pid}/task/{thread}/status").read_text()
        found |= set(re.search(r"^Uid:\s*(.*)$", status, re.MULTILINE)[1].split())  # type: ignore[index]
    return found


@pytest.mark.parametrize(("transmit", "left"), [("auto", set()), ("live", {"CAP_NET_ADMIN", "CAP_BPF"})])
def test_the_command_becomes_another_user(pair: VethPair, transmit: str, left: set[str]) -> None:
    words = ["reflect", "-i", pair.near.name, "--netns", pair.near.netns, "--user", str(NOBODY), "--transmit", transmit]
    with Sink(pair.far) as sink, Process([*COMMAND, *words]) as client:
        assert "rx 0 pps" in client.ready
        assert user_of(client.pid) == {str(NOBODY)}
        assert capabilities(client.pid) == {CAPABILITIES[name] for name in left}
        reflects(client, pair, sink, rate=50_000)
    with ap.XdpProgram(pair.near.name, netns=pair.near.netns):  # nothing is left on the device
        pass


def test_a_deleted_interface_is_noticed_by_another_user(pair: VethPair) -> None:
    words = ["drop", "-i", pair.near.name, "--netns", pair.near.netns, "--user", str(NOBODY)]
    with Process([*COMMAND, *words]) as client:
        assert "rx 0 pps" in client.ready
        with in_netns(pair.near.netns):
            subprocess.run(["ip", "link", "del", pair.near.name], check=True)
        out, err = client.popen.communicate(timeout=20)
    assert client.popen.returncode == 1
    assert "the interface was deleted" in err, out


def test_what_only_root_could_undo_is_refused(pair: VethPair) -> None:
    words = ["drop", "-i", pair.near.name, "--netns", pair.near.netns, "--attach", "libxdp", "--user", str(NOBODY)]
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert "takes root to come off" in done.stderr
    with ap.XdpProgram(pair.near.name, netns=pair.near.netns):
        pass
