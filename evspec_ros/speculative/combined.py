"""The default: one tree of what the event model wrote while the target read its prompt, of what the
stream's past descriptions go on with, and of what a draft head proposes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from evspec_ros.speculative.block import BlockDrafter
from evspec_ros.speculative.device_growth import united
from evspec_ros.speculative.device_tree import DeviceTree, Draft
from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.eagle import EagleDrafter
from evspec_ros.speculative.eventgpt import EventGptDrafter
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.suffix import SuffixDrafter
from evspec_ros.speculative.tree import NO_DRAFT, ROOT, DraftTree

TRUSTED = 3.0  # tokens that past descriptions are expected to give without asking a head


class CombinedDrafter:
    """One tree of what its parts propose, drafted without sampling; any of them may be missing.

    The head, which costs time, is asked only where past descriptions are not trusted.
    """

    name = "combined"

    def __init__(
        self,
        head: BlockDrafter | EagleDrafter | None = None,
        suffix: SuffixDrafter | None = None,
        event_writer: EventGptDrafter | None = None,
    ) -> None:
        self.layers = () if head is None else head.layers
        self._head = head
        self._suffix = suffix
        self._event_writer = event_writer
        parts: tuple[Drafter | None, ...] = (event_writer, head, suffix)
        self._parts = [part for part in parts if part is not None]

    def prepare(self, prompt: Prompt) -> None:
        """All begin; the event side, which head and event writer share, once."""
        for part in self._parts:
            if part is not self._head or self._event_writer is None:
                part.prepare(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """All start."""
        for part in self._parts:
            part.start(prompt, features, token, capacity)

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> Draft:
        """One tree within the limits."""
        trees: list[DraftTree] = []
        trusted = False
        if self._event_writer is not None:
            trees.append(self._event_writer.free_draft(limits))
        if self._suffix is not None:
            followed = self._suffix.propose(limits, sampling, generator)
            trusted = sum(followed.path_probabilities()) >= TRUSTED
            trees.append(followed)
        if self._head is not None and not trusted:
            grown = self._head.propose(limits, sampling, generator)
            if isinstance(grown, DeviceTree):
                paths, passes = united_paths(trees), sum(tree.passes for tree in trees)
                both = united(paths, grown, limits) if paths else grown
                return replace(both, passes=passes + grown.passes)
            trees.append(grown)
        return replace(merged(trees, limits), passes=sum(tree.passes for tree in trees))

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """All go on."""
        for part in self._parts:
            part.accept(tokens, features)

    def finish(self, tokens: Sequence[int]) -> None:
        """The text is remembered."""
        for part in self._parts:
            part.finish(tokens)

    def forget(self) -> None:
        """The texts are forgotten."""
        for part in self._parts:
            part.forget()


def united_paths(trees: Iterable[DraftTree]) -> dict[tuple[int, ...], float]:
    """The paths of all trees, each behind its beginning, and the higher of their probabilities."""
    of_paths: dict[tuple[int, ...], float] = {}
    for tree in trees:
        for path, probability in zip(tree.paths(), tree.path_probabilities(), strict=True):
            of_paths[path] = max(probability, of_paths.get(path, 0.0))
    return of_paths


def merged(trees: Sequence[DraftTree], limits: DraftLimits) -> DraftTree:
    """Trees drafted without sampling as one: their paths, the likeliest first, as far as they pay.

    Of a path that two trees hold the higher probability counts.
    """
    trees = [tree for tree in trees if len(tree)]
    if len(trees) <= 1:
        return trees[0] if trees else NO_DRAFT
    of_paths = {(): 1.0, **united_paths(trees)}
    expected_length = 1.0
    nodes: dict[tuple[int, ...], int] = {(): ROOT}
    of_nodes: list[float] = []
    for path in sorted(of_paths, key=lambda path: (-of_paths[path], len(path)))[1:]:
        count = len(nodes) - 1
        if count == limits.tree_size or of_paths[path] < limits.floor(count, expected_length):
            break
        if path[:-1] in nodes:  # or the other tree thought less of the beginning
            nodes[path] = count
            of_nodes.append(min(1.0, of_paths[path] / of_paths[path[:-1]]))
            expected_length += of_paths[path]
    paths = list(nodes)[1:]
    return DraftTree.from_parents(
        [path[-1] for path in paths], [nodes[path[:-1]] for path in paths], of_nodes
    )
