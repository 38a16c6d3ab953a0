"""The block head against a row-by-row reference that keeps nothing and recomputes everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.block_head import BEST, BlockConfig, BlockHead, BlockPass
from evspec_ros.networks.kernels import rotate
from evspec_ros.networks.llama import DecoderLayer, LlamaConfig
from evspec_ros.networks.tiny import tiny_video_llava
from evspec_ros.networks.video_llava import VideoLlava

TARGET = LlamaConfig(60, 32, 48, 3, 4, 4, 8, max_positions=64)
EVENTS, TEXT, BLOCK = 5, 9, 4
TOLERANCE = 1e-5


def _head(**changes: Any) -> BlockHead:
    torch.manual_seed(0)
    sizes = replace(BlockConfig.for_target(TARGET, 12, EVENTS), block=BLOCK, **changes)
    head = BlockHead(sizes).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(std=0.3)
    return head


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Events, features of the rows that were read, and the last token's embedding."""
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(EVENTS, 12, generator=generator),
        torch.randn(TEXT, 3 * 32, generator=generator),
        torch.randn(32, generator=generator),
    )


def _turned(head: BlockHead, x: Tensor, position: int) -> Tensor:
    """One row [H * h] as heads [H, h], rotated."""
    cos, sin = head.rotary.at(torch.tensor([position]))
    heads = x.view(1, -1, 1, head.config.head_dim)
    return rotate(heads, cos, sin)[0, :, 0]


def _reference(head: BlockHead, events: Tensor, features: Tensor, last: Tensor) -> Tensor:
    """Logits [B, V] by loops over layers, rows and heads, with torch's own norm."""
    config = head.config

    def normed(norm: Any, x: Tensor) -> Tensor:
        return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)

    context = [head.events(row) for row in events] + [head.fc(row) for row in features]
    context = [normed(head.context_norm, row) for row in context]
    rows = [head.embed(last), *head.masks.weight]
    for module in head.layers:
        layer = cast("DecoderLayer", module)
        heads = layer.self_attn
        inner = [normed(layer.input_layernorm, row) for row in rows]
        read = context + inner
        keys = [_turned(head, heads.k_proj(row), place) for place, row in enumerate(read)]
        values = [heads.v_proj(row).view(-1, config.head_dim) for row in read]
        following = []
        for b, row in enumerate(rows):
            seen = len(context) + (b + 1 if config.causal else len(rows))
            query = _turned(head, heads.q_proj(inner[b]), len(context) + b)
            mixed = []
            for h in range(config.num_heads):
                scores = torch.stack([query[h] @ key[h] for key in keys[:seen]])
                shares = torch.softmax(scores / config.head_dim**0.5, 0)
                mixed.append(sum(share * value[h] for share, value in zip(shares, values, strict=False)))
            between = row + heads.o_proj(torch.cat(cast("list[Tensor]", mixed)))
            following.append(between + layer.mlp(normed(layer.post_attention_layernorm, between)))
        rows = following
    return torch.stack([head.lm_head(normed(head.norm, row)) for row in rows])


def _draft(head: BlockHead, events: Tensor | None, features: Tensor, last: Tensor, early: int) -> BlockPass:
    """`draft` behind a cache that holds the events and the first `early` rows; the rest is padded with
    noise, and so is what the cache does not hold.
    """
    cache = head.new_cache(40)
    cache.k.normal_()
    cache.v.normal_()
    head.fill(features[:early], events, cache)
    fresh = features[early:]
    padded = torch.randn(head.config.read_rows, features.shape[1])
    padded[: len(fresh)] = fresh
    numbers = torch.tensor([len(fresh)]), torch.tensor([cache.length])
    return head.draft(padded, numbers[0], last[None], numbers[1], cache.k, cache.v)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("early", [TEXT, TEXT - 1, TEXT - 5])
