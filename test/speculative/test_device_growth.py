"""Draft trees that grow without a look at them, beside those that the host grows from the same values."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from emulated_capture import EmulatedPool
from emulated_cuda import EmulatedCuda
from random_networks import VOCABULARY, naive_text, random_drafter, random_prompts, random_target
from speculative_fakes import random_tree
from torch import nn

from evspec_ros.engines.block import BlockEngine, GraphedBlock
from evspec_ros.engines.draft_head import HeadEngine
from evspec_ros.engines.drafter import DrafterEngines
from evspec_ros.engines.rows import LevelHead, RowsNetwork
from evspec_ros.engines.torch_engine import TorchEngine
from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.networks.llama import LlamaDecoder
from evspec_ros.speculative import (
    DRAFTERS,
    Block,
    DecoderTarget,
    Drafter,
    DraftLimits,
    DraftTree,
    Prompt,
    generate,
    generate_together,
)
from evspec_ros.speculative.combined import merged, united_paths
from evspec_ros.speculative.device_growth import LevelGrowth, UnseenDepth, grown_chain, grown_paths, united
from evspec_ros.speculative.device_tree import DeviceTree, Draft
from evspec_ros.speculative.drafter import PassCosts
from evspec_ros.speculative.growth import Growth, grow_chain, grow_paths
from evspec_ros.speculative.sampling import Sampling

GROWING = ["block", "eagle", "eagle2", "eagle3", "eventgpt", "eventgpt_adapter", "feature", "combined"]


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All drafters take the target's device for one that works in a queue."""
    EmulatedCuda(monkeypatch)


def _limits(random: np.random.Generator, tokens: int) -> DraftLimits:
    """Some that bind and some that do not."""
    ends = frozenset(random.choice(tokens, int(random.integers(0, 4)), replace=False).tolist())
    p_min = float(random.choice([0.0, 0.0, 0.01, 0.1]))
    return DraftLimits(int(random.integers(1, 7)), int(random.choice([1, 2, 3, 5, 9, 19])), p_min, None, ends)


def _same(one: DraftTree, other: DraftTree) -> None:
    """Nodes, parents and depths; probabilities up to rounding."""
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.parents.tolist() == other.parents.tolist()
    assert one.depths.tolist() == other.depths.tolist()
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_paths_grow_as_on_the_host(seed: int) -> None:
    """Of a block's distributions, every third of them so sure that paths are equally likely, some of them
    impossible.
    """
    random = np.random.default_rng(seed)
    shape = int(random.integers(1, 9)), int(random.integers(1, 5))
    chances = random.dirichlet(np.ones(shape[1]) * 0.5, shape[0]).astype(np.float32)
    if seed % 3 == 0:
        chances = np.round(chances)
    chances = -np.sort(-chances, 1)
    tokens = np.argsort(random.random((shape[0], 30)), 1)[:, : shape[1]]
    limits = _limits(random, 30)
    host = grow_paths(tokens.tolist(), chances.tolist(), limits)
    grown = grown_paths(torch.from_numpy(tokens), torch.from_numpy(chances), limits)
    _same(grown.seen(), host)
    assert len(grown) <= limits.most_nodes
    assert torch.equal(grown.ancestors[: len(host) + 1, : len(host) + 1], torch.from_numpy(host.ancestors()))
    np.testing.assert_allclose(grown.paths[: len(host)], host.path_probabilities(), rtol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_levels_grow_as_on_the_host(seed: int) -> None:
    """Of a head whose distributions depend on the path, half of them so round that many paths are equally
    likely.
    """
    random = np.random.default_rng(seed)
    limits, branches = _limits(random, 30), int(random.integers(1, 5))
    said: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}

    def head(path: tuple[int, ...]) -> tuple[list[int], list[float]]:
        if path not in said:
            chances = -np.sort(-np.random.default_rng([seed, *path]).dirichlet(np.ones(4)).astype(np.float32))
            chances = np.round(2 * chances) / 2 if seed % 2 else chances
            said[path] = list(range(7 * sum(path) % 26, 30))[:4], chances.tolist()
        return said[path]

    host, paths = Growth(branches), {-1: ()}
    host.expand(-1, *head(()), torch.zeros(1, 1))
    while (node := host.select(limits)) is not None:
        for new in range(len(paths) - 1, len(host.tokens)):
            paths[new] = (*paths[host.parents[new]], host.tokens[new])
        host.expand(node, *head(paths[node]), torch.zeros(1, 1))

    growth, frontier = LevelGrowth(limits, branches, torch.device("cpu")), [()]
    while growth.frontier > 0:
        tokens, chances = zip(*map(head, frontier), strict=True)
        growth.add(torch.tensor(tokens), torch.tensor(chances))
        of_last = zip(*(part.tolist() for part in growth.last), strict=True)
        frontier = [(*frontier[parent], token) for token, parent in of_last]
    _same(growth.tree().seen(), host.tree())


