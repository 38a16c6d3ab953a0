"""Decoding evt3 and libcaer_cmp: 16-bit words that name a line of the sensor and then events along it.

Both consist of words whose top 4 bits, the code, say what the other 12 are. Most streams mix them without a
pattern that a processor could predict, so that a branch for each code costs more than all else. Hence two
steps: first each word is put, without a branch, into its lane of one 64-bit register, which becomes a record
where the word stands for an event; then the records are unpacked into columns, several at once.

Words are read from slices, from 0 on: numba need not ask then of every index whether it counts from the end.
The codes are constants of each compiled kernel.

Lanes of 16 bits, from the lowest: the last word with a line, the last with a single event, the last with the
low bits of time, the last with a vector's base. In a record the second lane holds the event's own place and
polarity.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.events.eight import add_eight
from evspec_ros.events.state import (
    CARRIED,
    CORRUPT,
    EVENTS,
    HIGH,
    HIGH_KNOWN,
    KNOWN,
    LINE_KNOWN,
    LOW_KNOWN,
    MOVED,
    NOWHERE,
    TRIGGERS,
    UNPLACED,
    leave_out,
)

NO_CODE = 16
_BLOCK = 512  # words; their records stay in the processor's cache until they are unpacked
_STRIDE = 64  # words looked through at once for one that needs more than its lane
_LONGEST = 12  # pixels of a vector
_PLACES = 1 << 11  # 11 bits of a place
_PLACE_LANE = 0xFFFF << 16
EVT3_ROLLOVER_US = 1 << 24
_JITTER = 10  # TIME_HIGH steps back by this much without a rollover


class LineFormat(NamedTuple):
    """The codes of one format; `single` stands for one event, a `vector_` for one per set bit."""

    line: np.uint16
    single: np.uint16
    low: np.uint16
    base: np.uint16
    vector_8: np.uint16
    vector_12: np.uint16
    high: np.uint16
    trigger: np.uint16
    lone_unknown: np.uint16  # unknown are this one
    first_unknown: np.uint16  # and, triggers apart, those from here
    last_unknown: np.uint16  # to here
    timeless: np.uint16  # 1: time starts from zero in every packet
    column: np.uint16  # 1: a line is a column


def _line_format(*codes: int) -> LineFormat:
    """Codes of 16 bits, like the words: comparing them takes a quarter of what 64 bits take."""
    return LineFormat(*map(np.uint16, codes))


EVT3 = _line_format(0x0, 0x2, 0x6, 0x3, 0x5, 0x4, 0x8, 0xA, 0x1, 0xA, 0xD, 0, 0)
LIBCAER_CMP = _line_format(0x2, 0x3, 0x1, 0x4, 0x5, NO_CODE, 0x0, NO_CODE, 0x6, 0x7, 0xF, 1, 1)


def _events_per_word(codes: LineFormat) -> NDArray[np.uint8]:
    """uint8 [65536], how many events each 16-bit word stands for."""
    words = np.arange(1 << 16, dtype=np.uint16)
    counts = np.zeros(len(words), np.uint8)
    counts[words >> 12 == codes.single] = 1
    for code, bits in ((codes.vector_8, 8), (codes.vector_12, 12)):
        for bit in range(bits):
            counts[(words >> 12 == code) & (words >> bit & 1 == 1)] += 1
    return counts


def _lanes(codes: LineFormat) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each code what of the register is kept, and what moves a word into its lane; int64 [16] each."""
    keep, place = np.full(16, -1, np.int64), np.zeros(16, np.int64)
    for lane, code in enumerate((codes.line, codes.single, codes.low, codes.base)):
        keep[code] = ~np.int64(0xFFFF << 16 * lane) if lane < 3 else (1 << 48) - 1
        place[code] = 1 << 16 * lane
    return keep, place


