"""Verdicts: what a handler may return, and what is refused before any packet is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from afxdp_pool import DROP, FORWARD, KEEP, TX, Batch, FramePool, Umem, VerdictError, per_packet
from afxdp_pool.handlers import write_verdicts


def written(verdicts: Any, n: int = 4) -> list[int]:
    out = np.full(n, 99, np.uint8)
    write_verdicts(verdicts, out)
    return [int(value) for value in out]


def test_verdicts_are_bytes_the_engine_knows() -> None:
    assert (DROP, TX, KEEP) == (0, 1, 2)
    assert [FORWARD(port) for port in (0, 1, 63)] == [0x80, 0x81, 0xBF]


@pytest.mark.parametrize("port", [-1, 64, 1000])
def test_forward_to_a_port_that_cannot_be_is_refused(port: int) -> None:
    with pytest.raises(VerdictError, match="0 to 63"):
        FORWARD(port)


@pytest.mark.parametrize("one", [TX, np.uint8(TX), np.int64(TX)])
def test_one_verdict_is_for_all_packets(one: Any) -> None:
    assert written(one) == [1, 1, 1, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint64])
def test_an_array_has_one_verdict_a_packet(dtype: type) -> None:
    assert written(np.array([0, 1, 2, 1], dtype)) == [0, 1, 2, 1]
    assert written([FORWARD(2), 0, 0, 1]) == [0x82, 0, 0, 1]
    assert written((0, 1, 2, 0)) == [0, 1, 2, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        -1,
        256,
        1.0,
        "drop",
        [0, 1],
        [0] * 5,
        [[0, 1, 2, 3]],
        [0.0, 1.0, 2.0, 3.0],
        [True, False, True, False],
        [0, 1, -1, 0],
        [0, 1, 256, 0],
        np.array([0, 0, 0, 1 << 63], np.uint64),
        [None] * 4,
    ],
)
def test_anything_else_is_refused_with_nothing_written(wrong: Any) -> None:
    out = np.full(4, 99, np.uint8)
    with pytest.raises(VerdictError):
        write_verdicts(wrong, out)
    assert out.tolist() == [99] * 4


def test_per_packet_asks_for_each_packet_in_order() -> None:
    with Umem(64) as umem, FramePool(umem) as pool:
        batch = pool.alloc(3)
        for i in range(3):
            batch.write(i, bytes([i] * 60))
        seen: list[int] = []

        def one(packet: Any) -> int:
            seen.append(int(packet[0]))
            packet[1] = 200
            return TX if packet[0] == 1 else DROP

        verdicts = per_packet(one)(Batch(batch.descs, umem.data))
        assert seen == [0, 1, 2]
        assert written(verdicts, 3) == [DROP, TX, DROP]
        assert batch[2][1] == 200
        pool.put(batch)
