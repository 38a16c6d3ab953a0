"""The objective of a block head, as DFlash and JetSpec (arXiv 2606.18394) have it: blocks behind random
places of the target's own answers, cross-entropy on every row of them, the first ones weighted most, as what
lies behind a wrong draft is lost.

Shapes: S scenes, A blocks of each, B rows of a block, T tokens of the longest answer, n tokens that the head
can say; row b of a block behind token j says token j + b + 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evspec_ros.networks.block_head import BlockHead, Context
from evspec_ros.networks.draft_head import ReducedHead
from evspec_ros.training.features import Answers, ModelPair
from evspec_ros.training.prediction import answer_rows, target_logits, true_features

DECAY = 0.95  # a row's weight relative to the one before, about the share of drafts that are accepted
BLOCKS = 8  # behind each answer in a step, one of them behind its first token


def random_places(lengths: Tensor, generator: torch.Generator) -> Tensor:
    """Tokens that blocks are to follow, int64 [S, BLOCKS], of answers of these lengths [S]: the first one and
    others that are not the last.
    """
    drawn = torch.rand(len(lengths), BLOCKS, generator=generator).to(lengths.device)
    places = (drawn * (lengths[:, None] - 1)).long()
    places[:, 0] = 0
    return places


def block_logits(pair: ModelPair, head: BlockHead, answers: Answers, places: Tensor) -> Tensor:
    """What the head says behind these tokens of the answers, int64 [S, A] -> [S, A, B, n]."""
    prompt_rows = head.context(answers.prompt.shape[1] - 1) + 1
    read = answers.features[:, -prompt_rows - answers.tokens.shape[1] + 1 :]
    rows = torch.cat((head.events(answers.events), head.fc(read)), 1)
    held = torch.arange(rows.shape[1], device=rows.device)
    first = answers.events.shape[1] + prompt_rows + places  # of each block, its first row's position
    context = Context(*head.project(rows, held), held < first[:, :, None])
    with torch.no_grad():
        last = pair.target.decoder.embed(answers.tokens.gather(1, places))
    logits: Tensor = head(last, first, (context,))
    return logits


def block_loss(pair: ModelPair, head: BlockHead, answers: Answers, places: Tensor) -> Tensor:
    """Cross entropy with the target's distributions behind these tokens of the answers, int64 [S, A]; of a
    reduced vocabulary where the target says one of its tokens.
    """
    used = answer_rows(answers)
    with torch.no_grad():
        wanted = target_logits(pair, true_features(pair, answers)).float()  # [S, T - 1, V]
        if isinstance(head.lm_head, ReducedHead):
            used = used & torch.isin(wanted.argmax(-1), head.lm_head.tokens)
            wanted = wanted[..., head.lm_head.tokens]
    offsets = torch.arange(head.config.block, device=places.device)
    reached = places[:, :, None] + offsets  # [S, A, B], the row of T - 1 that is to be foretold
    inside = reached.clamp(max=used.shape[1] - 1)
    scene = torch.arange(len(places), device=places.device)[:, None, None]
    meant = used[scene, inside] & (reached < used.shape[1])
    found = torch.log_softmax(block_logits(pair, head, answers, places).float(), -1)[meant]
    entropy = -(torch.softmax(wanted, -1)[scene, inside][meant] * found).sum(-1)
    weights = (DECAY**offsets).expand_as(reached)[meant]
    return (weights * entropy).sum() / weights.sum().clamp(min=1)


def followed_drafts(pair: ModelPair, head: BlockHead, answers: Answers) -> Tensor:
    """Of the block behind each token but the last, how many drafts are followed: int64 [S, T - 1]."""
    tokens = answers.tokens
    places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
    best = block_logits(pair, head, answers, places.expand(len(tokens), -1)).argmax(-1)  # [S, T - 1, B]
    drafts = head.lm_head.tokens[best] if isinstance(head.lm_head, ReducedHead) else best
    reached = places[:, None] + 1 + torch.arange(head.config.block, device=tokens.device)
    right = drafts == tokens[:, reached.clamp(max=tokens.shape[1] - 1)]
    return (right & (reached < tokens.shape[1])).cumprod(-1).sum(-1)
