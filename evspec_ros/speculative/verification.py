"""What of a draft tree the target accepts. Unless a lossy mode is asked for by name, nothing is lost: the
tokens are the target's own, or distributed like them.

Greedy: walk the tree along the target's most likely tokens. Sampling: the residual rule of Leviathan et al.
(arXiv 2211.17192) and Chen et al. (arXiv 2302.01318), sibling after sibling as in SpecInfer (arXiv
2305.09781).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from evspec_ros.choices import ACCEPTANCES
from evspec_ros.errors import GenerationError
from evspec_ros.networks.devices import fetched
from evspec_ros.speculative.device_tree import DeviceTree, Draft
from evspec_ros.speculative.device_verification import decide
from evspec_ros.speculative.sampling import NO_TOKEN, Sampling, Warped, draw, likeliest
from evspec_ros.speculative.tree import DraftTree


@dataclass(frozen=True)
class Acceptance:
    """Which drafted tokens stand; raises GenerationError for an unknown mode and an impossible number.

    exact: those that the target would have written. typical: Medusa's rule (arXiv 2401.10774), p(x) >
    min(epsilon, delta * exp(-H(p))), or x is the target's most likely token. cascade: the OPT deferral of
    arXiv 2405.19261, the drafter's choice stands unless max q < max p - alpha * D_TV(p, q); alpha is the
    price of asking the target, which the paper sweeps.
    """

    mode: str = "exact"
    epsilon: float = 0.09
    delta: float = 0.3
    alpha: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ACCEPTANCES:
            raise GenerationError(f"There is no acceptance {self.mode!r}; choose {', '.join(ACCEPTANCES)}.")
        if not (0.0 < self.epsilon <= 1.0 and self.delta > 0.0 and self.alpha >= 0.0):
            raise GenerationError(
                f"The acceptance has epsilon {self.epsilon}, delta {self.delta} and alpha {self.alpha}; give "
                "0 < epsilon <= 1, delta > 0 and alpha >= 0."
            )

    @property
    def lossless(self) -> bool:
        """Whether the text is what the target alone would have written."""
        return self.mode == "exact"


EXACT = Acceptance()


@dataclass(frozen=True)
class Verdict:
    """rows: the pass's rows to keep, root first, then the accepted nodes from the root downwards.
    tokens: the accepted tokens and, always last, the one that the target adds itself (the bonus token).
    tree: what was judged, on the host.
    """

    rows: list[int]
    tokens: list[int]
    tree: DraftTree


class Distributions(Protocol):
    """The target's distribution [V] after each row of a pass, float32 on the CPU."""

    def __getitem__(self, row: int, /) -> Tensor: ...


class Judging(NamedTuple):
    """A tree of N nodes, the target's logits [N + 1, V] at its rows, and what it is judged by.

    written: how long the text is that the tree follows.
    """

    tree: Draft
    logits: Tensor
    sampling: Sampling
    generator: torch.Generator
    acceptance: Acceptance = EXACT
    written: int = 0


def verify(judgings: Sequence[Judging]) -> list[Verdict]:
    """Judge the trees of one pass; on a GPU the host waits once for all of them.

    The lossy modes read p at temperature 1 where the sampling is greedy. Raises GenerationError where the
    logits that decide are not finite.
    """
    on_device = any(isinstance(one.tree, DeviceTree) or one.logits.is_cuda for one in judgings)
    verdicts = verify_on_device(judgings) if on_device else [_judged(one) for one in judgings]
    for one, verdict in zip(judgings, verdicts, strict=True):
        if verdict.tokens[-1] == NO_TOKEN:
            emitted = one.written + len(verdict.tokens) - 1
            raise GenerationError(
                f"The target's logits behind {f'token {emitted} of the text' if emitted else 'the prompt'} "
                "are not finite (NaN or infinite), so that no token can follow; check the target's files, or "
                "choose float32 or bfloat16 where its values are too large for float16."
            )
    return verdicts


def _judged(judging: Judging) -> Verdict:
    """By the rule that was asked for; the last token is NO_TOKEN where the logits that decide are not
    finite.
    """
    tree, logits, sampling, generator, acceptance, _ = judging
    assert isinstance(tree, DraftTree), "What the host has not seen is judged where it is"
    if not acceptance.lossless:
        p = logits.float().softmax(-1) if sampling.greedy else sampling.probabilities(logits)
        if acceptance.mode == "typical":
            return _verify_typical(tree, p, sampling, generator, acceptance)
        p = _cascade(tree, p, acceptance.alpha)
        return verify_greedy(tree, likeliest(p)) if sampling.greedy else verify_sampled(tree, p, generator)
    if sampling.greedy:
        return verify_greedy(tree, likeliest(logits))
    return verify_sampled(tree, Warped(logits, sampling), generator)


