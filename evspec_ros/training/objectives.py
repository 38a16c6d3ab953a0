"""How far predicted features are from the target's: the terms that a draft head's loss is a weighted sum of.

Shapes: N rows, D the target's hidden size, V its vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from evspec_ros.errors import TrainingError

TEMPERATURE = 0.07  # of the contrastive term, as in CLIP and MoCo
CONTRASTED = 1024  # rows at most, so that memory does not grow with the square of a batch

Logits = Callable[[Tensor], Tensor]  # features [N, D] -> [N, V] by the target's frozen norm and head
Term = Callable[[Tensor, Tensor, Logits], Tensor]


def smooth_l1(predicted: Tensor, true: Tensor, _: Logits) -> Tensor:
    """EAGLE's regression (arXiv 2401.15077), in units of the features' root mean square."""
    scale = true.square().mean().sqrt()
    return F.smooth_l1_loss(predicted / scale, true / scale)


def mse(predicted: Tensor, true: Tensor, _: Logits) -> Tensor:
    """Mean squared error over the features' mean square: 1 is no better than predicting zeros."""
    return F.mse_loss(predicted, true) / true.square().mean()


def cosine(predicted: Tensor, true: Tensor, _: Logits) -> Tensor:
    """1 - cosine similarity, mean over rows."""
    return 1 - F.cosine_similarity(predicted, true, dim=-1).mean()


def contrastive(predicted: Tensor, true: Tensor, _: Logits) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) on aligned pairs, both ways as in CLIP: a row's
    own partner against those of all other rows.
    """
    step = -(-len(true) // CONTRASTED)
    ours, theirs = (F.normalize(rows[::step], dim=-1) for rows in (predicted, true))
    similar = ours @ theirs.T / TEMPERATURE
    own = torch.arange(len(similar), device=similar.device)
    return (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2


def cross_entropy(predicted: Tensor, true: Tensor, logits: Logits) -> Tensor:
    """Between the token distributions that the target's frozen head makes of the two, as in EAGLE."""
    with torch.no_grad():
        wanted = torch.softmax(logits(true).float(), -1)
    found = torch.log_softmax(logits(predicted).float(), -1)
    return -(wanted * found).sum(-1).mean()


TERMS: Mapping[str, Term] = {
    "mse": mse,
    "smooth_l1": smooth_l1,
    "cosine": cosine,
    "contrastive": contrastive,
    "cross_entropy": cross_entropy,
}


def parse_objective(text: str) -> dict[str, float]:
    """Weights by term from `mse=1,cosine=0.5`; a term alone weighs 1. Raises TrainingError for what is
    none.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = float("nan")
        if name not in TERMS or not 0 < weights[name] < float("inf"):
            raise TrainingError(
                f"The objective {text!r} cannot be used, {part.strip()!r} is no term with a positive weight; "
                f"write terms as in mse=1,cosine=0.5, out of {', '.join(TERMS)}."
            )
    return weights


def weighted(objective: str, predicted: Tensor, true: Tensor, logits: Logits) -> Tensor:
    """The sum of an objective's terms for predicted and true features [N, D] of the same rows."""
    terms = [
        weight * TERMS[name](predicted, true, logits) for name, weight in parse_objective(objective).items()
    ]
    return torch.stack(terms).sum()
