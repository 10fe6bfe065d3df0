"""A cable with an engine at both ends, in each of the worlds the conformance cases are run in.

An `End` is a Umem, a pool and a port at one end. Invariant: when a `Cable` is closed, every frame of its ends is home.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import afxdp_pool as ap
from afxdp_pool import hook, netdev
from afxdp_pool._native import ffi, lib
from afxdp_pool.bpf import BpfObject
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import LabLink

PACKET_HEADROOM = 256
#: Packets between the two ends at most: a veth's ring has 256.
UNDER_WAY = 128
IN_GUEST = "AFXDP_POOL_NIC_GUEST" in os.environ
#: Seconds to wait for anything: an emulated machine takes its time.
WITHIN = 90.0 if IN_GUEST else 30.0


@dataclass(frozen=True)
class World:
    """Where the cases run: the driver, how its XDP programs run, what the sockets are granted."""

    name: str
    driver: str
    xdp: Literal["native", "generic"] = "native"
    mode: Literal["copy", "zero-copy"] = "copy"
    busy_poll: bool = False
    emulated: bool = False

    @property
    def many(self) -> int:
        """Packets for a case that wants many."""
        return 512 if self.emulated else 4096


VETH = (
    World("veth generic", "veth", "generic"),
    World("veth native", "veth"),
    World("veth busy-poll", "veth", busy_poll=True),
)
NICS = tuple(
    world
    for driver in ("igb", "virtio_net")
    for world in (
        World(f"{driver} generic", driver, "generic", emulated=True),
        World(f"{driver} copy", driver, emulated=True),
        World(f"{driver} zero-copy", driver, mode="zero-copy", emulated=True),
    )
)
WORLDS = VETH + NICS


def until(condition: Callable[[], bool]) -> None:
    """Wait on a condition, with a deadline."""
    deadline = time.monotonic() + WITHIN
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.0002)


class OwnProgram:
    """A program of conform.bpf.c on a link, in place of the library's: ports are given to it as to that one."""

    def __init__(self, objects: Path, name: str, link: LabLink, mode: str, adjust: int = 0) -> None:
        self.mode, self.id, self.rx_metadata, self.frags = mode, 0, (), True
        self._object = BpfObject(str(objects / "conform"))
        self._link = -1
        try:
            self._object.section(".rodata")[:4] = adjust.to_bytes(4, "little", signed=True)
            self._object.load()
            with in_netns(link.netns):
                self._link = hook.attach_link(self._object.program(name), link.ifindex, mode)
        except BaseException:
            self.close()
            raise

    @property
    def refused(self) -> int:
        """The errno with which the kernel refused what the program asked for last; 0: it did it."""
        raw = self._object.map(".bss").lookup(0)
        assert raw is not None
        return -int.from_bytes(raw[8:16], "little", signed=True)

    def add_socket(self, queue: int, fd: int) -> None:
        self._object.map("xsks").update(queue, fd)

    def remove_socket(self, queue: int) -> None:
        self._object.map("xsks").delete(queue)

    def close(self) -> None:
        if self._link >= 0:
            os.close(self._link)
            self._link = -1
            self._object.close()


class End:
    """A Umem, a pool and a port at one end of a cable.

    Args:
        over: another end, whose Umem is used instead of one of this end's own.
    """

    def __init__(
        self,
        cable: Cable,
        link: LabLink,
        program: Any,
        *,
        queue: int = 0,
        frames: int = 2048,
        frame_size: int = 4096,
        headroom: int = 0,
        unaligned: bool = False,
        over: End | None = None,
        **config: Any,
    ) -> None:
        self.cable, self.link = cable, link
        busy = {"busy_poll_us": 20, "busy_poll_budget": 64} if cable.world.busy_poll else {}
        rings = {"fill_size": 512, "comp_size": 512, "rx_size": 512, "tx_size": 512}
        chosen = ap.PortConfig(**{**rings, **busy, "mode": cable.world.mode, **config})
        self.umem: ap.Umem = (
            over.umem
            if over
            else ap.Umem(
                frames,
                frame_size=frame_size,
                headroom=headroom,
                unaligned=unaligned,
                huge_pages=unaligned and cable.world.mode == "zero-copy",  # else its pages do not lie side by side
            )
        )
        self.pool = ap.FramePool(self.umem)
        self.port = ap.Port(self.pool, link.name, queue, config=chosen, netns=link.netns, program=program)
        assert self.port.info.mode == cable.world.mode
        self._addresses = packets.Addresses(source_mac=link.mac, target_mac=link.peer_mac)

    def packet(self, number: int, size: int = 64, flow: int = 0) -> bytes:
        """A test packet to the other end."""
        return packets.build(size, flow=flow, seq=number, addresses=self._addresses)

    def written(self, numbers: Sequence[int], size: int = 64, flow: int = 0) -> ap.Batch:
        """Frames with test packets of these numbers in them."""
        batch = self.pool.write([self.packet(number, size, flow) for number in numbers])
        assert len(batch) == len(numbers)
        return batch

    def send(self, numbers: Sequence[int], size: int = 64, flow: int = 0) -> int:
        """Send test packets of these numbers; how many the TX ring took."""
        batch = self.written(numbers, size, flow)
        sent = self.port.transmit(batch)
        self.pool.put(batch[sent:])
        return sent

    def queue_up(self, batch: ap.Batch) -> None:
        """Put packets into the TX ring, and tell nobody."""
        refused = ffi.new("struct afp_refusals *")
        assert lib.afp_port_transmit(self.port.native, batch.pointer, len(batch), refused) == len(batch)

    def take(self, n: int = 64) -> list[packets.TestPacket]:
        """What has arrived, proven byte by byte and by where it lies; the frames are given back."""
        with_headroom = self.umem.config.headroom + PACKET_HEADROOM
        batch = self.port.receive(n)
        assert {self.umem.config.offset_in_frame(addr) for addr in batch.addr.tolist()} <= {with_headroom}
        seen = [packets.parse(bytes(packet)) for packet in batch if packets.is_test(bytes(packet))]
        assert None not in seen
        self.pool.put(batch)
        self.port.recycle()
        return cast("list[packets.TestPacket]", seen)

    def close(self) -> None:
        """Close it; the last end on a Umem proves that every frame is home. Idempotent."""
        if self.port.closed:
            return
        self.umem.audit().check()
        self.port.close()
        self.pool.close()
        if not self.umem._ports:
            self.umem.audit().check(idle=True)
            self.umem.close()


