"""`Traffic`: test packets through a program under test, none of which may go missing unseen.

It owns a `Source` for each link it sends out of and a `Sink` for each it counts at. Invariant: no more packets are
under way than `window`, so that what is lost was lost by the program, not by a ring that was too short for a burst.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from afxdp_pool.errors import ConfigError
from afxdp_pool.testing.lab import LabLink, VethPair
from afxdp_pool.testing.sink import Sink, SinkReport
from afxdp_pool.testing.source import Source, redirected


@dataclass(frozen=True)
class Delivery:
    """What became of packets that were sent through a program.

    Attributes:
        wanted: packets that were to be sent.
        sent: packets that were; fewer if those before them were lost.
        delivered: of them, those the first link took: all, unless nothing receives there.
        expected: packets that were to arrive, of those sent.
        seen: what arrived at the far end, counted and proven in the kernel.
        seconds: how long it took.
        way: from where to where, for people.
    """

    wanted: int
    sent: int
    delivered: int
    expected: int
    seen: SinkReport
    seconds: float
    way: str

    @property
    def exact(self) -> bool:
        """As many arrived as expected, each once, in the order of its flow and intact, and no other test packet."""
        seen = self.seen
        wrong = seen.duplicate, seen.reordered, seen.stale, seen.corrupt
        arrived = seen.packets == seen.unique == self.expected and not any(wrong)
        return arrived and self.delivered == self.sent == self.wanted

    def check(self) -> Self:
        """Return self if it is `exact`.

        Raises:
            AssertionError: it is not; the text says what is wrong.
        """
        __tracebackhide__ = True  # pytest shows the line of the test
        if not self.exact:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        seen = self.seen
        given_up = f" (of {self.wanted}, then given up)" if self.sent < self.wanted else ""
        text = f"{self.way}: {self.sent} sent{given_up}, {seen.unique} of {self.expected} arrived intact"
        faults = {
            "missing": max(self.expected - seen.unique, 0),
            "not expected": max(seen.unique - self.expected, 0),
            "not taken by the first link": self.sent - self.delivered,
        }
        faults |= {name: getattr(seen, name) for name in ("duplicate", "reordered", "stale", "corrupt")}
        return ", ".join([text, *(f"{count} {name}" for name, count in faults.items() if count)])


class Traffic:
    """Sends numbered, checksummed packets through a program under test and proves what comes out.

    Args:
        pair: the pair that `send` uses when it is told no other.

    Raises:
        What `Source` and `Sink` raise, when first used.

    Concurrency: one thread at a time; the program under test runs in another, or in another process.

    >>> with Lab() as lab, Traffic(lab.veth("a")) as traffic:              # doctest: +SKIP
    ...     with ap.reflect("a-near", options=ap.Options(netns=lab.engine_netns)) as echo:
    ...         echo.start()
    ...         print(traffic.send(1000))
    a-far to a-far: 1000 sent, 1000 of 1000 arrived intact
    """

    def __init__(self, pair: VethPair | None = None) -> None:
        self._pair = pair
        self._sinks: dict[LabLink, Sink] = {}
        self._sources: dict[tuple[LabLink, int, int, int | None], Source] = {}
        self._held = contextlib.ExitStack()

    def send(
        self,
        count: int,
        *,
        into: VethPair | None = None,
        out_of: VethPair | None = None,
        expect: int | None = None,
        until: Callable[[int], bool] | None = None,
        size: int = 64,
        flows: int = 1,
        cpu: int | None = None,
        window: int = 64,
        timeout: float = 20.0,
        exact: bool = True,
    ) -> Delivery:
        """Send `count` packets from the far end of `into`, and count them at the far end of `out_of`.

        Args:
            into, out_of: pairs; without, the pair of the fixture, and the same pair again.
            expect: how many are to arrive, if the program drops some on purpose: then `until` is needed.
            until: ``until(n)``, asked again and again: has the program dealt with the first `n` packets? None: they
                have all arrived.
            size: bytes a packet, 64 to 3400.
            flows: UDP flows they belong to, 1 to 256, in turn.
            cpu: pins the sending; packets arrive on queue `cpu` modulo the queues. None: on any, so in no order if
                there are several.
            window: packets under way at most, 1 to 256.
            timeout: seconds that one window may take; then its packets are taken for lost, and no more are sent.
            exact: raise unless exactly those expected arrived, each once, in order and intact.

        Raises:
            AssertionError: they did not; the text says what did.
            ConfigError: a number that cannot be. What `Source` and `Sink` raise.
        """
        __tracebackhide__ = True
        into = into or self._pair
        out_of = out_of or into
        if into is None or out_of is None:
            raise ConfigError("no pair to send into", hint="give into=, a pair of the lab")
        expected = count if expect is None else expect
        if expected != count and until is None:
            raise ConfigError(
                f"{count} packets of which {expected} arrive need `until`",
                hint="e.g. until=lambda n: forwarder.snapshot().received >= n",
            )
        if count < 0 or expected < 0 or not 1 <= window <= 256:
            raise ConfigError("count and expect are not negative, and window is 1 to 256")
        sink = self.sink(out_of)
        source = self._source(into.far, size, flows, cpu)
        sink.reset()
        began, taken, sent = time.monotonic(), redirected(into.far), 0
        while sent < count:
            step = min(window, count - sent)
            source.burst(step)
            sent += step
            if not _within(timeout, lambda goal=sent: until(goal) if until else sink.seen() >= goal):  # type: ignore[misc]
                break
        expected = min(expected, sent)
        seen = sink.wait(expected, timeout if sent == count else 0.0)
        seconds = time.monotonic() - began
        way = f"{into.far.name} to {out_of.far.name}"
        delivery = Delivery(count, sent, redirected(into.far) - taken, expected, seen, seconds, way)
        return delivery.check() if exact else delivery

    def sink(self, pair: VethPair) -> Sink:
        """The sink at the far end of `pair`, there until the test is over; made when first asked for."""
        if pair.far not in self._sinks:
            self._sinks[pair.far] = self._held.enter_context(Sink(pair.far))
        return self._sinks[pair.far]

    def _source(self, link: LabLink, size: int, flows: int, cpu: int | None) -> Source:
        key = link, size, flows, cpu
        if key not in self._sources:
            self._sources[key] = self._held.enter_context(Source(link, size=size, flows=flows, cpu=cpu))
        return self._sources[key]

    def close(self) -> None:
        """Detach and unload everything. Idempotent."""
        self._held.close()
        self._sinks.clear()
        self._sources.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.0002)
    return True
