"""Messages that hold an array of events, read from their bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.event_arrays import EventArray, read_cdr, read_ros1
from evspec_ros.interfaces import message_texts

PACKAGES = ("dvs_msgs", "prophesee_event_msgs")
Event = tuple[int, int, int, int, bool]  # x, y, sec, nanosec, polarity


def stores() -> dict[str, Typestore]:
    """rosbags' types of ROS 2 and of ROS 1, with both kinds of event arrays."""
    both = {"cdr": get_typestore(Stores.ROS2_HUMBLE), "ros1": get_typestore(Stores.ROS1_NOETIC)}
    for store in both.values():
        for name, text in message_texts().items():
            store.register(get_types_from_msg(text, name))
    return both


STORES = stores()
READERS = {"cdr": read_cdr, "ros1": read_ros1}


def serialised(
    wire: str, events: list[Event], width: int = 640, height: int = 480, frame_id: str = "cam",
    package: str = "dvs_msgs",
) -> bytes:  # fmt: skip
    """The message as rosbags writes it."""
    store = STORES[wire]
    types: Any = store.types
    time = types["builtin_interfaces/msg/Time"]
    sequence = {"seq": 7} if wire == "ros1" else {}
    message = types[f"{package}/msg/EventArray"](
        header=types["std_msgs/msg/Header"](stamp=time(sec=12, nanosec=34), frame_id=frame_id, **sequence),
        height=height, width=width,
        events=[
            types[f"{package}/msg/Event"](x=x, y=y, ts=time(sec=sec, nanosec=nanosec), polarity=polarity)
            for x, y, sec, nanosec, polarity in events
        ],
    )  # fmt: skip
    write = store.serialize_cdr if wire == "cdr" else store.serialize_ros1
    return bytes(write(message, f"{package}/msg/EventArray"))


def rows(array: EventArray) -> list[tuple[int, int, int, int]]:
    """The events as (x, y, t, p)."""
    events = array.events
    return list(zip(events.x.tolist(), events.y.tolist(), events.t.tolist(), events.p.tolist(), strict=True))


EVENTS = st.lists(
    st.tuples(
        st.integers(0, 700), st.integers(0, 500), st.integers(0, 2**31 - 1), st.integers(0, 10**9 - 1),
        st.booleans(),
    ),
    max_size=20,
)  # fmt: skip


@settings(deadline=None)
@given(EVENTS, st.text("abc", max_size=9), st.sampled_from(PACKAGES), st.sampled_from(list(READERS)))
def test_what_rosbags_writes_is_read(events: list[Event], frame_id: str, package: str, wire: str) -> None:
    """Every event inside the sensor comes with its time, whatever the frame's name does to the alignment."""
    array = READERS[wire](serialised(wire, events, frame_id=frame_id, package=package))
    inside = [event for event in events if event[0] < 640 and event[1] < 480]
    assert rows(array) == [(x, y, sec * 10**9 + nanosec, int(p)) for x, y, sec, nanosec, p in inside]
    assert (array.stamp_ns, array.events.width, array.events.height) == (12 * 10**9 + 34, 640, 480)
    assert (array.corrupt, array.outside.count) == (0, len(events) - len(inside))


@pytest.mark.parametrize("wire", READERS)
def test_a_time_that_is_none_is_counted(wire: str) -> None:
    """An event with a second of a billion nanoseconds or more is left out, the others stay."""
    array = READERS[wire](serialised(wire, [(1, 2, 3, 10**9, True), (4, 5, 6, 7, False)]))
    assert rows(array) == [(4, 5, 6 * 10**9 + 7, 0)]
    assert array.corrupt == 1


@settings(deadline=None)
@given(st.data(), st.sampled_from(list(READERS)))
def test_no_bytes_cause_another_error(data: st.DataObject, wire: str) -> None:
    """Cut, overwritten and random messages raise EventDecodingError or give events inside the sensor."""
    message = bytearray(serialised(wire, [(k, k, k, k, True) for k in range(5)]))
    if data.draw(st.booleans()):
        message = message[: data.draw(st.integers(0, len(message)))]
    for at in data.draw(st.lists(st.integers(0, max(len(message) - 1, 0)), max_size=6)):
        message[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
    try:
        array = READERS[wire](message)
    except EventDecodingError:
        return
    assert (array.events.x < array.events.width).all()
    assert (array.events.y < array.events.height).all()
    assert (array.events.t >= 0).all()


@pytest.mark.parametrize("wire", READERS)
def test_every_truncation_is_refused(wire: str) -> None:
    """No byte of the last event may be missing, nor any before it."""
    message = serialised(wire, [(1, 2, 3, 4, True), (5, 6, 7, 8, False)])
    for size in range(len(message)):
        with pytest.raises(EventDecodingError):
            READERS[wire](message[:size])


@pytest.mark.parametrize("wire", READERS)
def test_a_lying_count_is_refused(wire: str) -> None:
    """More events than there are bytes is one sentence, and no memory is taken for them."""
    message = bytearray(serialised(wire, [(1, 1, 1, 1, True)]))
    count_at = len(message) - 13 - 4
    message[count_at : count_at + 4] = (2**32 - 1).to_bytes(4, "little")
    with pytest.raises(EventDecodingError, match=r"announces 4294967295 events, but only 13 bytes"):
        READERS[wire](message)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x00\x00" + bytes(40), "00 00 00 00, which is not little-endian CDR"),
        (b"\x00\x01\x00\x00" + bytes(10), "cut short within its header"),
        (b"\x00\x01\x00\x00" + bytes(40), "0 x 0 pixels is impossible"),
        (b"\x00\x01\x00\x00" + bytes(8) + b"\xff" * 4 + bytes(40), "cut short within its header"),
    ],
)
def test_what_is_no_event_array_is_refused_in_one_sentence(message: bytes, told: str) -> None:
    """The sentence says what was found."""
    with pytest.raises(EventDecodingError, match=told):
        read_cdr(message)


def test_the_buffer_may_be_of_any_kind() -> None:
    """bytes, bytearray and a writeable array give the same events, and stay writeable."""
    message = serialised("cdr", [(1, 2, 3, 4, True)])
    array = np.frombuffer(bytearray(message), np.uint8)
    assert rows(read_cdr(message)) == rows(read_cdr(bytearray(message))) == rows(read_cdr(array))
    assert array.flags.writeable
