"""The command line's words for the loop: workers, CPUs, rings, busy polling, NAPI; and what is said of workers."""

from __future__ import annotations

import argparse
from dataclasses import replace

import pytest
from test_cli import audit, drawn, picture, report

from afxdp_pool import ConfigError, EngineStats, Options, PortConfig, WorkerReport
from afxdp_pool.cli import arguments, main, output, words


@pytest.mark.parametrize(("text", "cpus"), [("0", (0,)), ("2,3", (2, 3)), ("0,4-7,1", (0, 4, 5, 6, 7, 1))])
def test_lists_of_cpus(text: str, cpus: tuple[int, ...]) -> None:
    assert words.cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-2", "1,,2", "0-70000"])
def test_no_lists_of_cpus(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        words.cpu_list(text)


def options(line: str) -> Options:
    return arguments.options(arguments.parse(["drop", "-i", "a", *line.split()]))


def test_the_loop_s_options_are_the_library_s() -> None:
    assert options("") == Options(), "the defaults are the same"
    line = (
        "-q 0 -q 1 --workers queues --cpus 1,0 --batch 32 --spin 7 --ring-size 512 --fill-level 4000 --busy-poll 20 "
        "--busy-poll-budget 16 --threaded-napi --napi-defer-hard-irqs 2 --gro-flush-timeout 200k"
    )
    assert options(line) == Options(
        queues=(0, 1),
        workers="queues",
        cpus=(1, 0),
        batch=32,
        spin=7,
        threaded_napi=True,
        napi_defer_hard_irqs=2,
        gro_flush_timeout=200_000,
        port=PortConfig(
            fill_size=4096,
            comp_size=512,
            rx_size=512,
            tx_size=512,
            fill_level=4000,
            busy_poll_us=20,
            busy_poll_budget=16,
        ),
    )
    assert options("--ring-size 512").port.fill_level == 1024
    assert options("--no-threaded-napi").threaded_napi is False
    assert options("-q 0 -q 1 -q 2 --workers 2").queue_groups == [(0, 2), (1,)]
    every = options("--queues all --workers queues --cpus 0,1")
    assert every.queues == "all"
    with pytest.raises(ConfigError, match="of which devices is not said"):
        _ = every.queue_groups
    with pytest.raises(ConfigError, match="2 CPUs for 1 workers"):
        every.on("lo")
    with pytest.raises(ConfigError, match="a broker's devices have is not known"):
        options("-q all --via /nowhere").on("lo")
    assert options("-q all").on("lo").queues == (0,)


@pytest.mark.parametrize("line", ["--workers 2", "--cpus 0,1", "--busy-poll-budget 0"])
def test_what_cannot_be_is_refused(line: str) -> None:
    with pytest.raises(ConfigError):
        options(line)


def test_words_that_are_none_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("--workers many", "--cpus x", "--busy-poll fast"):
        with pytest.raises(SystemExit) as stopped:
            main(["drop", "-i", "a", *line.split()])
        assert stopped.value.code == 2
        assert "error: " in capsys.readouterr().err


def test_summary_and_document_speak_of_each_worker() -> None:
    idle = EngineStats(*[0] * 8)
    parts = (
        WorkerReport("worker 0", None, ("a queue 0",), 2.0, 1000, 0, 0, idle),
        WorkerReport("worker 1", 3, ("a queue 1",), 2.0, 2345, 0, 0, idle),
    )
    args = arguments.parse(["drop", "-i", "a"])
    proof = output.Proof(audit(), audit(), 0)
    outcome = output.Outcome(replace(report(2), workers=parts), proof, "duration")
    said = output.summary(args, outcome)
    assert "  worker 0: received 1,000" in said
    assert "  worker 1 on CPU 3: received 2,345" in said
    assert output.document(args, outcome)["workers"][1]["cpu"] == 3


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (40, 12), (132, 50)])
@pytest.mark.parametrize("workers", [2, 4, 32])
def test_the_screen_has_a_line_a_worker_and_fits(workers: int, columns: int, rows: int) -> None:
    shown = picture(2 * workers)
    busy = EngineStats(1000, 250, 12_345, *[0] * 5)
    parts = tuple(WorkerReport(f"worker {n}", n, ("a", "b"), 2.0, 0, 0, 0, busy) for n in range(workers))
    shown = replace(shown, report=replace(shown.report, workers=parts, pools=shown.report.pools * workers))
    lines = drawn(shown, columns, rows, color_system=None).split("\n")
    assert len(lines) == rows
    assert all(len(line) <= columns for line in lines)
    mine = [line for line in lines if line.startswith(" worker ")]
    assert len(mine) == min(workers, rows // 4)
    if columns >= 80:
        assert " ".join(mine[1].split()) == "worker 1 CPU 1 rx 2.000 Mpps tx 2.000 Mpps 25% idle, 12,345 sleeps"
        assert any(f"{workers} pools 100.0% recycled in cache" in line for line in lines)
