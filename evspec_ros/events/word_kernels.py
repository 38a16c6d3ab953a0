"""Decoding evt2, libcaer, mono and trigger: each word is an event, or says what time it is.

Every kernel writes the events of `words` into t, x, y, p, which have room for one a word, and returns their
number.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evspec_ros.events.state import CORRUPT, EVENTS, HIGH, HIGH_KNOWN, KNOWN, OUTSIDE, TRIGGERS, UNPLACED

EVT2_ROLLOVER_US = 1 << 34
_LIBCAER_ROLLOVER_US = 1 << 31
_NEAR_ROLLOVER_US = 1 << 24  # 17 s; a packet is far shorter


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
                state[OUTSIDE] += 1
        elif code == 0x8:  # EVT_TIME_HIGH
            rollovers = high & ~(EVT2_ROLLOVER_US - 1) if high >= 0 else 0
            new = rollovers + ((word & 0xFFFFFFF) << 6)
            if new < high - EVT2_ROLLOVER_US // 2:
                new += EVT2_ROLLOVER_US
            high = new
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
            state[OUTSIDE] += 1
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
            state[OUTSIDE] += 1
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
