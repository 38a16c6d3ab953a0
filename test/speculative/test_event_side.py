"""The event model's thread: what it reads, when it is told to stop, what its exceptions do."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from emulated_cuda import EmulatedCuda
from torch import Tensor

from evspec_ros.cancellation import Cancellation, check
from evspec_ros.errors import CancelledError, GenerationError
from evspec_ros.speculative import EventSide, Prompt, event_side
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


class _Reading:
    """A prompt's events, which a network reads that looks between its layers, or that never looks."""

    def __init__(self, *, looks: bool) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self._looks = looks

    def prompt(self) -> Prompt:
        """The prompt."""
        return Prompt(torch.zeros(1, 3, 4), events=self._read)

    def _read(self) -> Tensor:
        self.begun.set()
        while self._looks:
            check()
            time.sleep(0.005)
        assert self.go_on.wait(TIMEOUT_S)
        return torch.zeros(6, 4)


def _cancel_soon(work: Cancellation) -> None:
    threading.Timer(0.05, work.cancel, ["The drafter stalled."]).start()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_reading_that_stalls_ends_with_the_draft_that_waits_for_it(overlap: bool) -> None:
    """In the event model's own thread, too; the next prompt's events are read."""
    side, reading, work = EventSide(overlap=overlap), _Reading(looks=True), Cancellation()
    with work.scope():
        side.begin(reading.prompt())
        _cancel_soon(work)
        with pytest.raises(CancelledError, match="stalled"):
            side.features()
    side.begin(_prompt(2.0))
    assert side.features() is not None


def test_a_reading_that_nobody_asked_for_is_ended_by_the_next_prompt() -> None:
    """Between two layers."""
    side, reading = EventSide(overlap=True), _Reading(looks=True)
    side.begin(reading.prompt())
    assert reading.begun.wait(TIMEOUT_S)
    side.begin(_prompt(2.0))
    assert side.features() is not None


def test_a_reading_that_never_looks_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draft that waits for it is given up, later ones are refused, once at once, until it is over."""
    monkeypatch.setattr(event_side, "PATIENCE_S", 0.05)
    side, reading, work = EventSide(overlap=True), _Reading(looks=False), Cancellation()
    with work.scope():
        side.begin(reading.prompt())
        _cancel_soon(work)
        with pytest.raises(CancelledError, match="stalled"):
            side.features()
    for _ in range(2):
        with pytest.raises(GenerationError, match="still reads the events of an earlier text"):
            side.begin(_prompt(2.0))
    reading.go_on.set()
    deadline = time.monotonic() + TIMEOUT_S
    while (features := _try_to_read(side)) is None:
        assert time.monotonic() < deadline
    assert (features == 2.0).all()


def _try_to_read(side: EventSide) -> Tensor | None:
    try:
        side.begin(_prompt(2.0))
    except GenerationError:
        time.sleep(0.01)
        return None
    return side.features()


@pytest.mark.parametrize(
    ("prefill_ms", "event_ms", "waited_ms"), [(400.0, 200.0, 0.0), (100.0, 400.0, 300.0)]
)
def test_what_nobody_waited_for_is_told_by_events_of_both_streams(
    prefill_ms: float, event_ms: float, waited_ms: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the prefill takes longer all of the event model's work is hidden, else what the prefill lasted;
    nothing waits for the whole device, and the event model's kernels never go into the target's stream.
    """
    cuda, side = EmulatedCuda(monkeypatch), EventSide(overlap=True)

    def read() -> Tensor:
        assert cuda.current() is not cuda.main
        cuda.current().work(event_ms)
        return torch.ones(6, 4)

    side.begin(Prompt(torch.zeros(1, 3, 4), events=read))
    cuda.main.work(prefill_ms)  # queued beside it
    assert side.features() is not None
    times = side.times
    assert times.busy_ms == pytest.approx(event_ms, abs=60)
    assert times.waited_ms == pytest.approx(waited_ms, abs=60)
    assert times.hidden_ms == pytest.approx(event_ms - waited_ms, abs=120)


@pytest.mark.gpu
def test_on_a_gpu_the_event_model_s_work_is_hidden_behind_a_longer_prefill() -> None:
    """Real streams: many products in the main one, few in the event model's, hardly any wait."""
    device = torch.device("cuda")
    large = torch.ones(4096, 4096, device=device)

    def read() -> Tensor:
        for _ in range(2):
            large @ large
        return torch.ones(6, 4, device=device)

    side = EventSide(overlap=True)
    for _ in range(2):  # the first loads kernels
        side.begin(Prompt(torch.zeros(1, 3, 4, device=device), events=read))
        for _ in range(200):
            large @ large
        side.features()
    assert side.times.busy_ms > 0
    assert side.times.waited_ms < side.times.busy_ms
