"""What of a draft tree the target accepts, decided where its logits are: on a GPU.

The rules are those of `verification`, for all nodes at once and without a look at a value. Which rows stand
and the token behind them, at most 65 whole numbers, are all that the host waits for, with the nodes of a
tree that it has not seen. The random numbers are the host's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from evspec_ros.networks.devices import uploaded
from evspec_ros.speculative.device_tree import DeviceTree
from evspec_ros.speculative.sampling import NO_TOKEN, Sampling, drawn
from evspec_ros.speculative.tree import ROOT

if TYPE_CHECKING:
    from evspec_ros.speculative.verification import Acceptance


class Decision(NamedTuple):
    """accepted: bool [N + 1], the rows that stand, the root among them; bonus: int64 [1], the token behind
    the last of them, NO_TOKEN where logits that decide are not finite.
    """

    accepted: Tensor
    bonus: Tensor


def decide(
    tree: DeviceTree,
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator,
    acceptance: Acceptance,
) -> Decision:
    """The nodes that stand by the rule that was asked for, by the target's logits [N + 1, V]."""
    nodes = _JudgedNodes(tree)
    if acceptance.lossless and sampling.greedy:
        return _greedily(nodes, logits)
    p = logits.float().softmax(-1) if sampling.greedy else sampling.probabilities(logits)  # [N + 1, V]
    if acceptance.mode == "typical":
        return _typically(nodes, p, sampling, generator, acceptance)
    if acceptance.mode == "cascade":
        p = _cascaded(nodes, p, acceptance.alpha)
    return _greedily(nodes, p) if sampling.greedy else _by_chance(nodes, p, generator)


class _JudgedNodes:
    """A tree of N nodes beside the target's logits. rows: int64 [N], each node's parent's; earlier bool
    [N, N], which nodes are siblings that are tried before; first bool [N], of siblings that are alike the one
    that may be followed.
    """

    def __init__(self, tree: DeviceTree) -> None:
        self.tree, self.tokens = tree, tree.tokens
        self.rows = tree.parents - ROOT
        siblings = self.rows[:, None] == self.rows
        self.earlier = siblings.tril(-1) & tree.there
        alike = self.earlier & (self.tokens[:, None] == self.tokens)
        self.first = tree.there & ~alike.any(1)
        self._numbers = torch.arange(len(tree) + 1, device=self.tokens.device)

    def standing(self, agreed: Tensor) -> Tensor:
        """Bool [N + 1], the root and the nodes that agreed, bool [N], with all of their ancestors."""
        holds = torch.cat((agreed.new_ones(1), agreed))
        return ~(self.tree.ancestors & ~holds).any(1)

    def path(self, agreed: Tensor) -> tuple[Tensor, Tensor]:
        """agreed bool [N], of all siblings at most one -> accepted bool [N + 1] and the last accepted row
        [1].
        """
        accepted = self.standing(agreed)
        return accepted, (accepted * self._numbers).amax(0, keepdim=True)

    def longest(self, agreed: Tensor) -> tuple[Tensor, Tensor]:
        """The same where several siblings may agree: the longest path, the first of equals."""
        count = len(self._numbers)
        order = self.tree.row_depths() * count + (count - 1 - self._numbers)
        best = torch.where(self.standing(agreed), order, -1).amax(0, keepdim=True)
        last = count - 1 - best % count
        return self.tree.ancestors[last][0], last


def _greedily(nodes: _JudgedNodes, values: Tensor) -> Decision:
    """The nodes along the most likely tokens, by logits or probabilities [N + 1, V]."""
    choices = _likeliest_of(values)
    accepted, last = nodes.path(nodes.first & (nodes.tokens == choices[nodes.rows]))
    return Decision(accepted, choices[last])


