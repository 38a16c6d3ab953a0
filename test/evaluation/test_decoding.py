"""The benchmark of drafters, on tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evspec_ros.errors import GenerationError
from evspec_ros.evaluation.decoding import bench_decoding, bench_visibly
from evspec_ros.networks.clip import ClipConfig
from evspec_ros.networks.draft_head import EagleConfig, EagleHead
from evspec_ros.networks.eventgpt import EventGpt, EventGptConfig
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.video_llava import VideoLlava, VideoLlavaConfig
from evspec_ros.training.draft_heads import SceneBatch

CLIP = ClipConfig(16, 32, 2, 2, 32, 16, projection_dim=16)
PROMPT = torch.tensor([1, 5, 39, 7, 8])


def _bench(scenes: int):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    target = VideoLlava(VideoLlavaConfig(LlamaConfig(40, 32, 48, 3, 4, 4, 8, max_positions=96), CLIP, 38, 39))
    event_model = EventGpt(EventGptConfig(LlamaConfig(40, 24, 32, 1, 2, 2, 12, max_positions=96), CLIP))
    head = EagleHead(EagleConfig.for_target(target.config.text, 24, 10))
    batches = (SceneBatch(torch.randn(1, 8, 3, 32, 32), torch.randn(1, 5, 3, 32, 32)) for _ in range(scenes))
    return bench_decoding(
        target.eval(), event_model.eval(), {"eagle": head.eval()}, PROMPT, batches, max_new_tokens=15
    )


def test_each_drafter_has_a_row_beside_plain_decoding() -> None:
    """Rows of `none` and `eagle` over the same scenes, equal texts, figures that fit each other."""
    none, eagle = _bench(3)
    assert (none.drafter, eagle.drafter) == ("none", "eagle")
    assert none.scenes == eagle.scenes == 3
    assert none.tokens == eagle.tokens
    assert none.identical
    assert eagle.identical
    assert none.speedup == none.speedup_decode == none.mean_accepted_length == 1.0
    assert none.target_step_ms == eagle.target_step_ms == none.verify_ms
    assert eagle.speedup == pytest.approx(none.seconds / eagle.seconds)
    assert 0 < len(eagle.acceptance_by_position) <= 8
    assert json.loads(json.dumps(eagle.as_dict()))["drafter"] == "eagle"


def test_a_benchmark_of_nothing_is_refused() -> None:
    """There is nothing to divide by."""
    with pytest.raises(GenerationError, match="at least one scene"):
        _bench(0)


def test_the_shipped_head_is_accepted_as_often_as_when_it_was_trained() -> None:
    """Greedy, eight held-out scenes, chains of eight: measured 7.27 tokens per pass, first draft 1.0.

    A fault in how features are handed over leaves every text right; it shows here alone.
    """
    models = Path(__file__).parents[2] / "models"
    none, eagle = bench_visibly(
        models / "tiny_video_llava", models / "tiny_eventgpt", models / "tiny_eagle", scenes=8
    )
    assert eagle.identical
    assert eagle.tokens == none.tokens
    assert eagle.mean_accepted_length > 6.9
    assert eagle.acceptance_by_position[0] > 0.95
