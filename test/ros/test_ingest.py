"""Both streams as the node receives them: bad messages are refused and counted, restarts are recognised."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader
from serialised import serialised_array, serialised_packet

from evspec_ros.errors import EventDecodingError, FrameError
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.event_packets import read_cdr
from evspec_ros.events.types import Events
from evspec_ros.events.window import WindowSize
from evspec_ros.ros import ingest
from evspec_ros.ros.ingest import (
    ArrayStream,
    EventStream,
    ImageStream,
    PacketStream,
    newest_end_ns,
    newest_window,
)

MS = 1_000_000
WIDTH, HEIGHT = 32, 24
SENSOR_ORIGIN = 5_000_000_000  # ROS time at sensor time zero


def packet(seq: int, sensor_ns: int, stamp_ns: int | None = None, **changes: Any) -> bytes:
    """A message of ten events 100 us apart from sensor_ns on, with any field changed.

    Without another stamp it says that the sensor's time began at SENSOR_ORIGIN.
    """
    t = sensor_ns + np.arange(10) * 100_000
    diagonal = np.arange(10, dtype=np.uint16)
    events = Events(t, diagonal, diagonal, np.ones(10, np.uint8), WIDTH, HEIGHT)
    fields = {
        "seq": seq, "width": WIDTH, "height": HEIGHT, "encoding": "libcaer", "is_bigendian": False,
        "time_base": sensor_ns, "events": encode_libcaer(events, sensor_ns),
    }  # fmt: skip
    return serialised_packet(SENSOR_ORIGIN + sensor_ns if stamp_ns is None else stamp_ns, **fields | changes)


def image(**changes: Any) -> Any:
    """A grey rgb8 image with any field changed."""
    fields = {
        "width": 4, "height": 3, "encoding": "rgb8", "step": 12, "is_bigendian": 0, "data": bytes([128] * 36),
    }  # fmt: skip
    return SimpleNamespace(**fields | changes)


def newest(stream: EventStream) -> ingest.Newest:
    """The newest event, which has to exist."""
    found = stream.newest()
    assert found is not None
    return found


def newest_ns(stream: EventStream) -> int:
    """ROS time of the newest event."""
    return newest(stream).ros_ns


@pytest.fixture
def events() -> EventStream:
    """A stream whose sensor clock is followed."""
    return PacketStream(1.0, 1_000_000, follow_sensor_clock=True)


@pytest.fixture
def images() -> ImageStream:
    """Two seconds of images."""
    return ImageStream(2.0, 64)


@pytest.fixture
def monotonic(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The clock that measures silence, set by hand."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(ingest, "time", clock)
    return clock


def send(stream: EventStream, *packets: bytes) -> None:
    """Add packets in their order."""
    for each in packets:
        stream.add(each)


def test_the_window_ends_at_the_newest_event_in_ros_time(events: EventStream, images: ImageStream) -> None:
    """Its events are the last 50 ms of sensor time, and its frames are from before its end."""
    for seq in range(20):
        images.add(image(), SENSOR_ORIGIN + seq * 10 * MS)
        send(events, packet(seq, seq * 10 * MS))
    window = newest_window(events, images, WindowSize(50 * MS), 2.0)
    assert window is not None
    assert window.stamp_ns == SENSOR_ORIGIN + 190 * MS + 900_000
    assert len(window.events) == 50
    assert window.events.t[-1] == 190 * MS + 900_000
    assert len(window.frames) == 8
    assert window.stamp_ns - 2000 * MS / 7 < window.frames[-1].stamp_ns <= SENSOR_ORIGIN + 190 * MS


def test_without_events_the_window_is_empty_and_ends_at_the_newest_frame(
    events: EventStream, images: ImageStream
) -> None:
    """A scene that stands still sends no events and is described all the same."""
    assert newest_window(events, images, WindowSize(50 * MS), 2.0) is None
    images.add(image(), SENSOR_ORIGIN)
    without_camera = newest_window(events, images, WindowSize(50 * MS), 2.0)
    assert without_camera is not None
    assert without_camera.stamp_ns == newest_end_ns(events, images) == SENSOR_ORIGIN
    assert (without_camera.events.width, without_camera.events.height) == (4, 3)
    send(events, packet(0, 0))
    images.add(image(), SENSOR_ORIGIN + 900 * MS)
    window = newest_window(events, images, WindowSize(50 * MS), 2.0)
    assert window is not None
    assert window.stamp_ns == SENSOR_ORIGIN + 900 * MS
    assert len(window.events) == 0


def test_a_first_frame_newer_than_every_event_stands_in(events: EventStream, images: ImageStream) -> None:
    """The first description does not wait for a frame older than its window; frames behind that one do not
    stand in, however many have come.
    """
    send(events, packet(0, 0))
    images.add(image(), SENSOR_ORIGIN + 20 * MS)
    window = newest_window(events, images, WindowSize(50 * MS), 2.0)
    assert window is not None
    assert [frame.stamp_ns - SENSOR_ORIGIN for frame in window.frames] == [20 * MS] * 8
    images.add(image(), SENSOR_ORIGIN + 40 * MS)
    later = newest_window(events, images, WindowSize(50 * MS), 2.0)
    assert later is not None
    assert later.frames == window.frames


@pytest.mark.parametrize(
    "bad",
    [
        {"encoding": "evt9"},
        {"events": b"\x01\x02\x03"},
        {"width": 0},
        {"width": WIDTH + 1},
        {"encoding": "mono"},
    ],
)
def test_a_bad_packet_is_refused_and_the_next_good_one_taken(
    events: EventStream, bad: dict[str, Any]
) -> None:
    """Whatever is wrong with a packet, it is counted with its reason and the stream goes on."""
    send(events, packet(0, 0))
    with pytest.raises(EventDecodingError) as refusal:
        send(events, packet(1, 10 * MS, **bad))
    send(events, packet(2, 20 * MS))
    counts = events.counts
    assert (counts.messages, counts.refused, counts.items) == (3, 1, 20)
    assert counts.problem == str(refusal.value)
    assert newest_ns(events) == SENSOR_ORIGIN + 20 * MS + 900_000


@pytest.mark.parametrize(
    "other",
    [{"width": 64, "height": 48}, {"encoding": "mono", "events": b""}, {"frame_id": "left"}, {"seq": 3}],
)
def test_of_two_cameras_on_one_topic_the_first_is_followed(
    events: EventStream, monotonic: SimpleNamespace, other: dict[str, Any]
) -> None:
    """Alternating packets of another frame, size, encoding or sequence are refused, and counted."""
    for k in range(20):
        send(events, packet(100 + k, k * 10 * MS))
        stranger = packet(**{"seq": 101 + k, "sensor_ns": k * 10 * MS} | other)
        with pytest.raises(EventDecodingError, match="in the middle of a stream"):
            send(events, stranger)
        monotonic.now += 0.01
    counts = events.counts
    assert (counts.messages, counts.refused, counts.restarts, counts.lost) == (40, 20, 0, 0)
    assert len(newest(events).window(WindowSize(100 * MS))) == 100


@pytest.mark.parametrize(("first", "second"), [(0, 50), (0, 5000), (5000, 0), (0, 0), (0, 2**64 - 100)])
@pytest.mark.parametrize("counted_apart_ns", [0, 3000 * MS])
def test_of_two_cameras_alike_one_is_followed(
    events: EventStream, monotonic: SimpleNamespace, first: int, second: int, counted_apart_ns: int
) -> None:
    """Same model, no frame: after the first packets windows hold the events of one, at its time; the other's
    packets are refused, one by one. It is the one that came first, unless the other's higher numbers may as
    well be its own after a loss.
    """
    for k in range(40):
        for base, offset_ns in ((first, 0), (second, counted_apart_ns + 1 * MS)):
            stamp_ns = SENSOR_ORIGIN + k * 10 * MS + offset_ns
            with suppress(EventDecodingError):
                send(events, packet(base + k, k * 10 * MS + offset_ns, stamp_ns))
        monotonic.now += 0.01
    counts = events.counts
    assert counts.messages == 80
    assert counts.refused in (39, 40)
    assert "let only one camera publish here" in counts.problem
    assert len(newest(events).window(WindowSize(100 * MS))) == 100
    followed_ns = counted_apart_ns + 1 * MS if second == 50 else 0
    assert newest_ns(events) == SENSOR_ORIGIN + 390 * MS + followed_ns + 900_000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"width": WIDTH * 2, "height": HEIGHT * 2},
            "64 x 48 pixels in encoding 'libcaer' follow those of 32 x 24",
        ),
        ({"encoding": "mono"}, "in encoding 'mono' follow those of 32 x 24 pixels in encoding 'libcaer'"),
    ],
)
def test_a_camera_set_otherwise_takes_the_place_of_the_one_that_fell_silent(
    events: EventStream, monotonic: SimpleNamespace, change: dict[str, Any], told: str
) -> None:
    """After a fifth of a second another size or encoding is accepted, begins anew, and is told."""
    send(events, packet(7, 0))
    monotonic.now += 0.25
    data = (np.arange(10) << 32).astype("<i8").tobytes() if "encoding" in change else {}
    send(events, packet(8, 300 * MS, **change | ({"events": data} if data else {})))
    assert events.counts.restarts == 1
    assert told in events.counts.restart
    window = newest(events).window(WindowSize(100 * MS))
    assert (window.width, len(window)) == (change.get("width", WIDTH), 10)


def test_a_packet_that_arrives_twice_is_used_once(events: EventStream) -> None:
    """Same number, same stamp; a driver that does not count at all is believed."""
    send(events, packet(7, 0))
    with pytest.raises(EventDecodingError, match="packet 7 arrived twice"):
        send(events, packet(7, 0))
    send(events, packet(7, 10 * MS))
    assert (events.counts.items, events.counts.refused, events.counts.lost) == (20, 1, 0)


def evt3_packet(seq: int, *words: int, stamp_ns: int = 0) -> bytes:
    """An evt3 message of these words."""
    data = np.array(words, "<u2").tobytes()
    return packet(seq, 0, stamp_ns, encoding="evt3", events=data)


def test_after_a_lost_packet_no_event_is_placed_by_what_may_have_changed(events: EventStream) -> None:
    """evt3 waits for a time and a row, and what it left out is counted."""
    send(events, evt3_packet(0, 0x8000, 0x6001, 0x0003, 0x2001))
    send(events, evt3_packet(2, 0x2002, 0x6002, 0x2003, 0x8000, 0x6003, 0x0004, 0x2005))
    window = newest(events).window(WindowSize(100 * MS))
    assert list(zip(window.t, window.x, window.y, strict=True)) == [(1000, 1, 3), (3000, 5, 4)]
    assert (events.counts.lost, events.counts.unplaced) == (1, 2)


@pytest.mark.parametrize("lost_s", [10.0, 16.7, 16.8, 20.0, 33.6, 100.0])
def test_a_loss_that_hides_rollovers_leaves_time_true(events: EventStream, lost_s: float) -> None:
    """evt3's clock begins again after 16.8 s; after a longer loss the stamps tell how often it did."""
    send(events, evt3_packet(0, 0x8FF0, 0x6000, 0x0003, 0x2001, stamp_ns=SENSOR_ORIGIN))
    before_us = 0xFF0 << 12
    now_us = before_us + round(lost_s * 1e6)
    words = 0x8000 | now_us >> 12 & 0xFFF, 0x6000 | now_us & 0xFFF, 0x0003, 0x2001
    stamp_ns = SENSOR_ORIGIN + round(lost_s * 1e9)
    send(events, evt3_packet(5000, *words, stamp_ns=stamp_ns))
    send(events, evt3_packet(5001, 0x2002, stamp_ns=stamp_ns + 10 * MS))
    assert newest(events).sensor_ns == now_us * 1000
    assert abs(newest_ns(events) - stamp_ns) < 10 * MS
    assert newest(events).window(WindowSize(100 * MS)).t.tolist() == [now_us * 1000] * 2
    assert (events.counts.lost, events.counts.restarts) == (4999, 0)


