"""What a draft head reads of stored answers, and what it predicts from it.

Shapes as in `features`; row j of the T - 1 rows of an answer is that of its token j and says token j + 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat

import torch
from torch import Tensor, nn

from evspec_ros.networks.adapters import Adapter, FeatureHead
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.training.eagle3 import unrolled
from evspec_ros.training.features import Answers, ModelPair

StepHead = DraftHead | Adapter | FeatureHead  # those that draft token after token


def answer_rows(answers: Answers) -> Tensor:
    """Which rows belong to an answer: bool [B, T - 1]."""
    positions = torch.arange(answers.tokens.shape[1] - 1, device=answers.tokens.device)
    return positions < answers.lengths[:, None] - 1


def true_features(pair: ModelPair, answers: Answers) -> Tensor:
    """The target's last features [B, T - 1, D]."""
    rows = answers.tokens.shape[1] - 1
    return answers.features[:, -rows:, -pair.target.config.text.hidden_size :]


def target_logits(pair: ModelPair, features: Tensor) -> Tensor:
    """By the target's norm and output head, [..., D] -> [..., V]."""
    logits: Tensor = pair.target.lm_head(pair.target.decoder.norm(features))
    return logits


@torch.no_grad()
def event_features(pair: ModelPair, answers: Answers) -> Tensor:
    """What the event model's output head would read, [B, T, F]: at its prompt's last row, then at each
    row.
    """
    last = answers.event_features[..., -pair.event_model.config.text.hidden_size :]
    normed: Tensor = pair.event_model.decoder.norm(last)
    return normed


def head_inputs(
    pair: ModelPair, head: DraftHead, answers: Answers, features: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What `DraftHead.forward` reads: the embeddings one row on [B, R, D], what is carried from features
    [B, C + T - 1, layers * D] at each row [B, R, d], and the events; the last T - 1 of R rows are the
    answers'.
    """
    with torch.no_grad():
        embedded = pair.target.decoder.embed(answers.tokens[:, :-1])
    embeddings = torch.cat((answers.prompt[:, 1:], embedded), 1)
    rows = head.context(answers.prompt.shape[1] - 1) + embedded.shape[1]
    return embeddings[:, -rows:], head.fuse(features[:, -rows:]), answers.events


def predicted(pair: ModelPair, head: StepHead, answers: Answers, features: Tensor) -> Tensor:
    """The head's outputs [B, T - 1, d] from features [B, C + T - 1, layers * D], one row before
    each.
    """
    rows = answers.tokens.shape[1] - 1
    if isinstance(head, DraftHead):
        outputs: Tensor = head(*head_inputs(pair, head, answers, features))[:, -rows:]
    elif isinstance(head, Adapter):
        outputs = head(event_features(pair, answers)[:, 1:])
    else:
        adapted = head.adapter(event_features(pair, answers)[:, :1])
        outputs = head(adapted.expand(-1, rows, -1), features[:, -rows:])
    return outputs


def chained(pair: ModelPair, head: StepHead, answers: Answers) -> Iterator[Tensor]:
    """Outputs [B, T - 1, d] from the target's own features, then what the head makes of its own outputs one
    row before, and so on: item k holds at each row the k-th draft behind the row k before, if all drafts
    until then were the answer's tokens.
    """
    features = answers.features[:, :-1]
    rows = answers.tokens.shape[1] - 1
    if isinstance(head, DraftHead):
        return unrolled(head, *head_inputs(pair, head, answers, features), rows)
    if isinstance(head, Adapter):
        return repeat(predicted(pair, head, answers, features))
    return _fused(head, head.adapter(event_features(pair, answers)[:, :1]), features[:, -rows:])


def readout(pair: ModelPair, head: StepHead) -> tuple[nn.Module, nn.Module]:
    """The norm and the output head that make logits of outputs."""
    decoder, lm_head = pair.target.decoder, pair.target.lm_head
    return head.readout(decoder.norm, lm_head) if isinstance(head, DraftHead) else (decoder.norm, lm_head)


def _fused(head: FeatureHead, adapted: Tensor, output: Tensor) -> Iterator[Tensor]:
    while True:
        output = head(adapted.expand(-1, output.shape[1], -1), output)
        yield output
        output = output.roll(1, 1)
