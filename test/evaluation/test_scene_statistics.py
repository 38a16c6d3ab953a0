"""Statistics of events against known answers, of simulated scenes and of real recordings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evspec_ros import cli
from evspec_ros.choices import CONDITIONS
from evspec_ros.errors import EvspecError, RecordingError
from evspec_ros.evaluation.scene_pictures import draw_sheet
from evspec_ros.evaluation.scene_statistics import of_condition, of_recording, statistics
from evspec_ros.events.types import Events

RECORDINGS = (
    "EventGPT/sample1.npy", "event-vision-library/sample.aedat4", "cuke-emlb/demo-01.aedat4",
    "event_camera_codecs/test_data_evt3_trigger", "event_camera_codecs/test_data_libcaer_rollover",
)  # fmt: skip


def _events(*rows: tuple[float, int, int, int], size: int = 10) -> Events:
    """Events from (ms, x, y, p)."""
    t, x, y, p = zip(*rows, strict=True)
    times = np.array([round(ms * 1e6) for ms in t])
    return Events(times, np.array(x, np.uint16), np.array(y, np.uint16), np.array(p, np.uint8), size, size)


def test_figures_of_a_handful_of_events() -> None:
    """Every figure, counted by hand."""
    window = _events(
        (0, 1, 1, 1), (4, 1, 1, 1), (12, 2, 2, 0),  # supported by the pixel beside it, 8 ms earlier
        (14, 1, 1, 1), (30, 9, 9, 0), (31, 0, 9, 1),  # the other border is no neighbour
        (45, 9, 9, 1),  # its own event is no neighbour's
    )  # fmt: skip
    found = statistics("hand", [window], 0.05, simulated=True)
    assert (found.events, found.windows) == (7, 1)
    assert found.rate_hz == pytest.approx(7 / 100 / 0.05)
    assert found.on == pytest.approx(5 / 7)
    assert found.active == pytest.approx(4 / 100)
    assert found.per_active == pytest.approx(7 / 4)
    assert found.supported == pytest.approx(2 / 5)
    assert found.intervals_ms == pytest.approx(np.percentile([4, 10, 15], (10, 50, 90)))
    assert sum(found.histogram) == pytest.approx(1)


def test_windows_are_looked_at_apart() -> None:
    """No interval and no support reaches from one window into the next."""
    one = _events((0, 1, 1, 1), (20, 5, 5, 1))
    both = statistics("two", [one, one], 0.1, simulated=True)
    assert both.intervals_ms is None
    assert both.supported == 0
    assert both.active == pytest.approx(2 / 100)


def test_noise_has_the_figures_of_a_poisson_process() -> None:
    """Rate, activity, support and intervals of independent events at 20 Hz a pixel."""
    random, rate, size, windows = np.random.default_rng(0), 20.0, 64, []
    for _ in range(20):
        count = random.poisson(rate * size**2 * 0.05)
        t = np.sort(random.integers(0, 50_000_000, count))
        x, y = random.integers(0, size, (2, count)).astype(np.uint16)
        windows.append(Events(t, x, y, random.integers(0, 2, count).astype(np.uint8), size, size))
    found = statistics("noise", windows, 1.0, simulated=True)
    assert found.rate_hz == pytest.approx(rate, rel=0.01)
    assert found.on == pytest.approx(0.5, abs=0.01)
    assert found.active == pytest.approx(1 - np.exp(-rate * 0.05), rel=0.01)
    assert found.supported == pytest.approx(1 - np.exp(-8 * rate * 0.01), abs=0.02)


def test_every_condition_has_events_like_none_other() -> None:
    """Plain scenes are the quietest; a moving camera and the night stir the most pixels, fast motion makes
    the shortest intervals, noise leaves the fewest with neighbours.
    """
    found = {condition: of_condition(condition, 6) for condition in CONDITIONS}
    assert min(found, key=lambda name: found[name].rate_hz) == "plain"
    assert sorted(found, key=lambda name: found[name].active)[-2:] in (
        ["camera", "night"],
        ["night", "camera"],
    )
    assert min(found, key=lambda name: found[name].supported) == "night"
    medians = {name: one.intervals_ms[1] for name, one in found.items() if one.intervals_ms}
    assert min(medians, key=lambda name: medians[name]) == "blur"
    assert all(0.4 < one.on < 0.6 for one in found.values())


def test_recordings_have_known_figures(shared_data: Path) -> None:
    """All events of sample1 lie in one window of 49.6 ms; a still camera's noise has hardly a neighbour."""
    found = {name: of_recording(shared_data / name) for name in RECORDINGS if (shared_data / name).exists()}
    if not found:
        pytest.skip("needs the real recordings")
    sample = found["EventGPT/sample1.npy"]
    assert (sample.events, sample.windows, sample.width, sample.height) == (132_268, 1, 640, 480)
    assert sample.rate_hz == pytest.approx(132_268 / 640 / 480 / 0.0496, rel=0.002)
    for name in ("cuke-emlb/demo-01.aedat4", "event-vision-library/sample.aedat4"):
        assert found[name].supported > 0.9
    for name, figures in found.items():
        if name.startswith("event_camera_codecs"):
            assert figures.supported < 0.1


def test_a_recording_without_events_is_named(tmp_path: Path) -> None:
    """One sentence, not a division by zero."""
    np.save(tmp_path / "empty.npy", {key: np.zeros(0, np.uint16) for key in "xytp"}, allow_pickle=True)
    with pytest.raises(RecordingError, match=r"empty\.npy"):
        of_recording(tmp_path / "empty.npy")


def test_the_bench_prints_one_object_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`evspec bench scenes --json --plot --sheet`: a row of each condition, two pictures."""
    plot, sheet = tmp_path / "plot.png", tmp_path / "sheet.png"
    arguments = ["bench", "scenes", "--scenes", "1", "--json", "--plot", str(plot), "--sheet", str(sheet)]
    assert cli.main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["name"] for row in rows] == list(CONDITIONS)
    assert all(row["simulated"] for row in rows)
    assert plot.read_bytes()[:4] == sheet.read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """One sentence with the path."""
    with pytest.raises(EvspecError, match="nowhere"):
        draw_sheet(tmp_path / "nowhere" / "sheet.png")
