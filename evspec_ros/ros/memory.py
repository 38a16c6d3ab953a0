"""Keeping the node's memory at what it needs."""

from __future__ import annotations

import ctypes
import gc
import sys

COLLECTION_PERIOD_S = 10.0
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE = 256 * 1024  # bytes; images, features and messages of events are larger


def use_one_heap() -> None:
    """Have all threads share malloc's heap, before there is a second one, and keep what is large out of it;
    elsewhere than on glibc, nothing.

    glibc gives threads heaps of their own, in each of which the free pages between what is held come into use
    one after the other: megabytes that look like a leak for an hour. What is large and short-lived leaves
    such pages behind, too, once glibc has seen it come and go; it is mapped by itself, and unmapped.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)


def settle() -> None:
    """Leave what was loaded out of garbage collection, until `unsettle`, so that `gc.collect` takes
    milliseconds and can be called every few seconds.

    Python hardly ever makes a full collection of itself where half a million objects of libraries lie about,
    and that alone empties its lists of free tuples, which grow by megabytes meanwhile.
    """
    gc.collect()
    gc.freeze()


def unsettle() -> None:
    """Collect what was loaded and is no longer used, and give its memory back to the system.

    glibc keeps free pages that lie below others in use until it is told otherwise.
    """
    gc.unfreeze()
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
