"""Both streams as the node receives them: bad messages are refused and counted, restarts are recognised."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from evspec_ros.errors import EventDecodingError, FrameError
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.types import Events
from evspec_ros.ros import ingest
from evspec_ros.ros.ingest import EventStream, ImageStream, newest_end_ns, newest_window

MS = 1_000_000
WIDTH, HEIGHT = 32, 24
SENSOR_ORIGIN = 5_000_000_000  # ROS time at sensor time zero


def packet(seq: int, sensor_ns: int, **changes: Any) -> Any:
    """Ten events 100 us apart from sensor_ns on, with any field changed."""
    t = sensor_ns + np.arange(10) * 100_000
    diagonal = np.arange(10, dtype=np.uint16)
    events = Events(t, diagonal, diagonal, np.ones(10, np.uint8), WIDTH, HEIGHT)
    fields = {
        "seq": seq, "width": WIDTH, "height": HEIGHT, "encoding": "libcaer", "is_bigendian": False,
        "time_base": sensor_ns, "events": encode_libcaer(events, sensor_ns),
    }  # fmt: skip
    return SimpleNamespace(**fields | changes)


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
    return EventStream(1.0, 1_000_000, follow_sensor_clock=True)


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


def send(stream: EventStream, *packets: Any) -> None:
    """Add packets whose stamps say that the sensor's time began at SENSOR_ORIGIN."""
    for each in packets:
        stream.add(each, SENSOR_ORIGIN + each.time_base)


def test_the_window_ends_at_the_newest_event_in_ros_time(events: EventStream, images: ImageStream) -> None:
    """Its events are the last 50 ms of sensor time, and its frames are from before its end."""
    for seq in range(20):
        images.add(image(), SENSOR_ORIGIN + seq * 10 * MS)
        send(events, packet(seq, seq * 10 * MS))
    window = newest_window(events, images, 50 * MS, 2.0)
    assert window is not None
    assert window.stamp_ns == SENSOR_ORIGIN + 190 * MS + 900_000
    assert len(window.events) == 50
    assert window.events.t[-1] == 190 * MS + 900_000
    assert len(window.frames) == 8
    assert window.frames[-1].stamp_ns == SENSOR_ORIGIN + 190 * MS


def test_without_events_the_window_is_empty_and_ends_at_the_newest_frame(
    events: EventStream, images: ImageStream
) -> None:
    """A scene that stands still sends no events and is described all the same."""
    assert newest_window(events, images, 50 * MS, 2.0) is None
    images.add(image(), SENSOR_ORIGIN)
    without_camera = newest_window(events, images, 50 * MS, 2.0)
    assert without_camera is not None
    assert without_camera.stamp_ns == newest_end_ns(events, images) == SENSOR_ORIGIN
    assert (without_camera.events.width, without_camera.events.height) == (4, 3)
    send(events, packet(0, 0))
    images.add(image(), SENSOR_ORIGIN + 900 * MS)
    window = newest_window(events, images, 50 * MS, 2.0)
    assert window is not None
    assert window.stamp_ns == SENSOR_ORIGIN + 900 * MS
    assert len(window.events) == 0


def test_a_first_frame_newer_than_every_event_stands_in(events: EventStream, images: ImageStream) -> None:
    """The first description does not wait for a frame older than its window."""
    send(events, packet(0, 0))
    images.add(image(), SENSOR_ORIGIN + 20 * MS)
    window = newest_window(events, images, 50 * MS, 2.0)
    assert window is not None
    assert len(window.frames) == 8


