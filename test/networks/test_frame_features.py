"""Frames that are encoded once."""

from __future__ import annotations

import numpy as np
import torch

from evspec_ros.frames.types import Frame
from evspec_ros.networks.frame_features import FrameFeatures
from evspec_ros.networks.video_llava import VideoLlava


def _frames(count: int) -> list[Frame]:
    return [Frame(index, np.zeros((1, 1, 3), np.uint8)) for index in range(count)]


def _pixels(model: VideoLlava, frames: list[Frame]) -> torch.Tensor:
    """Other pixels for each stamp."""
    side = model.config.vision.image_size
    return torch.stack(
        [torch.randn(3, side, side, generator=torch.Generator().manual_seed(f.stamp_ns)) for f in frames]
    )


def test_gathered_features_are_those_of_encoding_everything(video_llava: VideoLlava) -> None:
    """Windows that share frames, in any order, with stand-ins, and with more frames than are kept."""
    seen = _frames(12)
    known = FrameFeatures(capacity=4)
    encoded = 0
    for window in (seen[:4], seen[1:5], [seen[4]] * 3, seen[3:11], [seen[0], seen[10]]):
        new = known.missing(window)
        encoded += len(new)
        tokens = video_llava.config.vision.tokens
        with torch.inference_mode():
            fresh = (
                video_llava.encode_frames(_pixels(video_llava, new)).unflatten(0, (-1, tokens))
                if new
                else torch.empty(0, tokens, video_llava.config.text.hidden_size)
            )
            whole = video_llava.encode_frames(_pixels(video_llava, window))
        torch.testing.assert_close(known.gather(window, new, fresh), whole, rtol=0, atol=1e-5)
    assert encoded == 4 + 1 + 0 + 6 + 1


def test_the_frames_used_last_are_kept() -> None:
    """Of five frames through a memory of two, the last two."""
    frames = _frames(5)
    known = FrameFeatures(capacity=2)
    for frame in frames:
        known.gather([frame], known.missing([frame]), torch.zeros(1, 1, 1))
    assert known.missing(frames) == frames[:3]
