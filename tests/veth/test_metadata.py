"""What is known of received packets beside their bytes, held against what their sender knows: flows, VLANs, clocks."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from live_lab import audited, in_step, options, perfect, wait_for

import afxdp_pool as ap
from afxdp_pool.capture import Capture
from afxdp_pool.netdev import RxMetadata, in_netns
from afxdp_pool.testing import packets
from afxdp_pool.testing.lab import Lab, LabLink, VethPair
from afxdp_pool.testing.source import addresses_of
from afxdp_pool.testing.traffic import Sink, Source

pytestmark = pytest.mark.usefixtures("veth_machine")

SMALL = ap.PortConfig(
    fill_size=512,
    comp_size=256,
    rx_size=256,
    tx_size=256,
    fill_level=256,
    transmit="socket",
    rx_metadata=("hash", "timestamp", "vlan", "arrival"),
)
FLOWS = range(4)


@pytest.fixture
def pair(lab: Lab) -> VethPair:
    return lab.veth("a")


@contextmanager
def listening(pair: VethPair, config: ap.PortConfig = SMALL, **umem: int) -> Iterator[ap.Port]:
    """A port on the near end, over frames that are all home afterwards."""
    with ap.Umem(1024, **umem) as memory:  # type: ignore[arg-type]
        with (
            ap.FramePool(memory) as pool,
            ap.Port(pool, pair.near.name, netns=pair.near.netns, config=config) as port,
        ):
            port.fill()
            yield port
            memory.audit().check()
        memory.audit().check(idle=True)


def received(port: ap.Port, n: int) -> ap.Batch:
    """That many packets in one batch."""
    assert wait_for(lambda: port.ring_levels()["rx"] >= n)
    batch = port.receive(n)
    assert len(batch) == n
    return batch


def say(link: LabLink, flows: range = FLOWS, size: int = packets.MIN_SIZE) -> None:
    """One test packet of each flow, sent by the kernel: the device gets it with what the kernel knows of it."""
    addresses = addresses_of(link, None, None)
    with in_netns(link.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((link.name, 0))
        for flow in flows:
            wire.send(packets.build(size, flow=flow, addresses=addresses))


@contextmanager
def tagging(link: LabLink, tci: int) -> Iterator[None]:
    """Put a VLAN tag beside each packet the kernel sends there, as a VLAN device does for an offloading NIC."""
    push = [(0xB7, 2, 0x0081), (0xB7, 3, tci), (0x85, 0, 18), (0xB7, 0, 0), (0x95, 0, 0)]  # bpf_skb_vlan_push()
    code = b"".join(struct.pack("<BBhi", op, register, 0, number) for op, register, number in push)
    text = ctypes.create_string_buffer(code, len(code))
    license_ = ctypes.create_string_buffer(b"GPL")
    with closing(bpf(5, "<IIQQ48x", 3, len(push), ctypes.addressof(text), ctypes.addressof(license_))) as program:
        with in_netns(link.netns):
            attached = bpf(28, "<IIII48x", program.fileno(), link.ifindex, 47, 0)  # BPF_TCX_EGRESS
        with closing(attached):
            yield


def bpf(command: int, layout: str, *values: int) -> Descriptor:
    """A bpf() call that gives a descriptor, here owned by what closes it."""
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    attributes = ctypes.create_string_buffer(struct.pack(layout, *values))
    fd = ctypes.CDLL(None, use_errno=True).syscall(number, command, attributes, len(attributes) - 1)
    if fd < 0 and command == 28:
        pytest.skip("the kernel has no TCX (Linux 6.6), by which to tag packets")
    assert fd >= 0, os.strerror(ctypes.get_errno())
    return Descriptor(fd)


class Descriptor:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def test_each_flow_has_its_hash(pair: VethPair) -> None:
    with listening(pair) as port:
        for _ in range(3):
            say(pair.far)
        batch = received(port, 3 * len(FLOWS))
        known, flows = batch.rx_metadata(), batch.udp.sport
        assert known.has_hash.all()
        assert (known.hash_type & ap.RxHashType.L4).all()
        hashes = {int(flow): set(known.hash[flows == flow].tolist()) for flow in set(flows.tolist())}
        assert [len(of_flow) for of_flow in hashes.values()] == [1] * len(FLOWS)
        assert len(set().union(*hashes.values())) == len(FLOWS)
        port.pool.put(batch)


def test_arrivals_rise_and_lie_between_two_looks_at_the_clock(pair: VethPair) -> None:
    with listening(pair) as port:
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        say(pair.far)
        batch = received(port, len(FLOWS))
        after = time.clock_gettime_ns(time.CLOCK_TAI)
        known = batch.rx_metadata()
        assert known.has_arrival.all()
        assert before < known.arrival[0]
        assert known.arrival[-1] < after
        assert (np.diff(known.arrival.astype(np.int64)) > 0).all()
        day = np.datetime64(time.time_ns(), "ns") - ap.utc(known.arrival)
        assert (np.abs(day) < np.timedelta64(60, "s")).all()
        # No hardware stamped them, and veth says so.
        assert not known.has_timestamp.any()
        assert not known.timestamp.any()
        port.pool.put(batch)


def test_a_tag_that_the_device_took_off_is_told(pair: VethPair) -> None:
    """It is nowhere in the bytes: without the metadata it would be lost."""
    with listening(pair) as port:
        with tagging(pair.far, 3 << 13 | 10):
            say(pair.far, range(1))
            assert wait_for(lambda: port.ring_levels()["rx"] == 1)
        say(pair.far, range(1))
        batch = received(port, 2)
        known = batch.rx_metadata()
        assert batch.eth.type.tolist() == [0x0800, 0x0800]
        assert known.has_vlan.tolist() == [True, False]
        assert (known.vlan_tci.tolist(), known.vlan_proto.tolist()) == ([3 << 13 | 10, 0], [0x8100, 0])
        port.pool.put(batch)


def test_of_redirected_packets_a_veth_knows_no_hash(pair: VethPair) -> None:
    with listening(pair) as port, Source(pair.far, cpu=0) as source:
        assert source.send(32).dropped == 0
        batch = received(port, 32)
        known = batch.rx_metadata()
        assert not known.has_hash.any()
        assert not known.has_vlan.any()
        assert known.has_arrival.all()
        port.pool.put(batch)


@pytest.mark.parametrize("headroom", [0, 13, 192])
def test_what_is_known_is_the_packets_for_as_long_as_it_is_held(pair: VethPair, headroom: int) -> None:
    """Wherever its start is moved, and whatever else the port receives meanwhile."""
    with listening(pair, headroom=headroom) as port:
        say(pair.far)
        batch = received(port, len(FLOWS))
        assert (batch.addr % 4096 == 256 + headroom).all()
        arrivals = batch.rx_metadata().arrival.tolist()
        kept = batch.keep(slice(1, 3))
        port.pool.put(batch)
        kept.addr[:] += 42
        for _ in range(8):
            port.fill()
            say(pair.far)
            port.pool.put(received(port, len(FLOWS)))
        assert kept.rx_metadata().arrival.tolist() == arrivals[1:3]
        kept.close()


def test_packets_of_several_frames_have_it_once_each(lab: Lab) -> None:
    """It lies before their first frame."""
    pair = lab.veth("large", mtu=9000)
    with listening(pair, replace(SMALL, multi_buffer=True)) as port:
        say(pair.far, size=packets.MAX_SIZE)
        say(pair.far, size=64)
        with in_netns(pair.far.netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((pair.far.name, 0))
            for _ in range(2):
                wire.send(pair.near.mac + pair.far.mac + b"\x08\x00" + bytes(8900))
        assert wait_for(lambda: port.ring_levels()["rx"] == 2 * len(FLOWS) + 2 * 3)
        batch = port.receive(64)
        known = batch.rx_metadata()
        assert len(batch) == 2 * len(FLOWS) + 2
        assert known.has_arrival.all()
        assert (np.diff(known.arrival.astype(np.int64)) > 0).all()
        assert (known.hash[: len(FLOWS)] == known.hash[len(FLOWS) : 2 * len(FLOWS)]).all()
        port.pool.put(batch)


def test_ports_of_one_umem_may_differ(lab: Lab) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    plain = replace(SMALL, rx_metadata=())
    with (
        ap.Umem(2048) as umem,
        ap.FramePool(umem) as pool,
        ap.Port(pool, left.near.name, netns=left.near.netns, config=SMALL) as knowing,
        ap.Port(pool, right.near.name, netns=right.near.netns, config=plain) as other,
    ):
        assert (knowing.info.rx_metadata, other.info.rx_metadata) == (SMALL.rx_metadata, ())
        for port, link in ((knowing, left.far), (other, right.far)):
            port.fill()
            say(link)
            batch = received(port, len(FLOWS))
            assert batch.rx_metadata().has_hash.all() == (port is knowing)
            pool.put(batch)
        umem.audit().check()


@pytest.mark.parametrize("transmit", ["socket", "live"])
def test_what_is_in_front_of_a_packet_is_not_sent(lab: Lab, transmit: ap.config.Transmit) -> None:
    left, right = lab.veth("left"), lab.veth("right")
    config = replace(SMALL, transmit=transmit)
    runner = ap.forward(left.near.name, right.near.name, options=options(lab, config))
    assert runner.ports[1].info.transmit == transmit
    with Sink(right.far) as sink, Source(left.far, cpu=0) as source:
        runner.start()
        in_step(source, runner, 1000, 50)
        runner.stop()
        runner.join()
        perfect(sink.wait(1000), 1000)
    audited(runner)


def test_a_handler_sees_it_in_python(lab: Lab, pair: VethPair) -> None:
    seen: list[tuple[int, int]] = []

    def handle(batch: ap.Batch) -> int:
        known = batch.rx_metadata()
        assert known.has_hash.all()
        seen.extend(zip(batch.udp.sport.tolist(), known.hash.tolist(), strict=True))
        return ap.DROP

    runner = ap.handle([pair.near.name], handle, options=options(lab, replace(SMALL, transmit=False)))
    runner.start()
    say(pair.far)
    say(pair.far)
    assert wait_for(lambda: runner.snapshot().received == 2 * len(FLOWS))
    runner.stop()
    runner.join()
    assert seen[: len(FLOWS)] == seen[len(FLOWS) :]
    assert len({known for _, known in seen}) == len(FLOWS)
    audited(runner)


_COUNTS_KNOWN = """
#include <afxdp_pool.h>

