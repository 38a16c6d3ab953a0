"""Windows of recordings as training reads scenes: what a describer would have seen at even instants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evspec_ros.errors import TrainingError
from evspec_ros.events.rendering import render_event_images
from evspec_ros.events.types import Events
from evspec_ros.frames.buffer import FrameBuffer, kept_seconds
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.frames.types import Frame
from evspec_ros.recordings import Recording, open_recording
from evspec_ros.recordings.recording import OVERLAP_NS, clipped, shifted
from evspec_ros.sizes import FRAMES_SECONDS, WINDOW_MS
from evspec_ros.training.features import SceneBatch

WINDOW_NS = round(WINDOW_MS * 1e6)
KEPT_FRAMES = 256


@dataclass(frozen=True, eq=False)
class RecordedWindow:
    """Events of the WINDOW_MS before an instant and the frames that `FrameBuffer.sample` takes up to it."""

    stop_ns: int
    events: Events
    frames: tuple[Frame, ...]


class RecordedWindows:
    """Windows `step_s` apart, recording after recording; the first of each ends with its first frame.

    They are read in one sweep as long as they are asked for in order.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        step_s: float,
        frame_preprocessor: ClipPreprocessor,
        event_preprocessor: ClipPreprocessor,
        device: torch.device | str = "cpu",
    ) -> None:
        """Raises RecordingError for a path that cannot be read."""
        self._recordings = [open_recording(path) for path in paths]
        self._step_ns = round(step_s * 1e9)
        self._preprocessors = frame_preprocessor, event_preprocessor
        self._device = device
        self._sweep: Iterator[RecordedWindow] = iter(())
        self._next = -1  # the window that the sweep is at; none yet

    @cached_property
    def spans(self) -> list[range]:
        """Of each recording the instants at which its windows end; the first use reads all of them. Raises
        TrainingError for a recording without frames.
        """
        return [_instants(recording, self._step_ns) for recording in self._recordings]

    def __len__(self) -> int:
        return sum(len(span) for span in self.spans)

    @property
    def source(self) -> list[dict[str, Any]]:
        """What a manifest says of them."""
        return [
            {"recording": str(recording.path), "windows": len(span), "step_ns": self._step_ns}
            for recording, span in zip(self._recordings, self.spans, strict=True)
        ]

    def __call__(self, start: int, stop: int) -> SceneBatch:
        """Windows start to stop - 1 as both models see them."""
        if self._next < 0 or start < self._next:
            self._sweep, self._next = self.windows(), 0
        found = []
        while self._next < stop:
            window = next(self._sweep)
            if self._next >= start:
                found.append(window)
            self._next += 1
        of_frames, of_events = self._preprocessors
        frames = np.stack([of_frames([frame.image for frame in window.frames]) for window in found])
        events = np.stack([of_events(list(render_event_images(window.events))) for window in found])
        return SceneBatch(
            torch.from_numpy(frames).to(self._device), torch.from_numpy(events).to(self._device)
        )

    def windows(self) -> Iterator[RecordedWindow]:
        """All of them, from the first on."""
        for recording, span in zip(self._recordings, self.spans, strict=True):
            yield from _cut(recording, span)


def _instants(recording: Recording, step_ns: int) -> range:
    first = next((frame.stamp_ns for frame in recording.frames()), None)
    if first is None:
        raise TrainingError(
            f"The recording {recording.path} has no frames, and the target sees nothing else; give one that "
            "has."
        )
    return range(first, recording.stop_ns, step_ns)


def _cut(recording: Recording, instants: range) -> Iterator[RecordedWindow]:
    """Windows that end at these instants, in one pass over the recording: a window is cut when nothing that
    is still to come can belong to it.
    """
    sizes = recording.info().events
    held: list[Events] = []
    frames = FrameBuffer(kept_seconds(FRAMES_SECONDS) + 2 * OVERLAP_NS / 1e9, KEPT_FRAMES)
    waiting = iter(instants)
    stop_ns = next(waiting, None)

    def cut(stop: int) -> RecordedWindow:
        height, width = sizes.height, sizes.width
        if not sizes.count:
            height, width, _ = frames.sample(stop, FRAMES_SECONDS)[-1].image.shape
        parts = [clipped(part, stop - WINDOW_NS, stop) for part in held]
        return RecordedWindow(
            stop, Events.concatenate(parts, width, height), frames.sample(stop, FRAMES_SECONDS)
        )

    for piece in recording.pieces():
        if piece.frame is not None:
            now = piece.frame.stamp_ns
        elif piece.events is not None and len(piece.events):
            now = int(piece.events.t[0]) + piece.offset_ns
        else:
            continue
        while stop_ns is not None and now >= stop_ns + OVERLAP_NS:
            yield cut(stop_ns)
            held = [part for part in held if part.t[-1] >= stop_ns - WINDOW_NS]
            stop_ns = next(waiting, None)
        if piece.frame is not None:
            frames.append(piece.frame)
        elif piece.events is not None:
            held.append(shifted(piece.events, piece.offset_ns))
    while stop_ns is not None:
        yield cut(stop_ns)
        stop_ns = next(waiting, None)
