"""Streams of a GPU and the time in them; on a processor, where a call does its work, wall clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


def has_streams(device: torch.device) -> bool:
    """Whether work is queued there."""
    return device.type == "cuda"


@dataclass(frozen=True, eq=False)
class Mark:
    """When the work that a stream held was done: seconds of wall clock, and on a GPU an event in the
    stream, which nobody waits for until the time is read.
    """

    seconds: float
    event: torch.cuda.Event | None = None

    @classmethod
    def now(cls, device: torch.device) -> Mark:
        """In the current stream of a device."""
        if not has_streams(device):
            return cls(time.perf_counter())
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(device))
        return cls(time.perf_counter(), event)

    def ms_until(self, later: Mark) -> float:
        """Milliseconds from this one to another, of another stream perhaps; on a GPU when both are over."""
        if self.event is None or later.event is None:
            return (later.seconds - self.seconds) * 1e3
        self.event.synchronize()
        later.event.synchronize()
        took: float = self.event.elapsed_time(later.event)
        return took


class Stages:
    """Milliseconds of stages that follow each other in a stream, by name; no stage waits for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._began: Mark | None = None
        self._laps: list[tuple[str, Mark]] = []

    def begin(self) -> None:
        """The first stage begins."""
        self._laps = []
        self._began = Mark.now(self._device)

    def lap(self, name: str) -> None:
        """A stage ends, and the next one begins."""
        self._laps.append((name, Mark.now(self._device)))

    def milliseconds(self) -> dict[str, float]:
        """Of all stages so far, none where nothing began; on a GPU when the last of them is over."""
        found, last = {}, self._began
        for name, mark in list(self._laps):
            assert last is not None, "No stage ends before the first begins"
            found[name], last = last.ms_until(mark), mark
        return found


class SideStream:
    """A stream of its own for what runs beside the rest on a GPU; on a processor nothing."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Work queued inside goes into that stream, and is done at the end; no other stream is waited for."""
        if not has_streams(device):
            yield
            return
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        with torch.cuda.stream(stream):
            yield
            stream.synchronize()
