"""Decoders of the wire encodings: known answers, a plain reference, and bytes that nobody meant."""

from __future__ import annotations

import array
import dataclasses
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from evspec_ros.errors import EventDecodingError
from evspec_ros.events import decoders, line_kernels
from evspec_ros.events.bounds import Outside
from evspec_ros.events.decoders import ENCODINGS, Decoder, DecoderStatistics
from evspec_ros.events.types import Events
from evspec_ros.interfaces import message_texts

Event = tuple[int, int, int, int]


def rows(events: Events) -> list[Event]:
    """Events as (t, x, y, p)."""
    return list(zip(*(field.tolist() for field in (events.t, events.x, events.y, events.p)), strict=True))


def words32(*words: int) -> bytes:
    """Little-endian 32-bit words."""
    return struct.pack(f"<{len(words)}I", *words)


def words16(*words: int) -> bytes:
    """Little-endian 16-bit words."""
    return struct.pack(f"<{len(words)}H", *words)


# Known answers


def recorded_packets(bag: Path) -> Iterator[Any]:
    """The messages of a rosbag2 folder with one topic."""
    store = get_typestore(Stores.ROS2_JAZZY)
    for name, text in message_texts().items():
        store.register(get_types_from_msg(text, name))
    with Reader(bag) as reader:
        for connection, _, data in reader.messages():
            yield store.deserialize_cdr(data, connection.msgtype)


@pytest.mark.parametrize(
    ("name", "messages", "statistics", "sums"),
    [
        ("test_data_evt3_trigger", 105, DecoderStatistics(105, 82_469, 2, 0, 0, 0),
         (1_222_326_831_810_000, 42_078_718, 31_656_267, 41_439)),
        ("test_data_libcaer_rollover", 201, DecoderStatistics(201, 334_331, 0, 0, 0, 0),
         (15_762_826_572_202_229_126, 111_651_612, 82_801_007, 181_908)),
        ("test_data_mono_cd", 2, DecoderStatistics(2, 100, 0, 0, 0, 0), (4_950_000, 34_450, 26_450, 50)),
    ],
)  # fmt: skip
def test_known_answers_of_real_recordings(
    shared_data: Path, name: str, messages: int, statistics: DecoderStatistics, sums: tuple[int, ...]
) -> None:
    """Counts and sums (of t modulo 2^64) are the published ones, exactly."""
    packets = list(recorded_packets(shared_data / "event_camera_codecs" / name))
    assert len(packets) == messages
    decoder = Decoder(packets[0].encoding, packets[0].width, packets[0].height)
    parts = [decoder.decode(packet.events, packet.time_base) for packet in packets]
    fields = ([part.t, part.x, part.y, part.p] for part in parts)
    totals = [
        sum(int(field.sum(dtype=np.uint64)) for field in column) for column in zip(*fields, strict=True)
    ]
    assert (totals[0] % 2**64, *totals[1:]) == sums
    assert decoder.statistics == statistics


# One claim of each format at a time


def test_evt2_fields_stand_where_the_format_says() -> None:
    """Code 28-31, six low bits of time 22-27, x 11-21, y 0-10; 28 high bits in TIME_HIGH; microseconds."""
    data = words32(0x8ABCDEF1, 1 << 28 | 63 << 22 | 7 << 11 | 5, 0 << 28 | 1 << 22 | 9 << 11 | 8)
    high = 0xABCDEF1 << 6
    assert rows(Decoder("evt2", 10, 10).decode(data)) == [
        ((high + 63) * 1000, 7, 5, 1),
        ((high + 1) * 1000, 9, 8, 0),
    ]


def test_evt2_emits_nothing_before_a_time_high_and_none_after_a_loss_before_the_next() -> None:
    """Time is kept from packet to packet; what came without one is counted."""
    decoder = Decoder("evt2", 10, 10)
    assert rows(decoder.decode(words32(3 << 11 | 4))) == []
    assert len(decoder.decode(words32(0x80000001, 3 << 11 | 4))) == 1
    assert rows(decoder.decode(words32(3 << 11 | 4))) == [(64_000, 3, 4, 0)]
    decoder.resynchronise()
    assert rows(decoder.decode(words32(3 << 11 | 4, 0x80000002, 3 << 11 | 4))) == [(128_000, 3, 4, 0)]
    assert decoder.statistics == DecoderStatistics(4, 3, 0, 0, 0, 2)


