"""Which reader fits a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from evspec_ros.choices import RECORDINGS
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
from evspec_ros.recordings.text import ZIP, TextRecording, is_text
from evspec_ros.recordings.unsupported import why_unsupported

BAGS: dict[bytes, type[BagRecording]] = {  # by a file's first bytes
    MCAP: Rosbag2Recording,
    SQLITE: Rosbag2Recording,
    ZSTD: Rosbag2Recording,
    b"#ROSBAG V2.0\n": Rosbag1Recording,
}
READERS: dict[bytes, Callable[[Path], Recording]] = {  # likewise
    b"#!AER-DAT4": Aedat4Recording,
    b"% ": open_prophesee,
    b"\x89HDF\r\n\x1a\n": DsecRecording,
}
START = 512  # bytes by which formats are told
NUMPY = b"\x93NUMPY"
TEXT_SUFFIXES = frozenset({".txt", ".csv"})


def open_recording(path: Path, wanted: Wanted = WHATEVER) -> Recording:
    """The recording at `path`, whose format is told by its first bytes, a folder's by the files in it.

    Raises RecordingError where there is no recording, one that cannot be read or is of a format that is not
    supported, and one that is asked for what its format does not leave open.
    """
    path = Path(path)
    if path.is_dir():
        _refuse_options(path, wanted.columns, wanted.time_unit)
        return _open_folder(path, wanted)
    try:
        with path.open("rb") as file:
            start = file.read(START)
    except FileNotFoundError as error:
        raise RecordingError(f"There is no recording at {path}; check the path.") from error
    except OSError as error:
        raise RecordingError(f"The recording {path} cannot be read ({error.strerror}).") from error
    if not start:
        raise RecordingError(f"The file {path} is empty; copy or record it again.")
    unsupported = why_unsupported(start)
    if unsupported:
        raise RecordingError(f"The file {path} is {unsupported}.")
    return _open_file(path, start, wanted)


def _open_file(path: Path, start: bytes, wanted: Wanted) -> Recording:
    for magic, bag in BAGS.items():
        if start.startswith(magic):
            _refuse_options(path, wanted.columns, wanted.time_unit)
            return bag(path, wanted)
    return _with_topics(_open_no_bag(path, start, wanted), wanted)


def _open_no_bag(path: Path, start: bytes, wanted: Wanted) -> Recording:
    named_text = path.suffix.lower() in TEXT_SUFFIXES and is_text(start)
    for magic, reader in READERS.items():
        if start.startswith(magic) and not named_text:
            _refuse_options(path, wanted.columns, wanted.time_unit)
            return reader(path)
    if start.startswith(NUMPY):
        _refuse_options(path, wanted.columns)
        return NpyRecording(path, wanted.time_unit)
    if is_text(start) or start.startswith(ZIP):
        return TextRecording(path, wanted.columns, wanted.time_unit)
    raise RecordingError(f"The file {path} is no recording known here, give {RECORDINGS}.")


def _refuse_options(path: Path, *options: str) -> None:
    """Raises RecordingError where columns or a unit were given, although the recording itself tells them."""
    for option in filter(None, options):
        raise RecordingError(f"The format of {path} tells what '{option}' is to tell; leave that out.")


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
    if not (wanted.events or wanted.image):
        return recording
    names = [topic.name for topic in recording.topics if not topic.left_out]
    for name in (wanted.events, wanted.image):
        if name and name not in names:
            raise RecordingError(
                f"The recording {recording.path} has no topic {name}; it is no bag, and what is read of it "
                f"is {', '.join(names)}."
            )
    return recording
