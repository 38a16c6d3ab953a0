"""What is accepted of a tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from speculative_fakes import excess, random_tree
from torch import Tensor

from evspec_ros.errors import GenerationError
from evspec_ros.speculative import DraftTree
from evspec_ros.speculative.sampling import Sampling, draw
from evspec_ros.speculative.tree import NO_DRAFT
from evspec_ros.speculative.verification import (
    Acceptance,
    Judging,
    Verdict,
    verify,
    verify_greedy,
    verify_sampled,
)

VOCABULARY = 10
DRAWS = 8_000
SUSPICIOUS = 5.0  # standard deviations


def _verified(*given: Any, **settings: Any) -> Verdict:
    """Of one tree alone."""
    (verdict,) = verify([Judging(*given, **settings)])
    return verdict


def test_greedy_follows_the_branch_that_the_target_takes() -> None:
    r"""The target says 8 after the root, 7 after n1, 3 after n4.

         root
        /    \
      n0:7   n1:8 *
      /  \      \
    n2:9 n3:3   n4:7 *
    """
    tree = DraftTree.from_parents([7, 8, 9, 3, 7], [-1, -1, 0, 0, 1], [0.5] * 5)
    verdict = verify_greedy(tree, [8, 9, 7, 0, 0, 3])
    assert verdict.rows == [0, 2, 5]
    assert verdict.tokens == [8, 7, 3]


def test_greedy_stops_at_the_first_disagreement() -> None:
    """What follows a wrong token is worthless, even where it would agree again."""
    verdict = verify_greedy(DraftTree.chain([1, 2, 3], [1.0] * 3), [1, 9, 3, 4])
    assert verdict.rows == [0, 1]
    assert verdict.tokens == [1, 9]


def test_greedy_adds_the_bonus_token_when_all_are_accepted() -> None:
    """A chain of three right tokens yields four."""
    verdict = verify_greedy(DraftTree.chain([1, 2, 3], [1.0] * 3), [1, 2, 3, 4])
    assert verdict.rows == [0, 1, 2, 3]
    assert verdict.tokens == [1, 2, 3, 4]


def test_without_a_draft_the_target_decides_alone() -> None:
    """One row, one token, greedy and sampled."""
    logits = torch.tensor([[0.0, 5.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    assert _verified(NO_DRAFT, logits, Sampling(), generator).tokens == [1]
    assert _verified(NO_DRAFT, logits, Sampling(temperature=1e-3), generator).tokens == [1]


MODES = [
    (Sampling(), Acceptance()),
    (Sampling(1.0), Acceptance()),
    (Sampling(0.7, top_p=0.9, top_k=3), Acceptance()),
    (Sampling(), Acceptance("typical")),
    (Sampling(1.0), Acceptance("typical")),
    (Sampling(), Acceptance("cascade")),
    (Sampling(1.0), Acceptance("cascade")),
]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("sampling", "acceptance"), MODES)
def test_logits_that_are_not_finite_stop_the_text(
    sampling: Sampling, acceptance: Acceptance, value: float
) -> None:
    """One NaN or infinity in the row that decides, wherever in it, is told with its place in the text."""
    for place in (0, 2):
        logits = torch.full((3, 4), -30.0)
        logits[[0, 1, 2], [1, 3, 0]] = 30.0
        logits[2, place] = value
        tree, generator = DraftTree.chain([1, 3], [1.0, 1.0]), torch.Generator().manual_seed(0)
        with pytest.raises(GenerationError, match=r"behind token 9 of the text are not finite"):
            _verified(tree, logits, sampling, generator, acceptance, written=7)
        with pytest.raises(GenerationError, match="behind the prompt are not finite"):
            _verified(NO_DRAFT, logits[2:], sampling, generator, acceptance)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0)])
def test_a_row_that_decides_nothing_may_be_anything(sampling: Sampling) -> None:
    """The target would never have read the refused draft, so its logits do not count; -inf forbids a token
    and is no fault.
    """
    logits = torch.full((3, 4), float("-inf"))
    logits[0, 1] = 3.0
    logits[1:] = float("nan")
    verdict = _verified(DraftTree.chain([2, 3], [1.0, 1.0]), logits, sampling, torch.Generator())
    assert verdict.tokens == [1]


def test_a_row_of_nothing_but_minus_infinity_says_nothing() -> None:
    """No token is left in it."""
    for sampling in (Sampling(), Sampling(1.0)):
        with pytest.raises(GenerationError, match="not finite"):
            _verified(NO_DRAFT, torch.full((1, 4), float("-inf")), sampling, torch.Generator())


def test_greedy_finds_the_longest_agreeing_path_of_any_tree() -> None:
    """Against trying every path from the root, on 300 random trees."""
    random = np.random.default_rng(1)
    for _ in range(300):
        tree = random_tree(int(random.integers(0, 16)), 5, range(3), random)
        choices = random.integers(0, 3, len(tree) + 1).tolist()
        verdict = verify_greedy(tree, choices)
        longest = max((path for path in _paths(tree) if _agrees(tree, path, choices)), key=len)
        assert len(verdict.rows) == len(longest) + 1
        assert [row - 1 for row in verdict.rows[1:]] == longest
        assert verdict.tokens == [*tree.tokens[longest].tolist(), choices[verdict.rows[-1]]]


def _paths(tree: DraftTree) -> list[list[int]]:
    """Every path of nodes from the root, the empty one included."""
    paths: list[list[int]] = [[]]
    for node, parent in enumerate(tree.parents.tolist()):
        paths += [[*path, node] for path in paths if (path[-1] if path else -1) == parent]
    return paths


def _agrees(tree: DraftTree, path: list[int], choices: list[int]) -> bool:
    rows = [0, *(node + 1 for node in path)]
    return all(int(tree.tokens[node]) == choices[row] for node, row in zip(path, rows, strict=False))


# --- sampling: the joint distribution of the next two tokens must be the target's -----------------------


def _model(seed: int, sharpness: float) -> Tensor:
    """A first-order model: [V, V], the distribution after each token."""
    logits = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return Sampling(temperature=1 / sharpness, top_p=0.97).probabilities(logits)


def _chain(target: Tensor, draft: Tensor, generator: torch.Generator) -> DraftTree:
    tokens: list[int] = []
    for _ in range(3):
        tokens.append(draw(draft[tokens[-1] if tokens else 0], generator))
    q = draft[[0, *tokens[:-1]]]
    return DraftTree.chain(tokens, q[range(3), tokens].tolist(), q)


def _best_first(target: Tensor, draft: Tensor, generator: torch.Generator) -> DraftTree:
    """The draft's three best tokens, and the two best after each."""
    tokens, parents = [], []
    for first in draft[0].topk(3).indices.tolist():
        tokens.append(first)
        parents.append(-1)
        here = len(tokens) - 1
        for second in draft[first].topk(2).indices.tolist():
            tokens.append(second)
            parents.append(here)
    return DraftTree.from_parents(tokens, parents, [0.5] * len(tokens))


