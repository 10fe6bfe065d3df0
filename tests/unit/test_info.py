"""Info: what was granted, of open things, as plain data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing

import pytest
from bench import Bench, forwarding
from support import SMALL, conserved, small_port

from afxdp_pool import DROP, Batch, Forwarder, FramePool, Route, Workers, __version__, per_packet
from afxdp_pool.info import library_version


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


def test_a_forwarder_in_memory(bench: Bench) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        info = forwarder.info()
        assert json.loads(json.dumps(info.as_dict()))["loops"][0]["handler"] == "built in"
        first, second = info.ports
        assert (first.netdev, first.mode, first.driver, first.program_id) == ("memory", "copy", "", None)
        assert (first.fill_size, first.rx_size, first.fill_level) == (SMALL.fill_size, SMALL.rx_size, SMALL.fill_level)
        assert (info.memory.frames, info.memory.bytes) == (512, 512 * 4096)
        assert (info.memory.registrations, info.memory.locked_bytes) == (0, 0), "no socket, nothing locked"
        assert (info.programs, info.loops[0].batch, info.loops[0].spin) == ((), 16, 0)
        assert (info.versions.afxdp_pool, info.versions.kernel) == (__version__, os.uname().release)
        bench.ports[0].close()
        assert forwarder.info().ports == (second,), "of what is closed there is nothing to tell"


def test_workers_have_a_loop_each() -> None:
    def decide(batch: Batch) -> int:
        return DROP

    with conserved() as umem:
        handlers = [decide, per_packet(lambda _: DROP)]
        forwarders = [Forwarder([small_port(FramePool(umem))], handler=handler) for handler in handlers]
        with Workers(forwarders) as workers:
            first, second = workers.info().loops
            assert first.handler.endswith("decide")
            assert second.ports == ("memory queue 0",)
        for forwarder in forwarders:
            forwarder.close()


def test_versions_of_libraries() -> None:
    maps = "7f00-7f01 r--p 0 08:01 5  /usr/lib/x86_64-linux-gnu/libbpf.so.1.1.0\n7f02 r--p 0  /x/libxdp-1a2b.so.1.3.1\n"
    assert (library_version("libbpf", maps), library_version("libxdp", maps)) == ("1.1.0", "1.3.1")
    assert library_version("libelf", maps) == ""
