"""Counters read from C, under the field's names."""

from __future__ import annotations

import dataclasses
import json

import pytest
from support import conserved, small_port

from afxdp_pool import Forwarder, FramePool, KernelStats, PoolStats, PortStats
from afxdp_pool._native import ffi
from afxdp_pool.stats import EngineStats

ZERO = dict.fromkeys((field.name for field in dataclasses.fields(PoolStats)), 0)


@pytest.mark.parametrize(
    ("hold", "release", "inflight"),
    [
        (0, 0, 0),
        (64, 0, 64),
        (10, 4, 6),
        (5, 0xFFFFFFF0, 21),
        (0, 0xFFFFFFFF, 1),
        (4, 5, -1),
        (0x80000000, 1, 0x7FFFFFFF),
    ],
)
def test_inflight_is_serial_arithmetic(hold: int, release: int, inflight: int) -> None:
    assert PoolStats(**(ZERO | {"hold_cnt": hold, "release_cnt": release})).inflight == inflight


def test_the_eleven_counters_have_the_names_of_netdev_yaml() -> None:
    assert list(PoolStats(**ZERO).as_page_pool_stats()) == [
        "alloc-fast",
        "alloc-slow",
        "alloc-slow-high-order",
        "alloc-empty",
        "alloc-refill",
        "alloc-waive",
        "recycle-cached",
        "recycle-cache-full",
        "recycle-ring",
        "recycle-ring-full",
        "recycle-released-refcnt",
    ]


@pytest.mark.parametrize(
    ("kind", "struct"),
    [(PoolStats, "afp_pool_stats"), (PortStats, "afp_port_stats"), (EngineStats, "afp_engine_stats")],
)
def test_each_class_has_exactly_the_fields_of_its_c_struct(kind: type, struct: str) -> None:
    fields = [field.name for field in dataclasses.fields(kind)]
    assert fields == [name for name, _ in ffi.typeof(f"struct {struct}").fields]


def test_a_port_in_memory_has_no_kernel_counters() -> None:
    with conserved() as umem, FramePool(umem) as pool:
        port = small_port(pool)
        assert port.kernel_stats() == KernelStats()
        port.close()
        assert port.kernel_stats() == KernelStats()


def test_a_report_is_plain_data() -> None:
    with conserved() as umem, FramePool(umem) as pool, Forwarder([small_port(pool)]) as forwarder:
        report = forwarder.snapshot()
        again = json.loads(json.dumps(report.as_dict()))
        assert again["frames"] == {"umem": 512, "pool": 0, "fill": 0, "app": 0, "tx": 0}
        assert again["ports"][0]["rings"] == {"fill": 0, "comp": 0, "rx": 0, "tx": 0}
        assert again["received"] == again["sent"] == again["completed"] == 0
        assert "rx_pps" not in again
        assert str(report).startswith("0.0 s: received 0")