@pytest.mark.parametrize("seed", range(20))
def test_chains_grow_as_on_the_host(seed: int) -> None:
    """Up to an end token, one that is impossible, or where a token is not worth it."""
    random = np.random.default_rng(seed)
    tokens, chances = random.integers(0, 9, 8).tolist(), random.random(8).astype(np.float32) ** 0.2
    limits, foreign = _limits(random, 9), int(random.integers(0, 9))

    def next_token(drafted: list[int]) -> tuple[int, float] | None:
        token = tokens[len(drafted)]
        return None if token == foreign else (token, float(chances[len(drafted)]))

    longest = min(limits.n_max, limits.most_nodes)
    host = grow_chain(limits, longest, next_token)
    if longest > 0:
        said = torch.tensor(tokens[:longest])
        grown = grown_chain(said, torch.from_numpy(chances[:longest]), limits, impossible=said == foreign)
        assert grown.is_chain
        _same(grown.seen(), host)


@pytest.mark.parametrize("seed", range(30))
def test_trees_are_merged_as_on_the_host(seed: int) -> None:
    """The host's and one that nobody has seen, of which the last nodes are not there."""
    random = np.random.default_rng(seed)
    trees = [random_tree(int(random.integers(1, 12)), 4, range(4), random) for _ in range(3)]
    for tree in trees:
        tree.probabilities[:] = random.random(len(tree)).astype(np.float32) ** 0.5
    limits = DraftLimits(
        6, int(random.integers(1, 24)), float(random.choice([0.0, 0.05])), _limits(random, 4).costs
    )
    *known, grown = trees
    count = int(random.integers(1, len(grown) + 1))
    here = DeviceTree(**{**vars(DeviceTree.of(grown, torch.device("cpu"))), "known": None})
    here.there[count:] = False
    parts = (grown.tokens, grown.parents, grown.depths, grown.probabilities)
    left = DraftTree(*(part[:count] for part in parts))
    _same(united(united_paths(known), here, limits).seen(), merged([*known, left], limits))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", GROWING)
