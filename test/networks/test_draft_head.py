"""EAGLE's draft head."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.adapters import FeatureConfig, FeatureHead
from evspec_ros.networks.checkpoints import (
    DRAFT_HEADS,
    load_draft_head,
    read_draft_head_config,
    save_draft_head,
)
from evspec_ros.networks.draft_head import Eagle3Config, EagleConfig, EagleHead
from evspec_ros.networks.llama import LlamaConfig
from evspec_ros.networks.tiny import tiny_video_llava
from evspec_ros.networks.video_llava import VideoLlava

TARGET = LlamaConfig(40, 32, 48, 2, 4, 2, 8, max_positions=64)
EVENTS, ROWS = 6, 9


def _head() -> EagleHead:
    torch.manual_seed(0)
    head = EagleHead(EagleConfig.for_target(TARGET, event_size=12, event_rows=EVENTS)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    return head


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(1, ROWS, 32), torch.randn(1, ROWS, 32), torch.randn(1, EVENTS, 12)


@torch.inference_mode()
def test_a_cached_sequence_gives_what_one_pass_gives() -> None:
    """Events and three rows, then one row, then five."""
    head, (embeddings, features, events) = _head(), _inputs()
    whole = head(embeddings, features, events)
    cache = head.new_cache(EVENTS + ROWS)
    parts = [
        head(embeddings[:, a:b], features[:, a:b], events if a == 0 else None, cache)
        for a, b in ((0, 3), (3, 4), (4, 9))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_filling_the_cache_serves_the_next_row_as_a_pass_does() -> None:
    """Keys and values alone are enough for what comes after."""
    head, (embeddings, features, events) = _head(), _inputs()
    cache = head.new_cache(EVENTS + ROWS)
    head.fill(embeddings[:, :-1], features[:, :-1], events, cache)
    assert cache.length == EVENTS + ROWS - 1
    last = head(embeddings[:, -1:], features[:, -1:], None, cache)
    torch.testing.assert_close(last, head(embeddings, features, events)[:, -1:], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_row_sees_events_and_what_came_before_it_alone() -> None:
    """Changing the last row changes no other; changing the events changes all."""
    head, (embeddings, features, events) = _head(), _inputs()
    before = head(embeddings, features, events)
    features[:, -1] += 1
    after = head(embeddings, features, events)
    assert torch.equal(before[:, :-1], after[:, :-1])
    assert not torch.equal(before[:, -1], after[:, -1])
    assert ((head(embeddings, features, events + 1) - after).abs().amax(-1) > 1e-4).all()


def test_a_head_is_at_most_a_tenth_of_the_tiny_target() -> None:
    """Parameters of the head over those of the target it drafts for."""
    config = tiny_video_llava(vocab_size=300, image_token_id=298, video_token_id=299)
    target = sum(p.numel() for p in VideoLlava(config).parameters())
    head = EagleHead(EagleConfig.for_target(config.text, event_size=192, event_rows=22))
    assert sum(p.numel() for p in head.parameters()) <= target / 10


def test_the_config_is_what_it_was_after_a_round_trip() -> None:
    """Through the dictionary that config.json holds."""
    config = EagleConfig.for_target(TARGET, 12, EVENTS)
    assert config.max_positions == 64 + EVENTS
    assert EagleConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("kind", list(DRAFT_HEADS))
def test_every_kind_of_head_survives_its_checkpoint(kind: str, tmp_path: Path) -> None:
    """Config and weights, in half precision."""
    sizes = DRAFT_HEADS[kind].config.for_target(TARGET, 12, EVENTS)
    torch.manual_seed(0)
    head = DRAFT_HEADS[kind].head(sizes).half().float()
    save_draft_head(head, tmp_path / "head")
    found = load_draft_head(tmp_path / "head")
    assert found.config == sizes
    for name, tensor in head.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor)


@pytest.mark.parametrize("kind", list(DRAFT_HEADS))
@pytest.mark.parametrize(
    ("change", "says"), [({"kind": "eagle9"}, "eagle9"), ({"hidden_size": None}, "hidden_size")]
)
def test_a_foreign_or_incomplete_config_is_refused(
    kind: str, change: dict[str, object], says: str, tmp_path: Path
) -> None:
    """The message names what was found or what is missing."""
    config = {**DRAFT_HEADS[kind].config.for_target(TARGET, 12, EVENTS).to_dict(), **change}
    kept = {name: value for name, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    with pytest.raises(CheckpointError, match=says):
        read_draft_head_config(tmp_path)


def test_an_unknown_fusion_is_refused() -> None:
    """The message names it and those that there are."""
    config = {**FeatureConfig(32, 12).to_dict(), "fusion": "half"}
    with pytest.raises(CheckpointError, match=r"half.*factorised or full"):
        FeatureConfig.from_dict(config)


def test_the_factorised_fusion_of_a_7b_target_is_a_tenth_of_the_full_one() -> None:
    """Weights of the fusion: 3.1 million against the design paper's 33.6."""
    with torch.device("meta"):
        heads = [FeatureHead(FeatureConfig(4096, 4096, fusion=fusion)) for fusion in ("factorised", "full")]
    sizes = [sum(weight.numel() for weight in head.fusion.parameters()) for head in heads]
    assert [round(size / 1e6, 1) for size in sizes] == [3.2, 33.6]


@pytest.mark.parametrize("tokens", [[3, 3], [40], [-1]])
def test_a_vocabulary_of_tokens_that_are_none_is_refused(tokens: list[int]) -> None:
    """Twice, or beyond the target's; a config of before there were any has all."""
    sizes = Eagle3Config.for_target(TARGET, 12, EVENTS).to_dict()
    with pytest.raises(CheckpointError, match="tokens"):
        Eagle3Config.from_dict({**sizes, "tokens": tokens})
    del sizes["tokens"]
    assert Eagle3Config.from_dict(sizes).tokens == ()
