"""`Options`: what all paths have in common: where they are opened, of what memory, in which mode, by how many workers.

It is a value, checked when it is made, that owns nothing and opens nothing. Invariant: what can be refused without a
look at the machine is refused here; ``"all"`` queues are numbers from `Options.on` on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from afxdp_pool.config import Mode, PortConfig, UmemConfig, check_batch
from afxdp_pool.errors import ConfigError
from afxdp_pool.filters import Rule
from afxdp_pool.forwarder import SPIN
from afxdp_pool.netdev import find


@dataclass(frozen=True)
class Options:
    """What all paths have in common.

    Attributes:
        netns: network namespace of the network devices; None for the caller's.
        via: the UNIX socket of a broker that makes the sockets; see `Port`. Rules, XDP mode and NAPI values of the
            devices are then set where the broker runs.
        queues: queues of each device; queue i of one forwards to queue i of the other. ``"all"``: as many as the
            devices have that receive, when the path opens.
        frames: frames of the Umem; None: enough for the rings of all ports, rounded up to a power of two.
        frame_size, huge_pages, unaligned: see `UmemConfig`.
        workers: loops, each in a thread and with a pool of its own: a number, or ``"queues"`` for one a queue. The i-th
            queue goes to worker i modulo their number. 1: one loop over all queues, in the thread that calls `run`.
        cpus: the CPU each worker is pinned to, one a worker; None: anywhere.
        batch: most packets in a round.
        spin: rounds without work before a worker sleeps.
        threaded_napi, napi_defer_hard_irqs, gro_flush_timeout: set on the devices that receive, and put back at the
            end; None leaves them alone. See `Napi`.
        port: rings and mode of each port, busy polling.
        ports: by a device's name, what its ports have instead.
        rules: which packets to take; none: all. The rest goes to the kernel's stack.
        xdp_mode: ``"auto"``, ``"native"`` or ``"generic"``.
        attach: ``"auto"``, ``"link"`` or ``"libxdp"``; see `XdpProgram`.
        force: replace an XDP program that is not ours.
    """

    netns: str | None = None
    via: str | None = None
    queues: Sequence[int] | Literal["all"] = (0,)
    frames: int | None = None
    frame_size: int = 4096
    unaligned: bool = False
    huge_pages: bool = False
    workers: int | Literal["queues"] = 1
    cpus: Sequence[int] | None = None
    batch: int = 64
    spin: int = SPIN
    threaded_napi: bool | None = None
    napi_defer_hard_irqs: int | None = None
    gro_flush_timeout: int | None = None
    port: PortConfig = PortConfig()  # noqa: RUF009 - frozen
    ports: Mapping[str, PortConfig] = field(default_factory=dict, hash=False)
    rules: Sequence[Rule] = ()
    xdp_mode: Literal["auto", "native", "generic"] = "auto"
    attach: Literal["auto", "link", "libxdp"] = "auto"
    force: bool = False

    def __post_init__(self) -> None:
        check_batch(self.batch)
        named = None if self.queues == "all" else list(self.queues)
        if named is not None and (not named or len(set(named)) != len(named) or isinstance(self.queues, str)):
            raise ConfigError(f"queues {named} are not possible", hint='give each queue once, or "all"')
        for name, choices in (("xdp_mode", ("auto", "native", "generic")), ("attach", ("auto", "link", "libxdp"))):
            if (chosen := getattr(self, name)) not in choices:
                raise ConfigError(f"{name} {chosen!r} is not possible", hint=f"choose {', '.join(choices)}")
        if self.frames is not None:
            UmemConfig(self.frames, self.frame_size, unaligned=self.unaligned)
        most = 1 << 16 if named is None else len(named)
        if self.workers != "queues" and not (isinstance(self.workers, int) and 1 <= self.workers <= most):
            raise ConfigError(
                f"{self.workers!r} workers for {len(self.queues)} queues are not possible",
                hint='choose 1 to the number of queues, or "queues"',
            )
        if self.cpus is not None and named is not None and len(self.cpus) != len(self.queue_groups):
            raise ConfigError(
                f"{len(self.cpus)} CPUs for {len(self.queue_groups)} workers", hint="give one CPU a worker, or none"
            )
        elsewhere = ["netns", "rules", "xdp_mode", "attach", "force"]
        elsewhere += ["threaded_napi", "napi_defer_hard_irqs", "gro_flush_timeout"]
        chosen = [name for name in elsewhere if getattr(self, name) != self.__dataclass_fields__[name].default]
        if self.via is not None and chosen:
            raise ConfigError(
                f"{', '.join(chosen)} cannot be set through a broker", hint="set that where the broker runs"
            )
        for name in ("napi_defer_hard_irqs", "gro_flush_timeout"):
            if not 0 <= (getattr(self, name) or 0) < 1 << 31:
                raise ConfigError(f"{name} {getattr(self, name)} is not possible", hint="choose 0 to 2^31 - 1")

    @property
    def queue_groups(self) -> list[tuple[int, ...]]:
        """The queues of each worker.

        Raises:
            ConfigError: which queues "all" are is not known yet: see `on`.
        """
        if isinstance(self.queues, str):
            raise ConfigError('the queues are "all", and of which devices is not said')
        workers = len(self.queues) if self.workers == "queues" else self.workers
        return [tuple(self.queues[first::workers]) for first in range(workers)]

    def on(self, *receiving: str) -> Options:
        """The same, with the numbers of all queues that these devices receive by, if `queues` is ``"all"``.

        Raises:
            ConfigError: they have different numbers of queues. As `Port` for a device that is not there.
        """
        if self.queues != "all":
            return self
        if self.via is not None:
            raise ConfigError("how many queues a broker's devices have is not known", hint="name the queues")
        found = {netdev: find(netdev, self.netns).rx_queues for netdev in receiving}
        if len(set(found.values())) != 1:
            told = ", ".join(f"{netdev} has {count}" for netdev, count in found.items())
            raise ConfigError(f"all queues of devices that differ: {told}", hint="name the queues")
        return replace(self, queues=tuple(range(found[receiving[0]])))

    def with_mode(self, mode: Mode) -> Options:
        """The same, with another socket mode for all ports."""
        ports = {netdev: replace(config, mode=mode) for netdev, config in self.ports.items()}
        return replace(self, port=replace(self.port, mode=mode), ports=ports)

    def port_of(self, netdev: str) -> PortConfig:
        """Rings and mode of this device's ports."""
        return self.ports.get(netdev, self.port)
