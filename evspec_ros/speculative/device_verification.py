"""What of a draft tree the target accepts, decided where its logits are: exact acceptance on a GPU.

The rules are those of `verification`, for all nodes at once and without a look at a value. Which rows stand
and the token behind them, at most 65 whole numbers, are all that the host waits for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evspec_ros.networks.devices import uploaded
from evspec_ros.speculative.sampling import NO_TOKEN, Sampling, drawn
from evspec_ros.speculative.tree import DraftTree


class Decision(NamedTuple):
    """accepted: bool [N + 1], the rows that stand, the root among them; bonus: int64 [1], the token behind
    the last of them, NO_TOKEN where logits that decide are not finite.
    """

    accepted: Tensor
    bonus: Tensor

    def packed(self) -> Tensor:
        """Both as int64 [N + 2]."""
        return torch.cat((self.accepted.long(), self.bonus))


class _Nodes:
    """A tree of N nodes beside the target's logits: tokens int64 [N]; parents int64 [N], rows; earlier bool
    [N, N], which nodes are siblings that are tried before; ancestors as in DraftTree.
    """

    def __init__(self, tree: DraftTree, device: torch.device) -> None:
        count = len(tree)
        numbers = np.stack((tree.tokens, tree.parents + 1))
        tokens_and_parents = uploaded(torch.from_numpy(numbers), device)
        self.tokens, self.parents = tokens_and_parents[0], tokens_and_parents[1]
        self.ancestors = uploaded(torch.from_numpy(tree.ancestors()), device)
        siblings = self.parents[:, None] == self.parents
        self.earlier = siblings.tril(-1)
        alike = self.earlier & (self.tokens[:, None] == self.tokens)
        self.first = ~alike.any(1)  # of siblings that are alike the first alone is followed
        self._rows = torch.arange(count + 1, device=device)

    def path(self, agreed: Tensor) -> tuple[Tensor, Tensor]:
        """agreed bool [N], of all siblings at most one -> accepted bool [N + 1] and the last accepted row
        [1].
        """
        holds = torch.cat((agreed.new_ones(1), agreed))
        accepted = ~(self.ancestors & ~holds).any(1)
        return accepted, (accepted * self._rows).amax(0, keepdim=True)


def decide_greedily(tree: DraftTree, logits: Tensor) -> Decision:
    """The nodes along the target's most likely tokens, by its logits [N + 1, V]."""
    highest, places = logits.max(-1)
    choices = torch.where(highest.isfinite(), places, NO_TOKEN)
    nodes = _Nodes(tree, logits.device)
    accepted, last = nodes.path(nodes.first & (nodes.tokens == choices[nodes.parents]))
    return Decision(accepted, choices[last])


def decide_sampled(
    tree: DraftTree, logits: Tensor, sampling: Sampling, generator: torch.Generator
) -> Decision:
    """The residual rule, for nodes chosen without chance and for chains that were drawn; the random numbers
    are the host's.
    """
    p = sampling.probabilities(logits)  # [N + 1, V]
    nodes = _Nodes(tree, logits.device)
    chances = uploaded(torch.rand(len(tree) + 1, generator=generator, dtype=torch.float64), logits.device)
    of_tokens = p[nodes.parents, nodes.tokens]
    if tree.distributions is None:
        # What rejected siblings had is gone from p, and the rest is that much more likely.
        of_tokens = of_tokens * nodes.first
        left = 1.0 - (nodes.earlier * of_tokens).sum(1)
        tried = chances[:-1] * left < of_tokens
        accepted, last = nodes.path(tried & ~(nodes.earlier & tried).any(1))
        children = (nodes.parents == last).to(p.dtype)
        gone = torch.zeros_like(p[0]).scatter_add_(0, nodes.tokens, children) > 0
        rest = p[last].masked_fill(gone, 0.0)
    else:
        q = tree.distributions
        of_draft = q.gather(1, nodes.tokens[:, None])[:, 0]
        accepted, last = nodes.path(chances[:-1] * of_draft < of_tokens)
        below = torch.cat((q, torch.zeros_like(p[:1])))[last]  # of what was rejected, if anything was
        rest = (p[last] - below).clamp_(min=0.0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0.0, rest, p[last])  # nothing is left by rounding alone
    return Decision(accepted, drawn(rest, chances[-1:]))


def can_decide(tree: DraftTree, sampling: Sampling) -> bool:
    """Whether a tree is of a kind that is decided here."""
    return sampling.greedy or tree.distributions is None or tree.is_chain
