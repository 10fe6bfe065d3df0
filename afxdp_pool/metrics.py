"""Prometheus metrics of a running forwarder: a collector for any registry, and an endpoint. Extra `metrics`.

A `Collector` owns nothing but a view: a scrape reads the counters as `Runner.snapshot` does, in the scraper's thread,
while the loop goes on. Invariant: a scrape is whole or empty, and none reads a port that is being closed, if the
collector is closed first.

Names follow the Prometheus conventions (units in the name, `_total` for counters). The counters of a pool keep the
names of the kernel's page_pool statistics, those of a socket the names of XDP_STATISTICS.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, Self

from afxdp_pool.errors import AfXdpError, need_extra
from afxdp_pool.report import PortReport, Report
from afxdp_pool.runner import Runner
from afxdp_pool.stats import EngineStats

try:
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
    from prometheus_client.registry import Collector as _Collector
except ImportError as error:
    raise need_extra("metrics", "prometheus_client") from error

#: Field of a report: the metric's name without prefix and `_total`, and its help.
_PORT = {
    "fill_submitted": ("fill_submitted_frames", "Frames handed to the kernel to receive into"),
    "rx_packets": ("rx_packets", "Packets received"),
    "rx_bytes": ("rx_bytes", "Bytes received, without preamble and FCS"),
    "rx_bad": ("rx_bad_descriptors", "RX descriptors refused: not a frame this port had filled"),
    "tx_packets": ("tx_packets", "Packets handed over for sending"),
    "tx_bytes": ("tx_bytes", "Bytes handed over for sending, without preamble and FCS"),
    "tx_completed": ("tx_completed_packets", "Packets sent, their frames back"),
    "completion_bad": ("completion_bad_descriptors", "Completions refused: not a frame this port had sent"),
    "tx_kicks": ("tx_kicks", "Calls of sendto() that told the kernel to send"),
    "tx_again": ("tx_again", "Of those, answered: not everything yet (EAGAIN)"),
    "tx_busy": ("tx_busy", "Of those, answered: the device dropped a packet (EBUSY, ENOBUFS)"),
    "tx_errors": ("tx_errors", "Of those, answered with another error"),
    "rx_kicks": ("rx_kicks", "System calls that woke the receiving driver"),
    "fill_reclaimed": ("fill_reclaimed_frames", "Frames taken back from FILL when the port closed"),
    "tx_reclaimed": ("tx_reclaimed_frames", "Frames taken back from TX when the port closed"),
    "rx_parts": ("rx_part_frames", "Frames received beyond the first of their packet"),
    "tx_parts": ("tx_part_frames", "Frames handed over for sending beyond the first of their packet"),
    "tx_completed_parts": ("tx_completed_part_frames", "Of those, the frames sent and back"),
}
_KERNEL = {
    "rx_dropped": "Packets the kernel dropped: no frame in FILL, or too long for one",
    "rx_invalid_descs": "FILL entries the kernel refused",
    "tx_invalid_descs": "TX entries the kernel refused",
    "rx_ring_full": "Packets the kernel dropped: RX was full",
    "rx_fill_ring_empty_descs": "Times the kernel found FILL empty",
    "tx_ring_empty_descs": "Times the kernel found TX empty; harmless",
}
_LIVE = {
    "frames": ("live_frames", "Frames given to the device by live transmit"),
    "delivered": ("live_delivered_frames", "Of those, taken by the device"),
    "dropped": ("live_dropped_frames", "Of those, dropped: the device's ring was full"),
    "resent": ("live_resent_frames", "Frames no device had taken live, sent by the socket"),
    "slices": ("live_slices", "Runs of the live transmit program"),
    "stalls": ("live_stalls", "Of those, longer than 2 ms"),
}
_LIVE_GAUGES = {
    "longest_ns": ("live_longest_slice_seconds", 1e-9, "The longest run of the live transmit program"),
    "pools_left": ("live_pools_left", 1, "Runs whose pages a receiver still has"),
    "pools_left_most": ("live_pools_left_most", 1, "The most runs whose pages receivers had at once"),
}
_PROGRAM = {
    "redirected": ("program_redirected_packets", "Packets the XDP program gave to a socket"),
    "passed_filter": ("program_passed_filter_packets", "Packets left to the kernel's stack: no rule wanted them"),
    "passed_no_socket": ("program_passed_no_socket_packets", "Packets left to the stack: no socket on their queue"),
}
_POOL = {
    "alloc_fast": "Frames allocated from the owner's cache",
    "alloc_slow": "Frames allocated by a bulk from the Umem",
    "alloc_slow_high_order": "Always 0 in a Umem",
    "alloc_empty": "Refills that found the ring empty",
    "alloc_refill": "Frames allocated after a refill from the ring",
    "alloc_waive": "Always 0 in a Umem",
    "recycle_cached": "Frames recycled into the owner's cache",
    "recycle_cache_full": "Frames the owner's cache had no room for",
    "recycle_ring": "Frames recycled into the ring",
    "recycle_ring_full": "Frames the ring had no room for, given back to the Umem",
    "recycle_released_refcnt": "Always 0 in a Umem",
    "alloc_failed": "Allocations that got fewer frames than asked for",
    "alloc_quota": "Of those, because of the pool's quota",
    "remote_batches": "Batches returned by other threads",
    "remote_frames": "Frames returned by other threads",
    "late_refused": "Returns by other threads refused by the owner: a double free",
}
_ENGINE = {
    "rounds": ("engine_rounds", "Rounds of the loop"),
    "idle_rounds": ("engine_idle_rounds", "Of those, without work"),
    "sleeps": ("engine_sleeps", "Times the loop slept"),
    "dropped": ("engine_dropped_packets", "Packets with the verdict DROP"),
    "reflected": ("engine_reflected_packets", "Packets sent back out of the port they came from"),
    "forwarded": ("engine_forwarded_packets", "Packets sent out of another port"),
    "kept": ("engine_kept_packets", "Packets the application kept"),
    "refused": ("engine_refused_packets", "Packets that could not be sent and were dropped"),
    "handler_calls": ("engine_handler_calls", "Calls of the handler, one a batch"),
    "handler_timed": ("engine_handler_timed_calls", "Of those, every 16th: timed"),
    "handler_slow": ("engine_handler_slow_calls", "Of those timed, longer than 1 ms"),
}
_HANDLER_SECONDS = ("handler_ns", "engine_handler_timed_seconds", "How long the timed calls of the handler took")
_HANDLER_LONGEST = ("handler_longest_ns", "engine_handler_longest_seconds", "The longest timed call of the handler")
_PORT_LABELS, _NETDEV_LABELS = ("netdev", "queue", "netns"), ("netdev", "netns")
_PREFIX = "afxdp_pool_"


class Collector(_Collector):
    """A runner's counters as Prometheus metrics, to be registered with any registry.

    Args:
        runner: a `Forwarder` or `Workers`.
        labels: given to every sample; needed where one registry has the collectors of several runners.

    Concurrency: `collect` by any thread, while the runner works. Close it before the runner: a scrape under way is
    waited for, and later ones are empty.
    """

    def __init__(self, runner: Runner, labels: Mapping[str, str] | None = None) -> None:
        self._runner: Runner | None = runner
        self._labels = dict(labels or {})
        self._lock = threading.Lock()

    def collect(self) -> Iterator[Metric]:
        """One scrape: every metric; none once the collector or the runner is closed."""
        with self._lock:
            if self._runner is None:
                return
            try:
                report = self._runner.snapshot()
                places = [(port.netdev, str(port.queue), port._netns or "") for port in self._runner.ports]
                pools = [str(pool.id) for pool in self._runner.pools]
            except AfXdpError:  # it was closed meanwhile
                return
        yield from _Families(self._labels, report, places, pools).made()

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry is not to scrape when it is registered."""
        return ()

    def close(self) -> None:
        """Let go of the runner. Idempotent."""
        with self._lock:
            self._runner = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Endpoint:
    """An HTTP server with the metrics of one runner, and of the process (CPU time, memory, descriptors).

    Attributes:
        url: where it is scraped.

    Raises:
        AfXdpError: the address cannot be listened on.

    Concurrency: any thread. Ownership: the runner is not its own; close the endpoint first.
    """

    def __init__(
        self, runner: Runner, port: int, addr: str = "127.0.0.1", labels: Mapping[str, str] | None = None
    ) -> None:
        self._process = os.getpid()
        self._collector = Collector(runner, labels)
        registry = CollectorRegistry()
        registry.register(self._collector)
        ProcessCollector(registry=registry)
        host = f"[{addr}]" if ":" in addr else addr
        try:
            self._server, self._thread = start_http_server(port, addr, registry)
        except (OSError, OverflowError) as error:
            raise AfXdpError(
                f"{error}" if isinstance(error, OverflowError) else "",
                subject=f"metrics on {host}:{port}",
                doing="listening",
                errno=getattr(error, "errno", 0) or 0,
                hint="choose another port, or an address of this machine",
            ) from None
        self.url = f"http://{host}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Stop serving; a scrape under way is waited for. Idempotent."""
        if os.getpid() == self._process:  # a forked child has but the socket: no thread serves, or lets go of a lock
            self._collector.close()
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(runner: Runner, port: int, addr: str = "127.0.0.1", *, labels: Mapping[str, str] | None = None) -> Endpoint:
    """Serve a runner's metrics over HTTP, in a thread of its own. `port` 0: one that is free; see `Endpoint.url`.

    Raises:
        AfXdpError: the address cannot be listened on.
    """
    return Endpoint(runner, port, addr, labels)


