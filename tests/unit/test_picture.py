"""Pictures of a Umem: every pixel of an animation is the state of the frame it stands for."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor
from support import conserved

from afxdp_pool import STATES, AfXdpError, ConfigError, FramePool, MissingExtraError, Umem
from afxdp_pool import picture as pictures
from afxdp_pool.picture import COLOURS, Recorder, animate_umem, draw_umem


def recording(states: list[list[int]], title: str = "") -> Recorder:
    """What a recorder would have noted, ten times a second."""
    made = Recorder.__new__(Recorder)
    made.title = title
    made.samples = [np.array(row, np.uint8) for row in states]
    made.times = [100 + n / 10 for n in range(len(states))]
    return made


def test_a_recorder_notes_the_state_of_each_frame() -> None:
    with conserved(frames=256) as umem, FramePool(umem) as pool:
        recorder = Recorder(umem, "alloc")
        recorder.sample()
        batch = pool.alloc(10)
        recorder.sample()
        umem.put(batch)
        assert recorder.states.shape == (256, 2)
        assert (recorder.states[:, 0] == STATES.index("umem")).all()
        assert np.flatnonzero(recorder.states[:, 1] == STATES.index("app")).tolist() == sorted(batch.frames(4096))


def test_a_recorder_with_a_limit_reaches_over_the_whole_time() -> None:
    with Umem(frames=64) as umem:
        recorder = Recorder(umem, most=8)
        for _ in range(100):
            recorder.sample()
            assert len(recorder.times) == len(recorder.samples) <= 8
        assert len(recorder.samples) >= 4
        steps = np.diff(recorder.times)
        assert recorder.times == sorted(recorder.times)
        assert len(steps) >= 3
        with pytest.raises(ConfigError):
            Recorder(umem, most=1)


@pytest.mark.parametrize("ending", [".gif", ".png"])
def test_every_frame_is_at_its_place(tmp_path: Path, ending: str) -> None:
    states = np.random.default_rng(5).integers(0, len(STATES), (6, 100)).tolist()
    path = tmp_path / f"umem{ending}"
    animate_umem([recording(states, "a"), recording(states[:3], "b")], path, slower=2)
    colours = [ImageColor.getrgb(COLOURS[state]) for state in STATES]
    with Image.open(path) as image:
        assert image.n_frames == 6  # type: ignore[attr-defined]
        (left, top, width, _), (other, *_) = pictures._boxes([recording(states), recording(states)])
        columns, step, size = pictures._grid(100)
        assert (step, columns * size) == (1, width)
        for number, row in enumerate(states):
            image.seek(number)
            shown = image.convert("RGB")
            assert ending != ".gif" or image.info["duration"] == (200 if number < 5 else 1000)
            for frame, state in enumerate(row):
                x, y = frame % columns * size + size // 2, top + frame // columns * size + size // 2
                assert shown.getpixel((left + x, y)) == colours[state]
                assert shown.getpixel((other + x, y)) == colours[states[min(number, 2)][frame]], "the last of b stays"


def test_fewer_images_take_as_long(tmp_path: Path) -> None:
    path = tmp_path / "umem.gif"
    animate_umem([recording([[n % 5] * 64 for n in range(21)])], path, most=5)
    with Image.open(path) as image:
        assert image.n_frames == 5  # type: ignore[attr-defined]
        shown = []
        for number in range(5):
            image.seek(number)
            shown.append(image.info["duration"])
        assert shown == [500, 500, 500, 500, 1000]


@pytest.mark.parametrize("frames", [1, 2, 100, 768, 8192, 262_144, 1 << 20])
def test_any_number_of_frames_makes_a_map_of_a_size(frames: int) -> None:
    (left, top, width, height), *_ = pictures._boxes([recording([[0] * frames])])
    assert 0 < height <= 2 * width
    assert width <= 2 * pictures._SIDE
    assert pictures._page([recording([[4] * frames])], 0, "").max() < 8
    assert min(left, top) > 0


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    for ending in (".png", ".svg"):
        draw_umem([recording([[0, 1, 2, 3, 4]] * 3, "some")], tmp_path / f"umem{ending}")
    with Image.open(tmp_path / "umem.png") as image:
        assert image.width > 500
    assert "<svg" in (tmp_path / "umem.svg").read_text()


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    made = [recording([[0, 1]])]
    for draw in (draw_umem, animate_umem):
        with pytest.raises(ConfigError, match="nothing to draw"):
            draw([], tmp_path / "x.png")
        with pytest.raises(ConfigError, match="no format"):
            draw(made, tmp_path / "x.txt")
        with pytest.raises(AfXdpError, match="failed: No such file or directory"):
            draw(made, tmp_path / "no" / "x.png")
    with pytest.raises(ConfigError, match="slower"):
        animate_umem(made, tmp_path / "x.gif", slower=0)
    with pytest.raises(ConfigError, match="0 images"):
        animate_umem(made, tmp_path / "x.gif", most=0)


def test_it_needs_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for draw in (draw_umem, animate_umem):
        with pytest.raises(MissingExtraError, match=r"afxdp-pool\[plot\]"):
            draw([recording([[0]])], tmp_path / "x.png")
    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(MissingExtraError):
        pictures.require_plot()
