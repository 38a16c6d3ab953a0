"""Keeping the node's memory at what it needs."""

from __future__ import annotations

import ctypes
import gc
import sys

GIVING_BACK_PERIOD_S = 10.0
_M_ARENA_MAX = -8  # malloc.h


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


_LIBC = _glibc()


def use_one_arena() -> None:
    """Have all threads share malloc's heap, before there is a second one; elsewhere than on glibc, nothing.

    glibc gives threads heaps of their own, in each of which the free pages between what is held come into use
    one after the other: megabytes that look like a leak for an hour.
    """
    if _LIBC is not None:
        _LIBC.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Collect garbage and return the free pages of malloc's heap to the system; milliseconds once settled.

    Without it a moment that needed more than others, as now and then there is one, is never over.
    """
    gc.collect()
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def settle() -> None:
    """Leave what was loaded out of garbage collection, until `unsettle`, so that a collection takes
    milliseconds and can be made every few seconds.

    Python hardly ever makes a full collection of itself where half a million objects of libraries lie about,
    and that alone empties its lists of free tuples, which grow by megabytes meanwhile.
    """
    gc.collect()
    gc.freeze()


def unsettle() -> None:
    """Collect what was loaded and is no longer used."""
    gc.unfreeze()
    gc.collect()
