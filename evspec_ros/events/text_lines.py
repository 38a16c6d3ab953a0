"""Events as lines of text, decoded from their bytes: no object per number, and no digit of a time is lost.

A time of nanoseconds since 1970 has 19 digits, a double holds 15 of them; so numbers are read as whole
mantissa and power of ten, whatever notation they are in ("1095", "0.001095", "1.095e-03").
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

LINES, BAD, BAD_LINE, BEYOND_LINE, COUNTS = range(
    5
)  # lines read, those left out, the first of them, see below
BEYOND = 1 << 62  # nanoseconds; a time beyond is none
_NEWLINE, _POINT, _PLUS, _MINUS = (ord(sign) for sign in "\n.+-")
_COMMAS = (ord(","), ord(";"))
_COMMENTS = (ord("#"), ord("%"), ord("/"))
_NO_NUMBER = 1 << 30  # as a power of ten
_MOST_MANTISSA = (2**63 - 10) // 10


def new_counts() -> NDArray[np.int64]:
    """int64 [COUNTS] of nothing read; BAD_LINE and BEYOND_LINE number from 1, 0 without one.

    BEYOND_LINE: the first line whose time nanoseconds in 64 bits do not hold; it is among the BAD ones.
    """
    return np.zeros(COUNTS, np.int64)


@njit(cache=True, nogil=True)
def decode_lines(
    data: NDArray[np.uint8],
    places: NDArray[np.int64],
    power: int,
    counts: NDArray[np.int64],
    t: NDArray[np.int64],
    x: NDArray[np.int64],
    y: NDArray[np.int64],
    p: NDArray[np.int64],
) -> int:
    """Write the events of whole lines into t, x, y, p, which have room for one a line; return their number.

    places: which field of a line is t, x, y and p, from 0 on; power: a unit of time is 10^power ns. Fields
    are separated by spaces, tabs, commas or semicolons; lines without anything and those that begin with #,
    % or / are passed over.
    """
    n = start = 0
    values = np.empty(4, np.int64)
    while start < len(data):
        end = start
        while end < len(data) and data[end] != _NEWLINE:
            end += 1
        counts[LINES] += 1
        at = _skip_blanks(data, start, end)
        if at < end and data[at] not in _COMMENTS:
            found = _read_fields(data, at, end, places, power, values)
            if found == 4 and abs(values[0]) < BEYOND:
                t[n], x[n], y[n], p[n] = values[0], values[1], values[2], values[3]
                n += 1
            else:
                counts[BAD] += 1
                counts[BAD_LINE] = counts[BAD_LINE] or counts[LINES]
                if found == 4:
                    counts[BEYOND_LINE] = counts[BEYOND_LINE] or counts[LINES]
        start = end + 1
    return n


@njit(cache=True, nogil=True)
def _read_fields(
    data: NDArray[np.uint8],
    at: int,
    end: int,
    places: NDArray[np.int64],
    power: int,
    values: NDArray[np.int64],
) -> int:
    """Reads t, x, y and p of one line into values, t as nanoseconds; how many of them are numbers."""
    found = field = 0
    while at < end:
        stop = at
        while stop < end and not _separates(data[stop]):
            stop += 1
        for k in range(4):
            if places[k] == field:
                mantissa, exponent = _number(data, at, stop)
                scaled, exact = _scaled(mantissa, exponent + power if k == 0 else exponent)
                if exponent != _NO_NUMBER and (exact or k == 0):
                    values[k] = scaled
                    found += 1
        at = _skip_blanks(data, stop, end)
        if at < end and data[at] in _COMMAS:
            at = _skip_blanks(data, at + 1, end)
        field += 1
    return found


@njit(cache=True, nogil=True, inline="always")
def _separates(byte: int) -> bool:
    return bool(byte <= 32 or byte in _COMMAS)


@njit(cache=True, nogil=True, inline="always")
def _skip_blanks(data: NDArray[np.uint8], at: int, end: int) -> int:
    while at < end and data[at] <= 32:
        at += 1
    return at


@njit(cache=True, nogil=True)
def _number(data: NDArray[np.uint8], at: int, stop: int) -> tuple[int, int]:
    """The number in data[at:stop] as mantissa and power of ten, the latter _NO_NUMBER where there is none."""
    negative = at < stop and data[at] == _MINUS
    if negative or (at < stop and data[at] == _PLUS):
        at += 1
    mantissa = exponent = np.int64(0)
    digits = 0
    point = False
    while at < stop and (48 <= data[at] < 58 or (data[at] == _POINT and not point)):
        if data[at] == _POINT:
            point = True
        else:
            digits += 1
            if mantissa <= _MOST_MANTISSA:
                mantissa = mantissa * 10 + np.int64(data[at]) - 48
                exponent -= point
            else:
                exponent += not point
        at += 1
    if digits and stop - at >= 2 and data[at] | 32 == 101:  # e, E
        at += 1
        less = data[at] == _MINUS
        if less or data[at] == _PLUS:
            at += 1
        power = np.int64(0)
        digits = 0
        while at < stop and 48 <= data[at] < 58 and power < 1000:
            power = power * 10 + np.int64(data[at]) - 48
            digits += 1
            at += 1
        exponent += -power if less else power
    if not digits or at < stop:
        return 0, _NO_NUMBER
    return int(-mantissa if negative else mantissa), int(exponent)


@njit(cache=True, nogil=True)
def _scaled(mantissa: int, exponent: int) -> tuple[int, bool]:
    """mantissa * 10^exponent rounded, BEYOND where it is at least that; whether it is a whole number."""
    negative, rest = mantissa < 0, abs(mantissa)
    while exponent > 0 and rest:
        if rest >= BEYOND // 10:
            return -BEYOND if negative else BEYOND, True
        rest *= 10
        exponent -= 1
    whole = True
    digit = 0
    while exponent < 0 and (rest or digit):
        whole = whole and rest % 10 == 0
        digit = rest % 10
        rest //= 10
        exponent += 1
    if digit >= 5 and exponent == 0:
        rest += 1
    rest = min(rest, BEYOND)
    return -rest if negative else rest, whole
