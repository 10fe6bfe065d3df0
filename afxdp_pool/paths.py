"""The three paths of the product, ready made: drop, forward (and reflect), tx; and the handler's way.

Each function opens what it needs (a Umem, a pool, ports, XDP programs) and returns a `Forwarder` that owns all of it
and closes it again. On an error nothing is left behind.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from afxdp_pool.binding import borrow_program, check_place, return_program
from afxdp_pool.config import Mode, PortConfig, UmemConfig, check_batch
from afxdp_pool.errors import AfXdpError, ConfigError
from afxdp_pool.filters import Rule
from afxdp_pool.forwarder import Forwarder, Rewrite, Route, Template
from afxdp_pool.handlers import DROP, FORWARD, TX, Handler
from afxdp_pool.live import LARGEST_UMEM
from afxdp_pool.memory import BpfMemory
from afxdp_pool.pool import FramePool
from afxdp_pool.port import Port
from afxdp_pool.program import XdpProgram
from afxdp_pool.umem import Umem

log = logging.getLogger("afxdp_pool")


@dataclass(frozen=True)
class Options:
    """What all paths have in common.

    Attributes:
        netns: network namespace of the network devices; None for the caller's.
        queues: queues of each device; queue i of one forwards to queue i of the other.
        frames: frames of the Umem; None: enough for the rings of all ports, rounded up to a power of two.
        frame_size, huge_pages: see `UmemConfig`.
        batch: most packets in a round.
        port: rings and mode of each port.
        rules: which packets to take; none: all. The rest goes to the kernel's stack.
        xdp_mode: ``"auto"``, ``"native"`` or ``"generic"``.
        attach: ``"auto"``, ``"link"`` or ``"libxdp"``; see `XdpProgram`.
        force: replace an XDP program that is not ours.
    """

    netns: str | None = None
    queues: Sequence[int] = (0,)
    frames: int | None = None
    frame_size: int = 4096
    huge_pages: bool = False
    batch: int = 64
    port: PortConfig = PortConfig()  # noqa: RUF009 - frozen
    rules: Sequence[Rule] = ()
    xdp_mode: Literal["auto", "native", "generic"] = "auto"
    attach: Literal["auto", "link", "libxdp"] = "auto"
    force: bool = False

    def __post_init__(self) -> None:
        check_batch(self.batch)
        if not self.queues or len(set(self.queues)) != len(self.queues):
            raise ConfigError(f"queues {list(self.queues)} are not possible", hint="give each queue once")
        if self.frames is not None:
            UmemConfig(self.frames, self.frame_size)

    def with_mode(self, mode: Mode) -> Options:
        """The same, with another socket mode."""
        return replace(self, port=replace(self.port, mode=mode))


@dataclass(frozen=True)
class _Place:
    """A port to be opened."""

    netdev: str
    queue: int
    config: PortConfig


def drop(netdev: str, *, options: Options = Options()) -> Forwarder:
    """Receive on `netdev`, count, recycle.

    Raises:
        As `Port`.
    """
    places = [_Place(netdev, queue, replace(options.port, transmit=False)) for queue in options.queues]
    return _open(places, {index: Route(DROP) for index in range(len(places))}, options)


def reflect(netdev: str, *, swap_mac: bool = True, options: Options = Options()) -> Forwarder:
    """Receive on `netdev` and send every packet back out of it, its MAC addresses swapped.

    Raises:
        As `Port`.
    """
    places = [_Place(netdev, queue, options.port) for queue in options.queues]
    route = Route(TX, Rewrite(swap=swap_mac))
    return _open(places, {index: route for index in range(len(places))}, options)


def forward(
    source: str,
    target: str,
    *,
    both_ways: bool = False,
    rewrite: Rewrite = Rewrite(),  # noqa: B008
    options: Options = Options(),
) -> Forwarder:
    """Receive on `source`, send out of `target`; with `both_ways` the other way round as well.

    Frames are never copied: a frame received on one port comes home through the other's completion ring.
    With ``source == target`` and two queues, packets of the first queue leave by the second.

    Raises:
        As `Port`; ConfigError when both are the same device with a single queue (that is `reflect`).
    """
    receive_only = replace(options.port, transmit=options.port.transmit if both_ways else False)
    send_only = replace(options.port, receive=both_ways)
    n = len(options.queues)
    if source == target:
        if n != 2:
            raise ConfigError(
                f"{source} cannot forward to itself with {n} queue{'s' * (n > 1)}",
                hint="use reflect, or name two queues: the first forwards to the second",
            )
        first, second = options.queues
        places = [_Place(source, first, receive_only), _Place(source, second, send_only)]
        n = 1
    else:
        places = [_Place(source, queue, receive_only) for queue in options.queues]
        places += [_Place(target, queue, send_only) for queue in options.queues]
    routes = {index: Route(FORWARD(n + index), rewrite) for index in range(n)}
    if both_ways:
        routes |= {n + index: Route(FORWARD(index), rewrite) for index in range(n)}
    return _open(places, routes, options)


def transmit(
    netdev: str,
    packets: Sequence[bytes] | Template,
    *,
    count: int = 0,
    rate: float = 0.0,
    options: Options = Options(),
) -> Forwarder:
    """Send `packets` out of `netdev`, in turn, `count` in all at `rate` a second (0: no end, as fast as it goes).

    Raises:
        As `Port`; ConfigError when a packet is empty or does not fit a frame.
    """
    if len(options.queues) != 1:
        raise ConfigError("tx sends from one queue", hint="run one tx a queue")
    template = packets if isinstance(packets, Template) else Template(tuple(packets))
    forwarder = _open([_Place(netdev, options.queues[0], replace(options.port, receive=False))], {}, options)
    try:
        forwarder._generate(template, count, rate)
    except BaseException:
        forwarder.close()
        raise
    return forwarder


def handle(netdevs: Sequence[str], handler: Handler, *, options: Options = Options()) -> Forwarder:
    """Receive on every device of `netdevs`, and do with each packet what `handler` says.

    Ports are numbered device by device, queue by queue; `FORWARD(n)` sends out of port n.

    Raises:
        As `Port`.
    """
    places = [_Place(netdev, queue, options.port) for netdev in netdevs for queue in options.queues]
    return _open(places, {}, options, handler)


def _frames(places: Sequence[_Place], options: Options) -> int:
    if options.frames is not None:
        return options.frames
    needed = sum(place.config.frames_needed for place in places)
    needed += sum(place.config.tx_size for place in places if place.config.transmit)
    return 1 << (needed - 1).bit_length()


def _open(
    places: Sequence[_Place], routes: dict[int, Route], options: Options, handler: Handler | None = None
) -> Forwarder:
    for place in places:
        check_place(place.netdev, place.queue, options.netns)
    with contextlib.ExitStack() as undo:
        frames = _frames(places, options)
        memory, refused = _visible_memory(frames * options.frame_size, places, options)
        umem = undo.enter_context(
            Umem(frames, frame_size=options.frame_size, huge_pages=options.huge_pages, memory=memory)
        )
        pool = undo.enter_context(FramePool(umem))
        programs = {
            netdev: undo.enter_context(_program(netdev, options))
            for netdev in dict.fromkeys(place.netdev for place in places if place.config.receive)
        }
        ports = [
            undo.enter_context(
                Port(
                    pool,
                    place.netdev,
                    place.queue,
                    config=place.config,
                    netns=options.netns,
                    program=programs.get(place.netdev),
                    paused=True,
                )
            )
            for place in places
        ]
        # All at once: the first port's packets do not wait while the others are still being opened.
        for port in ports:
            port.resume()
        forwarder = Forwarder(ports, routes, handler=handler, batch=options.batch)
        forwarder._owned = [undo.pop_all()]
    if refused is not None:
        log.warning("no memory that BPF programs can see, so ports send by their sockets alone: %s", refused)
    return forwarder


def _visible_memory(
    size: int, places: Sequence[_Place], options: Options
) -> tuple[BpfMemory | None, AfXdpError | None]:
    """Memory that BPF programs can see, if a port may transmit live and nothing speaks against it; or why not."""
    wanted = {place.config.transmit for place in places}
    if "live" not in wanted and (
        "auto" not in wanted or options.huge_pages or options.port.mode == "zero-copy" or size > LARGEST_UMEM
    ):
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
    )
    try:
        yield program
    finally:
        return_program(program)