def test_after_a_gap_of_twenty_seconds_the_window_holds_what_came_since(events: EventStream) -> None:
    """Both clocks ran on: nothing begins anew, the missing packets are counted, no old event stays."""
    send(events, packet(0, 0), packet(2000, 20_000 * MS), packet(2001, 20_010 * MS))
    assert newest_ns(events) == SENSOR_ORIGIN + 20_010 * MS + 900_000
    assert newest(events).window(WindowSize(100 * MS)).t.min() == 20_000 * MS
    assert (events.counts.lost, events.counts.restarts, events.dropped) == (1999, 0, 0)


@pytest.mark.parametrize("stamped_late_ns", [SENSOR_ORIGIN, 0])
def test_a_driver_may_stamp_with_the_hosts_time_or_the_sensors(
    events: EventStream, stamped_late_ns: int
) -> None:
    """Either way the newest event has the time of the stamps."""
    send(events, *(packet(seq, seq * 10 * MS, seq * 10 * MS + stamped_late_ns) for seq in range(20)))
    assert newest_ns(events) == 190 * MS + stamped_late_ns + 900_000
    assert events.counts.restarts == 0


def test_a_replay_of_event_arrays_from_the_start_begins_anew() -> None:
    """Their time steps back, by less than the buffer is long, whatever their stamps say."""
    stream = ArrayStream(1.0, 1_000_000, follow_sensor_clock=True)
    for t in (7_000 * MS, 7_010 * MS, 6_500 * MS):
        stream.add(serialised_array([(3, 4, t, True)], 10, 20))
    assert newest_ns(stream) == 6_500 * MS
    assert (stream.counts.restarts, len(newest(stream).window(WindowSize(100 * MS)))) == (1, 1)


