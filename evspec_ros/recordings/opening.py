"""Which reader fits a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evspec_ros.choices import RECORDINGS
from evspec_ros.errors import RecordingError
from evspec_ros.recordings.aedat4 import Aedat4Recording
from evspec_ros.recordings.dsec import DsecRecording, event_file
from evspec_ros.recordings.npy import NpyRecording
from evspec_ros.recordings.prophesee import open_prophesee
from evspec_ros.recordings.recording import Recording
from evspec_ros.recordings.rosbag1 import Rosbag1Recording
from evspec_ros.recordings.rosbag2 import Rosbag2Recording

READERS: dict[bytes, Callable[[Path], Recording]] = {  # by a file's first bytes
    b"#!AER-DAT4": Aedat4Recording,
    b"\x93NUMPY": NpyRecording,
    b"\x89MCAP0\r\n": Rosbag2Recording,
    b"SQLite format 3\x00": Rosbag2Recording,
    b"#ROSBAG V2.0\n": Rosbag1Recording,
    b"% ": open_prophesee,
    b"\x89HDF\r\n\x1a\n": DsecRecording,
}


def open_recording(path: Path) -> Recording:
    """The recording at `path`, whose format is told by its first bytes, a folder's by the files in it.

    Raises RecordingError where there is none, or one that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise RecordingError(f"There is no recording at {path}; check the path.") from error
    except OSError as error:
        raise RecordingError(f"The recording {path} cannot be read ({error.strerror}).") from error
    if not start:
        raise RecordingError(f"The file {path} is empty; copy or record it again.")
    for magic, reader in READERS.items():
        if start.startswith(magic):
            return reader(path)
    raise RecordingError(f"The file {path} is no recording known here, give {RECORDINGS}.")


def _open_folder(path: Path) -> Recording:
    if (path / "metadata.yaml").is_file():
        return Rosbag2Recording(path)
    if event_file(path):
        return DsecRecording(path)
    raise RecordingError(
        f"The folder {path} is no recording, it has neither a bag's metadata.yaml nor DSEC's events.h5; name "
        f"the .mcap or .db3 file inside it, or write the metadata anew with 'ros2 bag reindex'."
    )
