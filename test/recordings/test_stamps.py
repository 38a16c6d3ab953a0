"""Stamps decades away from all others: told, and without effect on the recording's time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording_files import (
    START_NS,
    event_array,
    image,
    joined,
    mono_packet,
    random_events,
    random_frames,
    ros1_types,
    write_bag,
    write_rosbag1,
)

from evspec_ros.recordings import open_recording
from evspec_ros.recordings.convert import convert
from evspec_ros.recordings.recording import Recording
from evspec_ros.recordings.rosbag2_types import EVENT_PACKET, IMAGE, typestore

DAY_NS = 86_400_000_000_000
STRAYS = {"never stamped": 0, "booting": 12_000_000_000, "far ahead": (2**31 - 1) * 10**9}
FIRST, MIDDLE, LAST = 0, 10, 19

Message = tuple[str, str, int, Any]


def frames(ahead_ns: int = 0, store: Any = None) -> list[Message]:
    """20 images in a second."""
    return [
        ("/image", IMAGE, frame.stamp_ns + ahead_ns, image(frame.stamp_ns, frame.image, store=store))
        for frame in random_frames(20, 1.0)
    ]


def packets(ahead_ns: int = 0) -> list[Message]:
    """20 packets in a second, on a sensor's clock since its boot."""
    sent = [random_events(100, 0.05, index, 7_000_000_000 + index * 50_000_000) for index in range(20)]
    stamps = [START_NS + int(events.t[0]) - 7_000_000_000 for events in sent]
    return [
        ("/events", EVENT_PACKET, stamp + ahead_ns, mono_packet(events, stamp))
        for stamp, events in zip(stamps, sent, strict=True)
    ]


def stamped(messages: list[Message], which: int, stamp_ns: int) -> list[Message]:
    """The messages, one of them with another stamp."""
    stamp = messages[which][3].header.stamp
    stamp.sec, stamp.nanosec = divmod(stamp_ns, 10**9)
    return messages


def recorded(folder: Path, *messages: Message) -> Recording:
    """A bag of these messages."""
    write_bag(folder / "bag", sorted(messages, key=lambda message: message[2]))
    return open_recording(folder / "bag")


def test_the_sample_with_a_stamp_of_0_keeps_its_time(shared_cases: Path) -> None:
    """It lasts half a second, its events are all there, and the image that cannot be placed is told."""
    recording = open_recording(shared_cases / "first_image_stamp_0")
    info = recording.info()
    assert info.duration_s == pytest.approx(0.4997, abs=1e-3)
    assert (info.events.count, info.events.sum_t_ns) == (2000, 514_436_203_000)
    assert re.search(r"1 of .*, on /camera/image_raw, 0\.000 s, 53\.9 years before", info.remarks[0])
    assert [frame.stamp_ns > START_NS - DAY_NS for frame in recording.frames()] == [True] * 10


