"""The library as one of the engines: runs one job with one handler until SIGTERM, prints its report as JSON.

`python -m benchmarks.suite.ours JOB --netns NS -i IF [-o IF]`; it says `ready` on standard error when it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

import afxdp_pool as ap
from afxdp_pool.testing import packets

TRANSMITS = ("socket", "live", "auto")
HANDLERS = ("builtin", "numba", "numpy-swap", "numpy-filter", "python")
_FORWARD = ap.FORWARD(1)
_SWAP = np.array([*range(6, 12), *range(6)], np.uint64)
_IP_PROTOCOL, _SOURCE_IP, _TARGET_PORT = 23, 26, 36
_WANTED_IP = b"\xc6\x12"  # 198.18.0.0/16
_UDP = 17


def cannot(handler: str) -> str:
    """Why this variant cannot run here; "" when it can."""
    if handler == "numba":
        if not hasattr(ap, "compiled"):
            return "afxdp_pool has no compiled()"
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed"
    return ""


def swap_macs(batch: ap.Batch) -> None:
    """Exchange source and destination address of every packet."""
    if hasattr(batch, "swap_macs"):
        batch.swap_macs()
        return
    start = batch.addr[:, None]
    batch.data[start + np.arange(12, dtype=np.uint64)] = batch.data[start + _SWAP]


def is_wanted(batch: ap.Batch) -> npt.NDArray[np.bool_]:
    """Which packets are UDP from 198.18.0.0/16 to the test port: all that the source sends."""
    if hasattr(batch, "five_tuple"):
        who = batch.five_tuple()
        wanted: npt.NDArray[np.bool_] = (who.proto == _UDP) & (who.dport == packets.PORT) & (who.src >> 16 == 0xC612)
        return wanted
    data, addr = batch.data, batch.addr
    at = [addr + np.uint64(offset) for offset in (_IP_PROTOCOL, _SOURCE_IP, _SOURCE_IP + 1, _TARGET_PORT + 1)]
    want = (_UDP, *_WANTED_IP, packets.PORT)
    whole: npt.NDArray[np.bool_] = np.logical_and.reduce(
        [data[place] == value for place, value in zip(at, want, strict=True)]
    )
    return whole


def numpy_swap(verdict: int) -> Callable[[ap.Batch], int]:
    """A batch handler that swaps the MAC addresses."""

    def handle(batch: ap.Batch) -> int:
        swap_macs(batch)
        return verdict

    return handle


def numpy_filter(verdict: int) -> Callable[[ap.Batch], Any]:
    """A batch handler that lets through what a 5-tuple rule wants."""

    def handle(batch: ap.Batch) -> Any:
        wanted = is_wanted(batch)
        out = batch.verdicts if hasattr(batch, "verdicts") else np.empty(len(batch), np.uint8)
        np.multiply(wanted, verdict, out=out, casting="unsafe")  # DROP is 0
        return out

    return handle


def python_handler(verdict: int) -> Any:
    """A handler that Python calls for each packet."""

    def handle(packet: npt.NDArray[np.uint8]) -> int:
        return verdict if packet[_IP_PROTOCOL] == _UDP else ap.DROP

    return ap.per_packet(handle)


def compiled_handler(verdict: int) -> Any:
    """A compiled handler that swaps the MAC addresses."""

    def handle(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
        for i in range(len(descs)):
            at = descs[i].addr
            for byte in range(6):
                kept = umem[at + byte]
                umem[at + byte] = umem[at + byte + 6]
                umem[at + byte + 6] = kept
            verdicts[i] = verdict

    return ap.compiled(handle)  # type: ignore[attr-defined,unused-ignore]


MAKERS = {"numba": compiled_handler, "numpy-swap": numpy_swap, "numpy-filter": numpy_filter, "python": python_handler}


def make(arguments: argparse.Namespace) -> ap.Runner:
    """The forwarder for one job."""
    if why := cannot(arguments.handler):
        raise SystemExit(why)
    port = ap.PortConfig(fill_level=arguments.fill, transmit=arguments.transmit)
    options = ap.Options(netns=arguments.netns, batch=arguments.batch, port=port)
    job, source, target = arguments.job, arguments.source, arguments.target
    if arguments.handler != "builtin":
        verdict = {"drop": ap.DROP, "forward": _FORWARD, "reflect": ap.TX}[job]
        ports = [source, target] if job == "forward" else [source]
        return ap.handle(ports, MAKERS[arguments.handler](verdict), options=options)
    if job == "drop":
        return ap.drop(source, options=options)
    if job == "forward":
        return ap.forward(source, target, options=options)
    if job == "reflect":
        return ap.reflect(source, options=options)
    return ap.transmit(source, [bytes.fromhex(arguments.template_hex)], options=options)


def own_report(forwarder: ap.Runner, report: ap.Report) -> dict[str, Any]:
    """The report in the engines' common terms, and in its own."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    port = report.ports[0]
    passed = sum(port.program.get(name, 0) for name in ("passed_filter", "passed_no_socket"))
    return {
        "received": port.stats.rx_packets,
        "sent": report.sent,
        "rx_dropped": port.kernel.rx_dropped,
        "rx_ring_full": port.kernel.rx_ring_full,
        "kernel_dropped": port.kernel.rx_dropped + port.kernel.rx_ring_full + passed,
        "frame_bytes": forwarder.umem.frames * forwarder.umem.frame_size,
        "user_seconds": usage.ru_utime,
        "sys_seconds": usage.ru_stime,
        "details": report.as_dict(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", choices=("drop", "forward", "reflect", "tx"))
    parser.add_argument("--netns", required=True)
    parser.add_argument("-i", dest="source", required=True)
    parser.add_argument("-o", dest="target")
    parser.add_argument("--transmit", choices=TRANSMITS, default="socket")
    parser.add_argument("--handler", choices=HANDLERS, default="builtin")
    parser.add_argument("--template-hex", default="")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--fill", type=int, default=2048)
    with make(parser.parse_args()) as forwarder:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: forwarder.stop())
        print("ready", file=sys.stderr, flush=True)
        report = forwarder.run()
        forwarder.audit().check()
        print(json.dumps(own_report(forwarder, report)))


if __name__ == "__main__":
    main()
