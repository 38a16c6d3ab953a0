"""Which reader fits a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evspec_ros.errors import RecordingError
from evspec_ros.recordings.aedat4 import Aedat4Recording
from evspec_ros.recordings.bags import BagRecording
from evspec_ros.recordings.dsec import DsecRecording, event_file
from evspec_ros.recordings.npy import NpyRecording
from evspec_ros.recordings.prophesee import open_prophesee
from evspec_ros.recordings.recording import WHATEVER, Recording, Wanted
from evspec_ros.recordings.rosbag1 import Rosbag1Recording
from evspec_ros.recordings.rosbag2 import METADATA, Rosbag2Recording, storage_files
from evspec_ros.recordings.rosbag2_storage import MCAP, SQLITE, ZSTD

BAGS: dict[bytes, type[BagRecording]] = {  # by a file's first bytes
    MCAP: Rosbag2Recording,
    SQLITE: Rosbag2Recording,
    ZSTD: Rosbag2Recording,
    b"#ROSBAG V2.0\n": Rosbag1Recording,
}
READERS: dict[bytes, Callable[[Path], Recording]] = {  # likewise
    b"#!AER-DAT4": Aedat4Recording,
    b"\x93NUMPY": NpyRecording,
    b"% ": open_prophesee,
    b"\x89HDF\r\n\x1a\n": DsecRecording,
}
KNOWN = "a rosbag2 folder, .mcap, .db3, .bag, .raw, .dat, a DSEC folder, .h5, .aedat4 or .npy"


def open_recording(path: Path, wanted: Wanted = WHATEVER) -> Recording:
    """The recording at `path`, whose format is told by its first bytes, a folder's by the files in it.

    wanted: the topics to read. Raises RecordingError where there is no recording, one that cannot be read, or
    one without these topics.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, wanted)
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError as error:
        raise RecordingError(f"There is no recording at {path}; check the path.") from error
    except OSError as error:
        raise RecordingError(f"The recording {path} cannot be read ({error.strerror}).") from error
    if not start:
        raise RecordingError(f"The file {path} is empty; copy or record it again.")
    for magic, bag in BAGS.items():
        if start.startswith(magic):
            return bag(path, wanted)
    for magic, reader in READERS.items():
        if start.startswith(magic):
            return _with_topics(reader(path), wanted)
    raise RecordingError(f"The file {path} is no recording known here, give {KNOWN}.")


def _open_folder(path: Path, wanted: Wanted) -> Recording:
    if (path / METADATA).is_file() or storage_files(path):
        return Rosbag2Recording(path, wanted)
    if event_file(path):
        return _with_topics(DsecRecording(path), wanted)
    raise RecordingError(
        f"The folder {path} is no recording: it has neither a bag's {METADATA} nor DSEC's events.h5, nor one "
        f"bag's .mcap or .db3; name the file that is to be read."
    )


def _with_topics(recording: Recording, wanted: Wanted) -> Recording:
    """The recording, where it has the topics wanted; what is no bag reads all that it can."""
    if wanted == WHATEVER:
        return recording
    names = [topic.name for topic in recording.topics if not topic.left_out]
    for name in (wanted.events, wanted.image):
        if name and name not in names:
            raise RecordingError(
                f"The recording {recording.path} has no topic {name}; it is no bag, and what is read of it "
                f"is {', '.join(names)}."
            )
    return recording
