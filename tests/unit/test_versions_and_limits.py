"""What users of AF_XDP engines run into, without a link: see docs/troubleshooting.md."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

import pytest

from afxdp_pool._native import ffi
from afxdp_pool.batch import DESC
from afxdp_pool.cli import doctor_machine


class Desc(ctypes.Structure):
    """`struct xdp_desc` of include/uapi/linux/if_xdp.h, written down anew: an ABI, so no kernel changes it."""

    _fields_ = (("addr", ctypes.c_uint64), ("len", ctypes.c_uint32), ("options", ctypes.c_uint32))


def test_descriptors_of_rings_are_the_kernels() -> None:
    for name, _ in Desc._fields_:
        assert ffi.offsetof("struct xdp_desc", name) == getattr(Desc, name).offset
    assert ffi.sizeof("struct xdp_desc") == ctypes.sizeof(Desc) == 16


def test_descriptors_of_batches_have_address_and_length_where_the_kernel_has_them() -> None:
    assert DESC.itemsize == ctypes.sizeof(Desc)
    assert {name: DESC.fields[name][1] for name in ("addr", "len", "options")} == {  # type: ignore[index]
        name: getattr(Desc, name).offset for name, _ in Desc._fields_
    }


@pytest.mark.parametrize(
    ("megabytes", "level"), [(0, "missing"), (8, "missing"), (16, "warn"), (32, "ok"), (None, "ok")]
)
def test_the_doctor_knows_whether_locked_memory_is_enough(
    monkeypatch: pytest.MonkeyPatch, megabytes: int | None, level: str
) -> None:
    limit = resource.RLIM_INFINITY if megabytes is None else megabytes << 20
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    finding = doctor_machine._locked_memory(set())
    assert (finding.level, finding.fix) == (level, "" if level == "ok" else "ulimit -l unlimited")
    assert doctor_machine._locked_memory({"IPC_LOCK"}).level == "ok"


def test_no_part_of_the_library_raises_the_locked_memory_limit() -> None:
    """A limit that a library changes is a limit nobody set: it is told, and left to the reader."""
    package = Path(doctor_machine.__file__).parents[1]
    assert [path.name for path in package.rglob("*.py") if "setrlimit" in path.read_text()] == []
