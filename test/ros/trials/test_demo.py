"""The demo from end to end: two processes, DDS between them, one JSON object and a report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from evspec_ros.errors import RecordingError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.bag_writer import BagWriter

MS = 1_000_000
SIZE = 64


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Half a second of a bright bar that wanders to the right, seen by both cameras."""
    path = tmp_path / "bar"
    rows = np.arange(SIZE, dtype=np.uint16)
    with BagWriter(path) as bag:
        for step in range(50):
            now_ns = 10**18 + step * 10 * MS
            t = now_ns + np.arange(SIZE) * 100_000
            events = Events(t, np.full(SIZE, step, np.uint16), rows, np.ones(SIZE, np.uint8), SIZE, SIZE)
            bag.write_events(events, now_ns)
            image = np.zeros((SIZE, SIZE, 3), np.uint8)
            image[:, step] = 255
            bag.write_frame(Frame(now_ns, image))
    return path


@pytest.mark.slow
def test_a_recording_is_described_over_dds_and_reported(
    ros: None, checkpoints: Path, recording: Path, tmp_path: Path
) -> None:
    """stdout is one object with the documented keys, everything sent was received; report and picture are
    written.
    """
    source_tree = Path(__file__).resolve().parents[3]
    path = f"{source_tree}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    options = ["--recording", str(recording), "--seconds", "3", "--json"]
    result = subprocess.run(
        [sys.executable, "-m", "evspec_ros", "demo", *options],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert set(printed) == {"recording", "descriptions", "events_received", "frames_received", "dropped"}
    assert printed["recording"] == str(recording)
    assert printed["descriptions"]
    for description in printed["descriptions"]:
        assert set(description) == {
            "stamp", "text", "latency_ms", "tokens", "mean_accepted_length", "lossless",
        }  # fmt: skip
        assert description["lossless"] is True
        assert description["latency_ms"]["total"] > 0
    assert printed["frames_received"] + printed["dropped"] >= 290
    assert printed["events_received"] >= (290 - printed["dropped"]) * SIZE
    html = (tmp_path / "runs" / "demo" / "report.html").read_text(encoding="utf-8")
    assert "event image 5" in html
    overlay = cv2.imread(str(tmp_path / "runs" / "demo" / "overlay.png"))
    assert overlay.shape[1] == 480


def test_what_cannot_be_described_is_one_sentence(ros: None, checkpoints: Path, tmp_path: Path) -> None:
    """A recording without frames and one that does not exist are refused before anything is started."""
    from evspec_ros.ros.trials.demo import run_demo

    path = tmp_path / "events_only"
    with BagWriter(path) as bag:
        t, pixel = np.arange(3, dtype=np.int64) * MS, np.zeros(3, np.uint16)
        bag.write_events(Events(t, pixel, pixel, np.zeros(3, np.uint8), SIZE, SIZE), 0)
    with pytest.raises(RecordingError, match="no RGB frames"):
        run_demo(path, report=tmp_path / "report.html")
    with pytest.raises(RecordingError, match="no recording at"):
        run_demo(tmp_path / "nowhere", report=tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
