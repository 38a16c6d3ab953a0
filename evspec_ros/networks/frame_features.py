"""The target's embeddings of the last frames: a frame that two windows share is encoded once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evspec_ros.frames.types import Frame


class FrameFeatures:
    """What was made of the last `capacity` frames; a frame is the object itself, whose image never changes.

    Frames go through the tower one by one (`VideoLlava`), so what is kept is exactly what would be computed.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._features: dict[Frame, Tensor] = {}  # in the order in which they were encoded

    def missing(self, frames: Sequence[Frame]) -> list[Frame]:
        """The frames that are still to be encoded, each of them once."""
        return [frame for frame in dict.fromkeys(frames) if frame not in self._features]

    def gather(self, frames: Sequence[Frame], new: Sequence[Frame], features: Tensor) -> Tensor:
        """The embeddings of `frames`, [F * tokens, D], given those of the missing ones, [n, tokens, D]."""
        self._features.update(zip(new, features, strict=True))
        gathered = torch.cat([self._features[frame] for frame in frames])
        while len(self._features) > max(self._capacity, len(set(frames))):
            del self._features[next(iter(self._features))]
        return gathered