class Cable:
    """The two ends' links: packets go from `far` to `near` unless a case says otherwise."""

    def __init__(self, world: World, near: LabLink, far: LabLink, objects: Path,
                 settled: Callable[[], None] = lambda: None) -> None:  # fmt: skip
        self.world, self.near, self.far, self.objects = world, near, far, objects
        self.settled = settled  # returns when both links have a carrier
        self._programs: dict[str, Any] = {}
        self._open = ExitStack()

    def program(self, link: LabLink, **asked: Any) -> Any:
        """The XDP program on a link: the library's, unless `own` came first."""
        if link.name not in self._programs:
            self._programs[link.name] = ap.XdpProgram(link.name, netns=link.netns, mode=self.world.xdp, **asked)
            self._open.callback(self._programs[link.name].close)
        return self._programs[link.name]

    def steering(self, link: LabLink) -> ap.Steering:
        """What a NIC's queues and rings are changed by, until the cable is closed."""
        return self._open.enter_context(ap.Steering(link.name, link.netns))

    def enlarge(self, mtu: int) -> None:
        """Links of that MTU, until the cable is closed."""
        for link in (self.near, self.far):
            self._open.callback(set_mtu, link, netdev.find(link.name, link.netns).mtu)
            set_mtu(link, mtu)

    def another_program(self, link: LabLink) -> ap.XdpProgram:
        """The library's program taken off, and a new one put on."""
        self._programs.pop(link.name).close()
        made: ap.XdpProgram = self.program(link)
        return made

    def own(self, name: str, adjust: int = 0) -> OwnProgram:
        """Have one of the cases' own programs on the near link."""
        made = OwnProgram(self.objects, name, self.near, self.world.xdp, adjust)
        self._programs[self.near.name] = made
        self._open.callback(made.close)
        return made

    def end(self, link: LabLink, **chosen: Any) -> End:
        """An end with both directions, or those chosen; closed with the cable, every frame accounted for."""
        receives = chosen.get("receive", True)
        if self.world.busy_poll:
            self._open.enter_context(ap.Napi(link.name, link.netns, napi_defer_hard_irqs=2, gro_flush_timeout=200_000))
        wanted = {"transmit": "socket", "fill_level": 512 if receives else 64, **chosen}
        asked: dict[str, Any] = {"rx_metadata": chosen["rx_metadata"]} if "rx_metadata" in chosen else {}
        asked |= {"frags": True} if chosen.get("multi_buffer") else {}
        end = End(self, link, self.program(link, **asked) if receives else None, **wanted)
        self._open.callback(end.close)
        return end

    def receiver(self, **chosen: Any) -> End:
        """The near end, receiving."""
        return self.end(self.near, **{"transmit": False, **chosen})

    def sender(self, **chosen: Any) -> End:
        """The far end, sending."""
        return self.end(self.far, receive=False, **chosen)

    def close(self) -> None:
        self._open.close()


def set_mtu(link: LabLink, mtu: int) -> None:
    subprocess.run(["ip", "-n", link.netns, "link", "set", link.name, "mtu", str(mtu)], check=True, timeout=60)


def carry(sender: End, receiver: End, count: int, *, size: int = 64, burst: int = 64, flow: int = 0) -> None:
    """Send numbered packets in bursts: each must arrive, once, in order, and every frame of theirs come home."""
    sender.cable.settled()
    lost = losses(sender, receiver)
    # FILL is topped up in bulks, once it is half empty.
    window = min(max(UNDER_WAY, burst), receiver.port.config.fill_level // 2)
    sent = came = 0

    def all_came() -> bool:
        nonlocal sent, came
        room = min(burst, count - sent, window - (sent - came))
        if room > 0:
            sent += sender.send(range(sent, sent + room), size, flow)
        sender.port.recycle()
        for packet in receiver.take(burst):
            assert (packet.seq, packet.flow, packet.size) == (came, flow, size)
            came += 1
        return came == count

    until(all_came)
    until(lambda: sender.port.recycle() >= 0 and all_completed(sender))
    assert losses(sender, receiver) == lost


def all_completed(sender: End) -> bool:
    """Whether all it has ever sent has come back."""
    stats = sender.port.stats()
    return (stats.tx_completed, stats.tx_completed_parts) == (stats.tx_packets, stats.tx_parts)


def losses(sender: End, receiver: End) -> tuple[int, int, int]:
    """What the kernel counted of packets that did not get through."""
    came = receiver.port.kernel_stats()
    return came.rx_dropped, came.rx_ring_full, sender.port.kernel_stats().tx_invalid_descs
