"""`afxdp-pool top` in parts: what the kernel and our engines tell, read and worded; what is broken is no error."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path

import pytest
from bench import Bench, forwarding, numbered
from hypothesis import given
from hypothesis import strategies as st

from afxdp_pool import DROP, EngineStats, KernelStats, PortStats, Route, beacon, sockets
from afxdp_pool.beacon import Beacon
from afxdp_pool.cli import main, top
from afxdp_pool.machine import Engine, Machine, Process, Program, Socket, Watcher
from afxdp_pool.sockets import SocketSeen, UmemSeen


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


# sock_diag ------------------------------------------------------------------------------------------------------------


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value.ljust((len(value) + 3) & ~3, b"\0")


def message(inode: int, *attributes: bytes) -> bytes:
    """As xsk_diag_fill() in net/xdp/xsk_diag.c writes it, behind a netlink head."""
    return bytes(16) + struct.pack("=BBHIII", 44, 3, 0, inode, 1, 2) + b"".join(attributes)


WHOLE = message(
    77,
    attribute(1, struct.pack("=II", 5, 3)),
    attribute(2, struct.pack("=I", 1000)),
    attribute(3, struct.pack("=I", 2048)),
    attribute(4, struct.pack("=I", 1024)),
    attribute(5, struct.pack("=Q8I", 1 << 25, 9, 8192, 4096, 256, 5, 3, 1, 2)),
    attribute(6, struct.pack("=I", 4096)),
    attribute(7, struct.pack("=I", 512)),
    attribute(8, bytes(36)),
    attribute(9, struct.pack("=6Q", 1, 2, 3, 4, 5, 6)),
    attribute(99, b"of a newer kernel"),
)


def test_a_dump_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "netlink_dump", lambda *_: iter([WHOLE, message(78)]))
    first, second = sockets.dump() or []
    stats = KernelStats(
        rx_dropped=1, rx_invalid_descs=2, rx_ring_full=3, rx_fill_ring_empty_descs=4, tx_invalid_descs=5,
        tx_ring_empty_descs=6,
    )  # fmt: skip
    umem = UmemSeen(9, 1 << 25, 4096, 256, 2)
    assert first == SocketSeen(77, 5, 3, 1000, True, 2048, 1024, 4096, 512, umem, stats)
    assert second == SocketSeen(78)


@pytest.mark.parametrize("length", range(16, len(WHOLE), 3))
def test_a_message_cut_off_tells_less(length: int) -> None:
    seen = sockets.parse(WHOLE[16:length].ljust(16, b"\0"))
    assert seen.umem is None or seen.umem.size == 1 << 25


@pytest.mark.parametrize("kind", range(1, 10))
def test_an_attribute_shorter_than_its_kind_tells_nothing(kind: int) -> None:
    body = WHOLE[16:32] + attribute(kind, b"x") + attribute(2, struct.pack("=I", 1000))
    assert sockets.parse(body) == replace(SocketSeen(77), uid=1000)


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EINVAL])
def test_a_kernel_without_xdp_diag(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object) -> Iterator[bytes]:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(sockets, "netlink_dump", refuse)
    assert sockets.dump() is None


def test_what_is_no_socket_of_ours() -> None:
    with open("/dev/null") as file:
        assert not sockets.is_xdp(f"/proc/self/fd/{file.fileno()}")
    assert not sockets.is_xdp("/proc/self/fd/100000")
    assert sockets.ask(2**22 + 5, 0) is None


def test_a_number_that_is_another_descriptors_by_now() -> None:
    """A socket that was closed between two looks at it, and whose number went to something else."""
    with open("/dev/null") as file, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        before = os.listdir("/proc/self/fd")
        assert sockets.ask(os.getpid(), file.fileno()) is None
        assert sockets.ask(os.getpid(), other.fileno()) is None
        assert os.listdir("/proc/self/fd") == before


# Beacons --------------------------------------------------------------------------------------------------------------


def lit(bench: Bench) -> tuple[Beacon, str]:
    """A beacon, and where it is read."""
    made = Beacon(bench.ports, 3, "decide")
    made.tell(EngineStats(*range(len(fields(EngineStats)))))
    return made, f"/proc/self/fd/{made._fd}"


def test_a_beacon_tells_what_the_counters_say(bench: Bench) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        bench.turn(forwarder, numbered(30))
    made, path = lit(bench)
    with made:
        assert not made.due, "once a second"
        assert os.readlink(path) == f"/memfd:{beacon.NAME} (deleted)"
        told = beacon.read(path)
        assert told is not None
        assert (told.cpu, told.handler) == (3, "decide")
        assert told.engine == {field.name: n for n, field in enumerate(fields(EngineStats))}
        assert told.counters == tuple(port.stats().as_dict() for port in bench.ports)
        assert told.counters[0]["rx_packets"] == 30
        assert told.ports[0] == {"inode": 0, "netdev": "memory", "queue": 0, "netns": None, "mode": "copy"}
    assert beacon.read(path) is None


def test_a_broken_beacon_tells_nothing(bench: Bench, tmp_path: Path) -> None:
    made, path = lit(bench)
    with made:
        whole = Path(path).read_bytes()
    copy = tmp_path / "copy"
    for length in range(0, len(whole), 7):
        copy.write_bytes(whole[:length])
        assert beacon.read(str(copy)) is None
    copy.write_bytes(b"x" + whole[1:])
    assert beacon.read(str(copy)) is None
    assert beacon.read(str(tmp_path / "none")) is None


def test_a_run_has_a_beacon_and_leaves_none(bench: Bench) -> None:
    def beacons() -> list[str]:
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        return [link for link in links if os.path.islink(link) and beacon.NAME in os.readlink(link)]

    seen: list[int] = []
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        forwarder.run(0.05, on_tick=lambda _: seen.append(len(beacons())))
    assert max(seen) == 1
    assert beacons() == []


# Words ----------------------------------------------------------------------------------------------------------------

LOOP = {"rounds": 1000, "idle_rounds": 250, "handler_timed": 10, "handler_ns": 50_000}
PORT = {"rx_packets": 5000, "tx_packets": 0}
ONE = Socket(
    "lab", "eth1", 0, (Process(7, "python", "python fw.py"),), SocketSeen(77, zero_copy=False, stats=KernelStats()),
    Engine("fw.decide", None, 10**9, LOOP, PORT),
)  # fmt: skip
BEFORE = Machine(10.0, (ONE,), (Program("", "eth1", "native", 5, "xdp_dispatcher", ("a", "b"), 7),), 3)


def after(**changes: object) -> Machine:
    """Two seconds later."""
    return replace(BEFORE, time=12.0, sockets=(replace(ONE, **changes),))  # type: ignore[arg-type]


def cells(machine: Machine, before: Machine | None = BEFORE) -> dict[str, str]:
    (row,) = top.rows(machine, before)
    return dict(zip(top._SOCKETS, row.cells, strict=True))


def test_rates_are_of_the_time_between_two_looks() -> None:
    loop = {"rounds": 3000, "idle_rounds": 1250, "handler_timed": 20, "handler_ns": 70_000}
    engine = Engine("fw.decide", None, 2 * 10**9, loop, {"rx_packets": 12_000, "tx_packets": 9})
    stats = KernelStats(rx_ring_full=30, rx_dropped=10, rx_fill_ring_empty_descs=4)
    shown = cells(after(engine=engine, seen=replace(ONE.seen, stats=stats)))
    assert (shown["RX/S"], shown["TX/S"], shown["DROPPED"], shown["DROP/S"]) == ("7.000k", "9", "40", "20")
    assert (shown["HANDLER"], shown["IDLE"], shown["FILL EMPTY"]) == ("decide 2 us", "50%", "4")
    assert (shown["PID"], shown["COMMAND"], shown["MODE"]) == ("7", "python fw.py", "copy")
    assert top.rows(after(engine=engine, seen=replace(ONE.seen, stats=stats)), BEFORE)[0].alarm


def test_the_first_look_has_no_rates_and_means_over_all_time() -> None:
    shown = cells(BEFORE, None)
    assert (shown["RX/S"], shown["DROP/S"], shown["HANDLER"], shown["IDLE"]) == ("", "", "decide 5 us", "25%")


def test_a_slow_handler_is_an_alarm() -> None:
    slow = replace(ONE.engine, loop=LOOP | {"handler_ns": 10 * 3_000_000})  # type: ignore[type-var]
    (row,) = top.rows(after(engine=slow), None)
    assert row.alarm
    assert "decide 3 ms" in row.cells


def test_what_is_not_known_is_a_question_mark() -> None:
    shown = cells(after(netdev=None, queue=None, processes=(), engine=None, seen=SocketSeen(77)))
    assert [shown[head] for head in ("NETDEV", "QUEUE", "MODE", "DROPPED", "PID")] == ["?"] * 5
    assert (shown["RX/S"], shown["COMMAND"]) == ("", "")


def test_a_command_writes_nothing_but_text() -> None:
    sly = (Process(7, "x", "x\x1b[2J\n\rroot" + "y" * 200), Process(8, "z", "z"))
    assert cells(after(processes=sly))["COMMAND"] == "x[2Jroot" + "y" * 52 + " (+1 more)"


@given(st.integers(80, 250), st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=60))
def test_tables_fit_the_terminal(columns: int, command: str) -> None:
    machine = replace(
        after(netns="a-long-name-of-a-namespace-in-a-pod", processes=(Process(4_194_304, "x", command),)),
        programs=BEFORE.programs * 2,
    )
    lines = top.plain(machine, BEFORE, columns)
    assert all(len(line) <= columns for line in lines)
    assert any(line.split()[:2] == ["NETNS", "NETDEV"] for line in lines)
    assert "eth1" in "\n".join(lines)


def test_plain_says_it_all() -> None:
    text = "\n".join(top.plain(replace(BEFORE, notes=("run as root",)), None))
    for part in ("1 AF_XDP socket, 1 XDP program, 3 namespaces", "note: run as root", "xdp_dispatcher (a, b)", "pid 7"):
        assert part in text
    nothing = top.plain(Machine(0.0, (), (), 1), None)
    assert nothing == ["0 AF_XDP sockets, 0 XDP programs, 1 namespace"]


def test_the_command_without_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Watcher, "look", lambda _: BEFORE)
    assert main(["top"]) == 0
    assert "eth1" in capsys.readouterr().out
    assert main(["top", "--json"]) == 0
    assert '"netdev": "eth1"' in capsys.readouterr().out


def test_counters_have_the_names_top_looks_for() -> None:
    assert {"rounds", "idle_rounds", "handler_timed", "handler_ns"} <= set(EngineStats.__dataclass_fields__)
    assert {"rx_packets", "tx_packets"} <= set(PortStats.__dataclass_fields__)
