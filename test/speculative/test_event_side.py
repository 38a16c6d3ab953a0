"""The event model's thread: what it reads, when it is told to stop, what its exceptions do."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from evspec_ros.speculative import EventSide, Prompt
from evspec_ros.speculative.event_side import EventTimes, Prefilling

TIMEOUT_S = 20.0


def _prompt(value: float) -> Prompt:
    return Prompt(torch.zeros(1, 3, 4), events=lambda: torch.full((6, 4), value))


def _failing() -> Prompt:
    def events() -> Tensor:
        raise KeyError("events")

    return Prompt(torch.zeros(1, 3, 4), events=events)


class _Writing:
    """Goes on for as long as it is told that the target reads."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.stopped = False

    def __call__(self, _: Tensor | None, reading: Prefilling) -> None:
        """Until the target has read, or this test has failed."""
        deadline = time.monotonic() + TIMEOUT_S
        while reading():
            self.begun.set()
            if time.monotonic() > deadline:
                return
            time.sleep(0.001)
        self.stopped = True


def test_who_asks_for_the_features_ends_the_writing_ahead() -> None:
    """The target has read its prompt: nobody waits for a thread that writes on."""
    side, writing = EventSide(overlap=True), _Writing()
    side.begin(_prompt(1.0), writing)
    assert writing.begun.wait(TIMEOUT_S)
    features = side.features()
    assert features is not None
    assert (features == 1.0).all()
    assert writing.stopped


def test_the_next_prompt_ends_what_is_still_written_about_the_last() -> None:
    """A text that failed before it asked for its events leaves its thread writing; it ends first."""
    side, writing = EventSide(overlap=True), _Writing()
    side.begin(_prompt(1.0), writing)
    assert writing.begun.wait(TIMEOUT_S)
    side.begin(_prompt(2.0))
    assert writing.stopped
    features = side.features()
    assert features is not None
    assert (features == 2.0).all()


def test_without_overlap_nothing_is_written_ahead() -> None:
    """The target has read its prompt by then."""
    side, writing = EventSide(), _Writing()
    side.begin(_prompt(1.0), writing)
    side.features()
    assert writing.stopped
    assert not writing.begun.is_set()


def test_without_overlap_events_that_nobody_asks_for_are_not_read() -> None:
    """As where the whole text follows from the stream's past; asked twice, they are read once."""
    side, read = EventSide(), []
    for _ in range(2):
        side.begin(Prompt(torch.zeros(1, 3, 4), events=lambda: read.append(1) or torch.zeros(6, 4)))
    assert not read
    assert side.times == EventTimes()
    assert side.features() is side.features()
    assert read == [1]
    assert side.times.waited_ms == side.times.busy_ms > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_what_went_wrong_is_raised_and_the_next_prompt_is_read(overlap: bool) -> None:
    """In whatever thread; features and times of an earlier prompt are not those of one that failed."""
    side = EventSide(overlap=overlap)
    side.begin(_prompt(1.0))
    side.features()
    with pytest.raises(KeyError):
        _read(side, _failing())
    assert side.features() is None
    assert side.times == EventTimes()
    side.begin(_prompt(2.0))
    features = side.features()
    assert features is not None
    assert (features == 2.0).all()
    assert side.times.busy_ms > 0


def _read(side: EventSide, prompt: Prompt) -> None:
    side.begin(prompt)
    side.features()


def test_an_exception_that_nobody_asked_for_is_not_the_next_prompt_s() -> None:
    """The text was given up before its events were wanted."""
    side = EventSide(overlap=True)
    side.begin(_failing())
    side.begin(_prompt(3.0))
    features = side.features()
    assert features is not None
    assert (features == 3.0).all()