@pytest.mark.parametrize(
    ("high", "new_high", "microseconds"),
    [(0xFFFFFFF, 0, 1 << 34), (0x8000001, 0, 1 << 34), (0x8000000, 0, 0), (1000, 900, 900 << 6)],
)
def test_evt2_rolls_over_only_if_time_high_falls_by_more_than_half_its_range(
    high: int, new_high: int, microseconds: int
) -> None:
    """A fall from the top of the 34 bits to their bottom adds 2^34 us, any other is a step back."""
    decoder = Decoder("evt2", 10, 10)
    decoder.decode(words32(0x80000000 | high))
    assert rows(decoder.decode(words32(0x80000000 | new_high, 0)))[0][0] == microseconds * 1000


def test_evt2_passes_over_other_words_and_counts_triggers_and_unknown_codes() -> None:
    """EXT_TRIGGER once the time is known, OTHERS and CONTINUED silently, unknown codes counted."""
    codes = (0xA, 0x8, 0xA, 0xE, 0xF, 0x2, 0xB, 0x0)
    decoder = Decoder("evt2", 10, 10)
    assert len(decoder.decode(words32(*(code << 28 for code in codes)))) == 1
    assert decoder.statistics == DecoderStatistics(1, 1, 1, 2, 0, 0)


def words64(*words: int) -> bytes:
    """Little-endian 64-bit words."""
    return struct.pack(f"<{len(words)}Q", *words)


def upper_half_first(data: bytes) -> bytes:
    """64-bit words as an IMX636 sends them."""
    return np.frombuffer(data, "<u4").reshape(-1, 2)[:, ::-1].tobytes()


def evt21_word(code: int, low: int, x: int, y: int, pixels: int) -> int:
    """One word of EVT 2.1 with events."""
    return code << 60 | low << 54 | x << 43 | y << 32 | pixels


EVT21_HIGH = 8 << 60


def test_evt21_fields_stand_where_the_format_says() -> None:
    """Code 60-63, six low bits of time 54-59, x 43-53, y 32-42, pixels 0-31; 28 high bits in TIME_HIGH."""
    data = words64(
        EVT21_HIGH | 0xABCDEF1 << 32, evt21_word(1, 63, 7, 5, 1 << 31 | 0b101), evt21_word(0, 1, 9, 8, 1)
    )
    high = 0xABCDEF1 << 6
    expected = [((high + 63) * 1000, x, 5, 1) for x in (7, 9, 38)] + [((high + 1) * 1000, 9, 8, 0)]
    assert rows(Decoder("evt21", 100, 10).decode(data)) == expected
    assert rows(Decoder("evt21_legacy", 100, 10).decode(upper_half_first(data))) == expected


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("pixels", [1, 0x80000000, 0x88888888, 0xFFFFFFFF, 0x20000000, 0], ids=hex)
def test_evt21_tells_its_word_order_by_its_first_time_high(legacy: bool, pixels: int) -> None:
    """Whatever the pixels are, also where the first packet has no time yet; options of the name decide."""
    start = words64(evt21_word(1, 0, 3, 2, 1))
    data = words64(EVT21_HIGH | 5 << 32, *(evt21_word(1, k, 32, 7, pixels) for k in range(20)))
    order = upper_half_first if legacy else bytes
    told, named = (
        Decoder("evt21", 64, 10),
        Decoder("evt21;endianness=" + ("legacy" if legacy else "little"), 64, 10),
    )
    for decoder in (told, named):
        decoder.decode(order(start))
    assert rows(told.decode(order(data))) == rows(named.decode(order(data)))
    assert len(told.decode(order(data))) == 20 * pixels.bit_count()


