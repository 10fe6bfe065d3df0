"""A batch is descriptors over memory it does not own."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from support import conserved

from afxdp_pool import DESC, Batch, FramePool, InvalidDescriptorError, Umem
from afxdp_pool._native import ffi


@pytest.fixture
def umem() -> Iterator[Umem]:
    with conserved(frames=64) as made:
        yield made


@pytest.fixture
def batch(umem: Umem) -> Iterator[Batch]:
    with FramePool(umem) as pool:
        made = pool.alloc(4)
        kept = made.copy()
        for i in range(4):
            made.write(i, bytes([i]) * (10 + i))
        yield made
        pool.put(kept)


def test_a_descriptor_is_laid_out_as_c_has_it() -> None:
    assert DESC.itemsize == ffi.sizeof("struct afp_desc")
    for name in DESC.names or ():
        assert DESC.fields is not None
        assert DESC.fields[name][1] == ffi.offsetof("struct afp_desc", name)


def test_a_packet_is_a_writable_view_of_the_umem(umem: Umem, batch: Batch) -> None:
    assert [bytes(packet) for packet in batch] == [bytes([i]) * (10 + i) for i in range(4)]
    assert bytes(batch[2]) == bytes(batch[-2])
    batch[1][0] = 77
    assert umem.data[batch.addr[1]] == 77


def test_slices_masks_and_indices_give_smaller_batches_of_the_same_frames(batch: Batch) -> None:
    whole = batch.addr.tolist()
    for part, addresses in (
        (batch[1:3], whole[1:3]),
        (batch[batch.len > 11], whole[2:]),
        (batch[np.array([3, 0])], [whole[3], whole[0]]),
        (batch[:0], []),
    ):
        assert isinstance(part, Batch)
        assert part.addr.tolist() == addresses
        assert part.data is batch.data


def test_address_and_length_may_be_changed_in_place(batch: Batch) -> None:
    batch.addr[0] += np.uint64(4)
    batch.len[0] -= np.uint32(4)
    assert bytes(batch[0]) == bytes(6)
    assert batch.descs["len"][0] == 6


def test_a_copy_has_descriptors_of_its_own(batch: Batch) -> None:
    copy = batch.copy()
    copy.len[0] = 3
    assert len(batch[0]) == 10
    copy[1][0] = 9
    assert batch[1][0] == 9, "and the same packets"


@pytest.mark.parametrize("content", [b"abc", bytearray(b"abc"), memoryview(b"abc"), np.frombuffer(b"abc", np.uint8)])
def test_write_takes_any_bytes_and_sets_the_length(batch: Batch, content: bytes) -> None:
    batch.write(3, content)
    assert bytes(batch[3]) == b"abc"
    assert batch.len[3] == 3


def test_nothing_is_written_beyond_the_umem(umem: Umem, batch: Batch) -> None:
    batch.addr[0] = len(umem.data) - 4
    batch.write(0, b"1234")
    with pytest.raises(InvalidDescriptorError, match="beyond their frame"):
        batch.write(0, b"12345")
    assert bytes(batch[0]) == b"1234"


def test_repr_says_how_many_packets_and_bytes(batch: Batch) -> None:
    assert repr(batch) == "<Batch of 4 packets, 46 bytes>"
