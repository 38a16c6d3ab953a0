"""The one-slot mailbox between the callbacks, which only store, and the worker, which describes."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")


class Mailbox(Generic[Waiter]):
    """Room for one request. A new one takes the place of one that was not yet taken, which is counted.

    A request says only "describe what is newest now", so nothing is lost by replacing it; whoever waits for
    the answer (`waiter`) is handed to the worker together with the next request taken. Safe between threads.
    """

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._full = False
        self._closed = False
        self._waiters: list[Waiter] = []
        self._replaced = 0

    @property
    def replaced(self) -> int:
        """Requests that were replaced before the worker took them, since the last `reset_count`."""
        return self._replaced

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def reset_count(self) -> None:
        """Start counting replaced requests from zero."""
        with self._condition:
            self._replaced = 0

    def offer(self, waiter: Waiter | None = None) -> None:
        """Ask for a description of the newest window."""
        with self._condition:
            self._replaced += self._full
            self._full = True
            if waiter is not None:
                self._waiters.append(waiter)
            self._condition.notify()

    def take(self) -> list[Waiter] | None:
        """Wait for a request; the waiters that came with it, or None once the mailbox is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._full or self._closed)
            if self._closed:
                return None
            self._full = False
            waiters, self._waiters = self._waiters, []
            return waiters

    def close(self) -> list[Waiter]:
        """Let `take` return None from now on; the waiters that nobody will answer."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
            waiters, self._waiters = self._waiters, []
            return waiters
