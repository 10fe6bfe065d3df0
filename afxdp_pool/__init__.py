"""AF_XDP packet I/O on a UMEM frame pool with the semantics of the kernel's page_pool.

The nouns: a `Umem` is memory cut into frames; a `FramePool` owns frames; a `Port` is a socket on one queue of a network
device; an `XdpProgram` brings the packets; a `Batch` is packets in frames; a verdict says what becomes of one; a
`Forwarder` runs the loop. The three paths are ready made: `drop`, `forward` (and `reflect`), `transmit`.

    >>> import afxdp_pool as ap
    >>> with ap.forward("eth1", "eth2", both_ways=True) as forwarder:       # doctest: +SKIP
    ...     print(forwarder.run(duration=10))
    ...     forwarder.audit().check()
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afxdp_pool.access import RSS_KEY, RSS_KEY_SYMMETRIC
    from afxdp_pool.audit import STATES, Audit
    from afxdp_pool.batch import DESC, Batch
    from afxdp_pool.cleaning import clean
    from afxdp_pool.columns import FiveTuple
    from afxdp_pool.compiling import Compiled, RxKnown, be16, be32, compiled, rx_known, signature
    from afxdp_pool.config import PortConfig, UmemConfig
    from afxdp_pool.errors import (
        AfXdpError,
        AuditError,
        BrokerError,
        ConfigError,
        DoubleFreeError,
        ForeignFrameError,
        FrameGoneError,
        FrameSizeError,
        InterfaceDownError,
        InvalidDescriptorError,
        LinkGoneError,
        MemoryLimitError,
        MetadataUnsupportedError,
        MissingExtraError,
        ModeUnsupportedError,
        NoHeaderError,
        NoSuchInterfaceError,
        NoSuchNamespaceError,
        NotEnoughFramesError,
        PoolClosedError,
        PoolError,
        PrivilegeError,
        ProgramBusyError,
        ProgramGoneError,
        ProgramLoadError,
        QueueBusyError,
        QueueRangeError,
        RingSizeError,
        VerdictError,
        WrongThreadError,
    )
    from afxdp_pool.filters import Rule
    from afxdp_pool.flows import FlowRule
    from afxdp_pool.forwarder import Forwarder
    from afxdp_pool.frame import Frame
    from afxdp_pool.frames import Frames
    from afxdp_pool.granted import PortInfo
    from afxdp_pool.handlers import DROP, FORWARD, KEEP, TX, per_packet
    from afxdp_pool.headers import ARP, ETH, ICMP, IPV4, IPV6, TCP, UDP, VLAN
    from afxdp_pool.info import DeviceInfo, Info, LoopInfo, MemoryInfo, Versions, XdpInfo
    from afxdp_pool.libraries import from_library, include_dir
    from afxdp_pool.memory import BpfMemory, SharedMemory
    from afxdp_pool.metadata import RxColumns, RxHashType, utc
    from afxdp_pool.netdev import Netdev, RxMetadata, XdpFeature, XdpFeatures, XskFeature
    from afxdp_pool.options import Options
    from afxdp_pool.parts import PacketParts, packet_part, packet_parts
    from afxdp_pool.paths import drop, forward, handle, reflect, transmit
    from afxdp_pool.pool import FramePool
    from afxdp_pool.port import Port
    from afxdp_pool.program import XdpProgram
    from afxdp_pool.report import PortReport, Report, WorkerReport
    from afxdp_pool.requests import TxStamps
    from afxdp_pool.routes import Rewrite, Route, Template
    from afxdp_pool.runner import Runner
    from afxdp_pool.stats import EngineStats, KernelStats, LiveStats, PoolStats, PortStats
    from afxdp_pool.steering import Steering, SteeringState, steering_state
    from afxdp_pool.tuning import Napi
    from afxdp_pool.umem import DmaDevice, Umem
    from afxdp_pool.waiting import wait
    from afxdp_pool.watch import Watch, why_stuck
    from afxdp_pool.workers import Workers
else:
    #: The public names by module. A module is imported when the first of its names is asked for: numpy, and what runs
    #: sockets and programs, take much longer to import than a program needs that only reads its arguments.
    _NAMES = {
        "access": "RSS_KEY RSS_KEY_SYMMETRIC",
        "audit": "STATES Audit",
        "batch": "DESC Batch",
        "cleaning": "clean",
        "columns": "FiveTuple",
        "compiling": "Compiled RxKnown be16 be32 compiled rx_known signature",
        "config": "PortConfig UmemConfig",
        "errors": (
            "AfXdpError AuditError BrokerError ConfigError DoubleFreeError ForeignFrameError FrameGoneError "
            "FrameSizeError InterfaceDownError InvalidDescriptorError LinkGoneError MemoryLimitError "
            "MetadataUnsupportedError MissingExtraError ModeUnsupportedError NoHeaderError NoSuchInterfaceError "
            "NoSuchNamespaceError NotEnoughFramesError PoolClosedError PoolError PrivilegeError ProgramBusyError "
            "ProgramGoneError ProgramLoadError QueueBusyError QueueRangeError RingSizeError VerdictError "
            "WrongThreadError"
        ),
        "filters": "Rule",
        "flows": "FlowRule",
        "forwarder": "Forwarder",
        "frame": "Frame",
        "frames": "Frames",
        "granted": "PortInfo",
        "handlers": "DROP FORWARD KEEP TX per_packet",
        "headers": "ARP ETH ICMP IPV4 IPV6 TCP UDP VLAN",
        "info": "DeviceInfo Info LoopInfo MemoryInfo Versions XdpInfo",
        "libraries": "from_library include_dir",
        "memory": "BpfMemory SharedMemory",
        "metadata": "RxColumns RxHashType utc",
        "netdev": "Netdev RxMetadata XdpFeature XdpFeatures XskFeature",
        "options": "Options",
        "parts": "PacketParts packet_part packet_parts",
        "paths": "drop forward handle reflect transmit",
        "pool": "FramePool",
        "port": "Port",
        "program": "XdpProgram",
        "report": "PortReport Report WorkerReport",
        "requests": "TxStamps",
        "routes": "Rewrite Route Template",
        "runner": "Runner",
        "stats": "EngineStats KernelStats LiveStats PoolStats PortStats",
        "steering": "Steering SteeringState steering_state",
        "tuning": "Napi",
        "umem": "DmaDevice Umem",
        "waiting": "wait",
        "watch": "Watch why_stuck",
        "workers": "Workers",
    }
    _HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

    def __getattr__(name: str) -> Any:
        module = _HOMES.get(name, name)
        if module not in _NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        loaded = import_module(f"{__name__}.{module}")
        globals()[name] = value = loaded if name == module else getattr(loaded, name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_NAMES, *__all__})


__version__ = "0.1.0"

__all__ = [
    "ARP",
    "DESC",
    "DROP",
    "ETH",
    "FORWARD",
    "ICMP",
    "IPV4",
    "IPV6",
    "KEEP",
    "RSS_KEY",
    "RSS_KEY_SYMMETRIC",
    "STATES",
    "TCP",
    "TX",
    "UDP",
    "VLAN",
    "AfXdpError",
    "Audit",
    "AuditError",
    "Batch",
    "BpfMemory",
    "BrokerError",
    "Compiled",
    "ConfigError",
    "DeviceInfo",
    "DmaDevice",
    "DoubleFreeError",
    "EngineStats",
    "FiveTuple",
    "FlowRule",
    "ForeignFrameError",
    "Forwarder",
    "Frame",
    "FrameGoneError",
    "FramePool",
    "FrameSizeError",
    "Frames",
    "Info",
    "InterfaceDownError",
    "InvalidDescriptorError",
    "KernelStats",
    "LinkGoneError",
    "LiveStats",
    "LoopInfo",
    "MemoryInfo",
    "MemoryLimitError",
    "MetadataUnsupportedError",
    "MissingExtraError",
    "ModeUnsupportedError",
    "Napi",
    "Netdev",
    "NoHeaderError",
    "NoSuchInterfaceError",
    "NoSuchNamespaceError",
    "NotEnoughFramesError",
    "Options",
    "PacketParts",
    "PoolClosedError",
    "PoolError",
    "PoolStats",
    "Port",
    "PortConfig",
    "PortInfo",
    "PortReport",
    "PortStats",
    "PrivilegeError",
    "ProgramBusyError",
    "ProgramGoneError",
    "ProgramLoadError",
    "QueueBusyError",
    "QueueRangeError",
    "Report",
    "Rewrite",
    "RingSizeError",
    "Route",
    "Rule",
    "Runner",
    "RxColumns",
    "RxHashType",
    "RxKnown",
    "RxMetadata",
    "SharedMemory",
    "Steering",
    "SteeringState",
    "Template",
    "TxStamps",
    "Umem",
    "UmemConfig",
    "VerdictError",
    "Versions",
    "Watch",
    "WorkerReport",
    "Workers",
    "WrongThreadError",
    "XdpFeature",
    "XdpFeatures",
    "XdpInfo",
    "XdpProgram",
    "XskFeature",
    "be16",
    "be32",
    "clean",
    "compiled",
    "drop",
    "forward",
    "from_library",
    "handle",
    "include_dir",
    "packet_part",
    "packet_parts",
    "per_packet",
    "reflect",
    "rx_known",
    "signature",
    "steering_state",
    "transmit",
    "utc",
    "wait",
    "why_stuck",
]