def verify_on_device(judgings: Sequence[Judging]) -> list[Verdict]:
    """What `device_verification` decides, after one wait for that and for the trees that nobody has seen."""
    trees: list[DeviceTree] = []
    decided: list[Tensor] = []
    for tree, logits, sampling, generator, acceptance, _ in judgings:
        trees.append(tree if isinstance(tree, DeviceTree) else DeviceTree.of(tree, logits.device))
        decided += decide(trees[-1], logits, sampling, generator, acceptance)
        decided += trees[-1].unseen
    told, verdicts = iter(fetched(*decided)), list[Verdict]()
    for here in trees:
        accepted, bonus, *found = islice(told, 2 + len(here.unseen))
        rows, known = np.flatnonzero(accepted), here.told(found)
        tokens = known.tokens[rows[1:] - 1].tolist()
        verdicts.append(Verdict(rows.tolist(), [*tokens, int(bonus[0])], known))
    return verdicts


def verify_greedy(tree: DraftTree, choices: list[int]) -> Verdict:
    """Follow the nodes that agree with choices [N + 1], the target's most likely token after each row."""
    row, rows, tokens = 0, [0], []
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        if parent + 1 == row and token == choices[row]:
            row = node + 1
            rows.append(row)
            tokens.append(token)
    return Verdict(rows, [*tokens, choices[row]], tree)


def verify_sampled(tree: DraftTree, target: Distributions, generator: torch.Generator) -> Verdict:
    """Accept or resample by the target's warped distributions, of which those after the accepted rows alone
    are read.

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
    return Verdict(rows, [*tokens, _drawn(p, generator)], tree)


def _verify_typical(
    tree: DraftTree, p: Tensor, sampling: Sampling, generator: torch.Generator, acceptance: Acceptance
) -> Verdict:
    """The longest path of typical tokens, the first of equals, by p [N + 1, V]."""
    thresholds = (acceptance.delta * (-torch.special.entr(p).sum(-1)).exp()).clamp(max=acceptance.epsilon)
    typical = (p > thresholds[:, None]) | (p == p.amax(-1, keepdim=True))
    paths: dict[int, list[int]] = {0: [0]}
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        if parent + 1 in paths and typical[parent + 1, token]:
            paths[node + 1] = [*paths[parent + 1], node + 1]
    rows = max(paths.values(), key=len)
    last = p[rows[-1]]
    bonus = likeliest(last[None])[0] if sampling.greedy else _drawn(last, generator)
    return Verdict(rows, [*(int(tree.tokens[row - 1]) for row in rows[1:]), bonus], tree)


def _cascade(tree: DraftTree, p: Tensor, alpha: float) -> Tensor:
    """p [N + 1, V] with the drafter's distribution in the rows that are not deferred to the target.

    Where a row's first child declares q, q replaces p by the OPT rule. A child x chosen without chance has
    only its own q(x): the rule is then a Chow-like comparison, with q(x) for max q and the one-hot's distance
    1 - p(x) for D_TV, and the one-hot of x replaces p; the first child that passes decides.
    """
    mixed, decided = p.clone(), set()
    for node, (token, parent) in enumerate(zip(tree.tokens.tolist(), tree.parents.tolist(), strict=True)):
        row = parent + 1
        if row in decided:
            continue
        if tree.distributions is None:
            q = torch.nn.functional.one_hot(torch.tensor(token), p.shape[-1]).to(p)
            confidence = float(tree.probabilities[node])
        else:
            q = tree.distributions[node]
            confidence = float(q.max())
        stands = confidence >= float(p[row].max()) - alpha * float((p[row] - q).abs().sum()) / 2
        if stands:
            mixed[row] = q
        if stands or tree.distributions is not None:
            decided.add(row)
    return mixed


def _drawn(p: Tensor, generator: torch.Generator) -> int:
    """A token of p [V]; NO_TOKEN where it is NaN, as a softmax is all over where one logit is not finite."""
    return NO_TOKEN if bool(p[0].isnan()) else draw(p, generator)


def _residual(p: Tensor, q: Tensor | None, token: int) -> Tensor:
    """norm(max(0, p - q)); p itself where nothing is left, which only rounding can cause."""
    if q is None:
        rest = p.clone()
        rest[token] = 0.0
    else:
        rest = (p - q).clamp_(min=0.0)
    total = float(rest.sum())
    return rest / total if total > 0.0 else p
