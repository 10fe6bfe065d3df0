"""Metrics: what is scraped is what the counters say, in the format Prometheus reads; scrapes beside a running loop."""

from __future__ import annotations

import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields
from typing import Any

import pytest
from bench import DEADLINE, Bench, forwarding, numbered
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from support import conserved, small_port, until

from afxdp_pool import (
    DROP,
    FORWARD,
    AfXdpError,
    EngineStats,
    Forwarder,
    FramePool,
    KernelStats,
    LiveStats,
    MissingExtraError,
    PoolStats,
    PortStats,
    Route,
    Runner,
    Workers,
    metrics,
)
from afxdp_pool.metrics import Collector, serve

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


def samples(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(collector: Collector) -> Samples:
    registry = CollectorRegistry()
    registry.register(collector)
    return samples(generate_latest(registry).decode())


def value(found: Samples, name: str, **labels: str) -> float:
    return found[f"afxdp_pool_{name}", frozenset(labels.items())]


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
        assert answer.status == 200
        return str(answer.read().decode())


def test_every_counter_has_its_metric() -> None:
    every: list[tuple[type[Any], list[dict[str, Any]]]] = [
        (PortStats, [metrics._PORT]),
        (KernelStats, [metrics._KERNEL]),
        (LiveStats, [metrics._LIVE, metrics._LIVE_GAUGES]),
        (
            EngineStats,
            [metrics._ENGINE, *({one[0]: one[1:]} for one in (metrics._HANDLER_SECONDS, metrics._HANDLER_LONGEST))],
        ),
        # As one gauge, for they are 32 bits wide and wrap.
        (PoolStats, [metrics._POOL, {"hold_cnt": "", "release_cnt": ""}]),
    ]
    for stats, tables in every:
        said: list[str] = [name for table in tables for name in table]
        assert sorted(said) == sorted(field.name for field in fields(stats)), (
            f"afxdp_pool/metrics.py: a name and help for {stats}"
        )


def test_a_scrape_says_what_the_report_says(bench: Bench) -> None:
    bench.ports[1].netdev = "right"
    with closing(bench.forwarder({0: Route(FORWARD(1))})) as forwarder:
        bench.turn(forwarder, numbered(100))
        report = forwarder.snapshot()
        found = scraped(Collector(forwarder))
    assert (report.received, report.sent) == (100, 100)
    for netdev, port in zip(("memory", "right"), report.ports, strict=True):
        at = {"netdev": netdev, "queue": "0", "netns": ""}
        for field, (name, _) in metrics._PORT.items():
            assert value(found, f"{name}_total", **at) == getattr(port.stats, field)
        for field in metrics._KERNEL:
            assert value(found, f"kernel_{field}_total", **at) == getattr(port.kernel, field)
        for ring, level in port.rings.items():
            assert value(found, "ring_entries", **at, ring=ring) == level
    for field, (name, _) in metrics._ENGINE.items():
        assert value(found, f"{name}_total", worker="0") == getattr(report.engine, field)
    for field in metrics._POOL:
        counted = value(found, f"page_pool_{field}_total", pool=str(bench.pool.id))
        assert counted == getattr(report.pools[0], field)
    assert value(found, "page_pool_inflight", pool=str(bench.pool.id)) == report.pools[0].inflight
    assert {state: value(found, "frames", state=state) for state in report.frames} == report.frames
    assert value(found, "engine_forwarded_packets_total", worker="0") == 100


def test_names_and_helps_follow_the_conventions(bench: Bench) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        for family in Collector(forwarder).collect():
            assert family.name.startswith("afxdp_pool_")
            assert family.documentation[0].isupper()
            for sample in family.samples:
                assert sample.name.endswith("_total") is (family.type == "counter")


def test_workers_and_labels_of_ones_own() -> None:
    with conserved() as umem:
        forwarders = [Forwarder([small_port(FramePool(umem))], {0: Route(DROP)}) for _ in range(2)]
        with Workers(forwarders) as workers:
            found = scraped(Collector(workers, {"site": "lab"}))
            assert [value(found, "engine_rounds_total", worker=str(n), site="lab") for n in range(2)] == [0, 0]
            assert all(("site", "lab") in labels for _, labels in found)
        for forwarder in forwarders:
            forwarder.close()


def test_scrapes_beside_a_running_loop(bench: Bench) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder, serve(forwarder, 0) as endpoint:
        forwarder.start()
        rounds = []
        for _ in range(5):
            before = forwarder.snapshot().engine.rounds
            until(lambda seen=before: forwarder.snapshot().engine.rounds > seen)  # type: ignore[misc]
            rounds.append(value(samples(get(endpoint.url)), "engine_rounds_total", worker="0"))
        forwarder.stop()
        forwarder.join()
        assert rounds == sorted(set(rounds))
        assert "process_cpu_seconds_total" in get(endpoint.url)


def test_closing_waits_for_the_scrape_and_then_there_is_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder:
        snapshot = forwarder.snapshot

        def slow() -> object:
            begun.set()
            assert go.wait(DEADLINE)
            return snapshot()

        monkeypatch.setattr(forwarder, "snapshot", slow)
        collector = Collector(forwarder)
        got: list[int] = []
        scrape = threading.Thread(target=lambda: got.append(len(list(collector.collect()))))
        scrape.start()
        assert begun.wait(DEADLINE)
        close = threading.Thread(target=collector.close)
        close.start()
        assert close.is_alive()
        go.set()
        scrape.join()
        close.join()
        assert got[0] > 30
        assert list(collector.collect()) == []


def test_a_runner_closed_under_it_gives_nothing(bench: Bench) -> None:
    forwarder: Runner = bench.forwarder({0: Route(DROP)})
    with serve(forwarder, 0, "::1") as endpoint:
        assert "afxdp_pool_frames" in get(endpoint.url)
        forwarder.close()
        assert "afxdp_pool" not in get(endpoint.url)
    with pytest.raises(urllib.error.URLError):
        get(endpoint.url)


def test_addresses_that_cannot_be(bench: Bench) -> None:
    with closing(bench.forwarder({0: Route(DROP)})) as forwarder, serve(forwarder, 0) as endpoint:
        taken = int(endpoint.url.split(":")[2].split("/")[0])
        for port, addr, text in [
            (taken, "127.0.0.1", f"metrics on 127.0.0.1:{taken}: listening failed: Address already in use"),
            (0, "192.0.2.1", "listening failed"),
            (0, "no.such.host.invalid", "metrics on no.such.host.invalid:0: listening failed"),
            (70000, "127.0.0.1", "0-65535"),
        ]:
            with pytest.raises(AfXdpError, match=text):
                serve(forwarder, port, addr)


def test_it_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "afxdp_pool.metrics")
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"afxdp-pool\[metrics\]"):
        import afxdp_pool.metrics  # noqa: F401