def test_evt21_emits_nothing_before_a_time_high_and_none_after_a_loss_before_the_next() -> None:
    """Time is kept from packet to packet; what came without one is counted pixel by pixel."""
    decoder, event = Decoder("evt21", 40, 10), evt21_word(0, 0, 3, 4, 0b11)
    assert rows(decoder.decode(words64(event))) == []
    assert len(decoder.decode(words64(EVT21_HIGH | 1 << 32, event))) == 2
    assert rows(decoder.decode(words64(event))) == [(64_000, 3, 4, 0), (64_000, 4, 4, 0)]
    decoder.resynchronise()
    assert len(decoder.decode(words64(event, EVT21_HIGH | 2 << 32, event))) == 2
    assert decoder.statistics == DecoderStatistics(4, 6, 0, 0, 0, 4)


def test_evt21_passes_over_other_words_and_counts_triggers_and_unknown_codes() -> None:
    """EXT_TRIGGER once the time is known, OTHERS and CONTINUED silently, unknown codes counted."""
    codes = (0xA, 0x8, 0xA, 0xE, 0xF, 0x2, 0xB, 0x0)
    decoder = Decoder("EVT21;height=10;width=10;endianness=little", 10, 10)
    assert len(decoder.decode(words64(*(code << 60 | 1 for code in codes)))) == 1
    assert decoder.statistics == DecoderStatistics(1, 1, 1, 2, 0, 0)


def test_evt21_rolls_over_as_evt2_does() -> None:
    """A fall of TIME_HIGH from the top of its 28 bits to the bottom adds 2^34 us."""
    decoder = Decoder("evt21", 40, 10)
    decoder.decode(words64(EVT21_HIGH | 0xFFFFFFF << 32))
    assert rows(decoder.decode(words64(EVT21_HIGH, 1)))[0][0] == (1 << 34) * 1000


@pytest.mark.parametrize(
    ("encoding", "data", "first", "size"),
    [
        ("evt2", words32(0x80000000, 12 << 11 | 3, 4 << 11 | 30), (12, 3), (13, 31)),
        ("evt21", words64(EVT21_HIGH, evt21_word(1, 0, 8, 3, 0b10101)), (10, 3), (13, 4)),
        ("evt3", words16(0x8000, 0x6000, 0x0003, 0x2000 | 12, 0x001E, 0x2001), (12, 3), (13, 31)),
        ("evt3", words16(0x8000, 0x6000, 0x0003, 0x3000 | 2044, 0x5081), (2044, 3), (2052, 4)),
        ("libcaer_cmp", words16(0x2000 | 12, 0x3003, 0x2001, 0x301E), (12, 3), (13, 31)),
        ("libcaer", struct.pack("<IiIi", 12 << 17 | 3 << 2, 0, 4 << 17 | 30 << 2, 0), (12, 3), (13, 31)),
        ("mono", struct.pack("<QQ", 3 << 48 | 12 << 32, 30 << 48 | 4 << 32), (12, 3), (13, 31)),
    ],
)  # fmt: skip
def test_events_outside_the_sensor_are_told_with_the_first_and_the_size_of_all(
    encoding: str, data: bytes, first: tuple[int, int], size: tuple[int, int]
) -> None:
    """Two events of each packet lie beyond 10 x 10 pixels."""
    decoder = Decoder(encoding, 10, 10)
    assert decoder.outside == Outside()
    decoder.decode(data)
    assert decoder.outside == Outside(2, first, *size)


def test_trigger_packets_hold_edges_and_no_events() -> None:
    """One u64 an edge: counted as triggers."""
    decoder = Decoder("trigger", 10, 10)
    assert len(decoder.decode(struct.pack("<QQ", 1 << 63 | 5, 9), 1000)) == 0
    assert decoder.statistics == DecoderStatistics(1, 0, 2, 0, 0, 0)


def test_mono_fields_stand_where_the_format_says() -> None:
    """Polarity bit 63, y 48-62, x 32-47, nanoseconds 0-31, from time_base on."""
    data = struct.pack("<QQ", 1 << 63 | 5 << 48 | 7 << 32 | 0xFFFFFFFF, 6 << 48 | 8 << 32 | 3)
    assert rows(Decoder("mono", 10, 10).decode(data, 1000)) == [(1000 + 0xFFFFFFFF, 7, 5, 1), (1003, 8, 6, 0)]


