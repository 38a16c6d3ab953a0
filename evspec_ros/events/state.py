"""What a decoder remembers from packet to packet: places in an array that its kernel reads and writes."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

EVENTS, TRIGGERS, CORRUPT, OUTSIDE, UNPLACED = range(5)  # counters, see decoders.DecoderStatistics
HIGH = 5  # microseconds of the last TIME_HIGH with all rollovers so far, -1 before the first
KNOWN = 6  # which of the three below the stream has told since the start or since a packet was lost
CARRIED = 7  # evt3, libcaer_cmp: the last words of four kinds, see line_kernels
MOVED = 8  # evt3, libcaer_cmp: pixels from the last vector base to the next vector
OUTSIDE_X, OUTSIDE_Y = 9, 10  # the first event outside the sensor
REACH_X, REACH_Y = 11, 12  # the furthest x and y of those
SIZE = 13

HIGH_KNOWN, LOW_KNOWN, LINE_KNOWN = 1, 2, 4
NOWHERE = 1 << 20  # MOVED before the first base: outside every sensor


def new_state() -> NDArray[np.int64]:
    """int64 [SIZE], the state of a decoder that has seen nothing."""
    state = np.zeros(SIZE, np.int64)
    state[HIGH] = -1
    resynchronise(state)
    return state


def resynchronise(state: NDArray[np.int64]) -> None:
    """Trust nothing carried over; rollovers stay, so that time runs on."""
    state[KNOWN] = 0
    state[MOVED] = NOWHERE


@njit(cache=True, nogil=True)
def leave_out(state: NDArray[np.int64], column: int, row: int) -> None:
    """Count an event at a place that the sensor does not have."""
    if not state[OUTSIDE]:
        state[OUTSIDE_X], state[OUTSIDE_Y] = column, row
    state[OUTSIDE] += 1
    state[REACH_X], state[REACH_Y] = max(state[REACH_X], column), max(state[REACH_Y], row)
