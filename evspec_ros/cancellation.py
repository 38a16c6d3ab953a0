"""Ending, from one thread, what another one computes.

Whoever computes looks now and then whether it is still wanted: `check` stands between the layers of the
networks and between the passes, and costs a tenth of a microsecond. A library that computes for long in one
call, and can be told to stop, is called inside `interruptible`. Nothing ends what never looks: C code that
does not return.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from evspec_ros.errors import CancelledError

Stop = Callable[[], object]


class Cancellation:
    """Says whether a piece of work is still wanted; cancelled once and for good, from any thread.

    reason: why it was cancelled, in a sentence; "" while it is wanted.
    """

    def __init__(self, within: Cancellation | None = None) -> None:
        """within: a larger piece of work, with which this one ends."""
        self.reason = ""
        self._lock = threading.Lock()
        self._stops: list[Stop] = []
        if within is not None:
            within.add(lambda: self.cancel(within.reason))

    @classmethod
    def nested(cls) -> Cancellation:
        """Of a part of what this thread computes now."""
        return cls(_CURRENT.get())

    def cancel(self, reason: str) -> None:
        """Nobody wants it any more; of several reasons the first one counts."""
        with self._lock:
            if not self.reason:
                self.reason = reason
                for stop in self._stops:
                    stop()

    def add(self, stop: Stop) -> None:
        """Have something called when this is cancelled, at once where it was; it must wait for nobody."""
        with self._lock:
            self._stops.append(stop)
            if self.reason:
                stop()

    def remove(self, stop: Stop) -> None:
        """From now on it is not called."""
        with self._lock:
            self._stops.remove(stop)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What this thread computes meanwhile is the work."""
        token = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(token)


_CURRENT: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def check(*_: object) -> None:
    """Raise CancelledError where nobody wants any more what this thread computes. A hook of torch's modules,
    too, which is handed what it does not need.
    """
    current = _CURRENT.get()
    if current is not None and current.reason:
        raise CancelledError(current.reason)


@contextmanager
def shielded() -> Iterator[None]:
    """What this thread does meanwhile is not ended in its midst."""
    token = _CURRENT.set(None)
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def interruptible(stop: Stop) -> Iterator[None]:
    """One call of a library, which `stop` makes return soon or raise anything: CancelledError then."""
    current = _CURRENT.get()
    if current is None:
        yield
        return
    current.add(stop)
    try:
        yield
    except Exception as error:
        if current.reason:
            raise CancelledError(current.reason) from error
        raise
    finally:
        current.remove(stop)
    check()


def wait_for(future: Future[Any], most_s: float | None = None) -> bool:
    """Wait for another thread's work, at most so many seconds; whether it is done. Raises CancelledError as
    soon as nobody wants what this thread computes.
    """
    ready = threading.Event()
    future.add_done_callback(lambda _: ready.set())
    with interruptible(ready.set):
        ready.wait(most_s)
    return future.done()


class Watchdog:
    """Cancels what takes too long: one thread, begun when it is first needed, for all that is watched. It
    sleeps until the earliest moment at which something might have to be cancelled.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[Cancellation, tuple[float, str]] = {}  # until when (monotonic seconds), and why
        self._wakes_at = math.inf
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, work: Cancellation, seconds: float, reason: str) -> Iterator[None]:
        """Cancel the work where what this thread does meanwhile takes longer."""
        until = time.monotonic() + seconds
        with self._changed:
            self._watched[work] = until, reason
            if until < self._wakes_at:
                self._wake()
        try:
            yield
        finally:
            with self._changed:
                self._watched.pop(work, None)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                for work, (until, reason) in list(self._watched.items()):
                    if until <= now:
                        del self._watched[work]
                        work.cancel(reason)
                self._wakes_at = min((until for until, _ in self._watched.values()), default=math.inf)
                self._changed.wait(None if self._wakes_at == math.inf else self._wakes_at - now)


WATCHDOG = Watchdog()