def test_event_arrays_join_a_stream_that_has_ros_time(monotonic: SimpleNamespace) -> None:
    """Serialised dvs_msgs/EventArray; another size in mid-stream is refused."""
    stream = ArrayStream(1.0, 1_000_000, follow_sensor_clock=True)
    stream.add(serialised_array([(3, 4, 7_000_000_123, True)], 10, 20))
    assert newest_ns(stream) == 7_000_000_123
    with pytest.raises(EventDecodingError, match="in the middle of a stream"):
        stream.add(serialised_array([(3, 4, 7_000_000_200, True)], 20, 20))
    assert (stream.counts.items, stream.counts.refused) == (1, 1)


def test_a_window_by_count_holds_the_newest_events(events: EventStream, images: ImageStream) -> None:
    """Of 50 ms with 200 events the last 15."""
    images.add(image(), SENSOR_ORIGIN)
    send(events, *(packet(seq, seq * 10 * MS) for seq in range(20)))
    window = newest_window(events, images, WindowSize(50 * MS, 15), 2.0)
    assert window is not None
    assert window.events.t.tolist() == [180 * MS + k * 100_000 for k in range(5, 10)] + [
        190 * MS + k * 100_000 for k in range(10)
    ]


def test_a_bag_recorded_302_days_after_its_stamps_gives_windows_by_its_stamps(shared_data: Path) -> None:
    """Every packet of the real evt3 recording is used; the window ends at its header's time."""
    stream = PacketStream(60.0, 10_000_000, follow_sensor_clock=True)
    with Reader(shared_data / "event_camera_codecs" / "test_data_evt3_trigger") as reader:
        for _, log_ns, data in reader.messages():
            stream.add(data)
            stamp_ns, logged_after_ns = read_cdr(data).stamp_ns, log_ns - read_cdr(data).stamp_ns
    counts = stream.counts
    assert (counts.messages, counts.items, counts.refused, counts.restarts) == (105, 82_469, 0, 0)
    assert logged_after_ns > 300 * 86_400 * 1000 * MS
    assert abs(newest_ns(stream) - stamp_ns) < 100 * MS
    window = newest(stream).window(WindowSize(50 * MS))
    assert len(window)
    assert (window.t > newest(stream).sensor_ns - 50 * MS).all()


