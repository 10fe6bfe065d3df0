"""Compiled handlers on rings in memory: the C loop calls them, and no frame is lost whatever they do.

Most are Python functions behind a C function pointer (ctypes), which need no compiler; numba's are few: it is slow.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE, Bench, forwarding, numbered

import afxdp_pool as ap
import afxdp_pool.forwarder as forwarder_module
from afxdp_pool._native import ffi
from afxdp_pool.compiling import COMPILED_DESC

Views = Callable[[Any, Any, Any, int], object]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


_SIGNATURE = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_void_p,
    ctypes.c_uint64,
    ctypes.c_void_p,
    ctypes.c_uint32,
    ctypes.c_void_p,
)


def pointer_to(handle: Views) -> Any:
    """A C function that shows `handle` its descriptors, memory and verdicts as arrays."""

    def call(descs: int, n: int, umem: int, size: int, verdicts: int, port: int, user: int) -> None:
        handle(
            np.ctypeslib.as_array((ctypes.c_uint8 * (n * ap.DESC.itemsize)).from_address(descs)).view(ap.DESC),
            np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(umem)),
            np.ctypeslib.as_array((ctypes.c_uint8 * n).from_address(verdicts)),
            port,
        )

    return _SIGNATURE(call)


def test_a_compiled_handler_decides_packet_by_packet(bench: Bench) -> None:
    content = numbered(300)
    seen: list[tuple[int, bytes]] = []

    def handle(descs: Any, umem: Any, verdicts: Any, port: int) -> None:
        assert port == 0
        assert not verdicts.any(), "DROP until something else is written"
        verdicts[:] = [(ap.DROP, ap.TX, ap.FORWARD(1), ap.DROP)[i % 4] for i in range(len(descs))]
        for desc, verdict in zip(descs, verdicts.tolist(), strict=True):
            seen.append((verdict, umem[desc["addr"] : desc["addr"] + desc["len"]].tobytes()))

    with closing(bench.forwarder(handler=ap.compiled(pointer_to(handle)))) as forwarder:
        bench.turn(forwarder, content)
        engine = forwarder.snapshot().engine
    assert [packet for _, packet in seen] == content
    assert bench.sent == [[p for v, p in seen if v == verdict] for verdict in (ap.TX, ap.FORWARD(1))]
    assert (engine.dropped, engine.reflected, engine.forwarded, engine.refused) == tuple(
        sum(v == verdict for v, _ in seen) for verdict in (ap.DROP, ap.TX, ap.FORWARD(1), 99)
    )


def test_the_loop_stays_in_c_between_batches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One slice, many batches."""
    monkeypatch.setattr(forwarder_module, "SLICE", 1000.0)
    batches = 0

    def handle(descs: Any, umem: Any, verdicts: Any, port: int) -> None:
        nonlocal batches
        batches += 1

    bench.ports[0].fill()
    bench.kernels[0].deliver(32)
    slices = 0
    with closing(bench.forwarder(handler=ap.compiled(pointer_to(handle)), batch=4)) as forwarder:

        def tick(forwarder: ap.Forwarder) -> None:
            nonlocal slices
            slices += 1

        forwarder.run(DEADLINE, packets=32, on_tick=tick)
    assert (batches, slices) == (8, 0)


@pytest.mark.parametrize("verdict", [3, 0x7F, ap.FORWARD(2), 0xFF])
def test_verdicts_that_mean_nothing_are_counted_dropped_and_raised(bench: Bench, verdict: int) -> None:
    def handle(descs: Any, umem: Any, verdicts: Any, port: int) -> None:
        verdicts[:] = ap.FORWARD(1)
        verdicts[3:5] = verdict

    with closing(bench.forwarder(handler=ap.compiled(pointer_to(handle)))) as forwarder:
        bench.ports[0].fill()
        bench.kernels[0].deliver(10)
        with pytest.raises(ap.VerdictError, match="2 verdicts"):
            forwarder.run(DEADLINE)
        bench.finish(forwarder)
        assert forwarder.snapshot().engine.refused == 2
    assert len(bench.sent[1]) == 8
    assert bench.umem.audit().check().app == 0


SPOILS: dict[str, Callable[[Any], object]] = {
    "foreign address": lambda descs: descs["addr"].__setitem__(1, 1 << 50),
    "another frame's address": lambda descs: descs["addr"].__setitem__(1, descs["addr"][2]),
    "too long": lambda descs: descs["len"].__setitem__(1, 5000),
    "generation": lambda descs: descs["gen"].__iadd__(1),
    "all ones": lambda descs: descs.view(np.uint8).__setitem__(slice(None), 0xFF),
}


@pytest.mark.parametrize("name", SPOILS)
@pytest.mark.parametrize("mixed", [False, True])
def test_descriptors_a_compiled_handler_spoils_never_lose_a_frame(bench: Bench, name: str, mixed: bool) -> None:
    def handle(descs: Any, umem: Any, verdicts: Any, port: int) -> None:
        SPOILS[name](descs)
        verdicts[:] = ap.FORWARD(1)
        if mixed:
            verdicts[::2] = ap.TX

    with closing(bench.forwarder(handler=ap.compiled(pointer_to(handle)))) as forwarder:
        bench.turn(forwarder, numbered(100))
        engine = forwarder.snapshot().engine
    audit = bench.umem.audit().check()
    assert (audit.app, audit.tx) == (0, 0)
    assert engine.reflected + engine.forwarded == sum(map(len, bench.sent))
    assert engine.reflected + engine.forwarded + engine.refused == 100
    assert engine.refused > 0