def test_a_drafter_drafts_unseen_what_the_host_grows(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turn after turn behind what was accepted of its drafts, over random limits: nodes, parents, depths."""
    random = np.random.default_rng(seed)
    target, prompt = random_target(seed), random_prompts(2)[1]
    every = [_limits(random, VOCABULARY) for _ in range(6)]
    choices = random.random(len(every)).tolist()
    host = _turns(name, target, prompt, every, choices)
    with monkeypatch.context() as patched:
        EmulatedCuda(patched)
        unseen = _turns(name, target, prompt, every, choices)
    assert any(isinstance(tree, DeviceTree) for tree in unseen)
    for tree, expected in zip(unseen, host, strict=True):
        assert isinstance(expected, DraftTree)
        _same(tree.seen() if isinstance(tree, DeviceTree) else tree, expected)


class _CapturedEngines(DrafterEngines):
    """Heads as on a GPU: passes of a few numbers of rows, whose outputs the next ones overwrite."""

    def __init__(self) -> None:
        super().__init__("torch", "as on a GPU")
        self.pool = EmulatedPool()

    def head(self, head: DraftHead, target: LlamaDecoder, lm_head: nn.Module) -> HeadEngine:
        """See DrafterEngines."""
        return LevelHead(head, target, lm_head, TorchEngine)

    def block(self, head: BlockHead, target: LlamaDecoder) -> BlockEngine:
        """See DrafterEngines."""
        return GraphedBlock(head, target, self.pool)


@pytest.mark.parametrize("name", ["block", "eagle", "eagle2", "eagle3"])
def test_captured_passes_draft_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded rows and outputs that are spoilt as soon as a draft is made change no node."""
    random, target, prompt = np.random.default_rng(8), random_target(), random_prompts(2)[1]
    every = [_limits(random, VOCABULARY) for _ in range(6)]
    choices, engines = random.random(len(every)).tolist(), _CapturedEngines()
    host = _turns(name, target, prompt, every, choices)
    EmulatedCuda(monkeypatch)
    monkeypatch.setattr(RowsNetwork, "_captures", True)
    unseen = _turns(name, target, prompt, every, choices, engines)
    for tree, expected in zip(unseen, host, strict=True):
        assert isinstance(tree, DeviceTree)
        assert isinstance(expected, DraftTree)
        _same(tree.seen(), expected)


def _turns(
    name: str,
    target: DecoderTarget,
    prompt: Prompt,
    every: list[DraftLimits],
    choices: list[float],
    engines: _CapturedEngines | None = None,
) -> list[Draft]:
    """What is proposed in turns of which each accepts the path to one of the nodes."""
    drafter: Drafter = random_drafter(name, target, engines=engines)
    (first,) = target.prefill([prompt.embeddings], 64, drafter.layers)
    drafter.prepare(prompt)
    root = 3
    drafter.start(prompt, first.features, root, 64)
    found: list[Draft] = []
    for limits, choice in zip(every, choices, strict=True):
        found.append(drafter.propose(limits, Sampling(), torch.Generator()))
        if engines is not None:
            engines.pool.spoil()
        tree = found[-1].seen() if isinstance(found[-1], DeviceTree) else found[-1]
        path = ((), *tree.paths())[int(choice * (len(tree) + 1))]
        chain = DraftTree.chain(path, [1.0] * len(path))
        (output,) = target.extend([Block(0, root, chain)])
        target.keep([list(range(len(path) + 1))])
        root = 5 + len(path)
        drafter.accept([*path, root], output.features)
    return found


@pytest.mark.usefixtures("device")
def test_what_the_event_model_wrote_unseen_is_dropped_where_nobody_accepts_it() -> None:
    """Behind a turn without a draft it proposes what one does that reads the text anew."""
    target, prompt = random_target(), random_prompts(2)[1]
    drafts: list[DraftTree] = []
    for texts in ([[8], [9, 11, 15]], [[8, 9, 11, 15]]):
        drafter = random_drafter("eventgpt", target)
        drafter.prepare(prompt)
        drafter.start(prompt, (), 3, 64)
        if len(texts) > 1:
            drafter.propose(DraftLimits(6, 6), Sampling(), torch.Generator())
        for text in texts:
            drafter.accept(text, ())
        grown = drafter.propose(DraftLimits(4, 4), Sampling(), torch.Generator())
        assert isinstance(grown, DeviceTree)
        drafts.append(grown.seen())
    assert len(drafts[0]) > 2
    _same(*drafts)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", DRAFTERS)
def test_texts_are_the_target_s_own_where_drafts_grow_unseen(name: str) -> None:
    """Whatever drafts, alone and several texts in one pass, with measured costs as well."""
    target, length = random_target(), 20
    costs = PassCosts(tuple(1.0 + 0.02 * rows for rows in range(24)), 0.01)
    prompts = random_prompts(4)
    expected = [naive_text(target, prompt, length) for prompt in prompts]
    for limits in (DraftLimits(4, 12), DraftLimits(6, 18, p_min=0.02), DraftLimits(5, 9, costs=costs)):
        drafter = random_drafter(name, target)
        for prompt, text in zip(prompts, expected, strict=True):
            found = generate(target, drafter, prompt, max_new_tokens=length, limits=limits)
            assert list(found.tokens) == text
    drafters = [random_drafter(name, target) for _ in prompts[:2]]
    both = generate_together(target, drafters, prompts[:2], max_new_tokens=length, limits=DraftLimits(3, 7))
    assert [list(one.tokens) for one in both] == expected[:2]


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("name", ["eagle", "block"])
def test_chains_are_drawn_from_the_distributions_that_they_declare(name: str) -> None:
    """As many as the limits allow before a draw, each with the probability that it has there."""
    target, prompt = random_target(), random_prompts(2)[1]
    sampling, generator = Sampling(0.8, top_k=9), torch.Generator().manual_seed(2)
    (first,) = target.prefill([prompt.embeddings], 40, random_drafter(name, target).layers)
    for p_min in (0.0, 0.5):
        drafter = random_drafter(name, target)
        drafter.prepare(prompt)
        drafter.start(prompt, first.features, 3, 40)
        grown = drafter.propose(DraftLimits(4, 4, p_min), sampling, generator)
        assert isinstance(grown, DeviceTree)
        tree = grown.seen()
        assert tree.is_chain
        assert tree.distributions is not None
        torch.testing.assert_close(tree.distributions.sum(-1), torch.ones(len(tree)))
        chances = tree.distributions[range(len(tree)), tree.tokens.tolist()]
        np.testing.assert_allclose(tree.probabilities, chances)
        assert (chances > 0).all()
        assert len(tree) == 4 if p_min == 0.0 else len(tree) < 4


def test_a_draft_that_nobody_sees_is_as_deep_as_the_last_ones_pay() -> None:
    """Deeper the further they were accepted, one level at least; without costs, and behind a turn without a
    draft, nothing is known.
    """
    costs = PassCosts(tuple(1.0 + 0.01 * rows for rows in range(64)), 0.1)
    limits, asked = DraftLimits(40, 40, costs=costs), list[list[int]]()
    for accepted in (41, 1):  # everything, nothing
        depth, depths = UnseenDepth(), list[int]()
        for _ in range(60):
            depths.append(depth.limits(limits).n_max)
            depth.accepted(min(accepted, depths[-1] + 1))
            depth.accepted(1)
        asked.append(depths)
    deeper, flatter = asked
    assert deeper == sorted(deeper)
    assert flatter == sorted(flatter, reverse=True)
    assert 1 == flatter[-1] < flatter[0] == deeper[0] < deeper[-1]
    assert UnseenDepth().limits(DraftLimits(2, 40, costs=costs)).n_max == 2
    assert UnseenDepth().limits(DraftLimits(40, 40)).n_max == 40


def test_no_draft_is_larger_than_one_that_pays_for_certain() -> None:
    """A node that costs as much as a step of the target never pays; free ones do as far as passes were
    measured.
    """
    steps = tuple(1.0 + 0.01 * rows for rows in range(24))
    assert DraftLimits(40, 40, costs=PassCosts(steps, 1.0)).most_nodes == 0
    assert DraftLimits(40, 40, costs=PassCosts(steps, 0.0)).most_nodes == 23
    assert DraftLimits(40, 9, costs=PassCosts(steps, 0.0)).most_nodes == 9
    assert DraftLimits(40, 40).most_nodes == 40