def test_gaps_in_the_sequence_are_lost_messages(events: EventStream) -> None:
    """Sequence 0, 1, 5, 6 has lost three messages."""
    send(events, *(packet(seq, seq * 10 * MS) for seq in (0, 1, 5, 6)))
    assert events.counts.lost == 3
    assert events.counts.restarts == 0
    events.reset_counts()
    assert events.counts.messages == events.counts.lost == 0


def test_a_restarted_driver_begins_a_new_stream(events: EventStream, monotonic: SimpleNamespace) -> None:
    """A sequence that starts again leaves no old event in the window, even if the sensor's clock ran on."""
    send(events, *(packet(seq, 1000 * MS + seq * 10 * MS) for seq in range(5)))
    monotonic.now += 0.5
    send(events, packet(0, 1050 * MS))
    assert events.counts.restarts == 1
    assert events.counts.lost == 0
    assert len(newest(events).window(WindowSize(100 * MS))) == 10


def test_a_restarted_sensor_clock_is_mapped_anew(events: EventStream, monotonic: SimpleNamespace) -> None:
    """A driver that starts again with its sensor's clock at zero stamps with ROS time as before."""
    send(events, *(packet(seq, 1000 * MS + seq * 10 * MS) for seq in range(5)))
    monotonic.now += 0.5
    events.add(packet(0, 0, SENSOR_ORIGIN + 3000 * MS))
    assert newest_ns(events) == SENSOR_ORIGIN + 3000 * MS + 900_000


