"""EventPackets from their serialised bytes, against rosbags' serialisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serialised import serialised_packet, typestore

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.event_packets import read_cdr

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
uint32, uint64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
FIELDS = {"height": 3, "width": 4, "seq": 5, "time_base": 6, "encoding": "mono", "is_bigendian": False}


@settings(deadline=None)
@given(
    stamp_ns=st.integers(0, 2**31 * 10**9 - 1), frame_id=texts, height=uint32, width=uint32, seq=uint64,
    time_base=uint64, encoding=texts, is_bigendian=st.booleans(), events=st.binary(max_size=20),
)  # fmt: skip
def test_every_field_is_read_as_it_was_serialised(
    stamp_ns: int, frame_id: str, height: int, width: int, seq: int, time_base: int, encoding: str,
    is_bigendian: bool, events: bytes,
) -> None:  # fmt: skip
    """Strings of any length before the numbers move them by the alignment that CDR prescribes."""
    fields = {
        "height": height, "width": width, "seq": seq, "time_base": time_base, "encoding": encoding,
        "is_bigendian": is_bigendian,
    }  # fmt: skip
    packet = read_cdr(serialised_packet(stamp_ns, frame_id=frame_id, events=events, **fields))
    assert (packet.stamp_ns, packet.frame_id, packet.events.tobytes()) == (stamp_ns, frame_id, events)
    assert {name: getattr(packet, name) for name in fields} == fields


@pytest.mark.parametrize("cut", [0, 1, 4, 11, 20, 40, 60, 79])
def test_a_message_cut_short_is_refused(cut: int) -> None:
    """Wherever it ends, nothing beyond is read."""
    whole = serialised_packet(0, events=bytes(8), **FIELDS)
    with pytest.raises(EventDecodingError, match=r"cut short|only \d+ are there|begins with"):
        read_cdr(whole[: min(cut, len(whole) - 1)])


@settings(deadline=None)
@given(at=st.integers(4, 70), value=uint32)
def test_lengths_that_lie_are_refused_or_stay_inside_the_message(at: int, value: int) -> None:
    """Any four bytes overwritten: an error or a packet whose events are part of the message."""
    data = bytearray(serialised_packet(0, frame_id="cam", events=bytes(range(8)), **FIELDS))
    data[at : at + 4] = value.to_bytes(4, "little")
    try:
        packet = read_cdr(bytes(data))
    except EventDecodingError:
        return
    assert packet.events.tobytes() in bytes(data)


def test_events_are_a_view() -> None:
    """No byte of them is copied."""
    data = np.frombuffer(serialised_packet(0, events=bytes(8), **FIELDS), np.uint8)
    assert np.shares_memory(read_cdr(data).events, data)


def test_a_message_serialised_big_endian_is_read() -> None:
    """As rosbags writes it; the order of the events' own words is another matter."""
    kind = "event_camera_msgs/msg/EventPacket"
    little = serialised_packet(7 * 10**9 + 8, frame_id="cam", events=bytes(8), **FIELDS)
    message = typestore().deserialize_cdr(little, kind)
    packet = read_cdr(bytes(typestore().serialize_cdr(message, kind, little_endian=False)))
    assert (packet.stamp_ns, packet.frame_id, len(packet.events)) == (7 * 10**9 + 8, "cam", 8)
    assert {name: getattr(packet, name) for name in FIELDS} == FIELDS


def test_what_is_not_cdr_is_refused() -> None:
    """The first bytes say how it is serialised."""
    with pytest.raises(EventDecodingError, match="begins with 00 02 00 00"):
        read_cdr(b"\0\2\0\0" + bytes(60))
