"""What users get wrong in a handler: each is an error with a sentence that helps, and no frame is lost."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE, Bench, forwarding, numbered

import afxdp_pool as ap
from afxdp_pool.stats import EngineStats


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


async def waits(batch: ap.Batch) -> int:
    return ap.DROP


def yields(batch: ap.Batch) -> Iterator[int]:
    yield ap.DROP


RETURNS: dict[str, tuple[Callable[[ap.Batch], Any], str]] = {
    "nothing": (lambda batch: None, "returned None, which is no verdict; return DROP, TX.* on every path"),
    "a mask": (lambda batch: batch.udp.dport == 9, r"dtype bool; a mask .*np\.where\(mask, TX, DROP\)"),
    "a bool": (lambda batch: True, "returned True, which is no verdict"),
    "a numpy bool": (lambda batch: np.True_, "no verdict"),
    "a list of bools": (lambda batch: [True] * len(batch), "dtype bool"),
    "floats": (lambda batch: np.zeros(len(batch)), "dtype float64; return integers, best of dtype uint8"),
    "too few": (lambda batch: np.zeros(3, np.uint8), r"shape \(3,\) for 10 packets; .*shape \(10,\)"),
    "too many": (lambda batch: [ap.DROP] * 11, r"shape \(11,\) for 10 packets"),
    "a table": (lambda batch: np.zeros((10, 1), np.uint8), r"shape \(10, 1\)"),
    "negative": (lambda batch: np.full(10, -1), "no verdicts; verdicts are"),
    "a number too large": (lambda batch: 256, "returned 256, which is no verdict"),
    "a word": (lambda batch: "drop", "returned 'drop'"),
    "the batch": (lambda batch: batch, "returned a Batch"),
    "a coroutine": (waits, "a coroutine, .*not async def"),
    "a generator": (yields, "a generator, .*does not yield"),
    "a dict": (lambda batch: {}, "a dict"),
}


@pytest.mark.parametrize("name", RETURNS)
def test_what_is_no_verdict_is_named_and_the_packets_dropped(bench: Bench, name: str) -> None:
    handle, said = RETURNS[name]
    bench.ports[0].fill()
    bench.kernels[0].deliver(numbered(10))
    with closing(bench.forwarder(handler=handle)) as forwarder:
        with pytest.raises(ap.VerdictError, match=said):
            forwarder.run(DEADLINE)
        assert forwarder.snapshot().engine.dropped == 10
    assert bench.umem.audit().check().app == 0


@pytest.mark.parametrize("value", [True, False])
def test_a_bool_for_a_packet_is_no_verdict(bench: Bench, value: bool) -> None:
    bench.ports[0].fill()
    bench.kernels[0].deliver(numbered(5))
    with closing(bench.forwarder(handler=ap.per_packet(lambda packet: value))) as forwarder:
        with pytest.raises(ap.VerdictError, match=f"returned {value} for one of its packets"):
            forwarder.run(DEADLINE)
        assert forwarder.snapshot().engine.dropped == 5
    assert bench.umem.audit().check().app == 0


def test_what_a_handler_raises_shows_its_line_and_everything_under_way_is_sent(bench: Bench) -> None:
    calls = 0

    def handle(batch: ap.Batch) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            return int("no number")  # the line
        return ap.FORWARD(1)

    content = numbered(32)
    bench.ports[0].fill(32)
    bench.kernels[0].deliver(content)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        with pytest.raises(ValueError, match="no number") as caught:
            forwarder.run(DEADLINE)
        last = traceback.extract_tb(caught.value.__traceback__)[-1]
        assert (last.filename, last.line) == (__file__, 'return int("no number")  # the line')
        bench.finish(forwarder)
        engine = forwarder.snapshot().engine
        assert (engine.forwarded, engine.dropped) == (16, 16)
        forwarder.run(0.0)  # and it can be run again
    assert bench.sent[1] == content[:16]
    assert bench.umem.audit().check().app == 0


NO_HANDLERS: list[tuple[Any, str]] = [
    ("drop", "'drop' is no handler; give a function of one argument"),
    (7, "7 is no handler"),
    (lambda: 0, r"one argument, the batch, and this one \(\)"),
    (lambda batch, port: 0, r"\(batch, port\)"),
    (lambda descs, umem, verdicts, port, user: None, "decorated with @ap.compiled"),
    (lambda packet, length, port, user: 0, "once a packet, is decorated with @ap.compiled"),
    (np.zeros(3), "a ndarray is no handler"),
]


@pytest.mark.parametrize(("wrong", "said"), NO_HANDLERS, ids=str)
def test_what_is_no_handler_is_refused_before_there_are_packets(bench: Bench, wrong: Any, said: str) -> None:
    with pytest.raises(ap.ConfigError, match=said):
        bench.forwarder(handler=wrong)


def test_machine_code_goes_through_compiled(bench: Bench) -> None:
    import ctypes

    with pytest.raises(ap.ConfigError, match=r"give ap\.compiled\(function\)"):
        bench.forwarder(handler=ctypes.CFUNCTYPE(None)(lambda: None))


def test_any_callable_of_one_argument_is_a_handler(bench: Bench) -> None:
    class Counter:
        def __init__(self) -> None:
            self.seen = 0

        def __call__(self, batch: ap.Batch, *, verdict: int = ap.DROP) -> int:
            self.seen += len(batch)
            return verdict

    counter = Counter()
    bench.ports[0].fill()
    bench.kernels[0].deliver(numbered(10))
    with closing(bench.forwarder(handler=counter)) as forwarder:
        forwarder.run(DEADLINE, packets=10)
    assert counter.seen == 10


# What a handler takes -------------------------------------------------------------------------------------------------


def run_calls(bench: Bench, handler: Any, calls: int) -> EngineStats:
    with closing(bench.forwarder(handler=handler, batch=1)) as forwarder:
        for _ in range(calls):
            bench.ports[0].fill(1)
            assert bench.kernels[0].deliver(1)
            forwarder.run(DEADLINE, packets=1)
        return forwarder.snapshot().engine


@pytest.mark.parametrize("compiled", [False, True])
def test_every_sixteenth_call_is_timed_and_the_slow_ones_are_counted(bench: Bench, compiled: bool) -> None:
    calls = 0
    slow = {16, 32, 40}  # the last is not timed

    def handle(*_: Any) -> int:
        nonlocal calls
        calls += 1
        if calls in slow:
            end = time.monotonic() + 0.003
            while time.monotonic() < end:
                pass
        return ap.DROP

    handler: Any = lambda batch: handle(batch)  # noqa: E731
    if compiled:
        import ctypes

        handler = ap.compiled(
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)(handle)
        )
    # Time that others of the machine take counts as the handler's: at least these.
    engine = run_calls(bench, handler, 50)
    assert (engine.handler_calls, engine.handler_timed) == (50, 3)
    assert engine.handler_slow >= 2
    assert engine.handler_longest_ns >= 3_000_000
    assert engine.handler_ns >= 6_000_000
    assert engine.handler_mean_ns == engine.handler_ns / 3


def test_without_a_handler_nothing_is_timed_and_sums_have_the_longest() -> None:
    zeros = (0, 0, 0, 0, 0, 0, 0, 0)
    idle = EngineStats(*zeros)
    assert (idle.handler_calls, idle.handler_mean_ns) == (0, 0.0)
    parts = [EngineStats(*zeros, 10, 5, 100, longest, 1) for longest in (70, 30)]
    assert EngineStats.sum(parts) == EngineStats(*zeros, 20, 10, 200, 70, 2)
    assert EngineStats.sum([]) == idle
