"""Keeping the node's memory at what it needs."""

from __future__ import annotations

import ctypes
import gc
import sys

_M_ARENA_MAX = -8  # malloc.h


def use_one_arena() -> None:
    """Have all threads share malloc's heap, before there is a second one; elsewhere than on glibc, nothing.

    glibc gives threads heaps of their own, in each of which the free pages between what is held come into use
    one after the other: megabytes that look like a leak for an hour.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)


def settle() -> None:
    """Leave what was loaded out of garbage collection, until `unsettle`.

    Whether a full collection is worth it Python judges by what there is: with half a million objects of
    libraries there is none for hours, and the lists of free tuples, which it alone empties, grow to
    megabytes. With the rest alone it is cheap and comes often.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # tells the collector how little is left


def unsettle() -> None:
    """Collect what was loaded and is no longer used."""
    gc.unfreeze()
    gc.collect()
