"""Decoding evt2, evt21, libcaer, mono and trigger: each word is an event (evt21: up to 32 of them), or says
what time it is.

Every kernel writes the events of `words` into t, x, y, p, which have room for all, and returns their number.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.events.state import (
    CORRUPT,
    EVENTS,
    HIGH,
    HIGH_KNOWN,
    KNOWN,
    TRIGGERS,
    UNPLACED,
    leave_out,
)

EVT2_ROLLOVER_US = 1 << 34
_EVT2_CODES = (0x0, 0x1, 0x8, 0xA, 0xE, 0xF)
_LIBCAER_ROLLOVER_US = 1 << 31
_NEAR_ROLLOVER_US = 1 << 24  # 17 s; a packet is far shorter


@njit(nogil=True, inline="always")
def _evt2_high(high: int, payload: int) -> int:
    """Microseconds of a TIME_HIGH, with all rollovers so far; high: those of the one before, -1 without."""
    rollovers = high & ~(EVT2_ROLLOVER_US - 1) if high >= 0 else 0
    new = rollovers + (payload << 6)
    return new + EVT2_ROLLOVER_US if new < high - EVT2_ROLLOVER_US // 2 else new


@njit(cache=True, nogil=True)
def decode_evt2(
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
    """Prophesee's EVT 2.0: a u32 an event, the upper bits of its time in a word of its own before it."""
    high = state[HIGH]
    n = 0
    for k in range(len(words)):
        word = np.int64(words[k])
        code = word >> 28
        if code <= 0x1:  # CD_OFF, CD_ON
            column, row = word >> 11 & 0x7FF, word & 0x7FF
            if not state[KNOWN]:
                state[UNPLACED] += 1
            elif column < width and row < height:
                t[n], x[n], y[n], p[n] = (high + (word >> 22 & 0x3F)) * 1000, column, row, code
                n += 1
            else:
                leave_out(state, column, row)
        elif code == 0x8:  # EVT_TIME_HIGH
            high = _evt2_high(high, word & 0xFFFFFFF)
            state[KNOWN] = HIGH_KNOWN
        elif code == 0xA:  # EXT_TRIGGER
            if state[KNOWN]:
                state[TRIGGERS] += 1
        elif code < 0xE:  # neither OTHERS nor CONTINUED
            state[CORRUPT] += 1
    state[HIGH] = high
    state[EVENTS] += n
    return n


_SEQUENCE = 0x077CB531  # de Bruijn's: its 32 windows of 5 bits are all different, so each tells a shift
_SHIFTS = np.zeros(32, np.uint16)
_SHIFTS[[(_SEQUENCE << shift & 0xFFFFFFFF) >> 27 for shift in range(32)]] = np.arange(32)


def count_evt21(words: NDArray[np.int64]) -> int:
    """How many events evt21 words stand for at most."""
    return int(_count_evt21(words, 32))


def count_evt21_legacy(words: NDArray[np.int64]) -> int:
    """The same of words with the upper half first."""
    return int(_count_evt21(words, 0))


@njit(cache=True, nogil=True)
def _count_evt21(words: NDArray[np.int64], head_at: int) -> int:
    count = np.int64(0)
    for word in words:
        if word >> head_at & 0xE0000000 == 0:
            bits = word >> (32 - head_at) & 0xFFFFFFFF  # sums of 2, of 4, of 8 bits, then of all bytes
            bits -= bits >> 1 & 0x55555555
            bits = (bits & 0x33333333) + (bits >> 2 & 0x33333333)
            count += ((bits + (bits >> 4) & 0x0F0F0F0F) * 0x01010101 & 0xFFFFFFFF) >> 24
    return int(count)


