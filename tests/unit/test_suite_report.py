"""The suite's medians, targets, table and plots, on a made-up result; and what it makes of the command line."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from suite_result import result

from benchmarks.suite import __main__ as command
from benchmarks.suite import engines, figures, plan, report, targets
from benchmarks.suite.figures import Spread
from benchmarks.suite.throughput import Cell


@pytest.fixture
def document() -> dict[str, Any]:
    return result()


def test_spread() -> None:
    assert Spread.of([]) is None
    assert Spread.of([3.0, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0, 3)
    assert Spread.of([4.0, 1.0]) == Spread(2.5, 1.0, 4.0, 2)


def test_ratios_are_taken_within_a_round() -> None:
    """A round that is slow for everybody changes no ratio; a round that lacks an engine has none."""
    rounds: list[dict[str, Any]] = [
        {"a": {"pps": 10}, "b": {"pps": 5}},
        {"a": {"pps": 1}, "b": {"pps": 0.5}},
        {"a": {"pps": 9}},
    ]
    assert figures.ratio(rounds, "a", "b", figures.pps) == Spread(2.0, 2.0, 2.0, 2)
    assert figures.value(rounds, "a", figures.pps) == Spread(9.0, 1.0, 10.0, 3)
    assert figures.ratio(rounds, "a", "c", figures.pps) is None


def test_cpu_a_packet() -> None:
    found = {"packets": 1000, "user_seconds": 0.001, "machine_seconds": 0.002}
    assert figures.nanoseconds("user")(found) == pytest.approx(1000)
    assert figures.nanoseconds("machine")(found) == pytest.approx(2000)
    assert figures.nanoseconds("user")(found | {"packets": 0}) is None


def test_histograms_of_rounds_are_one() -> None:
    rounds: list[dict[str, Any]] = [
        {"a": {"1000": {"buckets": {"10": 1}}}},
        {"a": {"1000": {"buckets": {"10": 1, "20": 2}}}},
        {"b": {}},
    ]
    assert figures.histogram(once["a"]["1000"] for once in rounds[:2])[[10, 20]].tolist() == [2, 2]
    assert figures.microseconds(rounds, "a", "1000", 50) == pytest.approx(0.010)
    assert figures.microseconds(rounds, "a", "1000", 51) == pytest.approx(0.020)
    assert figures.microseconds(rounds, "b", "1000", 50) is None


def test_targets_are_met_or_not(document: dict[str, Any]) -> None:
    rows = {what: (least, measured, met) for what, least, measured, met in targets.rows(document)}
    # Engine number n moves 1 / (n + 1): ours_auto is 0, ours_live 1, ours_socket 2, c_peer 10.
    assert rows["drop over the C peer"] == ("1 x", "11.00 (11.00 to 11.00)", "yes")
    assert rows["tx, live, over the C peer"] == ("6 x", "5.50 (5.50 to 5.50)", "no")
    assert rows["numba over built-in, live"][::2] == ("", "")
    assert rows["idle, of one core"] == ("< 1 %", "0.10%", "yes")
    assert rows["memory a frame, beyond the frame"] == ("< 64 bytes", "20.0 bytes", "yes")
    awake = next(row for row in rows if row.startswith("latency p50 at 1 k"))
    assert rows[awake][2] == "yes"


def test_one_wake_up_more_than_dpdk_is_allowed_when_idle_and_no_more(document: dict[str, Any]) -> None:
    def bucket(ns: int) -> dict[str, Any]:
        return {"buckets": {str(ns): 100}}  # up to 64 ns a bucket is a nanosecond

    for once in document["latency"][0]["rounds"]:
        for engine, ns in (("dpdk", 10), ("c_peer", 12), ("c_peer_poll", 32), ("ours_auto", 29)):
            once[engine] = {"1000": bucket(ns)}
    row = next(row for row in targets.rows(document) if row[0].startswith("latency p50 at 1 k"))
    assert row[3] == "yes"
    for once in document["latency"][0]["rounds"]:
        once["ours_auto"] = {"1000": bucket(31)}
    row = next(row for row in targets.rows(document) if row[0].startswith("latency p50 at 1 k"))
    assert row[3] == "no"


def test_what_was_not_measured_has_no_row(document: dict[str, Any]) -> None:
    for name in ("throughput", "losses", "latency", "idle", "cost", "frames"):
        del document[name]
    assert targets.rows(document) == []
    text = report.markdown(document)
    assert "## Left out" in text
    assert "## Drop" not in text


def test_the_table(document: dict[str, Any]) -> None:
    text = report.markdown(document)
    assert "| afxdp_pool, auto | 2.000 (11.00: 11.00 to 11.00) |" in text
    assert "| C peer (libxdp) | 0.182 |" in text
    assert "| DPDK af_xdp | dpdk_af_xdp is not built |" in text
    assert "numpy 2.0" in text
    assert "numba" not in text.split("## To reach")[0]
    for line in text.splitlines():
        assert line.count("|") != 1, line
    document["failures"] = [{"engine": "dpdk", "what": "throughput", "cell": "drop", "why": "a | b"}]
    assert "| dpdk | throughput | drop | a / b |" in report.markdown(document)


def test_table_and_plots_from_the_file_alone(document: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "suite.json"
    path.write_text(json.dumps(document))
    assert report.main([str(path)]) == 0
    made = {made.name: made for made in tmp_path.iterdir()}
    plots = {"suite-rates.png", "suite-sizes.png", "suite-latency.png", "suite-cost.png"}
    assert set(made) == {"suite.json", "suite.md", *plots}
    for name in plots:
        assert made[name].read_bytes().startswith(b"\x89PNG")
        assert 10_000 < made[name].stat().st_size < 300_000


def test_a_part_of_a_result_is_drawn_too(document: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    only = copy.deepcopy(document)
    for name in ("losses", "latency", "cost", "idle", "frames"):
        del only[name]
    only["throughput"] = only["throughput"][:1]
    made = report.write(only, tmp_path / "part.json")
    assert [path.name for path in made] == ["part.md", "part-rates.png"]


def test_plans() -> None:
    whole = command.chosen(command.arguments([]))
    assert {cell.job for cell in whole.cells} == set(engines.JOBS)
    assert Cell("forward", 1500, 1) in whole.cells
    assert Cell("drop", 64, 64) in whole.cells
    assert Cell("tx", 64, 64) not in whole.cells
    assert set(whole.engines) == set(engines.BY_NAME)
    one = command.chosen(command.arguments(["--jobs", "tx", "--sizes", "64", "--extras", "--engines", "c_peer"]))
    assert (one.cells, one.extras, one.engines) == ([Cell("tx", 64)], [], ["c_peer"])
    quick = command.chosen(command.arguments(["--quick", "--rounds", "1"]))
    assert (quick.rounds, quick.latency_rates) == (1, [1000])
    assert isinstance(plan.whole(), plan.Plan)


def test_who_takes_part() -> None:
    names = engines.BY_NAME
    small, large = Cell("forward", 64), Cell("forward", 1500)
    assert command.takes_part(names["ours_numba"], "throughput", small)
    assert not command.takes_part(names["ours_numba"], "throughput", large)
    assert not command.takes_part(names["ours_numba"], "latency", small)
    assert command.takes_part(names["kernel"], "latency", small)
    assert not command.takes_part(names["kernel"], "idle", small)
    assert [kind for kind in ("throughput", *plan.EXTRAS) if command.takes_part(names["c_peer_poll"], kind, small)] == [
        "latency",
        "idle",
    ]


def test_who_cannot_run_is_named() -> None:
    absent = engines.Engine("absent", "Absent", program="no_such_program")
    assert "not built" in absent.cannot()
    assert "no module" in engines.Engine("module", "Module", program="benchmarks.no.such").cannot()
    assert engines.BY_NAME["ours_socket"].cannot() == ""
