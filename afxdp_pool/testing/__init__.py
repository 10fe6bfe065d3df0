"""For tests of this library and of programs that use it: a lab of veth pairs, and proven traffic."""

from afxdp_pool.testing.lab import Lab, LabLink, VethPair
from afxdp_pool.testing.latency import LatencyProbe, LatencyReport
from afxdp_pool.testing.live import FakeLive
from afxdp_pool.testing.proof import Delivery, Traffic
from afxdp_pool.testing.rings import FakeKernel
from afxdp_pool.testing.state import settle
from afxdp_pool.testing.traffic import FlowReport, Sink, SinkReport, Source, SourceReport

__all__ = [
    "Delivery",
    "FakeKernel",
    "FakeLive",
    "FlowReport",
    "Lab",
    "LabLink",
    "LatencyProbe",
    "LatencyReport",
    "Sink",
    "SinkReport",
    "Source",
    "SourceReport",
    "Traffic",
    "VethPair",
    "settle",
]