def _siblings(target: Tensor, draft: Tensor, generator: torch.Generator) -> DraftTree:
    """Three tokens drawn without replacement, one more drawn after each."""
    tokens, parents, q = [], [], []
    left = draft[0].clone()
    for _ in range(3):
        tokens.append(draw(left, generator))
        parents.append(-1)
        q.append(left)
        left = left.clone()
        left[tokens[-1]] = 0
        left /= left.sum()
    for parent in range(3):
        q.append(draft[tokens[parent]])
        tokens.append(draw(q[-1], generator))
        parents.append(parent)
    return DraftTree.from_parents(tokens, parents, [0.5] * 6, torch.stack(q))


def _own(target: Tensor, draft: Tensor, generator: torch.Generator) -> DraftTree:
    """A chain drawn from the target itself."""
    return _chain(target, target, generator)


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("propose", [_chain, _best_first, _siblings, _own])
def test_what_is_sampled_is_distributed_as_the_target(propose, sharpness: float) -> None:  # type: ignore[no-untyped-def]
    """Both next tokens together, by chi-squared over all pairs."""
    target, draft = _model(1, sharpness), _model(2, sharpness)
    generator = torch.Generator().manual_seed(7)
    counts = torch.zeros(VOCABULARY, VOCABULARY)
    for _ in range(DRAWS):
        tree = propose(target, draft, generator)
        tokens = verify_sampled(tree, target[[0, *tree.tokens.tolist()]], generator).tokens
        first = tokens[0]
        second = tokens[1] if len(tokens) > 1 else draw(target[first], generator)
        counts[first, second] += 1
    assert excess(counts, target[0][:, None] * target) < SUSPICIOUS