def test_libcaer_rolls_over_within_a_packet_and_not_between_packets() -> None:
    """A stamp below its predecessor adds 2^31 us; the next packet starts from its own time_base."""
    decoder = Decoder("libcaer", 100, 100)
    data = struct.pack("<IiIi", 3 << 17 | 4 << 2 | 2, 2**31 - 1, 5 << 17 | 6 << 2, 0)
    assert rows(decoder.decode(data, 10)) == [
        (10 + (2**31 - 1) * 1000, 3, 4, 1),
        (10 + 2**31 * 1000, 5, 6, 0),
    ]
    assert rows(decoder.decode(data[8:], 20)) == [(20, 5, 6, 0)]


@pytest.mark.parametrize("stamps", [(2000, 1000, 2001), (2**31 - 1, 2**30), (2**30, 0), (5, 2**31 - 1, 6)])
def test_libcaer_takes_a_damaged_stamp_for_no_rollover(stamps: tuple[int, ...]) -> None:
    """A rollover goes from the last 17 s to the first 17 s; all other stamps stand for themselves."""
    data = b"".join(struct.pack("<Ii", 0, stamp) for stamp in stamps)
    times = Decoder("libcaer", 100, 100).decode(data).t.tolist()
    expected = [stamp * 1000 for stamp in stamps]
    if stamps[-1] == 6:  # this one cannot be told from a rollover
        expected[-1] += 2**31 * 1000
    assert times == expected


def test_libcaer_skips_and_counts_a_negative_stamp() -> None:
    """A corrupt word neither becomes an event nor counts as a rollover for its neighbours."""
    decoder = Decoder("libcaer", 100, 100)
    data = struct.pack("<IiIiIi", 0, 5, 0, -7, 0, 6)
    assert [row[0] for row in rows(decoder.decode(data))] == [5000, 6000]
    assert decoder.statistics.corrupt_words == 1


def test_libcaer_cmp_keeps_its_column_but_not_its_time_between_messages() -> None:
    """Time starts anew with every message, the x that was named last stays."""
    decoder = Decoder("libcaer_cmp", 100, 100)
    first = words16(0x0002, 0x1003, 0x2000 | 9, 0x3800 | 8)
    assert rows(decoder.decode(first, 50)) == [(50 + 1000 * (2 << 12 | 3), 9, 8, 1)]
    assert rows(decoder.decode(words16(0x3000 | 7), 60)) == [(60, 9, 7, 0)]


def test_libcaer_cmp_vectors_run_along_y_and_move_their_base() -> None:
    """VECT_8 emits base + i per set bit, and the next one goes on eight pixels further."""
    data = words16(0x2000 | 9, 0x4800 | 20, 0x5000 | 0b1000_0001, 0x5000 | 0b10)
    assert [row[1:] for row in rows(Decoder("libcaer_cmp", 100, 100).decode(data))] == [
        (9, 20, 1), (9, 27, 1), (9, 29, 1),
    ]  # fmt: skip


def test_evt3_emits_nothing_before_a_time_high_and_then_a_time_low() -> None:
    """A TIME_LOW without a TIME_HIGH before it gives no time; y and vector base are kept all the same."""
    decoder = Decoder("evt3", 100, 100)
    early = words16(0x6005, 0x0003, 0x2001, 0x8001, 0x2002, 0x3000 | 50, 0x5003, 0xA000)
    assert rows(decoder.decode(early)) == []
    time = ((1 << 12) + 4) * 1000
    assert rows(decoder.decode(words16(0x6004, 0x2804, 0x5001))) == [(time, 4, 3, 1), (time, 58, 3, 0)]
    assert decoder.statistics.triggers == 0


def test_evt3_trusts_nothing_after_a_loss_before_time_row_and_base_are_told_anew() -> None:
    """TIME_HIGH, TIME_LOW and ADDR_Y for all events, VECT_BASE_X for vectors; rollovers are kept."""
    decoder = Decoder("evt3", 100, 100)
    decoder.decode(words16(0x8FFF, 0x6001, 0x0005, 0x3002, 0x2007, 0x5001))
    decoder.resynchronise()
    assert rows(decoder.decode(words16(0x2008, 0x6002, 0x0006, 0x5003, 0x8000, 0x2008, 0xA000))) == []
    again = words16(0x6003, 0x2009, 0x5003, 0x4801, 0x3804, 0x5001)
    time = (2**24 + 3) * 1000
    assert rows(decoder.decode(again)) == [(time, 9, 6, 0), (time, 4, 6, 1)]
    assert decoder.statistics == DecoderStatistics(3, 4, 0, 0, 0, 8)