def _bits() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each byte's set bits as steps in a record's lane of places [256 * 8], and how many they are [256]."""
    places, counts = np.zeros(256 * 8, np.int64), np.zeros(256, np.int64)
    for byte in range(256):
        bits = [bit for bit in range(8) if byte >> bit & 1]
        places[8 * byte : 8 * byte + len(bits)] = [bit << 16 for bit in bits]
        counts[byte] = len(bits)
    return places, counts


_EVT3_KEEP, _EVT3_PLACE = _lanes(EVT3)
_CMP_KEEP, _CMP_PLACE = _lanes(LIBCAER_CMP)
_EVT3_COUNTS, _CMP_COUNTS = _events_per_word(EVT3), _events_per_word(LIBCAER_CMP)
_BIT_PLACES, _BIT_COUNTS = _bits()


@njit(nogil=True, inline="always")
def _is_vector(word: int, codes: LineFormat) -> bool:
    code = word >> 12
    return bool((code == codes.vector_8) | (code == codes.vector_12))


def count_evt3(words: NDArray[np.uint16]) -> int:
    """How many events evt3 words stand for, inside the sensor or not."""
    return int(_count(words, EVT3, _EVT3_COUNTS))


def count_libcaer_cmp(words: NDArray[np.uint16]) -> int:
    """How many events libcaer_cmp words stand for, likewise."""
    return int(_count(words, LIBCAER_CMP, _CMP_COUNTS))


@njit(cache=True, nogil=True)
def _count(words: NDArray[np.uint16], codes: LineFormat, events_per_word: NDArray[np.uint8]) -> int:
    count = np.int64(0)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK]
        singles, vectors = np.uint16(0), np.uint16(0)
        for k in range(len(block)):  # several at once
            word = block[k]
            singles = np.uint16(singles + np.uint16(word >> 12 == codes.single))
            vectors = np.uint16(vectors + np.uint16(_is_vector(word, codes)))
        if vectors:
            for word in block:
                count += np.int64(events_per_word[word])
        else:
            count += np.int64(singles)
    return int(count)


@njit(nogil=True, inline="always")
def _decode(
    words: NDArray[np.uint16],
    time_base: int,
    codes: LineFormat,
    keep: NDArray[np.int64],
    place: NDArray[np.int64],
    lines: int,
    places: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    line: NDArray[np.uint16],
    along: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    if codes.timeless:
        state[HIGH] = 0
        state[CARRIED] &= keep[codes.low]
        state[KNOWN] |= HIGH_KNOWN | LOW_KNOWN
    records = np.empty(_BLOCK * _LONGEST + 8, np.int64)
    n = 0
    k = _skip_unplaced(words, codes, keep, place, state)
    while k < len(words):
        stop, vectors = _plain_until(words, k, codes, state[HIGH])
        if vectors:
            count = _read_vectors(words[k:stop], codes, keep, place, min(places, _PLACES), state, records)
        else:
            count = _read_singles(words[k:stop], codes, keep, place, state, records)
        origin = time_base + state[HIGH] * 1000
        n += _unpack(records, count, origin, codes, lines, places, state, t[n:], line[n:], along[n:], p[n:])
        if stop < len(words) and stop < k + _BLOCK:
            _interpret(np.int64(words[stop]), codes, state)
            stop += 1
        k = stop
    state[EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def _skip_unplaced(
    words: NDArray[np.uint16],
    codes: LineFormat,
    keep: NDArray[np.int64],
    place: NDArray[np.int64],
    state: NDArray[np.int64],
) -> int:
    """Reads until time and line are known, counting the events before; the number of words read."""
    for k in range(len(words)):
        if state[KNOWN] == HIGH_KNOWN | LOW_KNOWN | LINE_KNOWN:
            return k
        word = np.int64(words[k])
        code = word >> 12
        state[CARRIED] = state[CARRIED] & keep[code] | word * place[code]
        if code == codes.line:
            state[KNOWN] |= LINE_KNOWN
        elif code == codes.low:
            if state[KNOWN] & HIGH_KNOWN:
                state[KNOWN] |= LOW_KNOWN
        elif code == codes.base:
            state[MOVED] = 0
        elif code == codes.single:
            state[UNPLACED] += 1
        elif code == codes.vector_8:
            state[UNPLACED] += _BIT_COUNTS[word & 0xFF]
            state[MOVED] += 8
        elif code == codes.vector_12:
            state[UNPLACED] += _BIT_COUNTS[word & 0xFF] + _BIT_COUNTS[word >> 8 & 0xF]
            state[MOVED] += 12
        elif code == codes.high or _is_special(words[k], codes, words[k]):
            _interpret(word, codes, state)
    return len(words)


@njit(cache=True, nogil=True, inline="always")
def _is_special(word: int, codes: LineFormat, high_word: int) -> bool:
    """Whether a word is more than a lane's content: another TIME_HIGH than high_word, a trigger, unknown."""
    code = word >> 12
    return bool(
        ((code == codes.high) & (word != high_word))
        | (code == codes.lone_unknown)
        | ((code >= codes.first_unknown) & (code <= codes.last_unknown))
    )


