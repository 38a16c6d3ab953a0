"""A target with known logits, and drafters of known worth; no network among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from evspec_ros.speculative import Block, DraftLimits, DraftTree, Prompt, TargetPass
from evspec_ros.speculative.sampling import Sampling, draw

Next = Callable[[list[int]], Tensor]  # the tokens so far -> logits [V] of the next one


def markov(vocabulary: int, seed: int, sharpness: float = 2.0) -> Next:
    """Logits that depend on the last two tokens."""
    table = sharpness * torch.randn(
        vocabulary, vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed)
    )
    return lambda history: table[history[-2], history[-1]]


def fake_prompt(tokens: Sequence[int]) -> Prompt:
    """A prompt whose "embeddings" are the token ids themselves."""
    return Prompt(torch.tensor(tokens, dtype=torch.float32).view(1, -1, 1), tuple(tokens))


class FakeTarget:
    """Remembers the tokens that it has read; a row's features are its token."""

    device = torch.device("cpu")

    def __init__(self, following: Next, end_tokens: Sequence[int] = ()) -> None:
        self.following = following
        self.end_tokens = frozenset(end_tokens)
        self.histories: list[list[int]] = []
        self._blocks: list[tuple[int, list[int]]] = []

    @property
    def history(self) -> list[int]:
        """What was read of the only text."""
        (history,) = self.histories
        return history

    def prefill(self, prompts: Sequence[Tensor], capacity: int, layers: tuple[int, ...]) -> list[TargetPass]:
        """Forget everything but the prompts."""
        self.histories = [[int(value) for value in prompt.flatten()] for prompt in prompts]
        return [
            TargetPass(self.following(history)[None], tuple(prompt[0] for _ in layers))
            for history, prompt in zip(self.histories, prompts, strict=True)
        ]

    def extend(self, blocks: Sequence[Block]) -> list[TargetPass]:
        """Logits at every row from its path alone, which mask and depths must describe alike."""
        self._blocks = [(block.text, [block.root, *block.tree.tokens.tolist()]) for block in blocks]
        return [self._judge(block, rows) for block, (_, rows) in zip(blocks, self._blocks, strict=True)]

    def _judge(self, block: Block, rows: list[int]) -> TargetPass:
        mask, depths = block.tree.ancestors(), block.tree.row_depths()
        logits = []
        for row in range(len(rows)):
            path = sorted(np.flatnonzero(mask[row]), key=lambda seen: depths[seen])
            assert [depths[seen] for seen in path] == list(range(depths[row] + 1))
            logits.append(self.following(self.histories[block.text] + [rows[seen] for seen in path]))
        return TargetPass(torch.stack(logits), (torch.tensor(rows, dtype=torch.float32)[:, None],))

    def keep(self, rows: Sequence[Sequence[int]]) -> None:
        """Remember these rows of the last pass."""
        for (text, read), kept in zip(self._blocks, rows, strict=True):
            self.histories[text] += [read[row] for row in kept]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Numbers as text."""
        return " ".join(map(str, tokens))


class ScriptedDrafter:
    """Follows the text and lets `guess` make a tree of it."""

    name = "scripted"

    def __init__(
        self,
        guess: Callable[[list[int], DraftLimits, Sampling, torch.Generator], DraftTree],
        layers: tuple[int, ...] = (),
    ) -> None:
        self.guess = guess
        self.layers = layers
        self.history: list[int] = []
        self.finished: list[int] = []

    def prepare(self, prompt: Prompt) -> None:
        """Nothing to begin."""

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """A new text."""
        self.history = [token]

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> DraftTree:
        """What `guess` makes of the text so far."""
        return self.guess(self.history, limits, sampling, generator)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """The text goes on."""
        self.history += tokens

    def finish(self, tokens: Sequence[int]) -> None:
        """Remember the whole text."""
        self.finished = list(tokens)

    def forget(self) -> None:
        """Nothing is remembered."""


def following_script(script: list[int], wrong_by: int = 0, vocabulary: int = 10) -> ScriptedDrafter:
    """A chain along a known text; every token off by `wrong_by`, so 0 is perfect and 1 always wrong."""

    def guess(history: list[int], limits: DraftLimits, *_: object) -> DraftTree:
        ahead = script[len(history) : len(history) + limits.n_max]
        return DraftTree.chain([(token + wrong_by) % vocabulary for token in ahead], [1.0] * len(ahead))

    return ScriptedDrafter(guess)


def random_tree(size: int, depth: int, tokens: Sequence[int], random: np.random.Generator) -> DraftTree:
    """A tree of random shape over some tokens, no two siblings alike."""
    parents: list[int] = []
    depths: list[int] = []
    drawn: list[int] = []
    left: dict[int, list[int]] = {
        -1: list(random.permutation(tokens))
    }  # what the children of a node may still be
    for node in range(size):
        parent = int(random.choice([n for n in left if left[n] and (n < 0 or depths[n] < depth)]))
        parents.append(parent)
        depths.append(1 if parent < 0 else depths[parent] + 1)
        drawn.append(int(left[parent].pop()))
        left[node] = list(random.permutation(tokens))
    return DraftTree.from_parents(drawn, parents, [0.5] * size)


def random_trees(vocabulary: int, seed: int) -> ScriptedDrafter:
    """Trees of random shape and tokens."""
    random = np.random.default_rng(seed)

    def guess(history: list[int], limits: DraftLimits, *_: object) -> DraftTree:
        size = min(limits.tree_size, vocabulary * limits.n_max)
        return random_tree(size, limits.n_max, range(vocabulary), random)

    return ScriptedDrafter(guess)


def sampled_chain(following: Next, prompt: list[int]) -> ScriptedDrafter:
    """A chain drawn from another model's warped distributions, which the tree declares."""

    def guess(
        history: list[int], limits: DraftLimits, sampling: Sampling, generator: torch.Generator
    ) -> DraftTree:
        tokens: list[int] = []
        distributions = []
        for _ in range(limits.n_max):
            q = sampling.probabilities(following(prompt + history + tokens))
            tokens.append(draw(q, generator))
            distributions.append(q)
        chances = [float(q[token]) for q, token in zip(distributions, tokens, strict=True)]
        return DraftTree.chain(tokens, chances, torch.stack(distributions))

    return ScriptedDrafter(guess)


def excess(counts: Tensor, expected: Tensor) -> float:
    """By how many standard deviations Pearson's chi-squared exceeds what chance explains; cells with nothing
    expected must be empty.
    """
    possible = expected > 0
    assert counts[~possible].sum() == 0, "drew what the target never says"
    counts, expected = counts[possible].double(), expected[possible].double()
    wanted = expected / expected.sum() * counts.sum()
    freedom = len(counts) - 1
    return float((((counts - wanted) ** 2 / wanted).sum() - freedom) / (2 * freedom) ** 0.5)