def test_libcaer_cmp_trusts_nothing_after_a_loss_before_column_and_base_are_told_anew() -> None:
    """ADDR_X for all events, VECT_BASE_Y for vectors."""
    decoder = Decoder("libcaer_cmp", 100, 100)
    decoder.decode(words16(0x2005, 0x4006, 0x3001))
    decoder.resynchronise()
    assert rows(decoder.decode(words16(0x3001, 0x5001, 0x2007, 0x5001, 0x4003, 0x5001))) == [(0, 7, 3, 0)]
    assert decoder.statistics.unplaced == 3


def test_evt3_drops_and_counts_what_lies_outside_the_sensor() -> None:
    """A vector over the right edge keeps what is inside; x never wraps round at 2048."""
    decoder = Decoder("evt3", 2048, 10)
    head = words16(0x8000, 0x6000, 0x0001, 0x3000 | 2040)
    assert [x for _, x, _, _ in rows(decoder.decode(head + words16(0x4FFF, 0x5001)))] == list(
        range(2040, 2048)
    )
    assert rows(decoder.decode(words16(0x000A, 0x2001, 0x3000, 0x5003))) == []
    assert decoder.statistics == DecoderStatistics(2, 8, 0, 0, 4 + 1 + 3, 0)


def test_evt3_vectors_of_any_grouping_move_their_base() -> None:
    """12, 8, 12, 8 in one row: base + i per set bit, base moved by the vector's own length."""
    data = words16(0x8000, 0x6000, 0x0007, 0x3800 | 10, 0x4801, 0x5081, 0x4001, 0x5001)
    assert [row[1:] for row in rows(Decoder("evt3", 100, 100).decode(data))] == [
        (10, 7, 1), (21, 7, 1), (22, 7, 1), (29, 7, 1), (30, 7, 1), (42, 7, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("high", "new_high", "microseconds"),
    [(0xFFF, 0x000, 1 << 24), (0x00B, 0x000, 1 << 24), (0x00A, 0x000, 0), (0x005, 0x00A, 0xA000)],
)
def test_evt3_rolls_over_only_if_time_high_falls_by_more_than_ten(
    high: int, new_high: int, microseconds: int
) -> None:
    """A large fall adds 2^24 us, a small one is bit noise."""
    decoder = Decoder("evt3", 10, 10)
    decoder.decode(words16(0x8000 | high, 0x6000, 0x0000))
    assert rows(decoder.decode(words16(0x8000 | new_high, 0x2000)))[0][0] == microseconds * 1000


def test_evt3_ignores_the_time_base_and_all_codes_without_events() -> None:
    """OTHERS, CONTINUED and padding are passed over silently, codes that the format lacks are counted."""
    decoder = Decoder("evt3", 10, 10)
    data = words16(
        0x8000, 0x6001, 0x0000, 0xE000, 0x7000, 0xF000, 0x9000, 0xA101, 0x1000, 0xB000, 0xC000, 0xD000, 0x2001
    )
    assert rows(decoder.decode(data, time_base=2**64 - 1)) == [(1000, 1, 0, 0)]
    assert decoder.statistics == DecoderStatistics(1, 1, 1, 4, 0, 0)


# A plain reference, written from the formats' tables, for any bytes


class Reference:
    """The formats, one event at a time; None for what the stream has not told yet."""

    def __init__(self, encoding: str, width: int, height: int) -> None:
        self.encoding, self.width, self.height = encoding, width, height
        self.high: int | None = None
        self.time: int | None = None
        self.line: int | None = None
        self.base: int | None = None
        self.polarity = 0

    def decode(self, data: bytes, time_base: int) -> list[Event]:
        """Events inside the sensor, which has 2048 x 2048 pixels at most where places have 11 bits."""
        most = 2048 if self.encoding in {"evt3", "libcaer_cmp"} else 1 << 16
        events = getattr(self, self.encoding)(data, time_base)
        return [
            event
            for event in events
            if event[1] < min(self.width, most) and event[2] < min(self.height, most)
        ]

    @staticmethod
    def trigger(data: bytes, time_base: int) -> Iterator[Event]:
        """No events."""
        yield from ()

    def evt2(self, data: bytes, _: int) -> Iterator[Event]:
        """One u32 an event, the high bits of its time before."""
        for (word,) in struct.iter_unpack("<I", data):
            code, value = word >> 28, word % 2**28
            if code == 8:
                old = self.high or 0
                turns = old // 2**28 + (old % 2**28 - value > 2**27)
                self.high = turns * 2**28 + value
            elif code < 2 and self.high is not None:
                time = self.high * 64 + value // 2**22
                yield time * 1000, value // 2**11 % 2**11, value % 2**11, code

    def evt21(self, data: bytes, _: int) -> Iterator[Event]:
        """One u64: its upper half as in evt2, its lower one 32 pixels from x on."""
        for (word,) in struct.iter_unpack("<Q", data):
            for time, x, y, p in self.evt2(struct.pack("<I", word >> 32), 0):
                yield from ((time, x + bit, y, p) for bit in range(32) if word >> bit & 1)

    def evt21_legacy(self, data: bytes, _: int) -> Iterator[Event]:
        """The upper half comes first."""
        for upper, lower in struct.iter_unpack("<II", data):
            yield from self.evt21(struct.pack("<II", lower, upper), 0)

    @staticmethod
    def mono(data: bytes, time_base: int) -> Iterator[Event]:
        """One u64 an event."""
        for (word,) in struct.iter_unpack("<Q", data):
            yield time_base + word % 2**32, word // 2**32 % 2**16, word // 2**48 % 2**15, word // 2**63

    @staticmethod
    def libcaer(data: bytes, time_base: int) -> Iterator[Event]:
        """A u32 and an i32 an event."""
        previous = 0
        for pixel, stamp in struct.iter_unpack("<Ii", data):
            if stamp >= 0:
                rolls_over = stamp < 2**24 and previous >= 2**31 - 2**24
                time_base += 2**31 * 1000 if rolls_over else 0
                previous = stamp
                yield time_base + stamp * 1000, pixel >> 17, pixel >> 2 & 0x7FFF, pixel >> 1 & 1

    def vector(self, word: int, bits: int) -> list[int]:
        """The places of the set bits; none before the first base."""
        if self.base is None:
            return []
        places = [self.base + bit for bit in range(bits) if word >> bit & 1]
        self.base += bits
        return places

    def libcaer_cmp(self, data: bytes, time_base: int) -> Iterator[Event]:
        """Columns with events along y."""
        high = low = 0
        for (word,) in struct.iter_unpack("<H", data):
            code, value, polarity = word >> 12, word & 0x7FF, word >> 11 & 1
            high = word & 0xFFF if code == 0 else high
            low = word & 0xFFF if code == 1 else low
            self.line = value if code == 2 else self.line
            time = time_base + 1000 * (high << 12 | low)
            if code == 4:
                self.base, self.polarity = value, polarity
            elif self.line is None:
                self.base = None if self.base is None else self.base + 8 * (code == 5)
            elif code == 3:
                yield time, self.line, value, polarity
            elif code == 5:
                yield from ((time, self.line, y, self.polarity) for y in self.vector(word, 8))

    def evt3(self, data: bytes, _: int) -> Iterator[Event]:
        """Rows with events along x."""
        for (word,) in struct.iter_unpack("<H", data):
            code, value, polarity = word >> 12, word & 0x7FF, word >> 11 & 1
            places: list[int] = []
            if code == 0:
                self.line = value
            elif code == 2:
                places, sign = [value], polarity
            elif code == 3:
                self.base, self.polarity = value, polarity
            elif code in {4, 5}:
                places, sign = self.vector(word, 12 if code == 4 else 8), self.polarity
            elif code == 6 and self.high is not None:
                self.time = self.high * 4096 + (word & 0xFFF)
            elif code == 8:
                new, old = word & 0xFFF, self.high or 0
                turns = old // 4096 + (old % 4096 - new > 10)
                self.high = turns * 4096 + new
                self.time = None if self.time is None else self.high * 4096 + self.time % 4096
            if self.time is not None and self.line is not None:
                yield from ((self.time * 1000, x, self.line, sign) for x in places)


def word_salad(seed: int) -> bytes:
    """400 16-bit words whose codes and values are those the formats tell apart, after a time for evt3."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([0, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 8, 10, 13], 400)
    values = np.where(
        rng.random(400) < 0.7,
        rng.integers(0, 0x1000, 400),
        rng.choice([0, 1, 9, 10, 11, 0x7FF, 0x800, 0xFFF], 400),
    )
    return words16(0x8000, 0x6000, 0x8000, 0x6000, *(codes << 12 | values).tolist())


plausible_words = st.integers(0, 2**32).map(word_salad)
any_bytes = st.binary(max_size=320).map(lambda data: data[: len(data) // 8 * 8])
packets = st.lists(st.one_of(plausible_words, any_bytes), max_size=3)
sides = st.sampled_from([65_536, 2048, 1280, 300, 1])


def settled(encoding: str) -> str:
    """The encoding with a word order that no packet's content changes."""
    return encoding + ";endianness=little" if encoding == "evt21" else encoding


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=150, deadline=None)
@given(packets=packets, time_base=st.integers(0, 2**61), width=sides, height=sides)
def test_any_bytes_decode_as_the_plain_reference_decodes_them(
    encoding: str, packets: list[bytes], time_base: int, width: int, height: int
) -> None:
    """Packet after packet, random words give the reference's events, none outside the sensor."""
    decoder, reference = Decoder(settled(encoding), width, height), Reference(encoding, width, height)
    for packet in packets:
        assert rows(decoder.decode(packet, time_base)) == reference.decode(packet, time_base)


