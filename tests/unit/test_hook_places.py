"""Where the object of libxdp's dispatcher is looked for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from afxdp_pool import hook


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for the system's library folder, with the object in it."""
    monkeypatch.delenv("LIBXDP_OBJECT_PATH", raising=False)
    folder = tmp_path / "bpf"
    folder.mkdir()
    (folder / "xdp-dispatcher.o").touch()
    places = hook.dispatcher_places

    def here() -> list[Path]:
        return places() if "LIBXDP_OBJECT_PATH" in os.environ else [tmp_path / "none", folder]

    monkeypatch.setattr(hook, "dispatcher_places", here)
    return folder


def test_the_systems_libxdp_is_told_nothing(system: Path) -> None:
    assert hook.find_dispatcher() == system / "xdp-dispatcher.o"
    assert "LIBXDP_OBJECT_PATH" not in os.environ


def test_one_inside_a_wheel_is_told_where_it_is(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "_BUNDLED", tmp_path)
    monkeypatch.setenv("LIBXDP_OBJECT_PATH", "")  # so that it is taken back
    monkeypatch.delenv("LIBXDP_OBJECT_PATH")
    assert hook.find_dispatcher() == system / "xdp-dispatcher.o"
    assert os.environ["LIBXDP_OBJECT_PATH"] == str(system)


def test_the_users_word_is_final(system: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hook, "_BUNDLED", tmp_path)
    monkeypatch.setenv("LIBXDP_OBJECT_PATH", str(tmp_path / "none"))
    assert hook.find_dispatcher() is None
    assert os.environ["LIBXDP_OBJECT_PATH"] == str(tmp_path / "none")


def test_the_folders_of_the_distributions_are_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIBXDP_OBJECT_PATH", raising=False)
    places = set(map(str, hook.dispatcher_places()))
    assert {"/usr/lib64/bpf", "/usr/lib/bpf", f"/usr/lib/{os.uname().machine}-linux-gnu/bpf"} <= places
