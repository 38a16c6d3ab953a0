"""Ending what another thread computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from evspec_ros.cancellation import (
    WATCHDOG,
    Cancellation,
    Watchdog,
    check,
    interruptible,
    shielded,
    wait_for,
)
from evspec_ros.errors import CancelledError

TIMEOUT_S = 20.0


def _loop(rounds: int = 2000) -> None:
    """A network that looks between its layers."""
    for _ in range(rounds):
        check()
        time.sleep(0.01)
    pytest.fail("nobody ended it")


def test_what_is_cancelled_ends_at_its_next_look_with_the_reason() -> None:
    """Of several reasons the first one."""
    work = Cancellation()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: _within(work, _loop))
        work.cancel("It is enough.")
        work.cancel("And once more.")
        assert isinstance(running.exception(TIMEOUT_S), CancelledError)
    assert work.reason == str(running.exception()) == "It is enough."


def _within(work: Cancellation, step: Callable[[], Any]) -> Any:
    with work.scope():
        return step()


def test_other_threads_and_what_comes_after_are_not_ended() -> None:
    """A scope is its thread's own, and over when it is left."""
    work = Cancellation()
    work.cancel("Enough.")
    check()
    with work.scope():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(check).result(TIMEOUT_S)
        with shielded():
            check()
        with pytest.raises(CancelledError, match=r"Enough\."):
            check()
    check()


def test_a_part_ends_with_the_whole_and_not_the_other_way_round() -> None:
    """Also one that begins when the whole has ended."""
    whole = Cancellation()
    with whole.scope():
        part, other = Cancellation.nested(), Cancellation.nested()
    part.cancel("This part is too slow.")
    assert (part.reason, other.reason, whole.reason) == ("This part is too slow.", "", "")
    whole.cancel("Enough.")
    assert (part.reason, other.reason) == ("This part is too slow.", "Enough.")
    assert Cancellation(whole).reason == "Enough."


def test_a_library_is_stopped_and_what_it_raises_then_is_no_failure() -> None:
    """Any exception; one that it raises by itself stays what it is."""
    work, stopped = Cancellation(), threading.Event()

    def compute() -> None:
        with interruptible(stopped.set):
            assert stopped.wait(TIMEOUT_S)
            raise ValueError("terminated")

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: _within(work, compute))
        time.sleep(0.05)
        work.cancel("Enough.")
        assert isinstance(running.exception(TIMEOUT_S), CancelledError)
    with Cancellation().scope(), pytest.raises(KeyError), interruptible(lambda: None):
        raise KeyError("its own")
    with pytest.raises(KeyError), interruptible(lambda: None):
        raise KeyError("its own")


def test_a_library_that_is_done_is_not_stopped_any_more() -> None:
    """Or its next call would be."""
    work, stops = Cancellation(), []
    with work.scope(), interruptible(lambda: stops.append(1)):
        pass
    work.cancel("Enough.")
    assert not stops
    with work.scope(), pytest.raises(CancelledError), interruptible(lambda: stops.append(1)):
        pass
    assert stops == [1]


def test_nobody_waits_for_a_thread_whose_work_is_not_wanted() -> None:
    """Though it never comes to an end; without a scope, and with patience, the time is up some day."""
    never: Future[None] = Future()
    work = Cancellation()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: _within(work, lambda: wait_for(never)))
        work.cancel("Enough.")
        assert isinstance(waiting.exception(TIMEOUT_S), CancelledError)
    assert wait_for(never, 0.01) is False
    never.set_result(None)
    assert wait_for(never) is True


def test_what_takes_too_long_is_cancelled_and_nothing_else() -> None:
    """What is over in time is left alone, also when its time is up later; a second one is watched as well."""
    watchdog, quick, slow = Watchdog(), Cancellation(), Cancellation()
    for _ in range(3):
        with watchdog.limit(quick, 0.05, "Too slow."):
            pass
    with (
        slow.scope(),
        watchdog.limit(slow, 0.1, "Too slow."),
        pytest.raises(CancelledError, match="Too slow"),
    ):
        _loop()
    assert quick.reason == ""
    late = Cancellation()  # when the watchdog sleeps for good
    with late.scope(), watchdog.limit(late, 0.01, "Too slow."), pytest.raises(CancelledError):
        _loop()


def test_the_earliest_of_several_is_cancelled_first() -> None:
    """One that is watched later and ends earlier wakes the watchdog."""
    patient, hasty = Cancellation(), Cancellation()
    with WATCHDOG.limit(patient, 60.0, "Patience is over."), WATCHDOG.limit(hasty, 0.02, "Too slow."):
        began = time.monotonic()
        with hasty.scope(), pytest.raises(CancelledError):
            _loop()
        assert time.monotonic() - began < TIMEOUT_S
    assert patient.reason == ""


def test_a_look_costs_next_to_nothing_and_a_watched_step_less_than_twenty_microseconds() -> None:
    """The best of several rounds, as others share the machine."""
    work = Cancellation()

    def best_us(step: Callable[[], None], count: int) -> float:
        taken = []
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(count):
                step()
            taken.append((time.perf_counter() - began) / count * 1e6)
        return min(taken)

    def watched() -> None:
        with work.scope(), WATCHDOG.limit(work, 2.0, "Too slow."):
            pass

    with work.scope():
        assert best_us(check, 2000) < 2.0
    assert best_us(watched, 500) < 20.0