def test_the_target_s_own_draws_are_all_accepted() -> None:
    """With q equal to p nothing is ever rejected."""
    target = _model(1, 1.0)
    generator = torch.Generator().manual_seed(7)
    for _ in range(500):
        tree = _own(target, target, generator)
        assert verify_sampled(tree, target[[0, *tree.tokens.tolist()]], generator).rows == [0, 1, 2, 3]


def test_a_residual_of_nothing_falls_back_on_the_target() -> None:
    """Rounding can reject a token of q = p; the next token is then drawn from p and no zero is divided by."""
    p = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    rounded_up = DraftTree.chain(
        [0], [0.25], p[:1] * 1.5
    )  # above p everywhere, far more than rounding does it
    generator = torch.Generator().manual_seed(0)
    verdicts = [verify_sampled(rounded_up, p, generator) for _ in range(200)]
    assert {verdict.tokens[0] for verdict in verdicts if verdict.rows == [0]} == {0, 1}


# --- lossy modes, by hand: p = (0.6, 0.3, 0.1) ----------------------------------------------------------

P = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])


def _lossy(token: int, confidence: float, acceptance: Acceptance) -> list[int]:
    tree = DraftTree.chain([token], [confidence])
    return _verified(tree, P.log(), Sampling(), torch.Generator().manual_seed(0), acceptance).tokens


def test_typical_accepts_what_exceeds_the_threshold() -> None:
    """exp(-H(p)) is 0.4075; a threshold of 0.09 takes all, one of 0.2038 the first two, one of 1 the best."""
    assert _lossy(2, 1.0, Acceptance("typical", 0.09, 0.3)) == [2, 2]
    assert _lossy(2, 1.0, Acceptance("typical", 1.0, 0.5)) == [0]
    assert _lossy(1, 1.0, Acceptance("typical", 1.0, 0.5)) == [1, 2]
    assert [_lossy(x, 1.0, Acceptance("typical", 1.0, 9.0)) for x in range(3)] == [[0, 2], [0], [0]]


def test_cascade_defers_where_the_target_is_surer() -> None:
    """max p is 0.6; with alpha 0.5 a token 1 pays 0.6 - 0.5 * 0.7 = 0.25."""
    assert _lossy(1, 0.65, Acceptance("cascade")) == [1, 2]
    assert _lossy(1, 0.55, Acceptance("cascade")) == [0]
    assert _lossy(1, 0.3, Acceptance("cascade", alpha=0.5)) == [1, 2]
    assert _lossy(1, 0.2, Acceptance("cascade", alpha=0.5)) == [0]


@pytest.mark.parametrize("change", [{"epsilon": 0.0}, {"epsilon": 1.5}, {"delta": 0.0}, {"alpha": -0.1}])
def test_impossible_numbers_are_refused(change: dict[str, float]) -> None:
    """One sentence with what was given and what may be."""
    with pytest.raises(GenerationError, match="0 < epsilon <= 1"):
        Acceptance("typical", **change)


def test_only_exact_acceptance_is_lossless() -> None:
    """The other modes mark what they accept."""
    assert [Acceptance(mode).lossless for mode in ("exact", "typical", "cascade")] == [True, False, False]
    with pytest.raises(GenerationError, match="There is no acceptance"):
        Acceptance("generous")


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_cascade_samples_the_mixture_that_its_rule_makes(alpha: float) -> None:
    """By the OPT rule restated: q where max q >= max p - alpha * D_TV(p, q), else p; by chi-squared."""
    deferred = set()
    for seed in range(6):
        p, q = (_model(seed + offset, 2.0)[0] for offset in (0, 50))
        distance = float((p - q).abs().sum()) / 2
        stands = float(q.max()) >= float(p.max()) - alpha * distance
        deferred.add(not stands)
        generator = torch.Generator().manual_seed(seed)
        counts = torch.zeros(VOCABULARY)
        for token in torch.multinomial(q, 3_000, True, generator=generator).tolist():
            tree = DraftTree.chain([token], [float(q[token])], q[None])
            mode = Acceptance("cascade", alpha=alpha)
            counts[_verified(tree, p.log().repeat(2, 1), Sampling(1.0), generator, mode).tokens[0]] += 1
        assert excess(counts, q if stands else p) < SUSPICIOUS
    assert deferred == {True, False}
