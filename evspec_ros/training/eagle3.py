"""EAGLE-3's objective (Li et al. 2025, arXiv 2503.01840): training-time test on the target's own answers.

A head that drafts reads its own outputs, row after row. So it is trained on them: step 0 reads the target's
features, step k reads at row i the output of step k - 1 at row i - 1, with the target's tokens, and
sees of step 0 what lies at least k rows back and of each step between the one row of its own chain.

Shapes: B scenes, R rows the head reads (E event rows before them), A of them in answers, d the head's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as count_from
from typing import NamedTuple, cast

import torch
from torch import Tensor

from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.kernels import rotate
from evspec_ros.networks.llama import DecoderLayer

DECAY = 0.9  # a step's weight relative to the one before: what lies deeper is reached less often


class _Heads(NamedTuple):
    """q, k, v [B, H, rows, head_dim], rotated."""

    q: Tensor
    k: Tensor
    v: Tensor


def unrolled(
    head: DraftHead, embeddings: Tensor, fused: Tensor, events: Tensor, answer_rows: int
) -> Iterator[Tensor]:
    """Outputs [B, A, d] at the last A = answer_rows rows, of step 0, 1, 2, ... for as long as they are asked
    for.

    embeddings: [B, R, D]; fused: [B, R, d]; events: [B, E, event_size]. Of step k the first k rows mean
    nothing, as no chain is that old there.
    """
    layer = cast("DecoderLayer", head.layers[0])
    rows = head.rows(embeddings, fused, events)
    count = rows.shape[1]
    first = count - answer_rows
    positions = torch.arange(count, device=rows.device)
    context = _project(head, rows, 0)
    earlier: list[_Heads] = []  # the steps after step 0, at answer rows
    output = fused
    for step in count_from():
        if step == 0:
            now, current = _Heads(context.q[:, :, first:], context.k, context.v), rows[:, first:]
        else:
            current = head.rows(embeddings[:, -answer_rows:], output.roll(1, 1))
            now = _project(head, current, first)
            earlier.append(now)
        visible = positions <= positions[first:, None] - step  # [A, E + R]
        scores = (now.q @ context.k.mT).masked_fill(~visible, float("-inf"))
        chain = [(now.q * past.k.roll(step - age, 2)).sum(-1, keepdim=True) for age, past in _aged(earlier)]
        weights = torch.softmax(torch.cat((scores, *chain), -1) / now.q.shape[-1] ** 0.5, -1)
        mixed = weights[..., :count] @ context.v
        for (age, past), weight in zip(_aged(earlier), weights[..., count:].unbind(-1), strict=True):
            mixed = mixed + weight[..., None] * past.v.roll(step - age, 2)
        attended = current + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        output = attended + layer.mlp(layer.post_attention_layernorm(attended))
        yield output


def unrolled_loss(logits: list[Tensor], wanted: Tensor, used: Tensor) -> Tensor:
    """Cross entropy with the target's distributions: logits [B, A, V] per step, wanted [B, A, V], used bool
    [B, A]; deeper steps weigh less, and those that no answer is long enough for count as 0.
    """
    rows = torch.arange(used.shape[1], device=used.device)
    total, weight = wanted.new_zeros(()), 0.0
    for step, of_step in enumerate(logits):
        meant = used & (rows >= step)
        found = torch.log_softmax(of_step[meant].float(), -1)
        total = total - DECAY**step * (wanted[meant] * found).sum() / meant.sum().clamp(min=1)
        weight += DECAY**step
    return total / weight


def _aged(steps: list[_Heads]) -> list[tuple[int, _Heads]]:
    return list(enumerate(steps, start=1))


def _project(head: DraftHead, rows: Tensor, first: int) -> _Heads:
    """Queries, keys and values of rows [B, T, d] at the positions from `first` on."""
    layer = cast("DecoderLayer", head.layers[0])
    attention, normed = layer.self_attn, layer.input_layernorm(rows)
    cos, sin = head.rotary.span(first, first + rows.shape[1])
    split = [
        projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    ]
    cos, sin = cos.to(split[0].dtype), sin.to(split[0].dtype)
    groups = attention.num_heads // attention.num_kv_heads
    k, v = rotate(split[1], cos, sin), split[2]
    return _Heads(rotate(split[0], cos, sin), k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1))