INTERPRETED = """
import sys, numpy as np
from evspec_ros.events.decoders import ENCODINGS, Decoder
salad = np.fromfile(sys.argv[1], np.uint8)
for encoding in ENCODINGS:
    for part in salad.reshape(2, -1):
        decoder = Decoder(encoding, 1500, 1000)
        for packet in np.split(part, 4):
            events = decoder.decode(packet)
            print(encoding, len(events), *(int(field.astype(np.uint64).sum()) for field in
                  (events.t, events.x, events.y, events.p)), decoder.statistics)
"""


def test_no_bytes_make_a_kernel_touch_memory_outside_its_arrays(tmp_path: Path) -> None:
    """Run as Python, where numpy checks every index, the kernels do exactly what they do compiled."""
    noise = np.random.default_rng(3).integers(0, 256, 3200, dtype=np.uint8).tobytes()
    salad = tmp_path / "salad"
    salad.write_bytes(b"".join(word_salad(seed)[8:] for seed in range(4)) + noise)

    def output(**environment: str) -> str:
        command = [sys.executable, "-W", "ignore", "-c", INTERPRETED, str(salad)]
        environment = {**os.environ, **environment}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    compiled = output()
    assert len(compiled.splitlines()) == 8 * len(ENCODINGS)
    assert output(NUMBA_DISABLE_JIT="1") == compiled


