"""How long packets wait for this program: from when the driver had them to when the handler does. They are forwarded.

The time of arrival is the kernel's, taken by the XDP program, so it is there on every device. If the driver tells more,
a hash of the flow or a VLAN tag that the NIC took off, it is counted by that.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from dataclasses import dataclass, field, replace

import common
import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.netdev import find, in_netns
from afxdp_pool.testing import Sink, Source, VethPair

FLOWS_SHOWN = 5


@dataclass
class Waiting:
    """The handler, and what it saw."""

    waits: list[npt.NDArray[np.float64]] = field(default_factory=list)
    flows: Counter[int] = field(default_factory=Counter)
    vlans: Counter[int] = field(default_factory=Counter)

    def __call__(self, batch: ap.Batch) -> int:
        """Note when they came, and let them go on."""
        now, known = time.clock_gettime_ns(time.CLOCK_TAI), batch.rx_metadata()
        self.waits.append((now - known.arrival[known.has_arrival].astype(np.int64)) / 1000)
        self.flows.update(known.hash[known.has_hash].tolist())
        self.vlans.update((known.vlan_tci[known.has_vlan] & 0xFFF).tolist())
        return ap.FORWARD(1)

    def __str__(self) -> str:
        waits = np.concatenate([*self.waits, np.empty(0)])
        named = [f"{name} {value:.0f}" for name, value in zip(("p50", "p99", "longest"), quantiles(waits), strict=True)]
        lines = [f"{len(waits)} packets waited, in microseconds: {', '.join(named)}"]
        lines += [f"flow {flow:#010x}: {count} packets" for flow, count in self.flows.most_common(FLOWS_SHOWN)]
        lines += [f"VLAN {vlan}: {count} packets" for vlan, count in sorted(self.vlans.items())]
        return "\n".join(lines)


def quantiles(values: npt.NDArray[np.float64]) -> list[float]:
    """Half and 99 percent of them are no larger, and the largest; of none 0."""
    return np.quantile(values, (0.5, 0.99, 1)).tolist() if len(values) else [0.0] * 3


def told(name: str, netns: str | None) -> tuple[ap.config.RxMetadataName, ...]:
    """What to ask of that device."""
    features = find(name, netns).features
    more = features.rx_metadata if features else ap.RxMetadata(0)
    asked: list[ap.config.RxMetadataName] = ["arrival"]
    asked += ["hash"] if ap.RxMetadata.HASH in more else []
    asked += ["vlan"] if ap.RxMetadata.VLAN_TAG in more else []
    return tuple(asked)


def demo(a: VethPair, b: VethPair) -> None:
    """Two flows from sockets, and then test packets by XDP, of which a veth knows no hash."""
    with Sink(b.far) as sink, Source(a.far) as source:
        with in_netns(a.far.netns), datagrams() as one, datagrams() as other:
            for sock in [one, other] * 50:
                sock.sendto(b"from a socket", (a.near.ipv4, 9))
        source.send(5000, rate=20_000)
        seen = sink.wait(5000)
        print(f"at the far end: {seen.unique} test packets, and {seen.foreign} from sockets")


def datagrams() -> socket.socket:
    """A UDP socket."""
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


if __name__ == "__main__":
    with common.place(__doc__, "a", "b") as here:
        config = replace(here.options.port, rx_metadata=told(here.names[0], here.options.netns))
        waiting = Waiting()
        options = replace(here.options, ports={here.names[0]: config})
        with ap.handle(here.names[:1], waiting, outputs=here.names[1:], options=options) as forwarder:
            print(f"{here.names[0]} tells: {', '.join(config.rx_metadata)}")
            here.run(forwarder, demo)
        print(waiting)
