"""Bags as recorders, disks and copies leave them: every message that is there is read, the rest is told."""

from __future__ import annotations

import logging
import shutil
import sqlite3
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_files import (
    START_NS,
    event_array,
    joined,
    mono_packet,
    random_events,
    ros1_types,
    write_bag,
    write_rosbag1,
)
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer

from evspec_ros.errors import RecordingError
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.rosbag2_types import EVENT_PACKET, typestore

FILES = {"sqlite3": "bag.db3", "mcap": "bag.mcap"}
FOOTER_BYTES = 37

Message = tuple[str, str, int, Any]


def packets(count: int, first: int = 0, size: int = 100) -> list[Message]:
    """Event packets 10 ms apart, each with `size` events."""
    messages = []
    for index in range(first, first + count):
        events = random_events(size, 0.01, index, START_NS + index * 10_000_000)
        messages.append(("/events", EVENT_PACKET, int(events.t[0]), mono_packet(events, int(events.t[0]))))
    return messages


def arrays(count: int) -> list[Message]:
    """Event arrays of ROS 1, 10 ms apart, each with 50 events."""
    sent = [random_events(50, 0.01, index, START_NS + index * 10_000_000) for index in range(count)]
    return [
        (
            "/events",
            "dvs_msgs/msg/EventArray",
            int(e.t[0]),
            event_array(e, START_NS, "dvs_msgs", ros1_types()),
        )
        for e in sent
    ]


def counted(path: Path) -> tuple[int, int]:
    """Events and messages, as info tells them."""
    info = open_recording(path).info()
    return info.events.count, sum(topic.count for topic in info.topics)


def left_by_a_killed_recorder(path: Path, in_log: int) -> None:
    """A .db3 of 10 packets as packets() gives them, the last `in_log` in the log beside it."""
    folder = path.parent.parent
    write_bag(folder / "whole", packets(10 - in_log))
    serialize = typestore().serialize_cdr
    source = folder / "source.db3"
    shutil.copy(folder / "whole" / "whole.db3", source)
    writer = sqlite3.connect(source)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    for _, kind, log_ns, message in packets(in_log, 10 - in_log):
        row = (1, log_ns, bytes(serialize(message, kind)))
        writer.execute("INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)", row)
    writer.commit()
    path.parent.mkdir()
    for suffix in ("", "-wal"):
        shutil.copy(f"{source}{suffix}", f"{path}{suffix}")
    writer.close()


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All files of a folder: when they were written and what is in them."""
    return {one.name: (one.stat().st_mtime_ns, one.read_bytes()) for one in folder.iterdir()}


def test_the_sample_with_a_log_is_read_as_a_whole(shared_cases: Path) -> None:
    """Messages in SQLite's log are messages of the bag, whether the file is named or its folder."""
    for path in (shared_cases / "messages_in_wal", shared_cases / "messages_in_wal" / "walsmall.db3"):
        info = open_recording(path).info()
        assert (info.events.count, info.events.sum_t_ns) == (2000, 514_436_203_000)
        assert [topic.count for topic in info.topics] == [125]


@pytest.mark.parametrize("named", ["file", "folder", "folder with metadata"])
@pytest.mark.parametrize("in_log", [1, 9])
def test_a_log_beside_the_file_is_read_and_nothing_is_written(
    tmp_path: Path, in_log: int, named: str
) -> None:
    """All messages come, no file changes and none is added, and what metadata.yaml counts is no matter."""
    path = tmp_path / "bag" / "whole.db3"
    left_by_a_killed_recorder(path, in_log)
    if named == "folder with metadata":
        shutil.copy(tmp_path / "whole" / "metadata.yaml", path.parent)
    before = state(path.parent)
    assert counted(path if named == "file" else path.parent) == (1000, 10)
    assert state(path.parent) == before


def test_a_path_that_looks_like_a_uri_is_read(tmp_path: Path) -> None:
    """Question marks and percent signs in the name of a .db3 are part of it."""
    write_bag(tmp_path / "bag", packets(2))
    path = tmp_path / "50%41 done?.db3"
    (tmp_path / "bag" / "bag.db3").rename(path)
    assert counted(path) == (200, 2)


