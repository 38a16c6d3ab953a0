"""Streams and events of a GPU without one: work takes its time in the stream that it was queued in, while the
host goes on. What waits for all streams at once is refused.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch


class Stream:
    """A queue of work, of which only the time is known at which it will have been done."""

    def __init__(self, device: object = None) -> None:
        self.done_at = 0.0

    def work(self, milliseconds: float) -> None:
        """Queue something that takes so long."""
        self.done_at = max(self.done_at, time.perf_counter()) + milliseconds / 1e3

    def synchronize(self) -> None:
        """Wait for this stream."""
        _sleep_until(self.done_at)


class Event:
    """A mark in a stream."""

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing, "A time is wanted of it"
        self.at = 0.0

    def record(self, stream: Stream) -> None:
        """Behind what the stream holds."""
        self.at = max(time.perf_counter(), stream.done_at)

    def synchronize(self) -> None:
        """Wait for it."""
        _sleep_until(self.at)

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds between two that are over."""
        assert max(self.at, later.at) <= time.perf_counter(), "Nobody waited for these events"
        return (later.at - self.at) * 1e3


class EmulatedCuda:
    """What takes the place of torch.cuda's streams; each thread begins in the main one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.main = Stream()
        self._current = threading.local()
        replace_everywhere(monkeypatch, "has_streams", lambda device: True)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", self._inside)
        monkeypatch.setattr(torch.cuda, "current_stream", self.current)
        monkeypatch.setattr(torch.cuda, "synchronize", _refuse)

    def current(self, device: object = None) -> Stream:
        """The stream that work goes into."""
        return getattr(self._current, "stream", self.main)

    @contextmanager
    def _inside(self, stream: Stream) -> Iterator[None]:
        before, self._current.stream = self.current(), stream
        try:
            yield
        finally:
            self._current.stream = before


def replace_everywhere(monkeypatch: pytest.MonkeyPatch, name: str, instead: object) -> None:
    """Put something in the place of a function of the package, wherever it is known by that name."""
    for module in [module for key, module in sys.modules.items() if key.startswith("evspec_ros.")]:
        if hasattr(module, name):
            monkeypatch.setattr(module, name, instead)


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.perf_counter()))


def _refuse(*_: object) -> None:
    raise AssertionError("The whole device is waited for")
