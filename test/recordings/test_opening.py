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
    ("start", "told"),
    [
        (b"#!AER-DAT2.0\r\n# raw AE data\r\n", "AEDAT 1 to 3, of which only AEDAT 4 is supported"),
        (b"#!AER-DAT3.1\r\n#Format: RAW\r\n", "AEDAT 1 to 3, of which only AEDAT 4 is supported"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "a video, which holds no events and is not supported"),
        (b"RIFF\x24\0\0\0AVI LIST", "a video, which holds no events"),
        (b"\x1a\x45\xdf\xa3\x93\x42", "a video, which holds no events"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "a packed file, which is not supported as it is; unpack it"),
        (b"events.txt" + bytes(247) + b"ustar\x0000", "a packed file, which is not supported as it is"),
        (b"Event Stream\2\0\0\1", "an Event Stream .*, which is not supported; convert it to .csv"),
        (b"MATLAB 5.0 MAT-file, Platform", "a MATLAB file, which is not supported"),
    ],
)  # fmt: skip
def test_a_format_that_is_known_and_not_read_is_called_unsupported(
    tmp_path: Path, start: bytes, told: str
) -> None:
    """Not damaged, not unknown; the sentence says what to do."""
    (tmp_path / "r").write_bytes(start + bytes(range(256)) * 4)
    with pytest.raises(RecordingError, match=told) as refusal:
        open_recording(tmp_path / "r")
    assert "damaged" not in str(refusal.value)


@pytest.mark.parametrize(
    "magic",
    [
        b"#!AER-DAT4.0\r\n", b"\x93NUMPY", b"\x89MCAP0\r\n", b"SQLite format 3\x00", b"#ROSBAG V2.0\n",
        b"% ", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["r.mcap", "r.db3", "r.bin"])
def test_a_foreign_body_behind_a_known_start_is_refused(tmp_path: Path, magic: bytes, name: str) -> None:
    """The first bytes alone do not make a recording."""
    (tmp_path / name).write_bytes(magic + bytes(range(256)) * 20)
    with pytest.raises(RecordingError):
        open_recording(tmp_path / name)
