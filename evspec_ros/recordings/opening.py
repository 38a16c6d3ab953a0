"""Which reader fits a path."""

from __future__ import annotations

from pathlib import Path

from evspec_ros.errors import RecordingError
from evspec_ros.recordings.aedat4 import Aedat4Recording
from evspec_ros.recordings.npy import NpyRecording
from evspec_ros.recordings.recording import Recording
from evspec_ros.recordings.rosbag1 import Rosbag1Recording
from evspec_ros.recordings.rosbag2 import Rosbag2Recording

READERS: dict[bytes, type[Recording]] = {  # by a file's first bytes
    b"#!AER-DAT4": Aedat4Recording,
    b"\x93NUMPY": NpyRecording,
    b"\x89MCAP0\r\n": Rosbag2Recording,
    b"SQLite format 3\x00": Rosbag2Recording,
    b"#ROSBAG V2.0\n": Rosbag1Recording,
}
KNOWN = "a rosbag2 folder, .mcap, .db3, .aedat4 or .npy"


def open_recording(path: Path) -> Recording:
    """The recording at `path`, whose format is told by its first bytes (a folder: by its metadata.yaml).

    Raises RecordingError where there is none, or one that cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "metadata.yaml").is_file():
            raise RecordingError(
                f"The folder {path} is no rosbag2 recording, it has no metadata.yaml; name the .mcap or .db3 "
                f"file inside it, or write the metadata anew with 'ros2 bag reindex'."
            )
        return Rosbag2Recording(path)
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
    raise RecordingError(f"The file {path} is no recording known here, give {KNOWN}.")