@pytest.mark.parametrize("stray_ns", STRAYS.values(), ids=STRAYS)
@pytest.mark.parametrize("which", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("ahead_ns", [0, 302 * DAY_NS])
def test_a_stray_image_is_told_and_left_out(
    tmp_path: Path, stray_ns: int, which: int, ahead_ns: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever it is, and however far the log time is from all stamps."""
    messages = [*stamped(frames(ahead_ns), which, stray_ns), *packets(ahead_ns)]
    recording = recorded(tmp_path, *messages)
    clean = recorded(tmp_path / "clean", *frames(ahead_ns), *packets(ahead_ns))
    assert abs(recording.info().duration_s - clean.info().duration_s) < 0.06
    assert len(list(recording.frames())) == recording.info().frames == 19
    assert recording.info().events == clean.info().events
    assert [recording.path.name in line for line in caplog.messages] == [True]
    assert clean.remarks == ()


@pytest.mark.parametrize("stray_ns", STRAYS.values(), ids=STRAYS)
@pytest.mark.parametrize("which", [FIRST, MIDDLE, LAST])
@pytest.mark.parametrize("ahead_ns", [0, 302 * DAY_NS])
def test_events_of_a_stray_packet_keep_their_place(
    tmp_path: Path, stray_ns: int, which: int, ahead_ns: int
) -> None:
    """They have times of their own: all are there, where they would be with a good stamp."""
    recording = recorded(tmp_path, *frames(ahead_ns), *stamped(packets(ahead_ns), which, stray_ns))
    clean = recorded(tmp_path / "clean", *frames(ahead_ns), *packets(ahead_ns))
    assert recording.info().events == clean.info().events
    assert joined(recording.events()).t.tolist() == joined(clean.events()).t.tolist()
    assert (recording.start_ns, recording.stop_ns) == (clean.start_ns, clean.stop_ns)
    assert re.search(r"1 of .* on /events, .* years (before|after) them", recording.remarks[0])


@pytest.mark.parametrize("which", [FIRST, LAST])
def test_a_packet_logged_at_its_stray_stamp_keeps_its_place_roughly(tmp_path: Path, which: int) -> None:
    """Where the log time is as wrong as the stamp, the packets around it say when it was."""
    stray_ns = 0 if which == FIRST else (2**31 - 1) * 10**9
    messages = stamped(packets(), which, stray_ns)
    messages[which] = (*messages[which][:2], stray_ns, messages[which][3])
    recording = recorded(tmp_path, *frames(), *messages)
    assert recording.info().events.count == 2000
    assert recording.info().duration_s < 1.2


def test_most_stamps_count_not_the_topics_with_most_messages(tmp_path: Path) -> None:
    """A driver that never stamps its many packets is the one that is wrong, and log time places them."""
    unstamped = packets(302 * DAY_NS)
    for index in range(20):
        stamped(unstamped, index, 0)
    recording = recorded(tmp_path, *frames(302 * DAY_NS)[:8], *unstamped)
    clean = recorded(tmp_path / "clean", *frames(302 * DAY_NS)[:8], *packets(302 * DAY_NS))
    assert np.abs(joined(recording.events()).t - joined(clean.events()).t).max() < 1_000_000
    assert recording.info().frames == 8
    assert recording.remarks[0].startswith("20 of the messages")


@pytest.mark.parametrize("ros", ["ros1", "ros2"])
def test_single_events_decades_away_are_left_out_of_arrays(tmp_path: Path, ros: str) -> None:
    """An event array's events have times of their own, and one of them may be wrong."""
    store = ros1_types() if ros == "ros1" else typestore()
    messages = []
    for index in range(10):
        events = random_events(50, 0.1, index, START_NS + index * 100_000_000)
        array = event_array(events, START_NS, "dvs_msgs", store)
        messages.append(("/events", "dvs_msgs/msg/EventArray", START_NS + index, array))
    messages[5][3].events[7].ts.sec = 3
    write = write_rosbag1 if ros == "ros1" else write_bag
    write(tmp_path / "r.bag", messages)
    recording = open_recording(tmp_path / "r.bag")
    assert recording.info().events.count == 499
    assert recording.info().duration_s < 1.1
    assert recording.remarks[0].startswith("1 of the messages")


def test_where_nothing_is_known_everything_is_believed(tmp_path: Path) -> None:
    """A recording that begins with many empty arrays keeps the events that come later."""
    store = typestore()
    messages = []
    for index in range(300):
        array = event_array(random_events(1), START_NS, "dvs_msgs", store)
        array.events = array.events if index == 299 else []
        messages.append(("/events", "dvs_msgs/msg/EventArray", START_NS + index**3, array))
    assert recorded(tmp_path, *messages).info().events.count == 1


def test_what_is_converted_has_no_stray(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The bag that is written lasts as long as the recording, and what was left out is told."""
    recorded(tmp_path, *stamped(frames(), FIRST, 0), *packets())
    caplog.clear()
    convert(tmp_path / "bag", tmp_path / "made")
    made = open_recording(tmp_path / "made")
    assert (made.info().duration_s < 1.1, made.info().frames, made.remarks) == (True, 19, ())
    assert "years before them" in caplog.text


def test_a_recording_of_one_day_is_whole(tmp_path: Path) -> None:
    """A slow recording over a day, and one whose log time is all the same, have no strays."""
    slow = [
        (topic, kind, START_NS, image(START_NS + index * DAY_NS // 20, np.zeros((8, 8, 3), np.uint8)))
        for index, (topic, kind, _, _) in enumerate(frames())
    ]
    recording = recorded(tmp_path, *slow)
    assert (recording.info().frames, recording.remarks) == (20, ())
    assert recording.info().duration_s == pytest.approx(0.95 * 86_400)
