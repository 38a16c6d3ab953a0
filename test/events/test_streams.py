"""One code path for what arrives live and what lies in a bag: the same packets give the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from serialised import serialised_packet, typestore

from evspec_ros.errors import EventDecodingError
from evspec_ros.evaluation.event_load import EVENT_ARRAY, loads
from evspec_ros.events.decoders import ENCODINGS, Decoder
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.event_packets import read_cdr
from evspec_ros.events.streams import StreamCounts
from evspec_ros.events.types import Events
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.rosbag2_types import EVENT_PACKET
from evspec_ros.ros import ingest
from evspec_ros.ros.ingest import PacketStream

MS = 1_000_000
START_NS = 1_700_000_000 * 10**9
WIDTH, HEIGHT = 1280, 720
TOPIC = "/event_camera/events"
SWAPPED_BYTES = {
    "evt2": 4, "evt21": 8, "evt21_legacy": 4, "evt3": 2, "libcaer_cmp": 2, "libcaer": 4, "mono": 8,
    "trigger": 8,
}  # fmt: skip

Message = tuple[int, bytes]  # log time, serialised


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of some messages: counts, and the events with the sensor's and the stamps' times."""

    counts: StreamCounts
    t: NDArray[np.int64]
    ros_t: NDArray[np.int64]
    x: NDArray[np.uint16]
    first_problem: str