def test_a_jump_back_in_time_forgets_what_came_before(events: EventStream, images: ImageStream) -> None:
    """Header stamps that go back by seconds, the sequence running on, clear both buffers."""
    for seq in range(3):
        send(events, packet(seq, 10_000 * MS + seq * 10 * MS))
        images.add(image(), SENSOR_ORIGIN + 10_000 * MS + seq * 10 * MS, seq)
    send(events, packet(3, 0))
    images.add(image(), SENSOR_ORIGIN, 3)
    assert (events.counts.restarts, images.counts.restarts) == (1, 1)
    assert newest_end_ns(events, images) == SENSOR_ORIGIN + 900_000
    assert len(newest(events).window(WindowSize(50 * MS))) == 10


@pytest.mark.parametrize("bad", [{"encoding": "32FC1"}, {"data": b"short"}, {"step": 1}, {"width": 0}])
def test_a_bad_image_is_refused_and_the_next_good_one_taken(images: ImageStream, bad: dict[str, Any]) -> None:
    """Whatever is wrong with an image, it is counted with its reason and the stream goes on."""
    images.add(image(), 0)
    with pytest.raises(FrameError) as refusal:
        images.add(image(**bad), 10 * MS)
    images.add(image(), 20 * MS)
    counts = images.counts
    assert (counts.messages, counts.refused, counts.items) == (3, 1, 2)
    assert counts.problem == str(refusal.value)
    assert images.buffer.latest_ns == 20 * MS


def test_a_compressed_image_is_taken_as_it_is(images: ImageStream, monotonic: SimpleNamespace) -> None:
    """Its pixels and its size are those of the file in it, which may change the stream's size."""
    for at_ns, height in ((10 * MS, 3), (20 * MS, 5)):
        monotonic.now += 2.0
        file = cv2.imencode(".png", np.full((height, 4, 3), 128, np.uint8))[1]
        images.add(SimpleNamespace(format="bgr8; png compressed bgr8", data=file.tobytes()), at_ns)
    assert images.counts.restarts == 1
    assert images.buffer.sample(20 * MS, 1.0)[-1].image.shape == (5, 4, 3)
    with pytest.raises(FrameError, match="no JPEG, PNG"):
        images.add(SimpleNamespace(format="jpeg", data=b"torn"), 30 * MS)
    assert images.counts.refused == 1


def test_images_of_another_size_begin_a_new_stream(images: ImageStream, monotonic: SimpleNamespace) -> None:
    """Frames of two sizes are never mixed in one description."""
    images.add(image(), 0)
    monotonic.now += 2.0
    images.add(image(width=2, step=6), 10 * MS)
    assert images.counts.restarts == 1
    assert "2 x 3 pixels in encoding 'rgb8' follow those of 4 x 3 pixels" in images.counts.restart
    assert {frame.image.shape for frame in images.buffer.sample(10 * MS, 1.0)} == {(3, 2, 3)}


def test_events_already_in_ros_time_keep_it() -> None:
    """With event_time=ros no offset is applied."""
    events = PacketStream(1.0, 1_000_000, follow_sensor_clock=False)
    send(events, packet(0, 40 * MS))
    assert newest_ns(events) == 40 * MS + 900_000