@pytest.mark.parametrize(
    "bad",
    [
        {"encoding": "evt9"},
        {"events": b"\x01\x02\x03"},
        {"is_bigendian": True},
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


def test_another_camera_takes_over_after_the_first_fell_silent(
    events: EventStream, monotonic: SimpleNamespace
) -> None:
    """A change of size is refused in the middle of a stream and accepted after a second of silence."""
    send(events, packet(0, 0))
    other = packet(0, 10 * MS, width=WIDTH * 2, height=HEIGHT * 2)
    with pytest.raises(EventDecodingError, match="in the middle of a stream"):
        send(events, other)
    monotonic.now += 1.5
    send(events, other)
    assert newest_ns(events) == SENSOR_ORIGIN + 10 * MS + 900_000
    send(events, packet(1, 20 * MS, width=WIDTH * 2, height=HEIGHT * 2))
    assert events.counts.restarts == 1


def test_gaps_in_the_sequence_are_lost_messages(events: EventStream) -> None:
    """Sequence 0, 1, 5, 6 has lost three messages."""
    send(events, *(packet(seq, seq * 10 * MS) for seq in (0, 1, 5, 6)))
    assert events.counts.lost == 3
    assert events.counts.restarts == 0
    events.reset_counts()
    assert events.counts.messages == events.counts.lost == 0


def test_a_restarted_driver_begins_a_new_stream(events: EventStream) -> None:
    """A sequence that starts again leaves no old event in the window, even if the sensor's clock ran on."""
    send(events, *(packet(seq, 1000 * MS + seq * 10 * MS) for seq in range(5)))
    send(events, packet(0, 1050 * MS))
    assert events.counts.restarts == 1
    assert events.counts.lost == 0
    assert len(newest(events).window(500 * MS)) == 10


def test_a_restarted_sensor_clock_is_mapped_anew(events: EventStream) -> None:
    """A driver that starts again with its sensor's clock at zero stamps with ROS time as before."""
    send(events, *(packet(seq, 1000 * MS + seq * 10 * MS) for seq in range(5)))
    events.add(packet(0, 0), SENSOR_ORIGIN + 3000 * MS)
    assert newest_ns(events) == SENSOR_ORIGIN + 3000 * MS + 900_000


def test_a_jump_back_in_time_forgets_what_came_before(events: EventStream, images: ImageStream) -> None:
    """Header stamps that go back by seconds, the sequence running on, clear both buffers."""
    for seq in range(3):
        send(events, packet(seq, 10_000 * MS + seq * 10 * MS))
        images.add(image(), SENSOR_ORIGIN + 10_000 * MS + seq * 10 * MS)
    send(events, packet(3, 0))
    images.add(image(), SENSOR_ORIGIN)
    assert (events.counts.restarts, images.counts.restarts) == (1, 1)
    assert newest_end_ns(events, images) == SENSOR_ORIGIN + 900_000
    assert len(newest(events).window(50 * MS)) == 10


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


def test_a_compressed_image_is_taken_as_it_is(images: ImageStream) -> None:
    """Its pixels and its size are those of the file in it, which may change the stream's size."""
    images.add(image(), 0)
    for at_ns, height in ((10 * MS, 3), (20 * MS, 5)):
        file = cv2.imencode(".png", np.full((height, 4, 3), 128, np.uint8))[1]
        images.add(SimpleNamespace(format="bgr8; png compressed bgr8", data=file.tobytes()), at_ns)
    assert images.counts.restarts == 1
    assert images.buffer.sample(20 * MS, 1.0)[-1].image.shape == (5, 4, 3)
    with pytest.raises(FrameError, match="no JPEG, PNG"):
        images.add(SimpleNamespace(format="jpeg", data=b"torn"), 30 * MS)
    assert images.counts.refused == 1


def test_images_of_another_size_begin_a_new_stream(images: ImageStream) -> None:
    """Frames of two sizes are never mixed in one description."""
    images.add(image(), 0)
    images.add(image(width=2, step=6), 10 * MS)
    assert images.counts.restarts == 1
    assert {frame.image.shape for frame in images.buffer.sample(10 * MS, 1.0)} == {(3, 2, 3)}


def test_events_already_in_ros_time_keep_it() -> None:
    """With event_time=ros no offset is applied."""
    events = EventStream(1.0, 1_000_000, follow_sensor_clock=False)
    send(events, packet(0, 40 * MS))
    assert newest_ns(events) == 40 * MS + 900_000