def _by_chance(nodes: _JudgedNodes, p: Tensor, generator: torch.Generator) -> Decision:
    """The residual rule, for nodes chosen without chance and for those that were drawn, by p [N + 1, V]."""
    tree = nodes.tree
    chances = uploaded(torch.rand(len(tree) + 1, generator=generator, dtype=torch.float64), p.device)
    if tree.distributions is not None:
        return _by_draws(nodes, p, tree.distributions, chances)
    of_tokens = p[nodes.rows, nodes.tokens] * nodes.first
    # What rejected siblings had is gone from p, and the rest is that much more likely.
    left = 1.0 - torch.where(nodes.earlier, of_tokens, 0.0).sum(1)
    tried = chances[:-1] * left < of_tokens
    accepted, last = nodes.path(tried & ~(nodes.earlier & tried).any(1))
    children = (nodes.rows == last) & tree.there
    gone = torch.zeros_like(p[0]).scatter_add_(0, nodes.tokens, children.to(p.dtype)) > 0
    rest = p[last].masked_fill(gone, 0.0)
    rest = torch.where(rest.sum(-1, keepdim=True) > 0.0, rest, p[last])  # nothing is left by rounding alone
    return Decision(accepted, drawn(rest, chances[-1:]))


def _by_draws(nodes: _JudgedNodes, p: Tensor, q: Tensor, chances: Tensor) -> Decision:
    """The residual rule of nodes drawn from q [N, V]: each row's first children at once, then its second
    ones against what those have left, and so on.
    """
    tree, agreed, rest = nodes.tree, torch.zeros_like(nodes.first), p
    of_draft = q.gather(1, nodes.tokens[:, None])[:, 0]
    places = nodes.earlier.sum(1)  # int64 [N], how many siblings are tried before
    for place in range(tree.most_siblings):
        tried = tree.there & (places == place)
        agreed = agreed | (tried & (chances[:-1] * of_draft < rest[nodes.rows, nodes.tokens]))
        # Rows without such a child lose nothing; none has two.
        every = torch.zeros_like(p).index_add_(0, nodes.rows, torch.where(tried[:, None], q, 0.0))
        left = (rest - every).clamp_(min=0.0)
        total = left.sum(-1, keepdim=True)
        lose = torch.zeros_like(total).index_add_(0, nodes.rows, tried[:, None].to(p.dtype)) > 0
        rest = torch.where(lose & (total > 0.0), left / total, rest)
    first = agreed & ~(nodes.earlier & agreed).any(1)
    accepted, last = nodes.path(first)
    return Decision(accepted, drawn(rest[last], chances[-1:]))


def _typically(
    nodes: _JudgedNodes, p: Tensor, sampling: Sampling, generator: torch.Generator, acceptance: Acceptance
) -> Decision:
    """The longest path of typical tokens, by p [N + 1, V]."""
    thresholds = (acceptance.delta * (-torch.special.entr(p).sum(-1)).exp()).clamp(max=acceptance.epsilon)
    of_tokens, rows = p[nodes.rows, nodes.tokens], nodes.rows
    typical = (of_tokens > thresholds[rows]) | (of_tokens == p.amax(-1)[rows])
    accepted, last = nodes.longest(typical & nodes.tree.there)
    if sampling.greedy:
        return Decision(accepted, _likeliest_of(p[last]))
    chance = uploaded(torch.rand(1, generator=generator, dtype=torch.float64), p.device)
    return Decision(accepted, drawn(p[last], chance))


def _cascaded(nodes: _JudgedNodes, p: Tensor, alpha: float) -> Tensor:
    """p [N + 1, V] with the drafter's distribution in the rows that are not deferred to the target."""
    tree, q = nodes.tree, nodes.tree.distributions
    if q is None:
        q = torch.zeros_like(p[1:]).scatter_(1, nodes.tokens[:, None], 1.0)
        confidences, asked = tree.probabilities, tree.there
    else:  # a row's first child alone is asked
        confidences, asked = q.amax(-1), tree.there & ~nodes.earlier.any(1)
    distances = (p[nodes.rows] - q).abs().sum(-1).double() / 2
    stands = asked & (confidences.double() >= p.amax(-1)[nodes.rows].double() - alpha * distances)
    decides = stands & ~(nodes.earlier & stands).any(1)
    instead = torch.zeros_like(p).index_add_(0, nodes.rows, torch.where(decides[:, None], q, 0.0))
    decided = torch.zeros_like(p[:, :1]).index_add_(0, nodes.rows, decides[:, None].to(p.dtype)) > 0
    return torch.where(decided, instead, p)


def _likeliest_of(values: Tensor) -> Tensor:
    """int64 [n], the most likely token of each row [n, V]; NO_TOKEN where the largest value is not finite."""
    highest, places = values.max(-1)
    return torch.where(highest.isfinite(), places, NO_TOKEN)