@settings(max_examples=60, deadline=None)
@given(packet=plausible_words, cut=st.integers(0, 800))
def test_evt3_does_not_care_where_a_packet_ends(packet: bytes, cut: int) -> None:
    """Cut anywhere between two words, the two halves give the events of the whole."""
    cut = cut // 2 * 2
    halves, whole = Decoder("evt3", 2048, 2048), Decoder("evt3", 2048, 2048)
    head = words16(0x8000, 0x6000)
    parts = rows(halves.decode(head + packet[:cut])) + rows(halves.decode(packet[cut:]))
    assert parts == rows(whole.decode(head + packet))
    assert dataclasses.replace(halves.statistics, packets=1) == whole.statistics


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_event_is_either_inside_the_sensor_or_counted(encoding: str) -> None:
    """What a small sensor drops of a packet is what a large one has more."""
    data = np.random.default_rng(7).integers(0, 256, 80_000, dtype=np.uint8)
    data[3::8] &= 0x7F if encoding != "mono" else 0xFF
    small, large = Decoder(encoding, 300, 200), Decoder(encoding, 65_536, 65_536)
    inside = small.decode(data)
    assert (inside.x < 300).all()
    assert (inside.y < 200).all()
    seen = len(large.decode(data)) + large.statistics.outside_sensor  # 11 bits of a place can be too few
    assert len(inside) + small.statistics.outside_sensor == seen
    assert small.statistics.unplaced == large.statistics.unplaced
    assert small.statistics.events == len(inside)


