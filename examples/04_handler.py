"""Logic of your own: a function that sees a batch, or, for convenience, one that sees a packet."""

import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.testing.lab import Lab
from afxdp_pool.testing.traffic import Sink, Source

UDP_SOURCE_PORT = 34  # its low byte is at 35: after 14 bytes of Ethernet and 20 of IPv4


def every_second_flow(batch: ap.Batch) -> npt.NDArray[np.uint8]:
    """Forward packets with an even UDP source port, drop the others; one numpy expression a batch."""
    odd = batch.data[batch.addr + np.uint64(UDP_SOURCE_PORT + 1)] & 1
    return np.where(odd, ap.DROP, ap.FORWARD(1)).astype(np.uint8)


def first_flow_only(packet: npt.NDArray[np.uint8]) -> int:
    """The same for one packet: 40000 is 0x9c40."""
    return ap.FORWARD(1) if packet[UDP_SOURCE_PORT + 1] == 0x40 else ap.DROP


for name, handler in (("batch", every_second_flow), ("packet", ap.per_packet(first_flow_only))):
    with Lab() as lab:
        left, right = lab.veth("left"), lab.veth("right")
        names = [left.near.name, right.near.name]
        with (
            Sink(right.far) as sink,
            Source(left.far, flows=4) as source,
            ap.handle(names, handler, options=ap.Options(netns=lab.engine_netns)) as forwarder,
        ):
            source.start(count=20_000, rate=20_000)
            report = forwarder.run(packets=20_000, duration=10)
            seen = sink.wait(report.engine.forwarded)
            done = report.engine
            print(f"{name}: {done.forwarded} forwarded, {done.dropped} dropped; flows {list(seen.flows)}")
            print(forwarder.audit().check())
