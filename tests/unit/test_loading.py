"""The handler of `afxdp-pool handle`: found by name, and what is said when it is not there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from test_fields import batch_of
from test_libraries import FILTER, build

import afxdp_pool as ap
from afxdp_pool.cli import arguments, output
from afxdp_pool.cli.loading import load, of_the_user

USERS = """
import numpy as np
import beside
import afxdp_pool as ap

TABLE = np.zeros(3)


def handle(batch):
    return ap.TX


def one(packet):
    return ap.TX if len(packet) > 60 else ap.DROP


class Own:
    def many(self, batch):
        return beside.VERDICT


own = Own()
machine = ap.compiled(1)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "users.py").write_text(USERS)
    (tmp_path / "beside.py").write_text("VERDICT = 2\n")
    before, modules = list(sys.path), set(sys.modules)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def test_by_file_by_module_and_by_its_usual_name(folder: Path) -> None:
    batch: Any = batch_of([b"x" * 60, b"x" * 61])
    for text in ("users.py", "users.py:handle", "users:handle", str(folder / "users.py:handle")):
        assert load(text, None)(batch) == ap.TX
    assert load("users.py:own.many", "batch")(batch) == ap.KEEP
    assert load("users.py:one", "packet")(batch).tolist() == [ap.DROP, ap.TX]
    assert isinstance(load("users:machine", None), ap.Compiled)


def test_out_of_a_shared_library(folder: Path) -> None:
    build(folder, FILTER)
    assert load("filter.so:every_third", None).per == "packet"
    assert load("./filter.so:unmarked", "batch").per == "batch"
    with pytest.raises(ap.ConfigError, match="it has no function handle"):
        load("filter.so", None)
    with pytest.raises(ap.ConfigError, match="no such file"):
        load("nowhere.so.1:handle", None)


@pytest.mark.parametrize(
    ("text", "per", "said"),
    [
        (":handle", None, "write file.py:function"),
        ("users.py:", None, "write file.py:function"),
        ("nowhere.py:handle", None, r"nowhere\.py: there is no such file"),
        ("nowhere:handle", None, "there is no module nowhere; it is looked for in this folder"),
        ("nowhere.inside:handle", None, "there is no module nowhere"),
        ("users.inside:handle", None, "there is no module users.inside"),
        ("broken:handle", None, r"importing it failed: SyntaxError: .*broken\.py, line 1"),
        ("needs.py:handle", None, r"importing it failed: ModuleNotFoundError: No module named 'nobody_has'.*line 2"),
        ("raises.py", None, r"importing it failed: ZeroDivisionError.*raises\.py, line 1"),
        ("mine.c:handle", None, "neither a Python file nor a shared library; compile one: cc .* -o mine.so mine.c"),
        ("notes.txt", None, "neither a Python file nor a shared library; write file.py"),
        ("users.py:handel", None, r"it has no handel; did you mean users\.py:handle\?"),
        ("users.py:zzz", None, "it has no zzz; name a function"),
        ("users.py:TABLE", None, "it is a ndarray, not a function"),
        ("users.py:Own.many", None, r"one argument, the batch, and this one \(self, batch\)"),
        ("users.py:machine", "packet", "called once a batch; leave out --per"),
    ],
)
def test_what_is_not_there_or_no_handler(folder: Path, text: str, per: Any, said: str) -> None:
    (folder / "broken.py").write_text("def handle(:\n")
    (folder / "needs.py").write_text("\nimport nobody_has\n")
    (folder / "raises.py").write_text("1 / 0\n")
    for name in ("mine.c", "notes.txt"):
        (folder / name).write_text("")
    with pytest.raises(ap.ConfigError, match=said):
        load(text, per)


def test_a_file_named_without_its_ending(folder: Path) -> None:
    (folder / "sub.dir").mkdir()
    (folder / "sub.dir/filter.py").write_text("")
    with pytest.raises(ap.ConfigError, match=r"a file is named with its ending: sub\.dir/filter\.py"):
        load("sub.dir/filter:handle", None)


def test_the_traceback_begins_with_the_users_line() -> None:
    def one_slice(handler: Any) -> None:
        handler(None)

    def in_the_loop(handler: Any) -> Exception:
        code = one_slice.__code__.replace(co_filename=f"{Path(ap.__file__).parent}/handling.py")
        try:
            FunctionType(code, globals())(handler)
        except Exception as error:
            return error
        raise AssertionError

    def wrong(batch: Any) -> int:
        return int("seven")

    def asks_wrongly(batch: Any) -> Any:
        return batch_of([bytes(64)]).load(0, "f8")

    for handler, last in ((wrong, "ValueError: invalid literal"), (asks_wrongly, "ConfigError: a header field")):
        told = of_the_user(in_the_loop(handler))
        assert told is not None
        assert told.splitlines()[0] == "Traceback of the handler (most recent call last):"
        assert f"in {handler.__name__}" in told.splitlines()[1]
        assert last in told.splitlines()[-1]
    assert of_the_user(ValueError("of nobody")) is None


def test_what_may_be_typed() -> None:
    args = arguments.parse(["handle", "-i", "eth1", "-o", "eth2", "-o", "eth3", "f.py:handle", "--per", "packet"])
    assert (args.handler, args.output, args.per, args.both_ways) == ("f.py:handle", ["eth2", "eth3"], "packet", False)
    assert output.places(args) == "eth1 -> eth2, eth3"
    alone = arguments.parse(["handle", "-i", "eth1", "f.py", "--batch", "256"])
    assert (output.places(alone), output.outputs(alone)) == ("eth1", [])
    assert arguments.options(alone).batch == 256
    for wrong in (["handle", "-i", "eth1"], ["handle", "f.py"], ["handle", "-i", "eth1", "f.py", "--per", "frame"]):
        with pytest.raises(SystemExit):
            arguments.parse(wrong)
