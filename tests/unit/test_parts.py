"""Handlers in machine code and packets of several frames: where ports have such packets, the whole packet is theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE
from support import SMALL, conserved
from test_libraries import build

import afxdp_pool as ap
import afxdp_pool.forwarder as forwarder_module
from afxdp_pool.testing.rings import FakeKernel

MULTI = replace(SMALL, multi_buffer=True)
LENGTHS = (64, 1792, 1793, 5000, 60, 3584, 3585)
#: Sums up each packet, writes that into its last byte, and counts packets, bytes and frames.
LIBRARY = r"""
#include <afxdp_pool.h>

static uint8_t seen(uint8_t *packet, uint64_t *user)
{
	struct afp_parts all = afp_parts(packet);
	uint8_t sum = 0, *last = packet;
	uint32_t bytes = 0;

	for (uint32_t i = 0; i < all.count; i++) {
		last = afp_part(packet, all, i);
		for (uint32_t j = 0; j < all.frames[i].len; j++)
			sum += last[j];
		last += all.frames[i].len - 1;
		bytes += all.frames[i].len;
	}
	user[0]++;
	user[1] += all.length;
	user[2] += all.count;
	user[3] += bytes != all.length;
	*last = sum;
	return AFP_VERDICT_FORWARD(1);
}

AFP_PACKET_HANDLER(each)
{
	(void)port;
	((uint64_t *)user)[3] += length != afp_parts(packet).frames[0].len;
	return seen(packet, user);
}

AFP_BATCH_HANDLER(batch)
{
	(void)port, (void)size;
	for (uint32_t i = 0; i < n; i++) {
		((uint64_t *)user)[3] += (afp_parts(umem + descs[i].addr).count > 1) != (descs[i].options & AFP_GOES_ON);
		verdicts[i] = seen(umem + descs[i].addr, user);
	}
}
"""


@pytest.fixture(autouse=True)
def no_waiting_for_a_kernel_that_is_this_thread() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forwarder_module, "DRAIN_WITHIN", 0.0)
        yield


def numba_each(packet: Any, length: int, port: int, user: Any) -> int:
    parts = ap.packet_parts(packet)
    total = 0
    for index in range(parts.frames):
        part = ap.packet_part(packet, index)
        total += part.sum()
        user[3] -= len(part)
    user[0] += 1
    user[1] += parts.length
    user[2] += parts.frames
    user[3] += parts.length
    ap.packet_part(packet, parts.frames - 1)[-1] = total % 256
    return ap.FORWARD(1)


def numba_batch(descs: Any, umem: Any, verdicts: Any, port: int, user: Any) -> None:
    for at in range(len(descs)):
        start = descs[at].addr
        packet = umem[start : start + descs[at].len]
        parts = ap.packet_parts(packet)
        total = 0
        for index in range(parts.frames):
            total += ap.packet_part(packet, index).sum()
        user[0] += 1
        user[1] += parts.length
        user[2] += parts.frames
        user[3] += (parts.frames > 1) != (descs[at].options & 1)
        ap.packet_part(packet, parts.frames - 1)[-1] = total % 256
        verdicts[at] = ap.FORWARD(1)


def packets(n: int) -> list[bytes]:
    return [np.random.default_rng(i).bytes(LENGTHS[i % len(LENGTHS)]) for i in range(n)]


def summed(packet: bytes) -> bytes:
    return packet[:-1] + bytes([sum(packet) % 256])


@pytest.mark.parametrize("kind", ["c each", "c batch", "numba each", "numba batch"])
@pytest.mark.parametrize("unaligned", [False, True])
def test_the_whole_packet_is_the_handlers(kind: str, unaligned: bool, tmp_path: Path) -> None:
    counts = np.zeros(4, np.int64)
    if kind.startswith("c "):
        handler = ap.from_library(build(tmp_path, LIBRARY), kind[2:], user=counts)
    else:
        handler = ap.compiled({"numba each": numba_each, "numba batch": numba_batch}[kind], user=counts)
    sent, given = [], packets(70)
    frame_size = 2050 if unaligned else 2048
    with conserved(frame_size=frame_size, unaligned=unaligned) as umem, ap.FramePool(umem) as pool:
        ports = [ap.Port.in_memory(pool, MULTI) for _ in range(2)]
        kernels = [FakeKernel(port) for port in ports]
        with closing(ap.Forwarder(ports, handler=handler, batch=5, spin=0)) as forwarder:
            for start in range(0, 70, 7):
                ports[0].fill()
                assert kernels[0].deliver(given[start : start + 7]) == 7
                forwarder.run(DEADLINE, packets=7)
                sent += kernels[1].send()
                forwarder.run(0)
            # And called by hand, as in a test of its own.
            ports[0].fill()
            kernels[0].deliver(given[:7])
            batch = ports[0].receive()
            assert handler(batch).tolist() == [ap.FORWARD(1)] * 7
            assert [batch.whole(i) for i in range(7)] == [summed(packet) for packet in given[:7]]
            pool.put(batch)
    assert sent == [summed(packet) for packet in given]
    room = frame_size - 256
    frames = [-(-len(packet) // room) for packet in given]
    assert counts.tolist() == [77, sum(map(len, given)) + sum(map(len, given[:7])), sum(frames) + sum(frames[:7]), 0]


def test_in_python_they_are_the_same() -> None:
    nothing = ap.compiled(lambda packet, length, port, user: 0)
    with conserved(frame_size=2048) as umem, ap.FramePool(umem) as pool:
        port = ap.Port.in_memory(pool, MULTI)
        port.fill()
        FakeKernel(port).deliver(packets(4))
        batch = port.receive()
        frames, starts = batch._moving()[0], batch.starts.astype(np.uint32)
        ap._native.lib.afp_show_parts(umem.table, frames, ap._native.ffi.from_buffer("uint32_t[]", starts), 4)
        assert [ap.packet_parts(packet) for packet in batch] == [
            ap.PacketParts(length, count) for length, count in zip(batch.lengths, np.diff(batch.starts), strict=True)
        ]
        parts = [ap.packet_part(batch[3], index) for index in range(3)]
        assert b"".join(part.tobytes() for part in parts) == packets(4)[3]
        parts[2][-1] ^= 255
        assert batch.whole(3) != packets(4)[3]
        # A packet with less than the room for it in front is left as it is.
        batch.addr[:] -= 256 - 47
        before = umem.data.copy()
        nothing(batch)
        assert (umem.data == before).all()
        batch.addr[:] += 256 - 47
        pool.put(batch)