@njit(nogil=True, inline="always")
def _decode_evt21(
    words: NDArray[np.int64],
    head_at: int,
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    high = state[HIGH]
    n = 0
    for k in range(len(words)):
        head, mask = words[k] >> head_at & 0xFFFFFFFF, words[k] >> (32 - head_at) & 0xFFFFFFFF
        code = head >> 28
        if code <= 0x1:  # EVT_NEG, EVT_POS
            column, row = head >> 11 & 0x7FF, head & 0x7FF
            time = (high + (head >> 22 & 0x3F)) * 1000
            if not (state[KNOWN] and row < height and column + 31 < width):
                mask = _mask_inside(mask, column, row, width, height, state)
            while mask:
                lowest = mask & -mask
                shift = _SHIFTS[np.uintp((lowest * _SEQUENCE & 0xFFFFFFFF) >> 27)]
                t[n], x[n], y[n], p[n] = time, column + np.int64(shift), row, code
                n += 1
                mask ^= lowest
        elif code == 0x8:  # EVT_TIME_HIGH
            high = _evt2_high(high, head & 0xFFFFFFF)
            state[KNOWN] = HIGH_KNOWN
        elif code == 0xA:  # EXT_TRIGGER
            if state[KNOWN]:
                state[TRIGGERS] += 1
        elif code < 0xE:  # neither OTHERS nor CONTINUED
            state[CORRUPT] += 1
    state[HIGH] = high
    state[EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def _mask_inside(mask: int, column: int, row: int, width: int, height: int, state: NDArray[np.int64]) -> int:
    """The bits of the pixels on the sensor; counts the others, and all before the time is known."""
    inside = np.int64(0)
    for bit in range(32):
        if mask >> bit & 1:
            if not state[KNOWN]:
                state[UNPLACED] += 1
            elif column + bit < width and row < height:
                inside |= 1 << bit
            else:
                leave_out(state, column + bit, row)
    return int(inside)


@njit(cache=True, nogil=True)
def decode_evt21(
    words: NDArray[np.int64],
    time_base: int,  # noqa: ARG001 - evt21 has none, but one signature serves all
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    """Prophesee's EVT 2.1: the upper half is EVT 2.0's word, the lower one a bit for each of 32 pixels."""
    return int(_decode_evt21(words, 32, width, height, state, t, x, y, p))


@njit(cache=True, nogil=True)
def decode_evt21_legacy(
    words: NDArray[np.int64],
    time_base: int,  # noqa: ARG001
    width: int,
    height: int,
    state: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.uint16],
    y: NDArray[np.uint16],
    p: NDArray[np.uint8],
) -> int:
    """The same as an IMX636 sends it, the upper half first."""
    return int(_decode_evt21(words, 0, width, height, state, t, x, y, p))


def is_legacy_evt21(words: NDArray[np.int64]) -> bool | None:
    """Whether evt21 words have their upper half first; None where they do not tell.

    Read in the right order there are TIME_HIGHs, whose other half is unused, and no codes without a meaning;
    in the wrong one the codes are bits of pixels.
    """
    halves = words.view("<u4").reshape(-1, 2)
    codes, others = halves >> 28, halves[:, ::-1]
    sense = ((codes == 0x8) & (others == 0)).sum(0) - (~np.isin(codes, _EVT2_CODES)).sum(0)
    if sense[0] == sense[1]:
        sense = (codes == 0x8).sum(0)
    return None if sense[0] == sense[1] else bool(sense[0] > sense[1])


@njit(cache=True, nogil=True)
def decode_libcaer(
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
    """A u32 with x, y, polarity and an i32 with microseconds after time_base."""
    last = np.int64(0)
    origin = np.int64(time_base)
    n = 0
    for k in range(len(words)):
        word = words[k]  # u32 pixel, i32 microseconds
        stamp = word >> 32
        if stamp < 0:
            state[CORRUPT] += 1
            continue
        # A real rollover only: a stamp that was damaged must not move all that follow by 36 minutes.
        if last >= _LIBCAER_ROLLOVER_US - _NEAR_ROLLOVER_US and stamp < _NEAR_ROLLOVER_US:
            origin += _LIBCAER_ROLLOVER_US * 1000
        last = stamp
        column = word >> 17 & 0x7FFF
        row = word >> 2 & 0x7FFF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = origin + stamp * 1000, column, row, word >> 1 & 1
            n += 1
        else:
            leave_out(state, column, row)
    state[EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def decode_mono(
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
    """A u64: polarity, y, x, nanoseconds after time_base."""
    n = 0
    for k in range(len(words)):
        word = words[k]  # polarity 1 bit, y 15, x 16, nanoseconds 32
        column = word >> 32 & 0xFFFF
        row = word >> 48 & 0x7FFF
        if column < width and row < height:
            t[n], x[n], y[n], p[n] = time_base + (word & 0xFFFFFFFF), column, row, word < 0
            n += 1
        else:
            leave_out(state, column, row)
    state[EVENTS] += n
    return n


@njit(cache=True, nogil=True)
def decode_trigger(
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
    """A u64 an edge: polarity, nanoseconds after time_base."""
    state[TRIGGERS] += len(words)  # polarity 1 bit, unused 31, nanoseconds 32
    return 0