@njit(nogil=True, inline="always")
def _plain_until(words: NDArray[np.uint16], start: int, codes: LineFormat, high_us: int) -> tuple[int, bool]:
    """Where the first special word from start on is, or the block's end; whether vectors come before."""
    high_word = np.uint16(codes.high << 12 | (high_us >> 12 & 0xFFF))
    stop = min(start + _BLOCK, len(words))
    vectors = np.uint16(0)
    while start < stop:
        end = min(start + _STRIDE, stop)
        special = np.uint16(0)  # sums as narrow as the words: twice as many at once
        part = words[start:end]
        for k in range(len(part)):
            word = part[k]
            special = np.uint16(special + np.uint16(_is_special(word, codes, high_word)))
            vectors = np.uint16(vectors + np.uint16(_is_vector(word, codes)))
        if special:
            break
        start = end
    while start < stop and not _is_special(words[start], codes, high_word):
        start += 1
    return start, bool(vectors)


@njit(cache=True, nogil=True)
def _interpret(word: int, codes: LineFormat, state: NDArray[np.int64]) -> None:
    """Takes in a special word."""
    code, payload = word >> 12, word & 0xFFF
    if code == codes.high:
        high = state[HIGH]
        rollovers = high & ~(EVT3_ROLLOVER_US - 1) if high >= 0 and not codes.timeless else 0
        if not codes.timeless and high >= 0 and (high >> 12 & 0xFFF) - payload > _JITTER:
            rollovers += EVT3_ROLLOVER_US
        state[HIGH] = rollovers + (payload << 12)
        state[KNOWN] |= HIGH_KNOWN
    elif code == codes.trigger:
        if state[KNOWN] & LOW_KNOWN:
            state[TRIGGERS] += 1
    else:
        state[CORRUPT] += 1


@njit(nogil=True, inline="always")
def _read_singles(
    words: NDArray[np.uint16],
    codes: LineFormat,
    keep: NDArray[np.int64],
    place: NDArray[np.int64],
    state: NDArray[np.int64],
    records: NDArray[np.int64],
) -> int:
    """Writes one record for each event of plain words without vectors; their number."""
    carried = state[CARRIED] & (1 << 60) - 1  # without the base's code, to see whether another base comes
    n = np.uintp(0)
    for k in range(len(words)):
        word = np.int64(words[k])
        code = word >> 12
        carried = carried & keep[code] | word * place[code]
        records[n] = carried  # overwritten by the next one, unless this word is an event
        n += np.uintp(code == codes.single)
    if carried >> 60 == codes.base:
        state[MOVED] = 0
    state[CARRIED] = carried
    return int(n)