class _Families:
    """The metrics of one report. `places` is netdev, queue and namespace of each port; `pools` the pools' numbers."""

    def __init__(
        self, labels: Mapping[str, str], report: Report, places: list[tuple[str, str, str]], pools: list[str]
    ) -> None:
        self._labels, self._report, self._places, self._pools = labels, report, places, pools

    def made(self) -> Iterator[Metric]:
        ports = list(zip(self._places, self._report.ports, strict=True))
        for field, (name, text) in _PORT.items():
            yield self._counter(name, text, _PORT_LABELS, [(at, getattr(port.stats, field)) for at, port in ports])
        for field, text in _KERNEL.items():
            values = [(at, getattr(port.kernel, field)) for at, port in ports]
            yield self._counter(f"kernel_{field}", text, _PORT_LABELS, values)
        yield from self._of_live([(at, port) for at, port in ports if port.live is not None])
        programs = {(netdev, netns): port.program for (netdev, _, netns), port in ports if port.program}
        for field, (name, text) in _PROGRAM.items():
            counted = [(at, counters[field]) for at, counters in programs.items()]
            yield self._counter(name, text, _NETDEV_LABELS, counted)
        rings = [((*at, ring), level) for at, port in ports for ring, level in port.rings.items()]
        yield self._gauge("ring_entries", "Entries in a ring now", (*_PORT_LABELS, "ring"), rings)
        yield self._granted(ports)
        yield from self._of_pools()
        states = [((state,), count) for state, count in self._report.frames.items()]
        yield self._gauge("frames", "Frames of the Umem by who has them", ("state",), states)
        yield from self._of_engines()
        yield self._gauge("run_seconds", "How long the forwarder has run", (), [((), self._report.seconds)])

    def _of_live(self, ports: list[tuple[tuple[str, str, str], PortReport]]) -> Iterator[Metric]:
        if not ports:
            return
        for field, (name, text) in _LIVE.items():
            yield self._counter(name, text, _PORT_LABELS, [(at, getattr(port.live, field)) for at, port in ports])
        for field, (name, factor, text) in _LIVE_GAUGES.items():
            values = [(at, getattr(port.live, field) * factor) for at, port in ports]
            yield self._gauge(name, text, _PORT_LABELS, values)

    def _of_pools(self) -> Iterator[Metric]:
        pools = list(zip([(number,) for number in self._pools], self._report.pools, strict=True))
        for field, text in _POOL.items():
            values = [(at, getattr(pool, field)) for at, pool in pools]
            yield self._counter(f"page_pool_{field}", text, ("pool",), values)
        inflight = [(at, pool.inflight) for at, pool in pools]
        yield self._gauge("page_pool_inflight", "Frames the pool owns: hold_cnt - release_cnt", ("pool",), inflight)

    def _of_engines(self) -> Iterator[Metric]:
        workers = self._report.workers
        engines: dict[tuple[str, ...], EngineStats] = {("0",): self._report.engine}
        if workers:
            engines = {(str(number),): worker.engine for number, worker in enumerate(workers)}
        for field, (name, text) in _ENGINE.items():
            yield self._counter(name, text, ("worker",), [(at, getattr(e, field)) for at, e in engines.items()])
        for (field, name, text), family in ((_HANDLER_SECONDS, self._counter), (_HANDLER_LONGEST, self._gauge)):
            yield family(name, text, ("worker",), [(at, getattr(e, field) * 1e-9) for at, e in engines.items()])

    def _granted(self, ports: list[tuple[tuple[str, str, str], PortReport]]) -> Metric:
        family = InfoMetricFamily(f"{_PREFIX}port", "What a port was granted", labels=[*self._labels, *_PORT_LABELS])
        for at, port in ports:
            if port.info is not None:
                told = asdict(port.info)
                shown = ("driver", "mode", "xdp_mode", "pages", "transmit")
                family.add_metric([*self._labels.values(), *at], {name: str(told[name] or "") for name in shown})
        return family

    def _counter(self, name: str, text: str, labels: tuple[str, ...], values: Iterable[Any]) -> Metric:
        return self._filled(CounterMetricFamily(_PREFIX + name, text, labels=[*self._labels, *labels]), values)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...], values: Iterable[Any]) -> Metric:
        return self._filled(GaugeMetricFamily(_PREFIX + name, text, labels=[*self._labels, *labels]), values)

    def _filled(self, family: Any, values: Iterable[Any]) -> Metric:
        for at, value in values:
            family.add_metric([*self._labels.values(), *at], value)
        filled: Metric = family
        return filled
