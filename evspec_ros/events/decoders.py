"""Decoders of the wire encodings of event_camera_msgs/EventPacket and of Prophesee's files (all little-endian)."""

from __future__ import annotations

import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.errors import EventDecodingError
from evspec_ros.events.types import Events

PacketData: TypeAlias = "bytes | bytearray | memoryview | array.array[int] | NDArray[np.uint8]"

# What a decoder remembers from packet to packet: places in an array of int64.
_EVENTS, _TRIGGERS, _CORRUPT, _OUTSIDE, _UNPLACED = 0, 1, 2, 3, 4  # counters, see DecoderStatistics
_HIGH = 5  # evt2, evt3: microseconds of the last TIME_HIGH with all rollovers so far, -1 before the first
_TIMED = 6  # evt2, evt3: 1 once a TIME_HIGH came since the start or since a packet was lost
_LOW = 7  # evt3: the last TIME_LOW after such a TIME_HIGH, -1 before the first
_LINE = 8  # evt3: y of the events to come; libcaer_cmp: their x; _NOWHERE where it is not known
_BASE = 9  # where the next vector of events starts on that line; _NOWHERE where it is not known
_POLARITY = 10  # of vectors of events
_STATE_SIZE = 11

_NOWHERE = 1 << 20  # outside every sensor
_EVT2_ROLLOVER_US = 1 << 34
_EVT3_ROLLOVER_US = 1 << 24
_EVT3_JITTER = 10  # TIME_HIGH steps back by this much without a rollover
_LIBCAER_ROLLOVER_NS = (1 << 31) * 1000
_TIME_BASE_LIMIT_NS = 1 << 62  # the year 2116; later ones leave no room for the times within a packet


@dataclass(frozen=True)
class DecoderStatistics:
    """What a decoder has seen since it was made."""

    packets: int
    events: int
    triggers: int  # edges of external trigger signals
    corrupt_words: int  # words that mean nothing in this encoding; they were skipped
    outside_sensor: int  # events at coordinates that the sensor does not have; they were dropped
    unplaced: int  # events dropped at the start or after a loss, before the stream told their time and place


class Decoder:
    """Turns the packets of one stream, in their order, into events; what an encoding carries over is kept.

    evt2 and evt3 are Prophesee's formats (docs.prophesee.ai, "Data encoding formats"), with the sensor's own
    times; libcaer, libcaer_cmp, mono and trigger are those of event_camera_codecs, with times that count from
    the packet's time base. A trigger packet holds no events, only edges that are counted.
    """

    def __init__(self, encoding: str, width: int, height: int) -> None:
        if encoding not in _FORMATS:
            raise EventDecodingError(
                f"The event encoding {encoding!r} is unknown: known ones are {', '.join(ENCODINGS)}."
            )
        if not (0 < width <= 1 << 16 and 0 < height <= 1 << 16):
            raise EventDecodingError(
                f"A sensor of {width} x {height} pixels is impossible: give each side as 1 to 65536 pixels."
            )
        self.encoding = encoding
        self.width = width
        self.height = height
        self._format = _FORMATS[encoding]
        self._packets = 0
        self._state = np.zeros(_STATE_SIZE, np.int64)
        self._state[_HIGH] = -1
        self.resynchronise()

    def resynchronise(self) -> None:
        """A packet was lost: what was carried over is not trusted before the stream says it again.

        evt2 waits for a TIME_HIGH, evt3 for TIME_HIGH, TIME_LOW and ADDR_Y, libcaer_cmp for ADDR_X, vectors for
        their base; events before that are dropped and counted as `unplaced`. It is so at the start, too.
        """
        self._state[_TIMED] = 0
        self._state[_LOW] = -1

    def decode(self, data: PacketData, time_base: int = 0) -> Events:
        """The events of the next packet, in their order on the wire, all inside the sensor.

        data: the packet's field `events`; time_base: its field of that name, nanoseconds, ignored for evt2
        and evt3. Raises EventDecodingError, before any state changes, for a length that is no whole number of words and
        for a time base out of range.
        """
        words = self._words(data)
        if self._format.timed and not 0 <= time_base < _TIME_BASE_LIMIT_NS:
            raise EventDecodingError(
                f"The time base {time_base} of a {self.encoding} packet is out of range: "
                f"it must be nanoseconds from 0 to {_TIME_BASE_LIMIT_NS - 1}."
            )
        self._packets += 1
        table = self._format.events_per_word
        most = len(words) if table is None else _count(words, table)
        t, x, y, p = np.empty(most, np.int64), *np.empty((2, most), np.uint16), np.empty(most, np.uint8)
        origin = int(time_base) if self._format.timed else 0
        count = self._format.decode(words, origin, self.width, self.height, self._state, t, x, y, p)
        return Events(t[:count], x[:count], y[:count], p[:count], self.width, self.height)

    @property
    def statistics(self) -> DecoderStatistics:
        """A snapshot of the counters."""
        return DecoderStatistics(self._packets, *self._state[: _UNPLACED + 1].tolist())

    def _words(self, data: PacketData) -> NDArray[Any]:
        raw = np.frombuffer(data, np.uint8)
        size = self._format.word.itemsize
        if len(raw) % size:
            raise EventDecodingError(
                f"A {self.encoding} packet of {len(raw)} bytes is damaged: its words are {size} bytes each."
            )
        words = raw.view(self._format.word)
        words = words if words.flags.aligned else words.copy()
        words.flags.writeable = (
            False  # read-only and aligned whatever came in: one compiled kernel serves all
        )
        return words


