"""Test traffic: what a `Source` sends out of one link, a `Sink` proves at another.

Everything is counted in the kernel by two XDP programs, outside the engine under test.

    >>> with Lab() as lab:                                              # doctest: +SKIP
    ...     pair = lab.veth("a")
    ...     with Sink(pair.near) as sink, Source(pair.far, flows=4) as source:
    ...         sent = source.send(1_000_000).sent
    ...         assert sink.report().missing(sent) == 0
"""

from afxdp_pool.testing.sink import FlowReport, Sink, SinkReport
from afxdp_pool.testing.source import Source, SourceReport

__all__ = ["FlowReport", "Sink", "SinkReport", "Source", "SourceReport"]
