"""`afxdp-pool handle` as a person runs it: a handler in a file, packets counted at the far end, its errors read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from live_lab import perfect
from test_command import COMMAND, WITHIN, call, on_hook, place, proven, running

import afxdp_pool as ap
from afxdp_pool.testing import Lab, Sink, Source

pytestmark = pytest.mark.usefixtures("veth_machine")

BATCH = """
import numpy as np
import afxdp_pool as ap


def handle(batch):
    even = batch.udp.sport % 2 == 0
    return np.where(even, ap.FORWARD(1), ap.FORWARD(2))
"""
PACKET = """
import afxdp_pool as ap

ODD = ap.FORWARD(2)


def handle(packet):
    return ODD if packet[35] & 1 else ap.FORWARD(1)
"""
LIBRARY = """
#include <afxdp_pool.h>
AFP_PACKET_HANDLER(handle) { return AFP_VERDICT_FORWARD(packet[35] & 1 ? 2 : 1); }
"""
RAISES = """
def handle(batch):
    return undefined_name  # this line
"""
ASKS = """
import afxdp_pool as ap


def handle(batch):
    batch.swap_macs()
    batch.udp.checksum = 0xBAD
    assert batch.offload_checksums().all()
    return ap.TX
"""
SLOW = """
import time
import afxdp_pool as ap


def handle(batch):
    time.sleep(0.005)
    return ap.DROP
"""


@pytest.mark.parametrize("kind", ["batch", "packet", "library"])
def test_flows_leave_by_the_port_the_handler_names(lab: Lab, tmp_path: Path, kind: str) -> None:
    source, even, odd = (lab.veth(name) for name in ("a", "b", "c"))
    count = 4000
    if kind == "library":
        if shutil.which("cc") is None:
            pytest.skip("needs a C compiler")
        (tmp_path / "filter.c").write_text(LIBRARY)
        compiler = ["cc", "-O2", "-shared", "-fPIC", f"-I{ap.include_dir()}", "-o", "filter.so", "filter.c"]
        subprocess.run(compiler, cwd=tmp_path, check=True)
        handler = [str(tmp_path / "filter.so")]
    else:
        (tmp_path / "mine.py").write_text(BATCH if kind == "batch" else PACKET)
        handler = [f"{tmp_path}/mine.py:handle", "--per", kind]
    out = ["-o", even.near.name, "-o", odd.near.name]
    with (
        Sink(even.far) as evens,
        Sink(odd.far) as odds,
        Source(source.far, flows=4) as traffic,
        running("handle", *place(source.near), *out, *handler) as command,
    ):
        assert traffic.send(count, rate=20_000).dropped == 0
        seen = evens.wait(count // 2), odds.wait(count // 2)
        document = command.stop()
    for report, flows in zip(seen, ([0, 2], [1, 3]), strict=True):
        perfect(report, count // 2)
        assert sorted(report.flows) == flows
    assert (document["command"], document["output"]) == ("handle", [even.near.name, odd.near.name])
    assert (document["received"], document["sent"], document["completed"]) == (count, count, count)
    assert (document["engine"]["forwarded"], document["engine"]["refused"]) == (count, 0)
    assert document["engine"]["handler_calls"] > 0
    assert on_hook(source.near) is None
    assert on_hook(even.near) is None, "what only sends needs no program"


def test_a_handler_asks_the_device_for_checksums(lab: Lab, tmp_path: Path) -> None:
    """It spoils them, and asks: the kernel computes them for the lab's links, which cannot."""
    pair, count = lab.veth("a"), 1000
    (tmp_path / "mine.py").write_text(ASKS)
    words = ["handle", *place(pair.near), f"{tmp_path}/mine.py", "--tx-metadata", "checksum"]
    with Sink(pair.far) as sink, running(*words) as command, Source(pair.far) as traffic:
        assert traffic.send(count, rate=20_000).dropped == 0
        perfect(sink.wait(count), count)
        document = command.stop()
    assert (document["sent"], document["completed"], document["engine"]["reflected"]) == (count, count, count)
    assert document["info"]["ports"][0]["tx_metadata"] == ["checksum"]


def test_what_a_handler_raises_ends_the_run_with_its_line(lab: Lab, tmp_path: Path) -> None:
    pair = lab.veth("a")
    (tmp_path / "mine.py").write_text(RAISES)
    command = [*COMMAND, "handle", *place(pair.near), f"{tmp_path}/mine.py", "--json", "--duration", "15"]
    with Source(pair.far) as traffic:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        traffic.start(rate=1000)
        said, errors = process.communicate(timeout=WITHIN)
        traffic.stop()
    assert process.returncode == 1
    document = proven(said)
    assert document["stopped_by"] == "error"
    assert document["engine"]["dropped"] == document["received"] > 0
    lines = errors.splitlines()
    assert 'mine.py", line 3, in handle' in errors
    assert "    return undefined_name  # this line" in lines
    assert "NameError: name 'undefined_name' is not defined" in lines
    assert lines[-1] == f"afxdp-pool: {pair.near.name}: the handler raised NameError"
    assert "report it" not in errors
    assert on_hook(pair.near) is None


def test_a_handler_that_is_too_slow_is_told_of(lab: Lab, tmp_path: Path) -> None:
    pair = lab.veth("a")
    (tmp_path / "mine.py").write_text(SLOW)
    with (
        Source(pair.far) as traffic,
        running("handle", *place(pair.near), "--batch", "1", f"{tmp_path}/mine.py") as command,
    ):
        assert traffic.send(64, rate=10_000).dropped == 0
        command.wait_for("received 64 ")
        document = command.stop()
    engine = document["engine"]
    assert (engine["handler_calls"], engine["handler_timed"], engine["handler_slow"]) == (64, 4, 4)
    assert engine["handler_longest_ns"] >= 5_000_000


def test_a_handler_that_is_not_there_opens_nothing(lab: Lab, tmp_path: Path) -> None:
    pair = lab.veth("a")
    ended = call("handle", *place(pair.near), f"{tmp_path}/nowhere.py:handle")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("afxdp-pool: ")
    assert "nowhere.py: there is no such file" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert on_hook(pair.near) is None