def warm_up() -> None:
    """Compiles the decoders, or loads them from numba's cache, so that no packet has to wait for it."""
    for encoding in ENCODINGS:
        Decoder(encoding, 1, 1).decode(b"")


@njit(cache=True, nogil=True)
def _count(words: NDArray[np.uint16], events_per_word: NDArray[np.uint8]) -> int:
    count = 0
    for word in words:
        count += events_per_word[word]
    return count


@njit(cache=True, nogil=True)
def _decode_evt2(
    words: NDArray[np.uint32],
    time_base: int,  # noqa: ARG001 - evt2 has none, but one signature serves all
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    high = state[_HIGH]
    n = 0
    for k in range(len(words)):
        word = np.int64(words[k])
        code = word >> 28
        if code <= 0x1:  # CD_OFF, CD_ON
            column, row = word >> 11 & 0x7FF, word & 0x7FF
            if not state[_TIMED]:
                state[_UNPLACED] += 1
            elif column < width and row < height:
                t[n], x[n], y[n], p[n] = (high + (word >> 22 & 0x3F)) * 1000, column, row, code
                n += 1
            else:
                state[_OUTSIDE] += 1
        elif code == 0x8:  # EVT_TIME_HIGH
            rollovers = high & ~(_EVT2_ROLLOVER_US - 1) if high >= 0 else 0
            new = rollovers + ((word & 0xFFFFFFF) << 6)
            if new < high - _EVT2_ROLLOVER_US // 2:
                new += _EVT2_ROLLOVER_US
            high = new
            state[_TIMED] = 1
        elif code == 0xA:  # EXT_TRIGGER
            if state[_TIMED]:
                state[_TRIGGERS] += 1
        elif code < 0xE:  # neither OTHERS nor CONTINUED
            state[_CORRUPT] += 1
    state[_HIGH] = high
    state[_EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def _decode_evt3(  # noqa: PLR0912, PLR0915 - one branch a code
    words: NDArray[np.uint16],
    time_base: int,  # noqa: ARG001 - evt3 has none, but one signature serves all
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    high, low = state[_HIGH], state[_LOW]
    line, base, polarity = state[_LINE], state[_BASE], state[_POLARITY]
    time_ns = (high + low) * 1000
    n = 0
    for k in range(len(words)):
        word = np.int64(words[k])
        code = word >> 12
        if code == 0x0:  # ADDR_Y; bit 11 is the system type
            line = word & 0x7FF
        elif code == 0x2:  # ADDR_X
            if low < 0:
                continue
            column = word & 0x7FF
            if column < width and line < height:
                t[n], x[n], y[n], p[n] = time_ns, column, line, word >> 11 & 1
                n += 1
            else:
                state[_OUTSIDE] += 1
        elif code == 0x3:  # VECT_BASE_X
            base = word & 0x7FF
            polarity = word >> 11 & 1
        elif code in (0x4, 0x5):  # VECT_12, VECT_8
            bits = 12 if code == 0x4 else 8
            mask = word & ((1 << bits) - 1)
            column = base
            base += bits
            if low < 0:
                continue
            while mask:
                if mask & 1:
                    if column < width and line < height:
                        t[n], x[n], y[n], p[n] = time_ns, column, line, polarity
                        n += 1
                    else:
                        state[_OUTSIDE] += 1
                mask >>= 1
                column += 1
        elif code == 0x6:  # TIME_LOW
            if high >= 0:
                low = word & 0xFFF
                time_ns = (high + low) * 1000
        elif code == 0x8:  # TIME_HIGH
            new = word & 0xFFF
            last = high >> 12 & 0xFFF
            rollovers = high & ~(_EVT3_ROLLOVER_US - 1) if high >= 0 else 0
            if high >= 0 and last - new > _EVT3_JITTER:
                rollovers += _EVT3_ROLLOVER_US
            high = rollovers + (new << 12)
            time_ns = (high + low) * 1000
        elif code == 0xA:  # EXT_TRIGGER
            if low >= 0:
                state[_TRIGGERS] += 1
        elif code in (0x1, 0xB, 0xC, 0xD):
            state[_CORRUPT] += 1
    state[_HIGH], state[_LOW] = high, low
    state[_LINE], state[_BASE], state[_POLARITY] = line, base, polarity
    state[_EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def _decode_libcaer_cmp(  # noqa: PLR0912 - one branch a code
    words: NDArray[np.uint16],
    time_base: int,
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    line, base, polarity = state[_LINE], state[_BASE], state[_POLARITY]
    high, low = np.int64(0), np.int64(0)
    time_ns = np.int64(time_base)
    n = 0
    for k in range(len(words)):
        word = np.int64(words[k])
        code = word >> 12
        if code == 0x3:  # ADDR_Y
            row = word & 0x7FF
            if line < width and row < height:
                t[n], x[n], y[n], p[n] = time_ns, line, row, word >> 11 & 1
                n += 1
            else:
                state[_OUTSIDE] += 1
        elif code == 0x2:  # ADDR_X
            line = word & 0x7FF
        elif code == 0x1:  # TIME_LOW
            low = word & 0xFFF
            time_ns = time_base + (high + low) * 1000
        elif code == 0x0:  # TIME_HIGH
            high = (word & 0xFFF) << 12
            time_ns = time_base + (high + low) * 1000
        elif code == 0x4:  # VECT_BASE_Y
            base = word & 0x7FF
            polarity = word >> 11 & 1
        elif code == 0x5:  # VECT_8
            mask = word & 0xFF
            row = base
            base += 8
            while mask:
                if mask & 1:
                    if line < width and row < height:
                        t[n], x[n], y[n], p[n] = time_ns, line, row, polarity
                        n += 1
                    else:
                        state[_OUTSIDE] += 1
                mask >>= 1
                row += 1
        else:
            state[_CORRUPT] += 1
    state[_LINE], state[_BASE], state[_POLARITY] = line, base, polarity
    state[_EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def _decode_libcaer(
    words: NDArray[np.int64],
    time_base: int,
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    last = 0
    origin = time_base
    n = 0
    for k in range(len(words)):
        word = words[k]  # u32 pixel, i32 microseconds
        stamp = word >> 32
        if stamp < 0:
            state[_CORRUPT] += 1
            continue
        if stamp < last:
            origin += _LIBCAER_ROLLOVER_NS
        last = stamp
        column = word >> 17 & 0x7FFF
        row = word >> 2 & 0x7FFF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = origin + stamp * 1000, column, row, word >> 1 & 1
            n += 1
        else:
            state[_OUTSIDE] += 1
    state[_EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def _decode_mono(
    words: NDArray[np.int64],
    time_base: int,
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    n = 0
    for k in range(len(words)):
        word = words[k]  # polarity 1 bit, y 15, x 16, nanoseconds 32
        column = word >> 32 & 0xFFFF
        row = word >> 48 & 0x7FFF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = time_base + (word & 0xFFFFFFFF), column, row, word < 0
            n += 1
        else:
            state[_OUTSIDE] += 1
    state[_EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def _decode_trigger(
    words: NDArray[np.int64],
    time_base: int,  # noqa: ARG001 - edges are counted, not kept
    width: int,  # noqa: ARG001
    height: int,  # noqa: ARG001
    state: NDArray[np.int64],
    t: NDArray[np.int64],  # noqa: ARG001
    x: NDArray[np.uint16],  # noqa: ARG001
    y: NDArray[np.uint16],  # noqa: ARG001
    p: NDArray[np.uint8],  # noqa: ARG001
) -> int:
    state[_TRIGGERS] += len(words)  # polarity 1 bit, unused 31, nanoseconds 32
    return 0


def _events_per_word(single: int, vectors: dict[int, int]) -> NDArray[np.uint8]:
    """uint8 [65536], how many events each 16-bit word stands for: 1 if its code is `single`, one per bit of
    its mask if its code is in `vectors` (code -> bits in the mask).
    """
    words = np.arange(1 << 16, dtype=np.uint16)
    counts = np.zeros(len(words), np.uint8)
    counts[words >> 12 == single] = 1
    for code, bits in vectors.items():
        for bit in range(bits):
            counts[(words >> 12 == code) & (words >> bit & 1 == 1)] += 1
    return counts


@dataclass(frozen=True, eq=False)
class _Format:
    word: np.dtype[Any]
    timed: bool  # times count from the packet's time_base
    events_per_word: NDArray[np.uint8] | None  # by the word's value; None: one
    decode: Callable[..., int]  # writes the events into t, x, y, p and returns their number


_FORMATS = {
    "evt2": _Format(np.dtype("<u4"), False, None, _decode_evt2),
    "evt3": _Format(np.dtype("<u2"), False, _events_per_word(0x2, {0x4: 12, 0x5: 8}), _decode_evt3),
    "libcaer_cmp": _Format(np.dtype("<u2"), True, _events_per_word(0x3, {0x5: 8}), _decode_libcaer_cmp),
    "libcaer": _Format(np.dtype("<i8"), True, None, _decode_libcaer),
    "mono": _Format(np.dtype("<i8"), True, None, _decode_mono),
    "trigger": _Format(np.dtype("<i8"), True, None, _decode_trigger),
}
ENCODINGS: tuple[str, ...] = tuple(_FORMATS)
