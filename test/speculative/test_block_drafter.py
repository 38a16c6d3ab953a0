"""Drafting blocks: by a head of known logits on a target of known logits, and by a real head."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from speculative_fakes import FakeTarget, excess, fake_prompt, markov
from torch import Tensor

from evspec_ros.engines.block import BlockOutput
from evspec_ros.errors import CheckpointError
from evspec_ros.networks.block_head import BlockConfig, BlockHead
from evspec_ros.networks.llama import KVCache, LlamaConfig, LlamaDecoder
from evspec_ros.speculative import (
    DecoderTarget,
    DraftLimits,
    DraftModels,
    DraftTree,
    EventSide,
    Prompt,
    generate,
    make_drafter,
)
from evspec_ros.speculative import block as block_module
from evspec_ros.speculative.block import BlockDrafter
from evspec_ros.speculative.drafter import PassCosts
from evspec_ros.speculative.growth import grow_paths
from evspec_ros.speculative.sampling import Sampling

BLOCK = 3

# --- a tree out of distributions that do not depend on each other -------------------------------------------


@st.composite
def _said(draw: Any) -> tuple[list[list[int]], list[list[float]]]:
    """Of up to four positions up to three tokens each, in order of their probabilities."""
    chances = draw(st.lists(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=3), min_size=1, max_size=4))
    shares = [sorted((value / sum(row) for value in row), reverse=True) for row in chances]
    return [[10 * place + rank for rank in range(len(row))] for place, row in enumerate(shares)], shares


@given(_said(), st.integers(1, 12), st.integers(1, 4))
def test_the_nodes_are_the_likeliest_paths(
    said: tuple[list[list[int]], list[list[float]]], size: int, depth: int
) -> None:
    """As many as asked for, no deeper than asked for, by their products over all combinations of tokens."""
    tokens, chances = said
    tree = grow_paths(tokens, chances, DraftLimits(depth, size))
    every = {
        tuple(tokens[place][rank] for place, rank in enumerate(path)): float(
            np.prod([chances[place][rank] for place, rank in enumerate(path)])
        )
        for length in range(1, min(depth, len(tokens)) + 1)
        for path in product(*(range(len(row)) for row in tokens[:length]))
    }
    assert len(tree) == min(size, len(every))
    for path, chance in zip(tree.paths(), tree.path_probabilities(), strict=True):
        assert chance == pytest.approx(every.pop(path), rel=1e-5)
    assert max(every.values(), default=0.0) <= min(tree.path_probabilities()) * (1 + 1e-5)


def test_a_tree_ends_where_a_node_is_not_worth_it() -> None:
    """By p_min, and by what passes cost; nothing follows an end token."""
    tokens, chances = [[1, 2], [3, 4], [5, 6]], [[0.9, 0.1], [0.8, 0.2], [0.5, 0.5]]
    assert grow_paths(tokens, chances, DraftLimits(8, 8, p_min=0.5)).paths() == [(1,), (1, 3)]
    ended = grow_paths(tokens, chances, DraftLimits(8, 8, p_min=0.15, end_tokens=frozenset({3})))
    assert ended.paths() == [(1,), (1, 3), (1, 4)]
    # with a pass of n rows at n milliseconds and 9 spent before: a node pays from (gain / (10 + n)) on
    costs = PassCosts(tuple(float(rows) for rows in range(1, 9)), 0.0, 9.0)
    paid = grow_paths(tokens, chances, DraftLimits(8, 8, costs=costs))
    assert paid.paths() == [(1,), (1, 3), (1, 3, 5), (1, 3, 6)]


# --- a head of known logits ---------------------------------------------------------------------------------


class FakeEngine:
    """Remembers the tokens of the rows that it is given, which are a fake target's features, and says of
    position b logits that depend on the last token and b alone.
    """

    def __init__(self, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(5)
        self.table = 1.5 * torch.randn(vocabulary, BLOCK, vocabulary, generator=generator)
        self.heard: list[int] = []

    def new_cache(self, capacity: int) -> Any:
        """Of no use."""
        return SimpleNamespace(capacity=capacity + BLOCK + 1, truncate=self._empty, length=0)

    def _empty(self, _: int) -> None:
        self.heard = []

    def read(self, features: Tensor, events: Tensor | None, cache: Any) -> None:
        """More rows than a pass reads."""
        self.heard += [int(value) for value in features[:, 0]]

    def run(self, features: Tensor, token: int, cache: Any) -> BlockOutput:
        """What the table says."""
        assert len(features) <= BLOCK + 1
        self.read(features, None, cache)
        logits = self.table[token]
        chances, tokens = torch.softmax(logits, -1).topk(4, -1)
        return BlockOutput(tokens, chances, logits)


def _fake_drafter(monkeypatch: pytest.MonkeyPatch, vocabulary: int) -> tuple[BlockDrafter, FakeEngine]:
    engine = FakeEngine(vocabulary)
    monkeypatch.setattr(block_module.DrafterEngines, "block", lambda *_: engine)
    sizes = SimpleNamespace(read_rows=BLOCK + 1, block=BLOCK, vocab_size=vocabulary, max_positions=4096)
    head = SimpleNamespace(
        config=sizes, lm_head=None, feature_layers=lambda _: (0,), context=lambda rows: min(rows, 5)
    )
    target = SimpleNamespace(
        decoder=SimpleNamespace(config=None),
        engine=SimpleNamespace(backend="torch"),
        device=torch.device("cpu"),
    )
    target.decoder.config = SimpleNamespace(num_layers=1)
    return BlockDrafter(target, head, EventSide()), engine  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_head_reads_every_row_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    """Whenever it drafts it has heard the prompt's last rows and all that the target has kept since."""
    drafter, engine = _fake_drafter(monkeypatch, 8)
    target = FakeTarget(markov(8, seed=1))
    propose = drafter.propose

    def checked(*given: Any) -> DraftTree:
        tree = propose(*given)
        assert engine.heard == target.history[-len(engine.heard) :]
        assert len(engine.heard) == len(target.history) - 3
        return tree

    drafter.propose = checked  # type: ignore[method-assign]
    for _ in range(2):
        prompt = fake_prompt((1, 2, 3, 4, 5, 6, 7, 0, 1))  # of which it reads six rows
        generate(target, drafter, prompt, max_new_tokens=20, temperature=temperature)