# What comes in


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_kind_of_buffer_is_decoded_alike(encoding: str) -> None:
    """bytes, bytearray, memoryview, array.array, numpy, unaligned or read-only: the same events."""
    data = np.random.default_rng(1).integers(0, 256, 800, dtype=np.uint8).tobytes()
    unaligned = np.frombuffer(b"\0" + data, np.uint8)[1:]
    expected = rows(Decoder(encoding, 2048, 2048).decode(data))
    for buffer in (
        bytearray(data), memoryview(data), memoryview(b"\0" + data)[1:], array.array("B", data),
        np.frombuffer(data, np.uint8), np.frombuffer(data, np.uint8).copy(), unaligned,
    ):  # fmt: skip
        assert rows(Decoder(encoding, 2048, 2048).decode(buffer)) == expected
    assert len(Decoder(encoding, 1, 1).decode(b"")) == 0


def test_one_compiled_kernel_serves_all_buffers() -> None:
    """Whatever was decoded in this session, no decoder was compiled twice: no pause in mid-stream."""
    decoders.warm_up()
    test_every_kind_of_buffer_is_decoded_alike("evt3")
    assert len(line_kernels.decode_evt3.signatures) == 1
    assert len(line_kernels._count.signatures) == 1


def test_a_decoded_array_may_be_changed_by_its_owner() -> None:
    """Neither the caller's buffer nor its writability is touched."""
    data = np.zeros(8, np.uint8)
    Decoder("mono", 1, 1).decode(data).t[0] = 5
    assert data.flags.writeable
    assert not data.any()


def test_an_unknown_encoding_is_answered_with_the_known_ones() -> None:
    """The error of a stranger names what would be understood."""
    with pytest.raises(
        EventDecodingError,
        match=r"'evt9' is unknown: known ones are evt2, evt21, evt21_legacy, evt3, libcaer_cmp, libcaer, "
        r"mono, trigger",
    ):
        Decoder("evt9", 640, 480)


@pytest.mark.parametrize(
    ("encoding", "size"),
    [("evt2", 6), ("evt21", 12), ("evt3", 3), ("libcaer_cmp", 1), ("libcaer", 12), ("mono", 7)],
)
def test_a_packet_that_is_no_whole_number_of_words_is_refused_and_changes_nothing(
    encoding: str, size: int
) -> None:
    """The error names the length that was found and the size of a word; the stream goes on after it."""
    decoder = Decoder(encoding, 10, 10)
    with pytest.raises(EventDecodingError, match=rf"{encoding} packet of {size} bytes .* bytes each"):
        decoder.decode(bytes(size))
    assert decoder.statistics == DecoderStatistics(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("size", [(0, 480), (640, 0), (-1, 480), (65_537, 480)])
def test_an_impossible_sensor_is_refused(size: tuple[int, int]) -> None:
    """Each side is 1 to 65536 pixels."""
    with pytest.raises(EventDecodingError, match="impossible"):
        Decoder("evt3", *size)


@pytest.mark.parametrize("encoding", ["libcaer_cmp", "libcaer", "mono"])
@pytest.mark.parametrize("time_base", [-1, 2**62, 2**64 - 1])
def test_an_impossible_time_base_is_refused(encoding: str, time_base: int) -> None:
    """Times that would not fit into 64 bits are an error, not a wrapped number."""
    with pytest.raises(EventDecodingError, match="time base"):
        Decoder(encoding, 10, 10).decode(bytes(8), time_base)
