"""vLLM's test of a rejection sampler: with more and more draws the tokens' distribution comes as near to the
target's as chance allows, and not to anybody else's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from speculative_fakes import excess, fake_prompt
from torch import Tensor

from evspec_ros.engines.block import BlockOutput
from evspec_ros.speculative import DraftLimits, DraftTree, EventSide, block
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.suffix import SuffixDrafter
from evspec_ros.speculative.verification import verify_sampled

VOCABULARY = 10
DRAWS = (100, 1_000, 10_000, 100_000)
NEARER = 10.0  # the least factor by which the distance falls from the first number of draws to the last
SUSPICIOUS = 5.0  # standard deviations of chi-squared

Trees = Callable[[Tensor, torch.Generator], Iterator[DraftTree]]


def _distributions(seed: int, rows: int, sampling: Sampling) -> Tensor:
    """Random ones, float32 [rows, V]."""
    logits = torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed))
    return sampling.probabilities(logits)


def _chains(q: Tensor, generator: torch.Generator) -> Iterator[DraftTree]:
    """Two tokens, each drawn from a distribution of its own."""
    drawn = torch.stack([torch.multinomial(row, DRAWS[-1], True, generator=generator) for row in q[:2]], 1)
    for tokens in drawn.tolist():
        yield DraftTree.chain(tokens, [0.5, 0.5], q[:2])


def _deterministic(q: Tensor, _: torch.Generator) -> Iterator[DraftTree]:
    """The drafter's three best tokens beside each other, its best one behind the first of them."""
    best = q[0].topk(3).indices.tolist()
    tree = DraftTree.from_parents([*best, int(q[1].argmax())], [-1, -1, -1, 0], [0.5] * 4)
    for _ in range(DRAWS[-1]):
        yield tree


def _sampled(q: Tensor, generator: torch.Generator) -> Iterator[DraftTree]:
    """Two siblings drawn without replacement, one token drawn behind the first of them."""
    first = torch.multinomial(q[0], DRAWS[-1], True, generator=generator)
    left = q[0].repeat(VOCABULARY, 1).fill_diagonal_(0.0)  # after each first draw
    left = left / left.sum(-1, keepdim=True)
    second = torch.multinomial(left[first], 1, generator=generator)[:, 0]
    behind = torch.multinomial(q[1], DRAWS[-1], True, generator=generator)
    drawn = torch.stack((first, second, behind), 1)
    parents, depths = np.array([-1, -1, 0]), np.array([1, 1, 2])
    chances = np.full(3, 0.5, np.float32)
    for row, tokens in zip(first.tolist(), drawn.numpy(), strict=True):
        yield DraftTree(tokens, parents, depths, chances, torch.stack((q[0], left[row], q[1])))


def _converges(trees: Trees, target: Tensor, draft: Tensor, seed: int = 0) -> bool:
    """Whether the first token's distribution goes towards the target's root row and ends there."""
    generator = torch.Generator().manual_seed(seed)
    counts = np.zeros(VOCABULARY)
    to_target, to_draft = [], []
    for number, tree in enumerate(trees(draft, generator), start=1):
        counts[verify_sampled(tree, target[: len(tree) + 1], generator).tokens[0]] += 1
        if number in DRAWS:
            found = torch.from_numpy(counts / number)
            to_target.append(float((found - target[0]).norm()))
            to_draft.append(float((found - draft[0]).norm()))
    nearer = to_target[0] / to_target[-1] > NEARER and to_draft[0] / to_draft[-1] < NEARER / 2
    return nearer and excess(torch.from_numpy(counts), target[0]) < SUSPICIOUS


@pytest.mark.parametrize("trees", [_chains, _deterministic, _sampled])
@pytest.mark.parametrize(
    "sampling", [Sampling(1.0), Sampling(0.8, top_p=0.9, top_k=7)], ids=["plain", "warped"]
)
def test_the_tokens_converge_to_the_target_s_distribution(trees: Trees, sampling: Sampling) -> None:
    """From 100 draws to 100,000 the distance falls as chance has it; that to the drafter's stays."""
    target, draft = _distributions(1, 5, sampling), _distributions(2, 2, sampling)
    assert _converges(trees, target, draft)


class _KnownBlocks:
    """A block engine that says the same of every turn."""

    def __init__(self, spread: Tensor) -> None:
        chances, tokens = spread.sort(-1, descending=True)
        self._output = BlockOutput(tokens, chances, spread.log())

    def new_cache(self, capacity: int) -> Any:
        """Of no use."""
        return SimpleNamespace(capacity=capacity, length=0, truncate=lambda _: None)

    def read(self, *_: object) -> None:
        """Nothing to read."""

    def run(self, *_: object) -> BlockOutput:
        """The distributions."""
        return self._output


