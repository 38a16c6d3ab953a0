"""Packets of events as cameras send them at full rate, for measuring what takes them in."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evspec_ros.events.decoders import Decoder
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.event_arrays import read_cdr
from evspec_ros.events.line_kernels import EVT3, LIBCAER_CMP, NO_CODE, LineFormat
from evspec_ros.events.types import Events

PACKET_US = 4096  # of one packet, which thus needs one TIME_HIGH
EVENT_ARRAY = "dvs_msgs/EventArray"
_OTHERS, _CONTINUED = 0xE000, 0x7000  # evt3: words that a camera sends in between and that say nothing here


@dataclass(frozen=True, eq=False)
class EventLoad:
    """One packet.

    statistics: how its events lie, "bursts" (in vectors along a line), "singles" (each with time and place of
    its own), "mixed" (both, in no order) or "any" (the encoding knows no other). events: how many there are.
    """

    encoding: str
    statistics: str
    width: int
    height: int
    data: bytes
    events: int


def loads(events: int, width: int = 1280, height: int = 720) -> tuple[EventLoad, ...]:
    """A packet of about so many events, spread over 4.096 ms, for every encoding with events."""
    rng = np.random.default_rng(1)
    t = np.sort(rng.integers(0, PACKET_US, events))
    x, y, p = rng.integers(0, width, events), rng.integers(0, height, events), rng.integers(0, 2, events)
    packets = [
        ("evt3", "bursts", line_bursts(EVT3, events, width, height)),
        ("evt3", "mixed", line_bursts(EVT3, events, width, height, lone=0.7)),
        ("evt3", "singles", evt3_singles(t, x, y, p)),
        ("libcaer_cmp", "bursts", line_bursts(LIBCAER_CMP, events, height, width)),
        ("evt2", "any", _evt2(t, x, y, p)),
        ("evt21", "bursts", evt21(*_bursts(events, width, height))),
        ("evt21", "singles", evt21(t, x, y, p)),
        ("evt21_legacy", "bursts", evt21(*_bursts(events, width, height), legacy=True)),
        ("libcaer", "any", encode_libcaer(_events(t, x, y, p, width, height), 0)),
        ("mono", "any", ((p << 63) | y << 48 | x << 32 | t * 1000).astype("<i8").tobytes()),
        (EVENT_ARRAY, "any", event_array(t, x, y, p, width, height)),
    ]
    return tuple(
        EventLoad(encoding, statistics, width, height, data, _count(encoding, data, width, height))
        for encoding, statistics, data in packets
    )


def _events(
    t: NDArray[np.int64],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    p: NDArray[np.int64],
    width: int,
    height: int,
) -> Events:
    """With their times, given in microseconds, in nanoseconds."""
    return Events(t * 1000, x.astype(np.uint16), y.astype(np.uint16), p.astype(np.uint8), width, height)


def _count(encoding: str, data: bytes, width: int, height: int) -> int:
    if encoding == EVENT_ARRAY:
        return len(read_cdr(data).events)
    return len(Decoder(encoding, width, height).decode(data))


def line_bursts(codes: LineFormat, events: int, places: int, lines: int, lone: float = 0.0) -> bytes:
    """Edges that cross the sensor: groups of 32 pixels along a line, each with 30 % of them in vectors.

    Time moves on every four groups. About 0.6 words an event in evt3, 0.7 in libcaer_cmp. Instead of a share
    `lone` of the groups, here and there, a single event is sent.
    """
    rng = np.random.default_rng(2)
    vectors = (12, 12, 8) if codes.vector_12 != NO_CODE else (8, 8, 8, 8)
    groups = max(1, round(events / (32 * 0.3 * (1 - lone) + lone)))
    low = np.arange(groups) * PACKET_US // groups
    words = np.empty((groups, 5 + len(vectors)), np.int64)
    words[:, 0] = int(codes.high) << 12
    words[:, 1] = int(codes.low) << 12 | low
    words[:, 2] = int(codes.line) << 12 | rng.integers(0, lines, groups)
    first = rng.integers(0, 2, groups) << 11 | rng.integers(0, places // 32, groups) * 32
    words[:, 3] = int(codes.single) << 12 | first
    words[:, 4] = int(codes.base) << 12 | first
    for column, bits in enumerate(vectors, 5):
        code = codes.vector_12 if bits == 12 else codes.vector_8
        mask = (rng.random((groups, bits)) < 0.3) @ (1 << np.arange(bits))
        words[:, column] = int(code) << 12 | mask
    sent = np.ones(words.shape, bool)
    sent[:, 0] = False
    sent[0, 0] = True
    sent[:, 1] = np.arange(groups) % 4 == 0
    sent[:, 3] = rng.random(groups) < lone
    sent[:, 4:] = ~sent[:, 3:4]
    return words[sent].astype("<u2").tobytes()


def evt3_singles(
    t: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64], p: NDArray[np.int64]
) -> bytes:
    """A scene with little in it, as a camera sends it: TIME_HIGH again and again, TIME_LOW and ADDR_Y for
    every event, words of other kinds in between; 4.6 words an event.
    """
    rng = np.random.default_rng(3)
    words = np.empty((len(t), 9), np.int64)
    words[:, :2] = int(EVT3.high) << 12
    words[:, 2] = int(EVT3.low) << 12 | t
    words[:, 3] = int(EVT3.line) << 12 | y
    words[:, 4] = int(EVT3.single) << 12 | p << 11 | x
    words[:, 5:] = _OTHERS, _CONTINUED, _CONTINUED, _CONTINUED
    sent = np.ones(words.shape, bool)
    sent[:, :2] = rng.random((len(t), 2)) < 0.48
    sent[0, 0] = True
    sent[:, 5:] = (rng.random(len(t)) < 0.16)[:, None]
    return words[sent].astype("<u2").tobytes()


def _evt2(t: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64], p: NDArray[np.int64]) -> bytes:
    """A TIME_HIGH wherever the time passes a multiple of 64 us."""
    words = p << 28 | (t & 63) << 22 | x << 11 | y
    turns = np.flatnonzero(np.diff(t >> 6, prepend=-1))
    return np.insert(words, turns, 0x8 << 28 | t[turns] >> 6).astype("<u4").tobytes()


def evt21(
    t: NDArray[np.int64],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    p: NDArray[np.int64],
    *,
    legacy: bool = False,
) -> bytes:
    """Neighbours that are alike share a word, as far as the order of events allows; t in microseconds.

    legacy: with the upper half of every word first.
    """
    heads = p << 28 | (t & 63) << 22 | (x & ~31) << 11 | y
    alike = (np.diff(heads) == 0) & (np.diff(t) == 0) & (np.diff(x) > 0)
    starts = np.flatnonzero(np.r_[True, ~alike])[: len(t)]
    masks = np.bitwise_or.reduceat(1 << (x & 31), starts) if len(t) else x
    words = (heads[starts] << 32 | masks).astype("<u8")
    turns = np.flatnonzero(np.diff(t[starts] >> 6, prepend=-1))
    highs = (0x8 << 28 | t[starts][turns] >> 6 & 0xFFFFFFF).astype("<u8") << np.uint64(32)
    words = np.insert(words, turns, highs)
    return words.view("<u4").reshape(-1, 2)[:, ::-1].tobytes() if legacy else words.tobytes()


def _bursts(events: int, width: int, height: int) -> tuple[NDArray[np.int64], ...]:
    """t, x, y, p of edges that cross the sensor: groups of 32 pixels along a line, 30 % of them at once."""
    rng = np.random.default_rng(2)
    groups = max(1, round(events / (32 * 0.3)))
    group, pixel = np.nonzero(rng.random((groups, 32)) < 0.3)
    first, y, p = (
        rng.integers(0, width // 32, groups) * 32,
        rng.integers(0, height, groups),
        rng.integers(0, 2, groups),
    )
    return group * PACKET_US // groups, first[group] + pixel, y[group], p[group]


def event_array(
    t: NDArray[np.int64],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    p: NDArray[np.int64],
    width: int,
    height: int,
) -> bytes:
    """A dvs_msgs/EventArray as ROS 2 serialises it, its times in microseconds."""
    head = struct.pack("<4siII4xIII", b"\0\1\0\0", 0, 0, 1, height, width, len(t))
    body = np.zeros(16 * len(t), np.uint8)
    numbers = np.arange(len(t))
    pixels = 8 * numbers - (numbers > 0)
    body.view("<u2")[pixels], body.view("<u2")[pixels + 1] = x, y
    body.view("<u4")[4 * numbers + 1], body.view("<u4")[4 * numbers + 2] = t // 10**6, t % 10**6 * 1000
    body[16 * numbers + 12] = p
    return head + body.tobytes()