def test_a_chain_is_drawn_from_the_distributions_that_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Position by position, warped, and no shorter because of what was drawn."""
    drafter, engine = _fake_drafter(monkeypatch, 8)
    sampling, generator = Sampling(1.2, top_k=6), torch.Generator().manual_seed(0)
    counts = torch.zeros(BLOCK, 8)
    for _ in range(3000):
        drafter.start(fake_prompt((1, 2)), (torch.tensor([[1.0], [2.0]]),), 3, 10)
        tree = drafter.propose(DraftLimits(8, 8), sampling, generator)
        assert len(tree) == BLOCK
        assert tree.is_chain
        assert tree.distributions is not None
        torch.testing.assert_close(tree.distributions, sampling.probabilities(engine.table[3]))
        chances = tree.distributions[range(BLOCK), tree.tokens.tolist()]
        np.testing.assert_allclose(tree.probabilities, chances, rtol=1e-6)
        counts[range(BLOCK), tree.tokens.tolist()] += 1
    for place in range(BLOCK):
        assert excess(counts[place], sampling.probabilities(engine.table[3])[place]) < 5


def test_sampled_texts_have_the_target_s_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three tokens of four, over all 64 texts, whatever the head says."""
    drafter, _ = _fake_drafter(monkeypatch, 4)
    following = markov(4, seed=3, sharpness=1.0)
    counts = torch.zeros(4, 4, 4)
    for seed in range(6000):
        text = generate(
            FakeTarget(following), drafter, fake_prompt((1, 2)), max_new_tokens=4, temperature=1.0, seed=seed
        ).tokens
        counts[text[:3]] += 1
    expected = torch.zeros(4, 4, 4)
    for text in product(range(4), repeat=3):
        chance, history = 1.0, [1, 2]
        for token in text:
            chance *= float(torch.softmax(following(history), -1)[token])
            history.append(token)
        expected[text] = chance
    assert excess(counts.flatten(), expected.flatten()) < 5


# --- a real head --------------------------------------------------------------------------------------------

CONFIG = LlamaConfig(50, 32, 48, 3, 2, 2, 16, max_positions=96)
TEXT = 20


def _real(**changes: Any) -> tuple[DecoderTarget, BlockHead]:
    torch.manual_seed(0)
    decoder, lm_head = LlamaDecoder(CONFIG).eval(), torch.nn.Linear(32, 50, bias=False)
    sizes = replace(BlockConfig.for_target(CONFIG, 12, 9), block=4, context=5, **changes)
    head = BlockHead(sizes).eval()
    with torch.no_grad():
        for parameter in (*decoder.parameters(), lm_head.weight, *head.parameters()):
            parameter.normal_(std=0.4) if parameter.dim() == 2 else parameter.uniform_(0.5, 1.5)
    return DecoderTarget(decoder, lm_head, (), str), head


def _prompt(rows: int, *, events: bool) -> Prompt:
    generator = torch.Generator().manual_seed(rows)
    embeddings = torch.randn(1, rows, 32, generator=generator)
    tokens = torch.randn(9, 12, generator=generator)
    return Prompt(embeddings, (7,) * rows, tokens.clone if events else None)


