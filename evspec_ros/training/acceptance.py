"""Acceptance of a draft head on stored answers, without decoding.

Greedy verification follows a chain of drafts exactly as far as each draft is the target's next token, and
that far the text behind a draft is the target's own. So what the decoder would accept of a chain from each
token of an answer follows from the answer alone: the head reads its own outputs, row after row, with the
target's tokens, as in training-time test; a block head drafts a whole block at once. It is what `generate`
shows with one branch and the same `n_max`; trees are accepted further.

Shapes: B scenes, T tokens of the longest answer, row j of T - 1 being that of token j, which says token j +
1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor

from evspec_ros.networks.adapters import Adapter
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.checkpoints import Head
from evspec_ros.training.block import followed_drafts
from evspec_ros.training.features import Answers, Batches, ModelPair
from evspec_ros.training.prediction import StepHead, answer_rows, chained, event_features, readout

CHAIN = 16  # drafts in a row


@torch.inference_mode()
def acceptance(pair: ModelPair, head: Head | None, tests: Batches, n_max: int = CHAIN) -> dict[str, float]:
    """`acceptance length`: tokens per pass of the target, the bonus token counted, with chains of at most
    n_max drafts. `held-out agreement`: how often the first draft is right, over all tokens. head: None for
    the event model's own tokens.
    """
    tokens = passes = right = rows = 0
    for index in range(len(tests)):
        answers = tests[index]
        accepted = accepted_drafts(pair, head, answers, n_max)
        used = answer_rows(answers)
        right, rows = right + int((accepted[used] > 0).sum()), rows + int(used.sum())
        for length, follows in zip(answers.lengths.tolist(), accepted.tolist(), strict=True):
            tokens += length - 1
            passes += _passes(follows[: length - 1])
    return {"acceptance length": tokens / max(1, passes), "held-out agreement": right / max(1, rows)}


@torch.inference_mode()
def free_tokens(pair: ModelPair, head: Head | None, tests: Batches, written: int) -> float:
    """Of so many tokens written behind the first one of an answer, how many are followed, on average."""
    followed = [accepted_drafts(pair, head, tests[index], written)[:, 0] for index in range(len(tests))]
    return float(torch.cat(followed).float().mean())


def accepted_drafts(pair: ModelPair, head: Head | None, answers: Answers, n_max: int) -> Tensor:
    """Of a chain of n_max drafts behind each token but the last, how many are followed: int64 [B, T - 1]."""
    if isinstance(head, BlockHead):
        return followed_drafts(pair, head, answers).clamp(max=n_max)
    following = answers.tokens[:, 1:]
    rows = following.shape[1]
    accepted = torch.zeros_like(following)
    alive = torch.ones_like(following, dtype=torch.bool)  # at a row: the chain that has come to it
    chosen = _chosen(pair, head, answers)
    for step in range(min(n_max, rows)):
        alive &= next(chosen) == following
        if not alive.any():
            break
        accepted[:, : rows - step] += alive[:, step:]  # of the chain that began `step` rows before
        alive = alive.roll(1, 1)
        alive[:, : step + 1] = False
    return accepted


def _chosen(pair: ModelPair, head: StepHead | None, answers: Answers) -> Iterator[Tensor]:
    """Draft after draft behind each row, int64 [B, T - 1], as `chained`."""
    if head is None:
        return repeat(pair.event_model.lm_head(event_features(pair, answers)[:, 1:]).argmax(-1))
    norm, lm_head = readout(pair, head)
    if isinstance(head, Adapter):  # says the same however far the chain has come
        return repeat(lm_head(norm(next(chained(pair, head, answers)))).argmax(-1))
    return (lm_head(norm(output)).argmax(-1) for output in chained(pair, head, answers))


def _passes(accepted: list[int]) -> int:
    """Passes of the target for an answer, of which so many drafts are followed behind each token."""
    passes = place = 0
    while place < len(accepted):
        place += accepted[place] + 1
        passes += 1
    return passes
