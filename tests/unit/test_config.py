"""What could never work is refused when the configuration is made, with the limit in the message."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from afxdp_pool import (
    ConfigError,
    FramePool,
    FrameSizeError,
    Options,
    PortConfig,
    RingSizeError,
    Umem,
    UmemConfig,
    handle,
)
from afxdp_pool.config import check_batch, is_power_of_two


@pytest.mark.parametrize("frame_size", [0, 1024, 3000, 8192, -4096])
def test_frame_sizes_the_kernel_does_not_take(frame_size: int) -> None:
    with pytest.raises(FrameSizeError, match="2048 or 4096"):
        UmemConfig(frame_size=frame_size)


@pytest.mark.parametrize(("frame_size", "limit"), [(2048, 1344), (4096, 3392)])
def test_headroom_leaves_room_for_the_kernel_and_a_packet(frame_size: int, limit: int) -> None:
    assert UmemConfig(frame_size=frame_size, headroom=limit).max_packet == frame_size - limit - 256
    for headroom in (-1, limit + 1):
        with pytest.raises(FrameSizeError, match=f"0 to {limit}"):
            UmemConfig(frame_size=frame_size, headroom=headroom)


@pytest.mark.parametrize("frames", [0, -1, 1 << 32])
def test_frame_counts_that_cannot_be_numbered(frames: int) -> None:
    with pytest.raises(ConfigError, match="2\\^32"):
        UmemConfig(frames=frames)
    with pytest.raises(ConfigError):
        Umem(frames)


@pytest.mark.parametrize("ring", ["fill_size", "comp_size", "rx_size", "tx_size"])
@pytest.mark.parametrize("size", [0, 1, 3, 1000, 1 << 21, -2])
def test_ring_sizes_the_kernel_does_not_take(ring: str, size: int) -> None:
    options: dict[str, Any] = {ring: size}
    with pytest.raises(RingSizeError, match=f"{ring} {size}.*2 to 1048576"):
        PortConfig(**options)


@pytest.mark.parametrize("level", [0, -1, 4097])
def test_a_fill_level_that_does_not_fit_the_ring(level: int) -> None:
    with pytest.raises(RingSizeError, match="fill_level"):
        PortConfig(fill_level=level)


def test_modes_and_directions_that_mean_nothing() -> None:
    with pytest.raises(ConfigError, match="zero-copy"):
        PortConfig(mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="neither"):
        PortConfig(receive=False, transmit=False)


@pytest.mark.parametrize(("us", "budget"), [(-1, 64), (1 << 31, 64), (20, 0), (20, 1 << 16)])
def test_busy_polling_that_the_kernel_cannot_do(us: int, budget: int) -> None:
    with pytest.raises(ConfigError, match="1 to 65535"):
        PortConfig(busy_poll_us=us, busy_poll_budget=budget)


@pytest.mark.parametrize("option", ["xdp_mode", "attach"])
def test_ways_of_attaching_that_there_are_not(option: str) -> None:
    wrong: dict[str, Any] = {option: "nativ"}
    with pytest.raises(ConfigError, match=f"{option} 'nativ' is not possible; choose auto, "):
        Options(**wrong)


def test_one_name_is_no_list_of_names() -> None:
    with pytest.raises(ConfigError, match=r"write \['eth1'\]"):
        handle("eth1", lambda batch: 0)
    with pytest.raises(ConfigError, match=r"write \['eth2'\]"):
        handle(["eth1"], lambda batch: 0, outputs="eth2")


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PortConfig().fill_size = 8  # type: ignore[misc]


def test_a_port_needs_its_fill_level_and_a_bulk_to_work_with() -> None:
    assert PortConfig(fill_level=100).frames_needed == 164
    assert PortConfig(receive=False).frames_needed == 128
    assert PortConfig(receive=False, fill_level=8).frames_needed == 72


@pytest.mark.parametrize("batch", [0, 1025, -1])
def test_batches_of_a_size_the_engine_cannot_do(batch: int) -> None:
    with pytest.raises(ConfigError, match="1 to 1024"):
        check_batch(batch)


def test_powers_of_two() -> None:
    assert [n for n in range(-2, 20) if is_power_of_two(n)] == [1, 2, 4, 8, 16]


def test_a_umem_says_what_it_is_made_of() -> None:
    with Umem(64, frame_size=2048) as umem, FramePool(umem) as pool:
        assert (umem.frames, umem.frame_size, len(umem.data)) == (64, 2048, 131072)
        assert repr(umem) == "<Umem of 64 frames of 2048 bytes, 4 KB pages>"
        batch = pool.alloc(64)
        assert sorted(batch.addr.tolist()) == [i * 2048 for i in range(64)]
        pool.put(batch)
    assert "closed" in repr(umem)


def test_huge_pages_fall_back_with_a_warning_that_says_how_many(caplog: pytest.LogCaptureFixture) -> None:
    with Umem(600, huge_pages=True) as umem:
        if umem.pages == "4 KB pages":
            assert "vm.nr_hugepages=2" in caplog.text
        else:
            assert umem.pages == "2 MB pages"
        assert len(umem.data) == 600 * 4096
        umem.data[-1] = 1
