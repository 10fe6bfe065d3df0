"""A user's program: every public class once, well typed but for the lines marked as mistakes. Checked, never run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

import afxdp_pool as ap

Verdicts = npt.NDArray[np.uint8]


def udp_only(batch: ap.Batch) -> Verdicts:
    """A handler that returns one verdict a packet."""
    flow: ap.FiveTuple = batch.five_tuple()
    wanted = (flow.proto == 17) & (flow.dport == 53)
    batch.swap_macs(where=flow.protocol == 17)  # mistake: FiveTuple has proto
    known: ap.RxColumns = batch.rx_metadata()
    wanted &= known.has_hash & (known.hash_type & ap.RxHashType.L4 != 0)
    print(known.received)  # mistake: RxColumns has arrival
    np.multiply(wanted, np.uint8(ap.TX), out=batch.verdicts)
    return batch.verdicts


def one_packet(packet: npt.NDArray[np.uint8]) -> int:
    """What a compiled handler may do."""
    known: ap.RxKnown = ap.rx_known(packet)
    parts: ap.PacketParts = ap.packet_parts(packet)
    last: int = ap.packet_part(packet, parts.frames - 1)[-1]
    print(parts.size)  # mistake: PacketParts has length
    return ap.DROP if known.has_vlan or last else ap.TX


def longest(batch: ap.Batch) -> bytes:
    """Packets of several frames."""
    first, end = batch.starts[:2]
    print(batch.parts[first:end].lenghts)  # mistake: lengths
    return batch.whole(int(batch.lengths.argmax()))


def by_name(batch: ap.Batch) -> str:
    """No handler: a verdict is a number."""
    return "drop"


def forwarded(devices: Sequence[str], seconds: float) -> int:
    """The ready-made paths."""
    port = ap.PortConfig(multi_buffer=True, mode="native")  # mistake: native is a mode of XDP, not of a socket
    rule = ap.Rule(protocol=17, port=53)
    options = ap.Options(port=port, rules=[rule], workers="queues")
    with ap.handle(devices, udp_only, options=options) as runner:
        runner.start(duration=seconds)
        report: ap.Report = runner.join()
    with ap.handle(devices, by_name) as other:  # mistake: its handler returns a str
        other.run(seconds)
    engine: ap.EngineStats = report.engine
    first: ap.PortReport = report.ports[0]
    stats: ap.PortStats = first.stats
    kernel: ap.KernelStats = first.kernel
    live: ap.LiveStats | None = first.live
    info: ap.PortInfo | None = first.info
    stats.rx_packets = 0  # mistake: statistics are read
    print(info.mode if info else "closed", kernel.rx_dropped, live.frames if live else 0)
    print(first.driver)  # mistake: that is in its info
    return engine.forwarded + ap.FORWARD("eth1")  # mistake: a port's number


def by_hand(device: str) -> ap.Audit:
    """The parts, in a loop of the program's own."""
    config = ap.UmemConfig(frames=4096)
    umem = ap.Umem(frames=config.frames, frame_size="2048")  # mistake: bytes are a number
    pool = ap.FramePool(umem)
    with ap.Port(pool, device) as port:
        while port.poll(timeout=1.0):
            batch = port.receive()
            first: ap.Frame = batch.keep(0)
            odd: ap.Frames = batch.keep(batch.load(0) % 2 == 1)
            one: ap.Frame = batch.keep(slice(1))  # mistake: a slice keeps several
            print(bytes(first), len(one), odd.left, batch.adr)  # mistake: addr
            sent = port.transmit(batch)
            pool.put(batch[sent:])
            pool.put(first)  # mistake: a Frame is closed
            port.transmit(first)
            port.transmit(b"a packet")  # mistake: it is written into a frame first
            odd.close()
        port.transmit(pool.write([b"a packet"]))
        for late in port:  # mistake: only "async for" waits
            pool.put(late)
        ready: list[ap.Port] = ap.wait([port], timeout=0)
        print(ready[0].fileno())
    pooled: ap.PoolStats = pool.stats()
    print(pooled.recycle_cached)
    return umem.audit().check(idle=True)


async def answered(port: ap.Port) -> int:
    """asyncio."""
    sent = 0
    async for batch in port:
        sent += port.atransmit(batch)  # mistake: not awaited
        sent += await port.atransmit(batch[:1])
    with await port.areceive(16) as frames:
        print(frames.five_tuple().src)
    return sent


def granted(runner: ap.Runner) -> ap.Info:
    """What the kernel gave, apart from what happened."""
    info: ap.Info = runner.info()
    memory: ap.MemoryInfo = info.memory
    loops: tuple[ap.LoopInfo, ...] = info.loops
    programs: tuple[ap.XdpInfo, ...] = info.programs
    versions: ap.Versions = info.versions
    print(memory.locked_bytes, loops[0].batch, programs[0].tag, versions.libxdp)
    print(memory.frames.sum())  # mistake: a number of frames
    devices: tuple[ap.DeviceInfo, ...] = info.devices
    mapped: tuple[ap.DmaDevice, ...] = runner.umem.devices
    place: ap.Netdev | None = runner.ports[0].place
    features: ap.XdpFeatures | None = place.features if place else None
    if features is not None:
        told: list[bool] = [ap.XdpFeature.RX_SG in features.flags, ap.RxMetadata.HASH in features.rx_metadata]
        print(told, features.xsk & ap.XskFeature.TX_CHECKSUM, devices[0].numa_node, mapped[0].queues)
    with ap.Watch(runner.ports) as watch:
        watch.check()
    return info


def put_together(device: str) -> ap.Runner:
    """A forwarder made of parts."""
    umem = ap.Umem(memory=ap.BpfMemory(1 << 24))
    shared: ap.Umem = ap.Umem(memory=ap.SharedMemory(1 << 24))
    shared.close()
    program = ap.XdpProgram(device, rules=[ap.Rule(port=53)])
    napi = ap.Napi(device, napi_defer_hard_irqs=2)
    with ap.Steering(device) as steering:
        steering.spread("3")  # mistake: a number of queues
        rule: ap.FlowRule = steering.add(ap.FlowRule(1, protocol=17, port=53))
        state: ap.SteeringState = steering.state()
        print(rule.location, state.rss.table if state.rss else ap.steering_state(device).channels)
    port = ap.Port(ap.FramePool(umem), device, program=program)
    route = ap.Route(ap.TX, ap.Rewrite(swap=True, dst=5))  # mistake: a MAC address is a str or bytes
    forwarder = ap.Forwarder([port], {0: route})
    workers = ap.Workers([forwarder])
    report: ap.WorkerReport = workers.snapshot().workers[0]
    print(report.name, napi)
    compiled: ap.Compiled = ap.compiled(1 << 20)
    template = ap.Template((bytes(64),))
    stamps: ap.TxStamps = port.take_timestamps(8)
    print(stamps.timestamp.max(), stamps.lost)
    with ap.Forwarder([port], handler=compiled), ap.transmit(device, template, rate=1e6) as sender:
        sender.run(duration="1")  # mistake: seconds are a number
    return workers


if __name__ == "__main__":
    try:
        print(forwarded(sys.argv[1:], 10.0), by_hand(sys.argv[1]))
        with ap.Umem() as memory, ap.FramePool(memory) as owner, ap.Port(owner, sys.argv[1]) as opened:
            print(asyncio.run(answered(opened)))
        put_together(sys.argv[1]).join()
    except ap.QueueBusy as error:  # mistake: it is QueueBusyError
        print(error)
    except (ap.PrivilegeError, ap.NoSuchInterfaceError) as error:
        print(error.hint, error.errno)
