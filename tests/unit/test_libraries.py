"""Handlers out of shared libraries, and once a packet: compiled by the C compiler, run by the C loop."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench import DEADLINE, Bench, forwarding, numbered
from test_fields import batch_of

import afxdp_pool as ap
from afxdp_pool._native import ffi
from afxdp_pool.signatures import BATCH, PACKET

FILTER = r"""
#include <afxdp_pool.h>

struct counts { uint64_t seen, bytes, port; };

AFP_PACKET_HANDLER(every_third)
{
	struct counts *c = user;

	c->bytes += length;
	c->port = port;
	packet[0] ^= 0xff;
	switch (c->seen++ % 3) {
	case 0: return AFP_VERDICT_FORWARD(1);
	case 1: return AFP_VERDICT_TX;
	}
	return AFP_VERDICT_DROP;
}

AFP_BATCH_HANDLER(strip)
{
	(void)umem, (void)size, (void)port, (void)user;
	for (uint32_t i = 0; i < n; i++) {
		descs[i].addr += 14;
		descs[i].len -= 14;
		verdicts[i] = AFP_VERDICT_FORWARD(1);
	}
}

AFP_PACKET_HANDLER(nonsense)
{
	(void)packet, (void)port, (void)user;
	return (int)length * 1000;
}

int unmarked(uint8_t *packet, uint32_t length, uint32_t port, void *user)
{
	return AFP_VERDICT_TX;
}

