"""What of a draft tree the target accepts. Nothing is lost: the tokens are the target's own, or distributed
like them.

Greedy: walk the tree along the target's most likely tokens. Sampling: the residual rule of Leviathan et al.
(arXiv 2211.17192) and Chen et al. (arXiv 2302.01318), sibling after sibling as in SpecInfer (arXiv
2305.09781).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evspec_ros.speculative.sampling import Sampling, draw
from evspec_ros.speculative.tree import DraftTree


@dataclass(frozen=True)
class Verdict:
    """rows: the pass's rows to keep, root first, then the accepted nodes from the root downwards.
    tokens: the accepted tokens and, always last, the one that the target adds itself (the bonus token).
    """

    rows: list[int]
    tokens: list[int]


def verify(tree: DraftTree, logits: Tensor, sampling: Sampling, generator: torch.Generator) -> Verdict:
    """Judge a tree of N nodes by the target's logits [N + 1, V] at its rows."""
    if sampling.greedy:
        return verify_greedy(tree, logits.argmax(dim=-1).tolist())
    return verify_sampled(tree, sampling.probabilities(logits).cpu(), generator)


def verify_greedy(tree: DraftTree, choices: list[int]) -> Verdict:
    """Follow the nodes that agree with choices [N + 1], the target's most likely token after each row."""
    row, rows, tokens = 0, [0], []
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        if parent + 1 == row and token == choices[row]:
            row = node + 1
            rows.append(row)
            tokens.append(token)
    return Verdict(rows, [*tokens, choices[row]])


def verify_sampled(tree: DraftTree, target: Tensor, generator: torch.Generator) -> Verdict:
    """Accept or resample by target [N + 1, V] float32 on the CPU, the target's warped distribution after each
    row.

    A child x, drawn from q, is accepted with probability min(1, p(x) / q(x)); else p becomes norm(max(0, p -
    q)) and the next sibling is tried. A child chosen without chance has the one-hot q, so p loses x alone.
    """
    chances = torch.rand(len(tree), generator=generator).tolist()
    row, rows, tokens, p = 0, [0], [], target[0]
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        if parent + 1 != row:
            continue
        q = None if tree.distributions is None else tree.distributions[node]
        if chances[node] * (1.0 if q is None else float(q[token])) < float(p[token]):
            row = node + 1
            rows.append(row)
            tokens.append(token)
            p = target[row]
        else:
            p = _residual(p, q, token)
    return Verdict(rows, [*tokens, draw(p, generator)])


def _residual(p: Tensor, q: Tensor | None, token: int) -> Tensor:
    """norm(max(0, p - q)); p itself where nothing is left, which only rounding can cause."""
    if q is None:
        rest = p.clone()
        rest[token] = 0.0
    else:
        rest = (p - q).clamp_(min=0.0)
    total = float(rest.sum())
    return rest / total if total > 0.0 else p
