"""The three paths of the product, ready made: drop, forward (and reflect), tx; and the handler's way.

Each function opens what it needs (a Umem, pools, ports, XDP programs) and returns a `Runner` that owns all of it and
closes it again: a `Forwarder`, one loop over all queues, or with `Options.workers` a `Workers`, a loop in a thread of
its own for each queue, or a few of them. Both have one interface. On an error nothing is left behind.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from afxdp_pool.binding import borrow_program, check_place, return_program
from afxdp_pool.config import PortConfig, UmemConfig, need
from afxdp_pool.errors import AfXdpError, ConfigError
from afxdp_pool.forwarder import Forwarder
from afxdp_pool.handlers import DROP, FORWARD, TX, Handler
from afxdp_pool.live import LARGEST_UMEM
from afxdp_pool.memory import BpfMemory, Memory, SharedMemory
from afxdp_pool.options import Options
from afxdp_pool.pool import FramePool
from afxdp_pool.port import Port
from afxdp_pool.program import XdpProgram
from afxdp_pool.routes import Rewrite, Route, Template
from afxdp_pool.runner import Runner
from afxdp_pool.tuning import Napi
from afxdp_pool.umem import Umem
from afxdp_pool.workers import Workers

log = logging.getLogger("afxdp_pool")
#: Frames that may lie idle in a pool: its cache and its ring.
_IDLE = 128 + 1024


@dataclass(frozen=True)
class _Place:
    """A port to be opened."""

    netdev: str
    queue: int
    config: PortConfig


@dataclass(frozen=True)
class _Plan:
    """What one worker gets: its ports and what becomes of their packets."""

    places: Sequence[_Place]
    routes: dict[int, Route]


def drop(netdev: str, *, options: Options = Options()) -> Runner:
    """Receive on `netdev`, count, recycle.

    Raises:
        As `Port`.

    Concurrency: any thread. Ownership: the runner owns all that was opened, until it is closed.
    """
    need(options, Options)
    options = options.on(netdev)
    return _open(_each(netdev, options, replace(options.port_of(netdev), transmit=False), Route(DROP)), options)


def reflect(netdev: str, *, swap_mac: bool = True, options: Options = Options()) -> Runner:
    """Receive on `netdev` and send every packet back out of it, its MAC addresses swapped.

    Raises:
        As `Port`.

    Concurrency: any thread. Ownership: the runner owns all that was opened, until it is closed.
    """
    need(options, Options)
    options = options.on(netdev)
    return _open(_each(netdev, options, options.port_of(netdev), Route(TX, Rewrite(swap=swap_mac))), options)


def forward(
    source: str,
    target: str,
    *,
    both_ways: bool = False,
    rewrite: Rewrite = Rewrite(),
    options: Options = Options(),
) -> Runner:
    """Receive on `source`, send out of `target`; with `both_ways` the other way round as well.

    Frames are never copied: a frame received on one port comes home through the other's completion ring.
    With ``source == target`` and two queues, packets of the first queue leave by the second.

    Raises:
        As `Port`; ConfigError when both are the same device with a single queue (that is `reflect`).

    Concurrency: any thread. Ownership: the runner owns all that was opened, until it is closed.
    """
    need(options, Options)
    options = options.on(*dict.fromkeys((source, target) if both_ways else (source,)))
    receive_only = options.port_of(source) if both_ways else replace(options.port_of(source), transmit=False)
    send_only = replace(options.port_of(target), receive=both_ways)
    if source == target:
        n = len(options.queues)
        if n != 2 or options.workers != 1:
            raise ConfigError(
                f"{source} cannot forward to itself with {n} queue{'s' * (n > 1)} and workers={options.workers!r}",
                hint="use reflect, or name two queues and one worker: the first forwards to the second",
            )
        ((first, second),) = options.queue_groups
        places = [_Place(source, first, receive_only), _Place(source, second, send_only)]
        return _open([_Plan(places, _across(1, both_ways, rewrite))], options)
    plans = []
    for queues in options.queue_groups:
        places = [_Place(source, queue, receive_only) for queue in queues]
        places += [_Place(target, queue, send_only) for queue in queues]
        plans.append(_Plan(places, _across(len(queues), both_ways, rewrite)))
    return _open(plans, options)


def _across(n: int, both_ways: bool, rewrite: Rewrite) -> dict[int, Route]:
    """Routes from each of the first n ports to the one n further on; and back."""
    routes = {index: Route(FORWARD(n + index), rewrite) for index in range(n)}
    if both_ways:
        routes |= {n + index: Route(FORWARD(index), rewrite) for index in range(n)}
    return routes


def _each(netdev: str, options: Options, config: PortConfig, route: Route) -> list[_Plan]:
    """The same for every queue of one device."""
    return [
        _Plan([_Place(netdev, queue, config) for queue in queues], {index: route for index in range(len(queues))})
        for queues in options.queue_groups
    ]


def transmit(
    netdev: str,
    packets: Sequence[bytes] | Template,
    *,
    count: int = 0,
    rate: float = 0.0,
    options: Options = Options(),
) -> Forwarder:
    """Send `packets` out of `netdev`, in turn, `count` in all at `rate` a second (0: no end, as fast as it goes).

    Packets longer than a frame go in several, as with `PortConfig.multi_buffer`. What ``options.port.tx_metadata``
    names is asked for: TCP's and UDP's checksum of each packet; and every 100 us when one packet is sent, for
    `Port.take_timestamps`, with the time (CLOCK_TAI, ns) at which it was handed over as its number.

    Raises:
        As `Port`; ConfigError when a packet is empty, or in more frames than the device sends.

    Concurrency: any thread. Ownership: the runner owns all that was opened, until it is closed.
    """
    need(options, Options)
    if len(options.queues) != 1:
        raise ConfigError("tx sends from one queue", hint="run one tx a queue")
    ((queue,),) = options.queue_groups
    template = packets if isinstance(packets, Template) else Template(tuple(packets))
    config = replace(options.port_of(netdev), receive=False)
    if max(map(len, template.packets)) > options.frame_size - config.tx_room:
        config = replace(config, multi_buffer=True)
    forwarder = _open([_Plan([_Place(netdev, queue, config)], {})], options)
    assert isinstance(forwarder, Forwarder)
    try:
        forwarder._generate(template, count, rate)
    except BaseException:
        forwarder.close()
        raise
    return forwarder


def handle(
    netdevs: Sequence[str], handler: Handler, *, outputs: Sequence[str] = (), options: Options = Options()
) -> Runner:
    """Receive on every device of `netdevs`, and do with each packet what `handler` says; `outputs` only send.

    Ports are numbered device by device, `outputs` last, queue by queue, those of each worker from 0; `FORWARD(n)` sends
    out of port n of the worker that received. With several workers `handler` is called from several threads, at any
    time, for different batches: what it keeps between calls needs a lock. ``batch.port`` tells where the packets came
    from, and ``batch.ports`` which ports the worker has.

    Raises:
        As `Port`; ConfigError for what is no handler, or one name where a list of them belongs.

    Concurrency: any thread. Ownership: the runner owns all that was opened, until it is closed.
    """
    for names in (netdevs, outputs):
        if isinstance(names, str):
            raise ConfigError(f"{names!r} is one name, and a list of them is wanted", hint=f"write [{names!r}]")
    need(options, Options)
    options = options.on(*netdevs)
    configs = [(netdev, options.port_of(netdev)) for netdev in netdevs]
    configs += [(netdev, replace(options.port_of(netdev), receive=False)) for netdev in outputs]
    plans = [
        _Plan([_Place(netdev, queue, config) for netdev, config in configs for queue in queues], {})
        for queues in options.queue_groups
    ]
    return _open(plans, options, handler)


def _frames(plans: Sequence[_Plan], options: Options) -> int:
    if options.frames is not None:
        return options.frames
    places = [place for plan in plans for place in plan.places]
    needed = sum(place.config.frames_needed for place in places)
    needed += sum(place.config.tx_size for place in places if place.config.transmit)
    needed += _IDLE * (len(plans) - 1)  # what lies idle in one pool is of no use to another
    return 1 << (needed - 1).bit_length()


def _open(plans: Sequence[_Plan], options: Options, handler: Handler | None = None) -> Runner:
    places = [place for plan in plans for place in plan.places]
    for place in places if options.via is None else ():
        check_place(place.netdev, place.queue, options.netns)
    netdevs = dict.fromkeys(place.netdev for place in places)
    if strange := sorted(set(options.ports) - set(netdevs)):
        raise ConfigError(f"options.ports names {', '.join(strange)}, where there are only {', '.join(netdevs)}")
    with contextlib.ExitStack() as undo:
        frames = _frames(plans, options)
        size = UmemConfig(frames, options.frame_size, unaligned=options.unaligned).size
        memory, refused = _memory(size, places, options)
        umem = undo.enter_context(
            Umem(
                frames,
                frame_size=options.frame_size,
                headroom=max(place.config.tx_room for place in places),
                huge_pages=options.huge_pages,
                unaligned=options.unaligned,
                memory=memory,
            )
        )
        pools = [undo.enter_context(FramePool(umem)) for _ in plans]
        receiving = {place.netdev for place in places if place.config.receive and options.via is None}
        programs = {netdev: undo.enter_context(_program(netdev, options)) for netdev in netdevs if netdev in receiving}
        workers = [
            [
                undo.enter_context(
                    Port(
                        pool,
                        place.netdev,
                        place.queue,
                        config=place.config,
                        netns=options.netns,
                        program=programs.get(place.netdev),
                        via=options.via,
                        paused=True,
                    )
                )
                for place in plan.places
            ]
            for plan, pool in zip(plans, pools, strict=True)
        ]
        for netdev in receiving:
            undo.enter_context(
                Napi(
                    netdev,
                    options.netns,
                    threaded=options.threaded_napi,
                    napi_defer_hard_irqs=options.napi_defer_hard_irqs,
                    gro_flush_timeout=options.gro_flush_timeout,
                    queues=[place.queue for place in places if place.netdev == netdev and place.config.receive],
                )
            )
        # All at once: the first port's packets do not wait while the others are still being opened.
        for ports in workers:
            for port in ports:
                port.resume()
        forwarders = [
            undo.enter_context(
                Forwarder(
                    ports,
                    plan.routes,
                    handler=handler,
                    batch=options.batch,
                    spin=options.spin,
                    cpu=options.cpus[number] if options.cpus is not None else None,
                )
            )
            for number, (plan, ports) in enumerate(zip(plans, workers, strict=True))
        ]
        runner = forwarders[0] if len(forwarders) == 1 else Workers(forwarders)
        runner._owned = [undo.pop_all()]
    if refused is not None:
        log.warning("no memory that BPF programs can see, so ports send by their sockets alone: %s", refused)
    return runner


def _memory(size: int, places: Sequence[_Place], options: Options) -> tuple[Memory | None, AfXdpError | None]:
    """Memory that a broker can register; or that BPF programs can see, if a port may transmit live, or why not."""
    if options.via is not None:
        return SharedMemory(size, huge_pages=options.huge_pages), None
    if options.unaligned:
        return None, None
    wanted = {
        c.transmit
        for c in (place.config for place in places)
        if c.transmit == "live" or not (c.mode == "zero-copy" or c.multi_buffer)
    }
    if "live" not in wanted and ("auto" not in wanted or options.huge_pages or size > LARGEST_UMEM):
        return None, None
    try:
        return BpfMemory(size), None
    except AfXdpError as error:
        if "live" in wanted:
            raise
        return None, error


@contextlib.contextmanager
def _program(netdev: str, options: Options) -> Iterator[XdpProgram]:
    """The XDP program of `netdev` for as long as the ports need it."""
    program = borrow_program(
        netdev,
        options.netns,
        mode=options.xdp_mode,
        attach=options.attach,
        force=options.force,
        rules=tuple(options.rules),
        rx_metadata=options.port_of(netdev).rx_metadata,
        frags=options.port_of(netdev).multi_buffer,
    )
    try:
        yield program
    finally:
        return_program(program)