@torch.inference_mode()
def test_a_pass_is_what_a_loop_over_rows_computes(causal: bool, num_layers: int, early: int) -> None:
    """However many of the rows come with the pass and however many lie in the cache; neither padding nor
    what the cache does not hold is seen.
    """
    head, (events, features, last) = _head(causal=causal, num_layers=num_layers), _inputs()
    said = _draft(head, events, features, last, early)
    expected = _reference(head, events, features, last)
    torch.testing.assert_close(said.logits, expected, rtol=0, atol=TOLERANCE)


@torch.inference_mode()
def test_the_keys_and_values_of_a_pass_are_those_that_reading_gives() -> None:
    """What a pass adds to the context is what `fill` would have added."""
    head, (events, features, last) = _head(), _inputs()
    said = _draft(head, events, features, last, TEXT - 3)
    cache = head.new_cache(40)
    head.fill(features, events, cache)
    for found, kept in ((said.k, cache.k), (said.v, cache.v)):
        expected = kept[:, :, :, EVENTS + TEXT - 3 : EVENTS + TEXT]
        torch.testing.assert_close(found[:, :, :, :3], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("tokens", [(), tuple(range(1, 60, 5))])
@torch.inference_mode()
def test_the_best_tokens_come_with_their_probabilities(tokens: tuple[int, ...]) -> None:
    """Of each row, in order; of a reduced vocabulary by the target's ids."""
    head, inputs = _head(tokens=tokens), _inputs()
    said = _draft(head, *inputs, early=4)
    expected = torch.softmax(said.logits, -1).sort(-1, descending=True)
    ids = torch.tensor(tokens)[expected.indices] if tokens else expected.indices
    assert said.tokens.shape == (BLOCK, BEST)
    assert torch.equal(said.tokens, ids[:, :BEST])
    torch.testing.assert_close(said.probabilities, expected.values[:, :BEST])


@torch.inference_mode()
def test_a_row_of_a_causal_block_sees_no_later_one_and_of_a_full_one_all() -> None:
    """Changing the last mask changes the last row alone, or every row."""
    for causal, changed in ((True, [False, False, False, True]), (False, [True] * 4)):
        head, inputs = _head(causal=causal), _inputs()
        before = _draft(head, *inputs, early=4).logits
        head.masks.weight[-1] += 1
        after = _draft(head, *inputs, early=4).logits
        assert ((before - after).abs().amax(-1) > 1e-4).tolist() == changed


@torch.inference_mode()
def test_events_last_token_and_features_reach_every_row() -> None:
    """A change of any of them changes all that is said; a head also drafts without events."""
    head, (events, features, last) = _head(), _inputs()
    before = _draft(head, events, features, last, 4).logits
    for changed in ((events + 1, features, last), (events, features + 1, last), (events, features, last + 1)):
        after = _draft(head, *changed, early=4).logits
        assert ((before - after).abs().amax(-1) > 1e-4).all()
    assert not torch.equal(before, _draft(head, None, features, last, 4).logits)


def test_a_head_is_at_most_a_tenth_of_the_tiny_target() -> None:
    """Parameters of the head over those of the target it drafts for."""
    config = tiny_video_llava(vocab_size=611, image_token_id=609, video_token_id=610)
    target = sum(p.numel() for p in VideoLlava(config).parameters())
    head = BlockHead(BlockConfig.for_target(config.text, event_size=192, event_rows=22))
    assert sum(p.numel() for p in head.parameters()) <= target / 10


def test_an_impossible_config_is_refused() -> None:
    """Blocks and layers that there cannot be, tokens that the target does not have."""
    sizes = BlockConfig.for_target(TARGET, 12, EVENTS).to_dict()
    assert BlockConfig.from_dict(sizes) == BlockConfig.for_target(TARGET, 12, EVENTS)
    for change, says in (
        ({"block": 0}, "block of 0 rows"),
        ({"num_layers": 4}, "4 layers"),
        ({"tokens": [3, 3]}, "tokens twice"),
        ({"tokens": [60]}, "beyond its 60"),
    ):
        with pytest.raises(CheckpointError, match=says):
            BlockConfig.from_dict({**sizes, **change})