def live(messages: Sequence[Message], monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """As the node takes them in."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(ingest, "time", clock)
    stream = PacketStream(1000.0, 100_000_000, follow_sensor_clock=True)
    taken, first_problem = [], ""
    take = stream._follower.take

    def watched(message: bytes, at_s: float) -> Any:
        taken.append(take(message, at_s))
        return taken[-1]

    monkeypatch.setattr(stream._follower, "take", watched)
    parts = []
    for log_ns, data in messages:
        clock.now = log_ns / 1e9
        try:
            stream.add(data)
        except EventDecodingError as error:
            first_problem = first_problem or str(error)
        events = taken[-1].events
        if events is not None and len(events):
            offset = taken[-1].clock.to_ros(int(events.t[0])) - int(events.t[0])
            parts.append((events.t, events.t + offset, events.x))
    t, ros_t, x = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Outcome(stream.counts, t, ros_t, x, first_problem)


def from_bag(messages: Sequence[Message], path: Path) -> Outcome:
    """As they are read from a bag."""
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection(TOPIC, EVENT_PACKET, typestore=typestore())
        for log_ns, data in messages:
            writer.write(connection, log_ns, data)
    recording = open_recording(path)
    (topic,) = recording.info().topics
    parts = [
        (piece.events.t, piece.events.t + piece.offset_ns, piece.events.x)
        for piece in recording.pieces()
        if piece.events is not None and len(piece.events)
    ]
    t, ros_t, x = (np.concatenate(column) for column in zip(*parts, strict=True))
    first = topic.first_refusal
    return Outcome(topic.read, t, ros_t, x, first.reason if first else "")


def alike(one: Outcome, other: Outcome) -> None:
    """Fails where the two differ."""
    for name in ("t", "ros_t", "x"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.counts == other.counts
    assert one.first_problem == other.first_problem


def recorded(bag: Path) -> list[Message]:
    """The event messages of a bag."""
    with Reader(bag) as reader:
        return [(log_ns, data) for connection, log_ns, data in reader.messages() if connection.topic == TOPIC]


def packet(seq: int, at_ms: float, **changes: Any) -> Message:
    """A libcaer packet of ten events, logged, stamped and begun at at_ms."""
    at_ns = round(at_ms * MS)
    t = at_ns + np.arange(10) * 100_000
    x = np.arange(10, dtype=np.uint16)
    events = encode_libcaer(Events(t, x, x, np.ones(10, np.uint8), 64, 48), at_ns)
    fields = {
        "seq": seq, "width": 64, "height": 48, "encoding": "libcaer", "is_bigendian": False,
        "time_base": at_ns, "events": events, "frame_id": "cam",
    }  # fmt: skip
    stamp_ns = START_NS + at_ns
    return stamp_ns, serialised_packet(stamp_ns, **fields | changes)


def two_cameras() -> list[Message]:
    """Interleaved, differing in frame; the second one's first packet comes later."""
    return [
        packet(k, 10 * k + shift, frame_id=frame)
        for k in range(30)
        for frame, shift in (("left", 0), ("right", 3))
    ]


CASES: dict[str, tuple[list[Message], StreamCounts]] = {
    "steady": ([packet(k, 10 * k) for k in range(30)], StreamCounts(30, items=300)),
    "two cameras": (two_cameras(), StreamCounts(60, 30, 300)),
    "lost": ([packet(k, 10 * k) for k in range(30) if k not in (7, 8, 20)], StreamCounts(27, 0, 270, 3)),
    "first one of no pixels": (
        [packet(0, 0, width=0, height=0), *(packet(k, 10 * k) for k in range(1, 30))],
        StreamCounts(30, 1, 290),
    ),
    "some of no pixels": (
        [packet(k, 10 * k, **({"width": 0, "height": 0} if k in (5, 6, 29) else {})) for k in range(30)],
        StreamCounts(30, 3, 270),
    ),
    "an odd length": (
        [packet(k, 10 * k, **({"events": b"odd"} if k == 9 else {})) for k in range(30)],
        StreamCounts(30, 1, 290),
    ),
    "cut short": (
        [
            (log_ns, data[:50] if k in (0, 9) else data)
            for k, (log_ns, data) in enumerate(packet(k, 10 * k) for k in range(30))
        ],
        StreamCounts(30, 2, 280),
    ),
    "a driver that was restarted": (
        [packet(k, 10 * k) for k in range(10)] + [packet(k, 400 + 10 * k) for k in range(10)],
        StreamCounts(20, 0, 200, restarts=1),
    ),
    "another size after a pause": (
        [packet(k, 10 * k) for k in range(10)] + [packet(10, 400, width=128)],
        StreamCounts(11, 0, 110, restarts=1),
    ),
    "an impossible number": (
        [packet(2**64 - 1 if k == 9 else k, 10 * k) for k in range(30)],
        StreamCounts(30, 1, 290, 1),
    ),
    "twice": ([packet(k, 10 * k) for k in (0, 1, 1, 2, 3)], StreamCounts(5, 1, 40)),
    "stamps that step back": (
        [packet(k, 5000 + 10 * k) for k in range(10)]
        + [(packet(k, 5000 + 10 * k)[0], packet(k, 10 * k)[1]) for k in range(10, 20)],
        StreamCounts(20, 0, 200, restarts=1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_bag_and_its_replay_give_the_same_events_and_counts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the counts are what was done to the packets."""
    messages, counts = CASES[name]
    outcome = from_bag(messages, tmp_path / "bag")
    alike(live(messages, monkeypatch), outcome)
    numbers = ("messages", "refused", "items", "lost", "corrupt", "unplaced", "restarts")
    assert [getattr(outcome.counts, each) for each in numbers] == [getattr(counts, each) for each in numbers]


@pytest.mark.parametrize("name", ["bigendian_flag", "lost_packets_evt3"])
def test_the_samples_give_live_what_they_give_from_the_file(
    name: str, shared_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events, times and counts."""
    messages = recorded(shared_cases / name)
    alike(live(messages, monkeypatch), from_bag(messages, tmp_path / "bag"))


def test_big_endian_words_are_read(shared_cases: Path) -> None:
    """The sample's events are those of the README, exactly."""
    info = open_recording(shared_cases / "bigendian_flag").info()
    assert info.events.as_dict() == {
        "count": 2000, "on": 989, "off": 1011, "sum_t_ns": 514_436_203_000, "sum_x": 1_268_217,
        "sum_y": 707_688, "t_first_ns": 1_095_000, "t_last_ns": 500_759_000, "width": WIDTH, "height": HEIGHT,
    }  # fmt: skip
    assert info.topics[0].read.refused == 0


def test_events_after_a_loss_have_their_true_time(shared_cases: Path) -> None:
    """Each is one of the complete recording's, and the two missing packets are told."""
    complete = open_recording(shared_cases / "bigendian_flag")  # of the same events
    recording = open_recording(shared_cases / "lost_packets_evt3")
    everything = {
        event for piece in complete.pieces() if piece.events is not None for event in rows(piece.events)
    }
    told = [event for piece in recording.pieces() if piece.events is not None for event in rows(piece.events)]
    assert len(told) == len(set(told)) > 1950
    assert set(told) <= everything
    read = recording.info().topics[0].read
    assert (read.lost, read.unplaced, len(told) + read.unplaced) == (2, 9, 1971)


def rows(events: Events) -> list[tuple[int, ...]]:
    """Events as (t, x, y, p)."""
    return list(zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_is_read_with_swapped_words(encoding: str) -> None:
    """Each word's bytes turned round, by its fields' sizes, give the same events and counters."""
    samples = [load for load in loads(3000, WIDTH, HEIGHT) if load.encoding == encoding != EVENT_ARRAY]
    words = samples[0].data if samples else bytes(range(80))
    unit = SWAPPED_BYTES[encoding]
    swapped = np.frombuffer(words, np.uint8).reshape(-1, unit)[:, ::-1].tobytes()
    little, big = (Decoder(encoding, WIDTH, HEIGHT) for _ in range(2))
    assert rows(little.decode(words, 10**9)) == rows(big.decode(swapped, 10**9, is_bigendian=True))
    assert little.statistics == big.statistics
    with pytest.raises(EventDecodingError, match="is damaged"):
        big.decode(swapped + b"x", 10**9, is_bigendian=True)


def test_a_real_recording_turned_to_big_endian_gives_the_same(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """82,469 evt3 events and its triggers, live."""
    with Reader(shared_data / "event_camera_codecs" / "test_data_evt3_trigger") as reader:
        messages = [(log_ns, data) for _, log_ns, data in reader.messages()]
    turned = []
    for log_ns, data in messages:
        one = read_cdr(data)
        turned.append((log_ns, serialised_packet(
            one.stamp_ns, frame_id=one.frame_id, seq=one.seq, width=one.width, height=one.height,
            encoding=one.encoding, is_bigendian=True, time_base=one.time_base,
            events=one.events.reshape(-1, 2)[:, ::-1].tobytes(),
        )))  # fmt: skip
    alike(live(messages, monkeypatch), live(turned, monkeypatch))


@pytest.mark.parametrize("leap", [10**6, 2**31, 2**32, 2**63, 2**64 - 50])
def test_a_leap_that_no_loss_explains_is_no_loss(leap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One such number is left out; where they go on from there, the stream began anew, which is told."""
    messages = [packet(k, 10 * k) for k in range(10)]
    once = live([*messages, packet(10 + leap, 100), packet(10, 110)], monkeypatch)
    assert (once.counts.lost, once.counts.refused, once.counts.restarts) == (0, 1, 0)
    assert f"Packet {10 + leap} follows packet 9 after 0.010 s" in once.counts.problem
    ever = live([*messages, *(packet(10 + k + leap, 100 + 10 * k) for k in range(30))], monkeypatch)
    assert (ever.counts.lost, ever.counts.restarts) == (0, 1)
    assert "began anew" in ever.counts.restart


@pytest.mark.parametrize(("missing", "seconds"), [(50, 0.01), (5000, 5.0), (100_000, 100.0), (1000, 1.5)])
def test_a_loss_that_time_explains_is_counted(
    missing: int, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few packets at once, or as many as the stream's own rate allows in the time."""
    messages = [packet(k, 2 * k) for k in range(100)]
    after = [packet(99 + missing + 1 + k, 198 + seconds * 1000 + 2 * k) for k in range(10)]
    outcome = live(messages + after, monkeypatch)
    assert (outcome.counts.lost, outcome.counts.refused, outcome.counts.restarts) == (missing, 0, 0)
