"""What tests on real packets share: waiting, perfect arrival, the audit; and what those of live transmit need more."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

import afxdp_pool as ap
from afxdp_pool._native import ffi, lib
from afxdp_pool.allowing import Allowed
from afxdp_pool.broker import Broker
from afxdp_pool.netdev import in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab, LabLink, VethPair
from afxdp_pool.testing.traffic import SinkReport, Source

GRO = 0x2C  # ETHTOOL_SGRO
SO_RCVBUFFORCE = 33
LIVE = ap.PortConfig(transmit="live")
SENDS = ap.PortConfig(receive=False, fill_level=64)


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Wait on a condition, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def until(condition: Callable[[], object]) -> None:
    """The same, or fail."""
    assert wait_for(lambda: bool(condition())), "it did not happen"


def options(lab: Lab, port: ap.PortConfig = ap.PortConfig()) -> ap.Options:  # noqa: B008
    return ap.Options(netns=lab.engine_netns, port=port)


@contextmanager
def protocol_socket(link: LabLink, protocol: int) -> Iterator[socket.socket]:
    """A packet socket on the link, which receives packets of that EtherType; of none with 0."""
    with in_netns(link.netns):
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
        made.bind((link.name, protocol))
    with made:
        made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        made.settimeout(20)
        yield made


@contextmanager
def brokered(link: LabLink, at: Path, *, frags: bool = True) -> Iterator[str]:
    """The path of a broker in a thread that serves the link to this user."""
    with (
        in_netns(link.netns),
        ap.XdpProgram(link.name, frags=frags) as program,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        Broker({link.name: program}, Allowed.parse([str(os.geteuid())])) as broker,
    ):
        listener.bind(os.fspath(at))
        listener.listen()
        thread = threading.Thread(target=broker.run, args=(listener,))
        thread.start()
        try:
            yield os.fspath(at)
        finally:
            broker.stop()
            thread.join(20.0)


def in_step(source: Source, runner: ap.Runner, number: int, at_once: int) -> None:
    """Have `number` packets sent, the next only when those before are completed: none is lost for want of room."""
    for sent in range(at_once, number + 1, at_once):
        assert source.send(at_once).dropped == 0
        assert wait_for(lambda goal=sent: runner.snapshot().completed >= goal)  # type: ignore[misc]


def perfect(seen: SinkReport, sent: int) -> None:
    assert (seen.unique, seen.missing(sent)) == (sent, 0)
    assert (seen.duplicate, seen.reordered, seen.stale, seen.corrupt, seen.foreign) == (0, 0, 0, 0, 0)


def audited(forwarder: ap.Runner) -> None:
    """Every frame is accounted for with the ports open, and home once they are closed."""
    umem, pools = forwarder.umem, forwarder.pools
    umem.audit().check()
    for port in forwarder.ports:
        port.close()
    for pool in pools:
        pool.close()
    assert umem.audit().check(idle=True).umem == umem.frames
    assert [pool.stats().inflight for pool in pools] == [0] * len(pools)
    forwarder.close()


def live_of(report: ap.Report, port: int) -> ap.LiveStats:
    live = report.ports[port].live
    assert live is not None
    assert live.frames == live.delivered + live.dropped
    return live


@contextmanager
def sending(lab: Lab, pair: VethPair, config: ap.PortConfig = SENDS, frames: int = 2048) -> Iterator[ap.Port]:
    """A port that only sends, out of the near end, over frames programs can see. They are all home afterwards."""
    with ap.Umem(frames, memory=ap.BpfMemory(frames * 4096)) as umem:
        with ap.FramePool(umem) as pool, ap.Port(pool, pair.near.name, netns=lab.engine_netns, config=config) as port:
            yield port
            umem.audit().check()
        umem.audit().check(idle=True)


class Numbered:
    """Test packets of one flow, written into frames of a port's pool and numbered on."""

    def __init__(self, port: ap.Port, link: LabLink) -> None:
        self.port, self.next = port, 0
        self.addresses = packets.Addresses(source_mac=link.mac, target_mac=link.peer_mac)

    def batch(self, sizes: list[int], offsets: list[int] | None = None) -> ap.Batch:
        batch = self.port.pool.alloc(len(sizes))
        assert len(batch) == len(sizes)
        if offsets:
            batch.descs["addr"] += np.array(offsets, np.uint64)
        batch.descs["len"] = sizes
        for addr, size in zip(batch.descs["addr"].tolist(), sizes, strict=True):
            data = packets.build(size, seq=self.next, addresses=self.addresses)
            self.port.pool.umem.data[addr : addr + size] = np.frombuffer(data, np.uint8)
            self.next += 1
        return batch

    def send(self, sizes: list[int], offsets: list[int] | None = None) -> None:
        """Send them, and wait until all have completed."""
        batch = self.batch(sizes, offsets)
        done = sent = 0
        deadline = time.monotonic() + 20
        while done < len(sizes):
            assert time.monotonic() < deadline
            if sent < len(sizes):
                sent += self.port.transmit(batch[sent:])
            done += self.port.complete(2048)


def numbered_template(pair: VethPair, flow: int = 0) -> ap.Template:
    """What `transmit` numbers on."""
    packet = packets.build(64, flow=flow, addresses=packets.Addresses(pair.near.mac, pair.far.mac))
    return ap.Template((packet,), sequence_at=packets.SEQUENCE_AT, checksum_at=packets.CHECKSUM_AT)


def live_stats(port: ap.Port) -> ap.LiveStats:
    stats = port.live_stats()
    assert stats is not None
    assert stats.frames == stats.delivered + stats.dropped
    return stats


def threaded(link: LabLink, on: bool = True) -> None:
    """Give the link's NAPI a thread each, by /sys of its namespace, mounted where only this call sees it."""
    script = (
        "import ctypes,sys\n"
        "libc=ctypes.CDLL(None,use_errno=True)\n"
        "assert libc.unshare(0x20000)==0\n"  # CLONE_NEWNS
        "assert libc.mount(b'none',b'/',None,0x44000,None)==0\n"  # MS_REC | MS_PRIVATE
        "assert libc.mount(b'sysfs',b'/sys',b'sysfs',0,None)==0\n"
        f"open('/sys/class/net/{link.name}/threaded','w').write('{int(on)}')\n"
    )
    with in_netns(link.netns):
        subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


def programs_of(pid: int) -> set[int]:
    """The ids of the BPF programs that a process has open."""
    found = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(OSError):  # closed by now
            found |= {int(number) for number in re.findall(r"^prog_id:\s*(\d+)", path.read_text(), re.MULTILINE)}
    return found


def live_programs() -> set[int]:
    """The ids of the live transmitters' programs that the kernel has, of any process."""
    found, at = set(), ffi.new("uint32_t *")
    info = ffi.new("struct afp_prog_info *")
    while lib.bpf_prog_get_next_id(at[0], at) == 0:
        fd = lib.bpf_prog_get_fd_by_id(at[0])
        if fd < 0:
            continue
        ours = (b"live_transmit", b"live_xmit", b"live_pool")
        if lib.afp_prog_info(fd, info) == 0 and ffi.string(info.name).startswith(ours):
            found.add(int(info.id))
        os.close(fd)
    return found