class _Endless:
    """Load that never pauses: every batch brings the next."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.calls = 0

    def __call__(self, descs: Any, umem: Any, verdicts: Any, port: int) -> None:
        self.calls += 1
        self.bench.ports[0].fill(1)
        assert self.bench.kernels[0].deliver(1)


def test_stop_and_the_deadline_end_a_compiled_handler_under_load(bench: Bench) -> None:
    endless = _Endless(bench)

    def handle(*arguments: Any) -> None:
        endless(*arguments)
        if endless.calls == 9:
            forwarder.stop()

    with closing(bench.forwarder(handler=ap.compiled(pointer_to(handle)))) as forwarder:
        bench.ports[0].fill(4)
        bench.kernels[0].deliver(4)
        forwarder.run(DEADLINE)
        assert endless.calls == 9
        ticks: list[ap.Forwarder] = []
        forwarder.run(0.05, on_tick=ticks.append)
    assert endless.calls > 10
    assert ticks


def test_a_function_is_taken_as_pointer_or_address_and_kept_alive(bench: Bench) -> None:
    def mark(descs: Any, umem: Any, verdicts: Any, port: int) -> None:
        verdicts[:] = ap.TX
        umem[descs["addr"]] = port + 1

    function = pointer_to(mark)
    address = ctypes.cast(function, ctypes.c_void_p).value
    user = np.zeros((2, 3))
    for given in (function, address, ffi.cast("void *", address)):
        handler = ap.compiled(given, user=user)
        assert handler.address == address
        assert handler.user is user
        batch = bench.pool.alloc(3)
        batch.len[:] = 60
        assert handler(batch, 4).tolist() == [ap.TX] * 3
        assert [packet[0] for packet in batch] == [5] * 3
        bench.pool.put(batch)
    assert repr(handler) == f"<Compiled handler at {address:#x}, called once a batch>"


@pytest.mark.parametrize("wrong", [0, -1, "handle", 1.5, ffi.NULL])
def test_what_is_no_function_is_refused(wrong: Any) -> None:
    with pytest.raises(ap.ConfigError):
        ap.compiled(user=np.zeros(1))(wrong)


def test_the_users_array_is_contiguous_and_a_handler_is_compiled_once() -> None:
    bad: list[Any] = [[1, 2], np.zeros(8)[::2]]
    for wrong in bad:
        with pytest.raises(ap.ConfigError, match="contiguous"):
            ap.compiled(1, user=wrong)
    with pytest.raises(ap.ConfigError, match="compiled already"):
        ap.compiled(ap.compiled(1))


def test_without_numba_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(ap.MissingExtraError, match=r"afxdp-pool\[jit\]"):
        ap.compiled(lambda descs, umem, verdicts, port, user: None)


def test_compiled_code_sees_descriptors_as_they_are() -> None:
    assert COMPILED_DESC.itemsize == ap.DESC.itemsize
    for name in ap.DESC.names or ():
        ours, theirs = (dtype.fields for dtype in (ap.DESC, COMPILED_DESC))
        assert ours is not None
        assert theirs is not None
        assert (ours[name][1], ours[name][0].itemsize) == (theirs[name][1], theirs[name][0].itemsize)


def test_big_endian_numbers_for_everybody() -> None:
    assert (ap.be16(b"\x01\x02\xff", 1), ap.be32(b"\xff\x01\x02\x03\x04", 1)) == (0x02FF, 0x01020304)


# numba ---------------------------------------------------------------------------------------------------------------


def test_a_python_function_is_compiled_and_counts_in_its_array(bench: Bench) -> None:
    pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[jit]'")
    counts = np.zeros((2, 2), np.int64)
    out = ap.FORWARD(1)

    @ap.compiled(user=counts)
    def handle(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
        for i in range(len(descs)):
            at = descs[i].addr
            if ap.be16(umem, at + 12) != 0x0800 or descs[i].len < 64:
                continue
            sequence = ap.be32(umem, at + 54)  # the low half, which says enough here
            user[port, sequence % 2] += 1
            user[1, 1] += ap.be16(umem, at + 34) - 40000 + sequence
            for k in range(at, at + 6):
                umem[k], umem[k + 6] = umem[k + 6], umem[k]
            verdicts[i] = out if sequence % 2 else ap.TX

    content = numbered(100)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, [*content, b"no IP" * 20])
        engine = forwarder.snapshot().engine
    swapped = [packet[6:12] + packet[:6] + packet[12:] for packet in content]
    assert bench.sent == [swapped[::2], swapped[1::2]]
    assert (engine.reflected, engine.forwarded, engine.dropped) == (50, 50, 1)
    assert counts.tolist() == [[50, 50], [0, sum(range(100))]]


def test_a_cfunc_of_the_published_signature_is_taken_and_another_refused(bench: Bench) -> None:
    numba = pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[jit]'")
    user = np.array([ap.FORWARD(1)], np.uint8)

    @numba.cfunc(ap.signature(user))  # type: ignore[untyped-decorator]
    def handle(descs: Any, n: Any, umem: Any, size: Any, verdicts: Any, port: Any, user: Any) -> None:
        packets = numba.carray(descs, n)
        for i in range(n):
            if packets[i].addr + packets[i].len <= np.int64(size):
                verdicts[i] = user[0]

    content = numbered(40)
    with closing(bench.forwarder(handler=ap.compiled(handle, user=user))) as forwarder:
        bench.turn(forwarder, content)
    assert bench.sent[1] == content

    @numba.cfunc("void(int64)")  # type: ignore[untyped-decorator]
    def other(n: Any) -> None:
        pass

    with pytest.raises(ap.ConfigError, match=r"a cfunc of \(int64,\) -> none is no handler"):
        ap.compiled(other)
