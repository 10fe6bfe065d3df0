"""The benchmark suite runs on real links: the library and its C peer, one short round of everything."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.suite import __main__ as command
from benchmarks.suite import latency, losses, throughput
from benchmarks.suite.beds import Bed, bed
from benchmarks.suite.children import Child, EngineError
from benchmarks.suite.engines import BY_NAME
from benchmarks.suite.throughput import Cell

pytestmark = [
    pytest.mark.usefixtures("veth_machine"),
    pytest.mark.skipif(os.sched_getaffinity(0) < {0, 1}, reason="needs CPUs 0 and 1"),
]


@pytest.fixture
def where() -> Iterator[Bed]:
    with bed() as made:
        yield made


@pytest.mark.timeout(300)
def test_a_short_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.sched_getaffinity(0)
    output = tmp_path / "smoke.json"
    words = ["--engines", "ours_auto", "c_peer", "--jobs", "drop", "forward", "tx", "--sizes", "64", "--flows", "1"]
    words += ["--extras", "latency", "--rounds", "1", "--seconds", "0.1", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["suite", *words])
    try:
        assert command.main() == 0
    finally:
        os.sched_setaffinity(0, before)
    document = json.loads(output.read_text())
    assert document["failures"] == []
    able = {"ours_auto", "c_peer"} - {one["engine"] for one in document["left_out"]}
    assert "ours_auto" in able
    for one in document["throughput"]:
        assert set(one["rounds"][0]) == able
        for found in one["rounds"][0].values():
            assert found["pps"] > 0
            assert one["job"] == "tx" or found["received"] + found["dropped_by_kernel"] >= found["packets"]
    (timed,) = document["latency"]
    for found in timed["rounds"][0].values():
        assert found["1000"]["received"] == sum(found["1000"]["buckets"].values()) > 0
    assert output.with_suffix(".md").read_text().startswith("# Results")


def test_the_search_runs_on_links(where: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "STEPS", 2)
    found = losses.measure(where, BY_NAME["ours_socket"], 0.5, start=20_000)
    assert found["trials"]
    assert all(trial["sent"] > 0 for trial in found["trials"])


def test_the_first_packet_after_a_pause(where: Bed) -> None:
    found = latency.measure(where, BY_NAME["ours_socket"], [latency.FIRST], 0.2)
    assert 0 < found["first"]["received"] == found["first"]["sent"] <= 5


def test_lost_packets_fail_the_run(where: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Child.stop
    monkeypatch.setattr(Child, "stop", lambda child: {**honest(child), "received": 1})
    with pytest.raises(EngineError, match="are missing"):
        throughput.measure(where, BY_NAME["ours_socket"], Cell("drop", 64), 0.05)


SAYS_READY = "echo ready >&2; "
ENDS_WITH = "trap 'exit {}' TERM; " + SAYS_READY + "while :; do sleep 0.01; done"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (SAYS_READY + "exec sleep 9", "ended with -15"),
        (ENDS_WITH.format(0), "no report"),
        (ENDS_WITH.format(3), "ended with 3"),
    ],
)
def test_an_engine_that_fails_is_reported_and_gone(script: str, says: str) -> None:
    with Child(["sh", "-c", script], 1) as child:
        pid = child.pid
        with pytest.raises(EngineError, match=says):
            child.stop()
    assert not Path(f"/proc/{pid}").exists()


def test_an_engine_that_does_not_start() -> None:
    with pytest.raises(EngineError, match="did not start: no such luck"):
        Child(["sh", "-c", "echo no such luck >&2; exit 1"], 1).__enter__()


def test_commands(where: Bed) -> None:
    peer = BY_NAME["c_peer"].command(where, "tx", 64)
    assert peer[:4] == ["ip", "netns", "exec", where.netns]
    assert peer[5:8] == ["tx", "-i", where.right.near.name]
    ours = BY_NAME["ours_live"].command(where, "forward", 64)
    assert ours[:4] == [sys.executable, "-m", "benchmarks.suite.ours", "forward"]
    assert ours[-4:] == ["--transmit", "live", "--handler", "builtin"]