def _blocks(q: Tensor, generator: torch.Generator) -> Iterator[DraftTree]:
    """What the block drafter draws from a block of two positions."""
    sizes = SimpleNamespace(read_rows=2, block=2, vocab_size=VOCABULARY, max_positions=64)
    head: Any = SimpleNamespace(
        config=sizes, lm_head=None, feature_layers=lambda _: (0,), context=lambda _: 0
    )
    config = SimpleNamespace(num_layers=1)
    target: Any = SimpleNamespace(
        decoder=SimpleNamespace(config=config),
        engine=SimpleNamespace(backend="torch"),
        device=torch.device("cpu"),
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(block.DrafterEngines, "block", lambda *_: _KnownBlocks(q[:2]))
        drafter = block.BlockDrafter(target, head, EventSide())
    prompt, features = fake_prompt([0]), (torch.zeros(1, 1),)
    while True:
        drafter.start(prompt, features, 0, 4)
        yield drafter.propose(DraftLimits(2, 2), Sampling(1.0), generator)


def _suffixes(_: Tensor, generator: torch.Generator) -> Iterator[DraftTree]:
    """What the suffix drafter makes of past texts that go on in several ways."""
    drafter, prompt = SuffixDrafter(), fake_prompt([0])
    for text in ([0, 1, 2], [0, 1, 3], [0, 4, 1], [5, 1, 2]):
        drafter.prepare(prompt)
        drafter.finish(text)
    drafter.prepare(prompt)
    drafter.start(prompt, (), 0, 4)
    while True:
        yield drafter.propose(DraftLimits(2, 4), Sampling(1.0), generator)


@pytest.mark.parametrize("trees", [_blocks, _suffixes])
def test_what_drafters_propose_converges_too(trees: Trees) -> None:
    """The chains that the block drafter draws, and the suffix drafter's trees without chance."""
    sampling = Sampling(0.8, top_p=0.9, top_k=7)
    draft = _distributions(2, 2, sampling)
    tree = next(trees(draft, torch.Generator()))
    assert len(tree) >= 2
    assert (tree.distributions is None) == (trees is _suffixes)
    assert _converges(_only(trees), _distributions(1, 5, sampling), draft)


def _only(trees: Trees) -> Trees:
    """As many as are drawn."""
    return lambda q, generator: islice(trees(q, generator), DRAWS[-1])


def _wrong(tree: DraftTree, target: Tensor, generator: torch.Generator) -> list[int]:
    """Accepts as it should and, after a refusal, draws from the target in the place of the residual."""
    token, q = int(tree.tokens[0]), tree.distributions
    assert q is not None
    if float(torch.rand(1, generator=generator)) * float(q[0, token]) < float(target[0, token]):
        return [token]
    return [int(torch.multinomial(target[0], 1, generator=generator))]


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same check refuses a sampler that forgets the residual."""

    class Verdict:
        """Tokens alone."""

        def __init__(self, tokens: list[int]) -> None:
            self.tokens = tokens

    monkeypatch.setitem(globals(), "verify_sampled", lambda *given: Verdict(_wrong(*given)))
    plain = Sampling(1.0)
    assert not _converges(_chains, _distributions(1, 5, plain), _distributions(2, 2, plain))


@pytest.mark.parametrize("trees", [_chains, _deterministic, _sampled])
def test_what_the_warps_leave_out_is_never_said(trees: Trees) -> None:
    """Tokens of no probability in the target, whatever the drafter proposes."""
    target = _distributions(1, 5, Sampling(1.0, top_k=3))
    generator = torch.Generator().manual_seed(0)
    for number, tree in enumerate(trees(_distributions(2, 2, Sampling(1.0)), generator)):
        verdict = verify_sampled(tree, target[: len(tree) + 1], generator)
        assert all(target[row, token] > 0 for row, token in zip(verdict.rows, verdict.tokens, strict=True))
        if number == 2_000:
            return


def test_a_seeded_run_repeats() -> None:
    """The same seed the same tokens, another seed others."""
    target, draft = _distributions(1, 5, Sampling(1.0)), _distributions(2, 2, Sampling(1.0))

    def run(seed: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(seed)
        drawn = zip(range(200), _sampled(draft, generator), strict=False)
        return [verify_sampled(tree, target[: len(tree) + 1], generator).tokens for _, tree in drawn]

    assert run(3) == run(3) != run(4)