@torch.inference_mode()
def _whole(target: DecoderTarget, head: BlockHead, prompt: Prompt, tokens: list[int]) -> Tensor:
    """Logits of a block behind a text, by one pass of the target and one of the head over everything."""
    read = torch.cat((prompt.embeddings, target.embed(torch.tensor([tokens[:-1]], dtype=torch.long))), 1)
    layers = head.feature_layers(CONFIG.num_layers)
    features = torch.cat(target.decoder(read, layers=layers).features, -1)[0]
    unread = prompt.embeddings.shape[1] - 1 - head.context(prompt.embeddings.shape[1] - 1)
    cache = KVCache(head.config.layer, 120)
    head.fill(features[unread:], None if prompt.events is None else prompt.events(), cache)
    nothing = features.new_zeros(head.config.read_rows, features.shape[1])
    last = target.embed(torch.tensor(tokens[-1:]))
    none, length = torch.tensor([0]), torch.tensor([cache.length])
    return head.draft(nothing, none, last, length, cache.k, cache.v).logits


@pytest.mark.parametrize("tokens", [(), tuple(range(3, 50, 3))])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("events", [False, True])
def test_each_draft_is_what_the_head_says_of_the_whole_text_so_far(
    temperature: float, events: bool, tokens: tuple[int, ...]
) -> None:
    """Turn after turn, as of passes that keep nothing; prompts shorter and longer than what is read."""
    target, head = _real(tokens=tokens)
    sampling = Sampling(temperature)
    for rows in (2, 5, 12):
        prompt, emitted = _prompt(rows, events=events), list[int]()
        drafter = BlockDrafter(target, head, EventSide())
        proposals: list[tuple[DraftTree, list[int]]] = []
        propose = drafter.propose
        drafter.propose = lambda *given: (  # type: ignore[method-assign]
            proposals.append((propose(*given), list(emitted))) or proposals[-1][0]  # noqa: B023
        )
        generate(
            target, drafter, prompt, max_new_tokens=TEXT, temperature=temperature, limits=DraftLimits(4, 9),
            on_tokens=emitted.extend,
        )  # fmt: skip
        assert len(proposals) > 3
        for tree, text in proposals:
            logits = _whole(target, head, prompt, text)
            said = torch.softmax(logits, -1) if sampling.greedy else sampling.probabilities(logits)
            ids = torch.tensor(tokens) if tokens else torch.arange(50)
            for node, (token, depth) in enumerate(zip(tree.tokens.tolist(), tree.depths, strict=True)):
                share = said[depth - 1, ids == token]
                assert tree.probabilities[node] == pytest.approx(float(share), abs=1e-4)
            if tree.distributions is not None:
                found = tree.distributions[:, ids]
                torch.testing.assert_close(found, said[: len(tree)], rtol=0, atol=1e-4)
                assert tree.distributions.sum() == pytest.approx(len(tree), rel=1e-4)


def test_more_rows_than_a_pass_reads_are_read_before_it() -> None:
    """What others drafted may be accepted further than a block is long."""
    target, head = _real()
    prompt, generator = _prompt(12, events=True), torch.Generator()
    text = torch.randint(50, (14,), generator=torch.Generator().manual_seed(2)).tolist()
    layers = head.feature_layers(CONFIG.num_layers)
    with torch.inference_mode():
        whole = torch.cat((prompt.embeddings, target.embed(torch.tensor([text]))), 1)
        features = tuple(part[0] for part in target.decoder(whole, layers=layers).features)
        drafter = BlockDrafter(target, head, EventSide())
        drafter.prepare(prompt)
        drafter.start(prompt, tuple(part[:12] for part in features), text[0], 40)
        drafter.propose(DraftLimits(), Sampling(), generator)
        drafter.accept(text[1:11], tuple(part[12:22] for part in features))
        tree = drafter.propose(DraftLimits(4, 4), Sampling(), generator)
    expected = torch.softmax(_whole(target, head, prompt, text[:11]), -1)[0].topk(4).values
    assert tree.probabilities[0] == pytest.approx(float(expected[0]), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target_size": 64}, "features of 64 values and the target has 32"),
        ({"vocab_size": 60}, "says 60 tokens and the target 50"),
        ({"layers": (2, 9)}, "layer 9 of the target, which has 0 .* to 3"),
    ],
)
def test_a_head_for_another_target_is_refused(change: dict[str, Any], says: str) -> None:
    """In one sentence: what it was made for, what the target has, and what to do."""
    target, head = _real()
    other = BlockHead(replace(head.config, **change))
    with pytest.raises(CheckpointError, match=rf"{says}.*trained for this target"):
        make_drafter("block", target, DraftModels(other))
    assert make_drafter("block", target, DraftModels(head)).name == "block"