@njit(nogil=True, inline="always")
def _read_vectors(
    words: NDArray[np.uint16],
    codes: LineFormat,
    keep: NDArray[np.int64],
    place: NDArray[np.int64],
    places: int,
    state: NDArray[np.int64],
    records: NDArray[np.int64],
) -> int:
    """Writes one record for each event of plain words; their number."""
    carried, moved = state[CARRIED], state[MOVED]
    n, k = np.uintp(0), 0  # unsigned indices need no look whether they count from the end
    while k < len(words):
        word = np.int64(words[k])
        code = word >> 12
        carried = carried & keep[code] | word * place[code]
        if code == codes.vector_8 or code == codes.vector_12:  # noqa: PLR1714 - two comparisons are faster
            base = carried >> 48 & 0x7FF
            record = carried & ~_PLACE_LANE | (carried >> 48 & 0x800) << 16
            while code == codes.vector_8 or code == codes.vector_12:  # noqa: PLR1714
                bits = 12 if code == codes.vector_12 else 8
                first, mask = base + moved, word & ((1 << bits) - 1)
                if first + bits <= places:
                    n = _append_eight(records, n, record + (first << 16), mask & 0xFF)
                    if bits == 12:
                        n = _append_eight(records, n, record + ((first + 8) << 16), mask >> 8)
                else:
                    n = np.uintp(
                        _read_at_edge(mask, first, record, codes, places, state, records, np.int64(n))
                    )
                moved += bits
                k += 1
                if k == len(words):
                    break
                word = np.int64(words[k])
                code = word >> 12
        else:
            records[n] = carried  # overwritten by the next one, unless this word is an event
            n += np.uintp(code == codes.single)
            moved = 0 if code == codes.base else moved
            k += 1
    state[CARRIED], state[MOVED] = carried, moved
    return int(n)


@njit(nogil=True, inline="always")
def _append_eight(records: NDArray[np.int64], n: np.uintp, record: int, mask: int) -> np.uintp:
    """Adds a record for each set bit of a byte; how many there are then. What lies beyond is overwritten."""
    add_eight(records, n, record, _BIT_PLACES, mask * 8)
    return np.uintp(n + np.uintp(_BIT_COUNTS[mask]))


@njit(cache=True, nogil=True)
def _read_at_edge(
    mask: int,
    first: int,
    record: int,
    codes: LineFormat,
    places: int,
    state: NDArray[np.int64],
    records: NDArray[np.int64],
    n: int,
) -> int:
    """Adds the records of those events of a vector that are inside the sensor; how many there are then."""
    for bit in range(_LONGEST):
        if mask >> bit & 1:
            if first + bit < places:
                records[n] = record | (first + bit) << 16
                n += 1
            elif first >= NOWHERE:
                state[UNPLACED] += 1
            else:
                _leave_out(record & 0x7FF, first + bit, codes, state)
    return n


@njit(cache=True, nogil=True)
def _leave_out(line: int, along: int, codes: LineFormat, state: NDArray[np.int64]) -> None:
    if codes.column:
        leave_out(state, line, along)
    else:
        leave_out(state, along, line)


@njit(cache=True, nogil=True)
def _unpack(
    records: NDArray[np.int64],
    count: int,
    origin: int,
    codes: LineFormat,
    lines: int,
    places: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    line: NDArray[np.uint16],
    along: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    """Turns records into columns; how many are inside the sensor."""
    outside = 0
    for k in range(count):
        record = records[k]
        row, column = record & 0x7FF, record >> 16 & 0x7FF
        t[k] = origin + (record >> 32 & 0xFFF) * 1000
        line[k] = row
        along[k] = column
        p[k] = record >> 27 & 1
        outside += (row >= lines) | (column >= places)
    if not outside:
        return count
    n = 0
    for k in range(count):
        if line[k] < lines and along[k] < places:
            t[n], line[n], along[n], p[n] = t[k], line[k], along[k], p[k]
            n += 1
        else:
            _leave_out(np.int64(line[k]), np.int64(along[k]), codes, state)
    return n


@njit(cache=True, nogil=True)
def decode_evt3(
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
    """Write the events of evt3 words, rows with events along x, into t, x, y, p; return their number."""
    return int(_decode(words, 0, EVT3, _EVT3_KEEP, _EVT3_PLACE, height, width, state, t, y, x, p))


@njit(cache=True, nogil=True)
def decode_libcaer_cmp(
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
    """Write the events of libcaer_cmp words, columns with events along y, likewise."""
    return int(
        _decode(words, time_base, LIBCAER_CMP, _CMP_KEEP, _CMP_PLACE, width, height, state, t, x, y, p)
    )
