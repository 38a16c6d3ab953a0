"""What keeps the node's memory at what it needs."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator

import pytest

from evspec_ros.ros import memory

HEAPS = """
import ctypes, sys, threading
from evspec_ros.ros.memory import use_one_heap
if sys.argv[1] == "one":
    use_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
gate = threading.Barrier(4)
def allocate():
    gate.wait()
    libc.malloc(5000)
    gate.wait()
threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
stdout = libc.fopen(b"/dev/stdout", b"w")
libc.malloc_info(0, ctypes.c_void_p(stdout))
libc.fflush(ctypes.c_void_p(stdout))
"""


class Loaded:
    """In a circle, as modules and their parts are."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def unsettled() -> Iterator[None]:
    """Whatever happens, other tests find nothing frozen."""
    yield
    gc.unfreeze()


def test_what_was_loaded_is_left_alone_until_it_is_let_go(unsettled: None) -> None:
    """Frozen, later circles are collected; unsettled, those from before are, too."""
    before = Loaded()
    memory.settle()
    assert gc.get_freeze_count() > 10_000
    later = Loaded()
    watched = weakref.ref(before), weakref.ref(later)
    del before, later
    gc.collect()
    assert [each() is None for each in watched] == [False, True]
    memory.unsettle()
    assert gc.get_freeze_count() == 0
    assert watched[0]() is None


def test_a_collection_is_cheap_once_settled(unsettled: None) -> None:
    """However much was loaded before."""
    loaded = [[k] for k in range(1_000_000)]
    gc.collect()
    before = collection_s()
    memory.settle()
    assert collection_s() < before / 5
    assert len(loaded) == 1_000_000


def collection_s() -> float:
    """Seconds of a full collection, the best of three."""
    times = []
    for _ in range(3):
        began = time.perf_counter()
        gc.collect()
        times.append(time.perf_counter() - began)
    return min(times)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_all_threads_share_one_heap() -> None:
    """Without it, four threads that allocate at once have more."""
    heaps = [
        subprocess.run([sys.executable, "-c", HEAPS, how], check=True, capture_output=True, text=True).stdout
        for how in ("one", "many")
    ]
    counts = [each.count("<heap nr=") for each in heaps]
    assert counts[0] == 1 < counts[1]


MAPPED = """
import ctypes, sys
from evspec_ros.ros.memory import use_one_heap
if sys.argv[1] == "one":
    use_one_heap()
class Information(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks",
        "keepcost")]
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.mallinfo2.restype = Information
image = ctypes.c_size_t(4_000_000)
libc.free(libc.malloc(image))
before = libc.mallinfo2().hblks
libc.malloc(image)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_what_is_large_stays_out_of_the_heap() -> None:
    """A second image is mapped by itself, as the first one was; glibc would take it into its heap."""
    mapped = [
        subprocess.run([sys.executable, "-c", MAPPED, how], check=True, capture_output=True, text=True).stdout
        for how in ("one", "many")
    ]
    assert [int(each) for each in mapped] == [1, 0]