AFP_PACKET_HANDLER(handle)
{
	struct afp_rx_metadata known = afp_rx_metadata(packet);
	uint64_t *seen = user;

	if (known.present & AFP_RX_HASH && known.present & AFP_RX_ARRIVAL && length > 42 && port == 0) {
		seen[2] = known.arrival > seen[1] ? seen[2] : seen[2] + 1;
		seen[1] = known.arrival;
		seen[0]++;
	}
	return AFP_VERDICT_DROP;
}
"""


@pytest.mark.parametrize("language", ["C", "numba"])
def test_a_compiled_handler_sees_it(lab: Lab, pair: VethPair, language: str, tmp_path: Path) -> None:
    seen = np.zeros(3, np.uint64)
    if language == "C":
        source = tmp_path / "known.c"
        source.write_text(_COUNTS_KNOWN)
        library = source.with_suffix(".so")
        command = ["cc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", f"-I{ap.include_dir()}"]
        subprocess.run([*command, "-o", str(library), str(source)], check=True)
        handler = ap.from_library(library, "handle", user=seen)
    else:
        pytest.importorskip("numba", reason="needs the extra jit")

        @ap.compiled(user=seen)
        def handler(packet, length, port, user):  # type: ignore[no-untyped-def]
            known = ap.rx_known(packet)
            if known.has_hash and known.has_arrival and length > 42 and port == 0:
                if known.arrival <= user[1]:
                    user[2] += 1
                user[1] = known.arrival
                user[0] += 1
            return ap.DROP

    before = time.clock_gettime_ns(time.CLOCK_TAI)
    runner = ap.handle([pair.near.name], handler, options=options(lab, replace(SMALL, transmit=False)))
    runner.start()
    say(pair.far)
    assert wait_for(lambda: runner.snapshot().received == len(FLOWS))
    runner.stop()
    runner.join()
    assert (seen[0], seen[2]) == (len(FLOWS), 0)
    assert before < seen[1] < time.clock_gettime_ns(time.CLOCK_TAI)
    audited(runner)


def test_what_the_driver_does_not_tell_is_refused(pair: VethPair, monkeypatch: pytest.MonkeyPatch) -> None:
    """As virtio_net and igb: their drivers have none. Here it is a veth that tells less."""
    from afxdp_pool import metadata

    with in_netns(pair.near.netns):
        found = ap.netdev.find(pair.near.name)
    assert found.features is not None
    assert found.features.rx_metadata == sum(RxMetadata)
    for told, says in ((RxMetadata.HASH, "it has only hash"), (RxMetadata(0), "it has none at all")):
        less = replace(found, features=replace(found.features, rx_metadata=told))
        with pytest.raises(ap.MetadataUnsupportedError, match=f"the driver veth tells no vlan: {says}.*arrival"):
            metadata.check_driver(less, ("vlan",), "auto", "auto")
        metadata.check_driver(less, ("arrival",), "generic", "libxdp")
    before_linux_6_3 = replace(found, features=None)
    with pytest.raises(ap.MetadataUnsupportedError, match=r"asks no driver.*Linux 6\.3"):
        metadata.check_driver(before_linux_6_3, ("hash",), "auto", "auto")


@pytest.mark.parametrize(
    ("how", "says"),
    [({"mode": "generic"}, "generic XDP has no hash and no vlan"), ({"attach": "libxdp"}, "tied to no device")],
)
def test_a_program_that_cannot_ask_the_driver_is_refused(pair: VethPair, how: dict[str, str], says: str) -> None:
    near = pair.near
    with pytest.raises(ap.MetadataUnsupportedError, match=says):
        ap.XdpProgram(near.name, netns=near.netns, rx_metadata=("hash", "vlan"), **how)  # type: ignore[arg-type]


def test_arrivals_are_told_in_generic_mode_too(pair: VethPair) -> None:
    near, config = pair.near, replace(SMALL, rx_metadata=("arrival",))
    with (
        ap.XdpProgram(near.name, netns=near.netns, mode="generic", rx_metadata=("arrival",)) as program,
        ap.Umem(1024) as umem,
        ap.FramePool(umem) as pool,
        ap.Port(pool, near.name, netns=near.netns, config=config, program=program) as port,
    ):
        port.fill()
        before = time.clock_gettime_ns(time.CLOCK_TAI)
        say(pair.far)
        batch = received(port, len(FLOWS))
        known = batch.rx_metadata()
        assert known.has_arrival.all()
        assert (known.arrival > before).all()
        assert not known.has_hash.any()
        pool.put(batch)
        umem.audit().check()


def test_all_ports_of_a_device_learn_what_its_program_tells(lab: Lab) -> None:
    pair = lab.veth("two", queues=2)
    near = pair.near
    more, less = SMALL, replace(SMALL, rx_metadata=("arrival",))
    with ap.Umem(2048) as umem, ap.FramePool(umem) as pool:
        with (
            ap.Port(pool, near.name, 0, netns=near.netns, config=more) as first,
            ap.Port(pool, near.name, 1, netns=near.netns, config=less) as second,
        ):
            assert first.program is second.program
            assert first.program is not None
            assert first.program.rx_metadata == more.rx_metadata
        with (
            ap.Port(pool, near.name, 0, netns=near.netns, config=less),
            pytest.raises(ap.ConfigError, match="tells no hash and no timestamp and no vlan"),
        ):
            ap.Port(pool, near.name, 1, netns=near.netns, config=more)
        umem.audit().check(idle=True)


def test_a_capture_has_each_packets_arrival(lab: Lab, pair: VethPair, tmp_path: Path) -> None:
    dpkt = pytest.importorskip("dpkt", reason="needs the extra pcap")
    arrivals: list[int] = []

    def handle(batch: ap.Batch) -> int:
        arrivals.extend(batch.rx_metadata().arrival.tolist())
        return ap.DROP

    path = tmp_path / "arrivals.pcapng"
    runner = ap.handle([pair.near.name], handle, options=options(lab, replace(SMALL, transmit=False)))
    with pytest.raises(ap.ConfigError, match="stamps 'exact' are unknown"):
        Capture(path, runner, stamps="exact")  # type: ignore[arg-type]
    with Capture(path, runner):
        runner.start()
        say(pair.far)
        assert wait_for(lambda: runner.snapshot().received == len(FLOWS))
        runner.stop()
        runner.join()
    with path.open("rb") as file:
        times = [stamp for stamp, _ in dpkt.pcapng.Reader(file)]
    ahead = ap.metadata.tai_ahead_ns()
    # The reader's times are floats.
    assert times == pytest.approx([(arrival - ahead) / 1e9 for arrival in arrivals], abs=1e-6)
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    audited(runner)
    with listening(pair, replace(SMALL, rx_metadata=())) as port, pytest.raises(ap.ConfigError, match="not learn the"):
        Capture(path, [port], stamps="arrival")
