"""Telling recordings apart, and saying what is wrong with what is none."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from recording_files import random_events, write_aedat4

from evspec_ros.errors import RecordingError
from evspec_ros.recordings import open_recording


def test_the_format_is_told_by_content(tmp_path: Path) -> None:
    """A file is recognised by its first bytes, whatever it is called."""
    write_aedat4(tmp_path / "recording.bin", [random_events(10)])
    assert open_recording(tmp_path / "recording.bin").info().events.count == 10


def test_a_missing_path_is_told(tmp_path: Path) -> None:
    """The sentence names the path."""
    with pytest.raises(RecordingError, match=r"no recording at .*absent\.aedat4; check the path\.$"):
        open_recording(tmp_path / "absent.aedat4")


def test_a_folder_without_metadata_is_told(tmp_path: Path) -> None:
    """The sentence says what to do: name the file that is to be read."""
    with pytest.raises(
        RecordingError, match=r"neither a bag's metadata\.yaml nor DSEC's events\.h5, .*; name the file"
    ):
        open_recording(tmp_path)


@pytest.mark.parametrize("name", ["r.aedat4", "r.npy", "r.mcap", "r.db3", "r.bag", "r.raw", "r.dat", "r.h5"])
def test_an_empty_file_is_told(tmp_path: Path, name: str) -> None:
    """A file of no bytes is called empty, whatever its name."""
    (tmp_path / name).touch()
    with pytest.raises(RecordingError, match="is empty"):
        open_recording(tmp_path / name)


@pytest.mark.parametrize(
    "name", ["r.aedat4", "r.npy", "r.mcap", "r.db3", "r.bag", "r.raw", "r.dat", "r.h5", "r.png"]
)
def test_a_foreign_file_is_told(tmp_path: Path, name: str) -> None:
    """A picture under any name is no recording, and the sentence lists what is."""
    picture = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1]
    (tmp_path / name).write_bytes(picture.tobytes())
    with pytest.raises(RecordingError, match=r"no recording known here, give a rosbag2 folder, .*\.aedat4"):
        open_recording(tmp_path / name)


@pytest.mark.parametrize(
    "magic",
    [
        b"#!AER-DAT4.0\r\n", b"\x93NUMPY", b"\x89MCAP0\r\n", b"SQLite format 3\x00", b"#ROSBAG V2.0\n",
        b"% ", b"\x89HDF\r\n\x1a\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["r.mcap", "r.db3", "r.bin"])
def test_a_foreign_body_behind_a_known_start_is_refused(tmp_path: Path, magic: bytes, name: str) -> None:
    """The first bytes alone do not make a recording."""
    (tmp_path / name).write_bytes(magic + bytes(range(256)) * 20)
    with pytest.raises(RecordingError):
        open_recording(tmp_path / name)