const uint32_t of_tomorrow_afxdp_pool = 99 << 8 | 'p';
int of_tomorrow(uint8_t *packet, uint32_t length, uint32_t port, void *user) { return 0; }
static int hidden(uint8_t *packet) { return packet[0]; }
int uses_it(uint8_t *packet) { return hidden(packet); }
"""


def compiler() -> str:
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


def build(directory: Path, text: str, *flags: str, name: str = "filter.c") -> Path:
    source = directory / name
    source.write_text(text)
    made = source.with_suffix(".so")
    command = [compiler(), "-O2", "-shared", "-fPIC", f"-I{ap.include_dir()}", *flags, "-o", str(made), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library"), FILTER, "-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror")


@pytest.fixture
def bench() -> Iterator[Bench]:
    with forwarding() as made:
        yield made


def test_a_function_of_a_library_is_called_once_a_packet_with_its_memory(bench: Bench, library: Path) -> None:
    counts = np.zeros(1, np.dtype([("seen", "u8"), ("bytes", "u8"), ("port", "u8")]))
    content = numbered(300)
    handler = ap.from_library(library, "every_third", user=counts)
    assert handler.per == "packet"
    with closing(bench.forwarder(handler=handler)) as forwarder:
        bench.turn(forwarder, content, source=1)
        engine = forwarder.snapshot().engine
    changed = [bytes([packet[0] ^ 0xFF]) + packet[1:] for packet in content]
    mixed = [changed[i] for i in range(300) if i % 3 < 2]
    assert bench.sent == [[], mixed], "out of port 1, to which TX leads as well; in their order"
    assert (engine.reflected, engine.forwarded, engine.dropped, engine.refused) == (200, 0, 100, 0)
    assert counts[0].tolist() == (300, sum(map(len, content)), 1)


def test_a_function_of_a_library_is_called_once_a_batch(bench: Bench, library: Path) -> None:
    content = numbered(100)
    handler = ap.from_library(str(library), "strip")
    assert handler.per == "batch"
    with closing(bench.forwarder(handler=handler)) as forwarder:
        bench.turn(forwarder, content)
    assert bench.sent[1] == [packet[14:] for packet in content]


def test_what_is_no_verdict_of_a_packet_is_refused_whatever_its_size(bench: Bench, library: Path) -> None:
    bench.ports[0].fill()
    bench.kernels[0].deliver(10)
    with closing(bench.forwarder(handler=ap.from_library(library, "nonsense"))) as forwarder:
        with pytest.raises(ap.VerdictError, match="10 verdicts"):
            forwarder.run(DEADLINE)
        bench.finish(forwarder)
        assert forwarder.snapshot().engine.refused == 10


def test_an_unmarked_function_is_taken_at_its_callers_word(library: Path) -> None:
    handler = ap.from_library(library, "unmarked", per="packet")
    assert handler(batch_of([b"x" * 60] * 3)).tolist() == [ap.TX] * 3


def test_a_packet_whose_descriptor_lies_is_not_shown(library: Path) -> None:
    data = np.zeros(256, np.uint8)
    descs = np.array([(0, 64, 0, 0), (250, 64, 0, 0), (1 << 60, 1, 0, 0), (192, 64, 0, 0)], ap.DESC)
    handler = ap.from_library(library, "unmarked", per="packet")
    assert handler(ap.Batch(descs, data)).tolist() == [ap.TX, ap.DROP, ap.DROP, ap.TX]


def test_a_library_in_cpp(bench: Bench, tmp_path: Path) -> None:
    if subprocess.run([compiler(), "-x", "c++", "-fsyntax-only", "/dev/null"], capture_output=True).returncode:
        pytest.skip("needs a C++ compiler")
    text = "#include <afxdp_pool.h>\nAFP_PACKET_HANDLER(handle) { return AFP_VERDICT_FORWARD(1); }\n"
    made = build(tmp_path, text, "-x", "c++", "-fvisibility=hidden")
    with closing(bench.forwarder(handler=ap.from_library(made))) as forwarder:
        bench.turn(forwarder, numbered(20))
    assert bench.sent[1] == numbered(20)


def test_a_function_that_does_not_fit_its_macro_does_not_compile(tmp_path: Path) -> None:
    source = tmp_path / "wrong.c"
    source.write_text("#include <afxdp_pool.h>\nint handle(void *p);\nAFP_PACKET_HANDLER(handle) { return 0; }\n")
    command = [compiler(), "-fsyntax-only", f"-I{ap.include_dir()}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    assert "conflicting types" in done.stderr


# What goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "per", "said"),
    [
        ("handel", None, r"filter\.so: it has no function handel; .*AFP_PACKET_HANDLER\(handel\)"),
        ("hidden", None, "static"),
        ("unmarked", None, "once a batch or once a packet.*say per="),
        ("strip", "packet", "strip is called once a batch, not once a packet"),
        ("of_tomorrow", None, "version 99 of afxdp_pool.h, this is version 1; compile it again"),
    ],
)
def test_what_a_library_has_not(library: Path, name: str, per: Any, said: str) -> None:
    with pytest.raises(ap.ConfigError, match=said):
        ap.from_library(library, name, per=per)


def test_files_that_are_no_library(tmp_path: Path) -> None:
    with pytest.raises(ap.ConfigError, match=r"nowhere\.so: there is no such file"):
        ap.from_library(tmp_path / "nowhere.so")
    source = tmp_path / "filter.c"
    source.write_text(FILTER)
    with pytest.raises(ap.ConfigError, match=r"invalid ELF header.*cc -O2 -shared -fPIC -I.* -o filter\.so filter\.c"):
        ap.from_library(source)
    lacking = build(tmp_path, "int not_there(void); int handle(void) { return not_there(); }", name="lacking.c")
    with pytest.raises(ap.ConfigError, match="not_there"):
        ap.from_library(lacking)


def test_the_header_is_shipped_and_says_what_the_loop_uses() -> None:
    text = (Path(ap.include_dir()) / "afxdp_pool.h").read_text()
    for name, value in (("DROP", ap.DROP), ("TX", ap.TX), ("KEEP", ap.KEEP)):
        assert f"#define AFP_VERDICT_{name} {value}" in text
    assert ffi.sizeof("struct afp_desc") == ap.DESC.itemsize


# Signatures ----------------------------------------------------------------------------------------------------------

P, U32, U64 = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64


@pytest.mark.parametrize(
    ("returns", "takes", "per"),
    [
        (None, (P, U32, P, U64, P, U32, P), "batch"),
        (ctypes.c_int, (P, U32, U32, P), "packet"),
        (ctypes.c_uint32, (ctypes.POINTER(ctypes.c_uint8), ctypes.c_int, U32, ctypes.c_char_p), "packet"),
    ],
)
def test_a_function_of_ctypes_says_what_it_is_called_for(returns: Any, takes: tuple[Any, ...], per: Any) -> None:
    function = ctypes.CFUNCTYPE(returns, *takes)(lambda *_: 0)
    assert ap.compiled(function).per == ap.compiled(function, per=per).per == per
    other: Any = "batch" if per == "packet" else "packet"
    with pytest.raises(ap.ConfigError, match=r"is to be `(int|void) handle"):
        ap.compiled(function, per=other)


@pytest.mark.parametrize(
    ("returns", "takes"),
    [
        (None, (P, U32, U32, P)),
        (ctypes.c_int, (P, U32, P)),
        (ctypes.c_int, (P, U64, U32, P)),
        (ctypes.c_float, (P, U32, U32, P)),
        (ctypes.c_int, (U64, U32, U32, P)),
        (ctypes.c_int, (P, ctypes.c_float, U32, P)),
        (ctypes.c_int, (P, U32, P, U64, P, U32, P)),
    ],
)
def test_a_function_of_another_signature_is_refused_with_the_right_ones(returns: Any, takes: tuple[Any, ...]) -> None:
    with pytest.raises(ap.ConfigError) as caught:
        ap.compiled(ctypes.CFUNCTYPE(returns, *takes)(lambda *_: 0))
    assert BATCH.c in str(caught.value)
    assert PACKET.c in str(caught.value)


def test_pointers_of_cffi_are_looked_at_and_addresses_taken_at_their_word() -> None:
    packet = ffi.cast("int (*)(uint8_t *, uint32_t, uint32_t, void *)", 1)
    assert ap.compiled(packet).per == "packet"
    assert ap.compiled(ffi.cast("afp_handler", 1)).per == "batch"
    assert ap.compiled(ffi.cast("void *", 1)).per == ap.compiled(1).per == "batch"
    assert ap.compiled(1, per="packet").per == "packet"
    for wrong in ("int (*)(int)", "double (*)(uint8_t *, uint32_t, uint32_t, void *)"):
        with pytest.raises(ap.ConfigError, match="is no handler"):
            ap.compiled(ffi.cast(wrong, 1))
    bad: Any = "frame"
    with pytest.raises(ap.ConfigError, match="once a 'frame'"):
        ap.compiled(1, per=bad)


def test_python_functions_of_another_number_of_arguments_are_refused_before_they_are_compiled() -> None:
    wrong: list[tuple[Callable[..., Any], Any, str]] = [
        (lambda batch: 0, None, r"\(batch\) cannot be compiled.*give it to ap\.handle\(\) as it is"),
        (lambda a, b, c: 0, None, r"handle\(descs, .*\) or handle\(packet, length, port, user\)"),
        (lambda descs, umem, verdicts, port, user: 0, "packet", r"it is to be handle\(packet, length"),
        (lambda packet, length, port, user: 0, "batch", r"it is to be handle\(descs"),
    ]
    for function, per, said in wrong:
        with pytest.raises(ap.ConfigError, match=said):
            ap.compiled(function, per=per)


# numba ---------------------------------------------------------------------------------------------------------------


def test_a_python_function_is_compiled_and_called_once_a_packet(bench: Bench) -> None:
    pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[jit]'")
    counts = np.zeros(2, np.int64)

    @ap.compiled(user=counts)
    def handle(packet: Any, length: Any, port: Any, user: Any) -> int:
        if length < 64 or ap.be16(packet, 12) != 0x0800:
            return ap.DROP
        user[port] += len(packet)
        packet[0] ^= 0xFF
        odd = ap.be32(packet, 54) % 2
        return ap.FORWARD(odd) if odd else ap.TX

    assert handle.per == "packet"
    content = numbered(100)
    with closing(bench.forwarder(handler=handle)) as forwarder:
        bench.turn(forwarder, [*content, b"no IP" * 20])
    changed = [bytes([packet[0] ^ 0xFF]) + packet[1:] for packet in content]
    assert bench.sent == [changed[::2], changed[1::2]]
    assert counts.tolist() == [sum(map(len, content)), 0]


def test_a_cfunc_of_a_packet_and_wrong_ones(bench: Bench) -> None:
    numba = pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[jit]'")

    @numba.cfunc(ap.signature(per="packet"))  # type: ignore[untyped-decorator]
    def handle(packet: Any, length: Any, port: Any, user: Any) -> Any:
        return ap.TX if packet[length - 1] == 7 else ap.DROP

    assert ap.compiled(handle)(batch_of([b"\0" * 60, b"\0" * 59 + b"\7"])).tolist() == [ap.DROP, ap.TX]
    with pytest.raises(ap.ConfigError, match="is to be `void handle"):
        ap.compiled(handle, per="batch")

    @numba.cfunc("int32(uint8, uint32, uint32, voidptr)")  # type: ignore[untyped-decorator]
    def other(packet: Any, length: Any, port: Any, user: Any) -> Any:
        return 0

    with pytest.raises(ap.ConfigError, match=r"ap\.signature\(user, per=\"packet\"\)") as caught:
        ap.compiled(other)
    assert PACKET.c in str(caught.value)
    assert "uint8, uint32, uint32" in str(caught.value)


def test_a_packets_function_without_a_verdict_says_so() -> None:
    numba = pytest.importorskip("numba", reason="needs numba: pip install 'afxdp-pool[jit]'")

    def handle(packet: Any, length: Any, port: Any, user: Any) -> None:
        packet[0] = 1

    with pytest.raises(numba.core.errors.NumbaError) as caught:
        ap.compiled(handle)
    assert any("returns a verdict" in note for note in caught.value.__notes__)