@pytest.mark.parametrize("storage", FILES)
@pytest.mark.parametrize("identifier", ["''", "null", "mcap", "a_plugin_of_ours"])
def test_the_file_says_which_storage_it_is(tmp_path: Path, storage: str, identifier: str) -> None:
    """Whatever metadata.yaml says, or does not say."""
    write_bag(tmp_path / "bag", packets(3), storage)
    metadata = tmp_path / "bag" / "metadata.yaml"
    text = metadata.read_text()
    metadata.write_text(text.replace(f"storage_identifier: {storage}", f"storage_identifier: {identifier}"))
    assert metadata.read_text() != text or identifier == storage
    assert counted(tmp_path / "bag") == (300, 3)


@pytest.mark.parametrize("storage", FILES)
@pytest.mark.parametrize("metadata", [None, "", "rosbag2_bagfile_information: 5", "[1, 2"])
def test_a_folder_without_good_metadata_is_read_by_its_files(
    tmp_path: Path, storage: str, metadata: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """metadata.yaml is written last, so a recorder that was killed leaves none; how to get one is told."""
    write_bag(tmp_path / "bag", packets(3), storage)
    (tmp_path / "bag" / "metadata.yaml").unlink()
    if metadata is not None:
        (tmp_path / "bag" / "metadata.yaml").write_text(metadata)
    recording = open_recording(tmp_path / "bag")
    assert recording.info().events.count == 300
    assert [f"ros2 bag reindex {tmp_path / 'bag'}" in remark for remark in recording.remarks] == [True]
    assert f"ros2 bag reindex {tmp_path / 'bag'}" in caplog.text


def test_a_folder_of_several_bags_is_not_taken_for_one(tmp_path: Path) -> None:
    """The files of two bags side by side are to be named one by one."""
    write_bag(tmp_path / "left", packets(1), "mcap")
    write_bag(tmp_path / "right", packets(1), "mcap")
    (tmp_path / "both").mkdir()
    for name in ("left", "right"):
        (tmp_path / name / f"{name}.mcap").rename(tmp_path / "both" / f"{name}.mcap")
    with pytest.raises(RecordingError, match="name the file that is to be read"):
        open_recording(tmp_path / "both")


def split(folder: Path, storage: str, parts: int) -> list[Path]:
    """A bag in several files of three packets each, with one metadata.yaml for all."""
    paths = []
    folder.mkdir()
    for part in range(parts):
        write_bag(folder.parent / f"part_{part}", packets(3, 3 * part), storage)
        (made,) = (folder.parent / f"part_{part}").glob(f"*{Path(FILES[storage]).suffix}")
        paths.append(made.rename(folder / f"bag_{part}{made.suffix}"))
    metadata = (folder.parent / "part_0" / "metadata.yaml").read_text()
    names = "".join(f"\n  - {path.name}" for path in paths)
    old = f"\n  - {paths[0].name.replace('bag_0', 'part_0')}"
    assert old in metadata
    (folder / "metadata.yaml").write_text(metadata.replace(old, names))
    return paths


@pytest.mark.parametrize("storage", FILES)
def test_a_split_bag_is_read_file_by_file(
    tmp_path: Path, storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In order; where one is missing the others are read, and the log says which one; 10 comes after 9."""
    paths = split(tmp_path / "bag", storage, 11)
    whole = open_recording(tmp_path / "bag")
    assert (whole.info().events.count, whole.remarks) == (3300, ())
    assert (np.diff(joined(whole.events()).t) >= 0).all()
    (tmp_path / "bag" / "metadata.yaml").rename(tmp_path / "kept.yaml")
    assert (np.diff(joined(open_recording(tmp_path / "bag").events()).t) >= 0).all()
    (tmp_path / "kept.yaml").rename(tmp_path / "bag" / "metadata.yaml")
    paths[1].unlink()
    caplog.clear()
    assert counted(tmp_path / "bag") == (3000, 30)
    assert f"{paths[1].name}, named in metadata.yaml, is not there" in caplog.text


@pytest.mark.parametrize("mode", list(CompressionMode))
@pytest.mark.parametrize("storage", list(StoragePlugin))
def test_every_compression_of_rosbag2_is_read(
    tmp_path: Path, storage: StoragePlugin, mode: CompressionMode
) -> None:
    """File, message and storage; also where the file is named and there is no metadata to tell."""
    if (storage, mode) == (StoragePlugin.SQLITE3, CompressionMode.STORAGE):
        pytest.skip("SQLite does not compress")
    writer = Writer(tmp_path / "bag", version=8, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connection = writer.add_connection("/events", EVENT_PACKET, typestore=typestore())
        for _, kind, log_ns, message in packets(5):
            writer.write(connection, log_ns, typestore().serialize_cdr(message, kind))
    assert counted(tmp_path / "bag") == (500, 5)
    (file,) = (one for one in (tmp_path / "bag").iterdir() if one.name != "metadata.yaml")
    assert counted(file) == (500, 5)


def test_another_compression_is_named(tmp_path: Path) -> None:
    """One sentence says which one it is, and that zstd is read."""
    write_bag(tmp_path / "bag", packets(1))
    metadata = tmp_path / "bag" / "metadata.yaml"
    text = metadata.read_text().replace("compression_format: ''", "compression_format: lz4")
    metadata.write_text(text.replace("compression_mode: ''", "compression_mode: FILE"))
    with pytest.raises(RecordingError, match=r"compressed with 'lz4', and only zstd is read"):
        open_recording(tmp_path / "bag")


def unclosed_mcap(path: Path, sizes: Sequence[int], compression: str, events: int = 100) -> list[int]:
    """An .mcap of one chunk for each number of packets of so many events, not closed.

    Returns the places where the chunks begin and, last, where all end.
    """
    mode = CompressionMode.STORAGE if compression else CompressionMode.NONE
    writer = Writer(path.parent / "made", version=8, storage_plugin=StoragePlugin.MCAP)
    if mode == CompressionMode.STORAGE:
        writer.set_compression(mode, CompressionFormat.ZSTD)
    writer.open()
    storage: Any = writer.storage
    connection = writer.add_connection("/events", EVENT_PACKET, typestore=typestore())
    places = []
    messages = iter(packets(sum(sizes), size=events))
    for size in sizes:
        places.append(storage.bio.tell())
        for _, (_, kind, log_ns, message) in zip(range(size), messages, strict=False):
            writer.write(connection, log_ns, typestore().serialize_cdr(message, kind))
        storage.close_chunk()
    places.append(storage.bio.tell())
    storage.bio.close()
    shutil.copy(storage.path, path)
    return places


@pytest.mark.parametrize("compression", ["", "zstd"])
@pytest.mark.parametrize("end", [b"", bytes(5000)])
def test_an_mcap_that_was_never_closed_is_read_to_its_last_message(
    tmp_path: Path, compression: str, end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Without footer and index, and where the file system filled it up with zeros; mending it is advised."""
    path = tmp_path / "r.mcap"
    unclosed_mcap(path, (4, 5, 1), compression)
    path.write_bytes(path.read_bytes() + end)
    assert counted(path) == (1000, 10)
    assert (
        f"r.mcap was never closed, or is cut short: what is there is read; 'mcap recover {path}"
        in caplog.text
    )
    caplog.clear()
    open_recording(path)
    assert [record.levelno >= logging.WARNING for record in caplog.records] == [True]


@pytest.mark.parametrize("compression", ["", "zstd"])
def test_an_mcap_cut_anywhere_gives_what_is_there(tmp_path: Path, compression: str) -> None:
    """The messages grow with the bytes; whole chunks give all of theirs, a cut one its first."""
    path = tmp_path / "r.mcap"
    places = unclosed_mcap(path, (4, 40), compression, events=2000)  # zstd gives 128 kB or nothing
    data = path.read_bytes()
    last, inside_a_chunk = 0, 0
    for size in np.linspace(places[0], places[-1], 60).astype(int):
        path.write_bytes(data[:size])
        try:
            events, _ = counted(path)
        except RecordingError:
            events = 0
        assert events >= last
        assert events >= 2000 * (4 * (size >= places[1]) + 40 * (size >= places[2]))
        inside_a_chunk += 8000 < events < 88_000
        last = events
    assert last == 88_000
    assert inside_a_chunk > 10


def test_messages_outside_of_chunks_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    """As rosbag2's `fastwrite` writes them, closed or not, also where log time steps back."""
    serialize = typestore().serialize_cdr
    definition = typestore().generate_msgdef(EVENT_PACKET)[0].encode()

    def text(value: bytes) -> bytes:
        return struct.pack("<I", len(value)) + value

    def record(opcode: int, content: bytes) -> bytes:
        return struct.pack("<BQ", opcode, len(content)) + content

    schema = struct.pack("<H", 1) + text(EVENT_PACKET.encode()) + text(b"ros2msg") + text(definition)
    channel = struct.pack("<HH", 1, 1) + text(b"/events") + text(b"cdr") + text(b"")
    body = b"\x89MCAP0\r\n" + record(1, text(b"ros2") + text(b"")) + record(3, schema) + record(4, channel)
    for number, (_, kind, log_ns, message) in enumerate(packets(6)):
        head = struct.pack("<HIQQ", 1, number, log_ns - number % 2 * 20_000_000, log_ns)
        body += record(5, head + bytes(serialize(message, kind)))
    path = tmp_path / "r.mcap"
    path.write_bytes(body)
    assert counted(path) == (600, 6)
    path.write_bytes(body[:-3])
    assert counted(path) == (500, 5)
    path.write_bytes(body + record(0x0F, bytes(4)) + record(2, bytes(20)) + b"\x89MCAP0\r\n")
    assert counted(path) == (600, 6)
    assert open_recording(path).remarks == ()


def test_an_mcap_of_something_else_is_not_called_damaged(tmp_path: Path) -> None:
    """An .mcap of ROS 1, or of no robot at all, is told by what it says of itself."""
    write_bag(tmp_path / "bag", packets(1), "mcap")
    path = tmp_path / "bag" / "bag.mcap"
    path.write_bytes(path.read_bytes().replace(b"\x04\0\0\0ros2", b"\x04\0\0\0ros1", 1))
    with pytest.raises(RecordingError, match=r"has the profile 'ros1', and only those of ROS 2"):
        open_recording(path)


def test_topics_defined_in_another_language_are_not_called_damage(tmp_path: Path) -> None:
    """The sentence names the language."""
    write_bag(tmp_path / "bag", packets(1), "mcap")
    path = tmp_path / "bag" / "bag.mcap"
    path.write_bytes(path.read_bytes().replace(b"\x07\0\0\0ros2msg", b"\x07\0\0\0ros1msg"))
    with pytest.raises(RecordingError, match=r"has topics defined in 'ros1msg', and only those of ROS 2"):
        open_recording(path)


@pytest.mark.parametrize("compression", ["none", "bz2", "lz4"])
@pytest.mark.parametrize("name", ["r.bag.active", "r.bag"])
def test_a_bag_of_ros1_that_was_never_closed_is_read(
    tmp_path: Path, compression: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its index all messages are found all the same; 'rosbag reindex' is advised, and fits."""
    write_rosbag1(tmp_path / "whole.bag", arrays(20), compression)
    data = (tmp_path / "whole.bag").read_bytes()
    at = data.index(b"index_pos=") + len(b"index_pos=")
    (index_at,) = struct.unpack_from("<Q", data, at)
    path = tmp_path / name
    path.write_bytes(data[:at] + bytes(8) + data[at + 8 : index_at])
    assert counted(path) == counted(tmp_path / "whole.bag") == (1000, 20)
    recording = open_recording(path)
    assert (
        joined(recording.events()).t.tolist()
        == joined(open_recording(tmp_path / "whole.bag").events()).t.tolist()
    )
    assert f"{name} was never closed, or is cut short" in caplog.text
    assert f"rosbag reindex {path}" in recording.remarks[0]


def test_a_chunk_under_way_is_read(tmp_path: Path) -> None:
    """ROS 1 writes a chunk's size when it closes the chunk: until then it says 0, and its messages count."""
    write_rosbag1(tmp_path / "whole.bag", arrays(6))
    data = bytearray((tmp_path / "whole.bag").read_bytes())
    (index_at,) = struct.unpack_from("<Q", data, data.index(b"index_pos=") + 10)
    chunk = data.index(b"compression=none")
    header_end = data.index(b"size=", chunk) + 9
    (chunk_size,) = struct.unpack_from("<I", data, header_end)
    struct.pack_into("<I", data, header_end, 0)
    struct.pack_into("<Q", data, data.index(b"index_pos=") + 10, 0)
    assert header_end + 4 + chunk_size < index_at
    path = tmp_path / "r.bag.active"
    path.write_bytes(data[: header_end + 4 + chunk_size - 10])
    assert counted(path) == (250, 5)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("r.mcap", "mcap recover {}"), ("r.db3", "sqlite3 {} .recover"), ("r.bag", "rosbag reindex {}")],
)
def test_repair_that_is_advised_fits_the_file(tmp_path: Path, name: str, advice: str) -> None:
    """Each kind of file has its own tool."""
    magic = {"r.mcap": b"\x89MCAP0\r\n", "r.db3": b"SQLite format 3\x00", "r.bag": b"#ROSBAG V2.0\n"}[name]
    path = tmp_path / name
    path.write_bytes(magic + bytes(range(256)) * 20)
    with pytest.raises(RecordingError) as error:
        open_recording(path)
    assert advice.format(path) in str(error.value)
    assert "ros2 bag reindex" not in str(error.value)
