"""Draft trees grown best first, as in EAGLE-2 (arXiv 2406.16858): the path's probability decides which
candidate becomes a node and which node is expanded next; what a node costs here decides where to end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import TypeVar

import torch
from torch import Tensor

from evspec_ros.speculative.drafter import DraftLimits
from evspec_ros.speculative.tree import NO_DRAFT, ROOT, DraftTree

# -(probability of the whole path), order, token, parent, probability given its parent: the likeliest path
# sorts first, of equals the older. A plain tuple, as a heap makes and compares many of them.
_Candidate = tuple[float, int, int, int, float]

Place = TypeVar("Place")


class Growth:
    """A tree while it grows: nodes, of which some were expanded, and the candidates for further ones.

    tokens, parents: of the nodes. rows: how many nodes were expanded, each in the next row of the head's
    cache behind the root's. chain: whether each of them is the likeliest child of the one before.
    """

    def __init__(self, branches: int) -> None:
        """branches: children that a node may have."""
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.rows = 0
        self.chain = True
        self._branches = branches
        self._probabilities: list[float] = []  # of each node given its parent
        self._path_probabilities: dict[int, float] = {ROOT: 1.0}
        self._expected_length = 1.0  # accepted tokens, the bonus token counted
        self._path_rows: dict[int, tuple[int, ...]] = {ROOT: ()}  # of the expanded nodes, their own row last
        self._hidden: dict[int, Tensor] = {}  # [1, d], the head's output at an expanded node
        self._candidates: list[_Candidate] = []  # a heap
        self._newest = ROOT  # the node that was expanded last
        self._newest_order = 0  # of its likeliest candidate
        self._order = 0

    def expand(self, node: int, tokens: list[int], probabilities: list[float], hidden: Tensor) -> None:
        """Add a node's candidates, its likeliest next tokens, and the head's output at it, hidden [1, d]."""
        self._hidden[node] = hidden
        self._newest, self._newest_order = node, self._order
        path = self._path_probabilities[node]
        for token, probability in zip(tokens[: self._branches], probabilities, strict=False):
            heappush(self._candidates, (-path * probability, self._order, token, node, probability))
            self._order += 1

    def select(self, width: int, limits: DraftLimits) -> list[int]:
        """Let the likeliest candidates become nodes; those of them to expand next, at most `width`. None
        where no further node is worth its cost.
        """
        selected: list[int] = []
        candidates = self._candidates
        while candidates and len(selected) < width and len(self.tokens) < limits.tree_size:
            if -candidates[0][0] < limits.floor(len(self.tokens), self._expected_length):
                break
            minus_path_probability, order, token, parent, probability = heappop(candidates)
            node = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self._probabilities.append(probability)
            self._path_probabilities[node] = -minus_path_probability
            self._expected_length -= minus_path_probability
            path = self._path_rows[parent]
            if len(path) + 1 < limits.n_max and token not in limits.end_tokens:
                likeliest = parent == self._newest and order == self._newest_order
                self.chain = self.chain and likeliest and not selected
                self._path_rows[node] = (*path, self.rows)
                self.rows += 1
                selected.append(node)
        return selected

    def hidden(self, nodes: list[int]) -> Tensor:
        """The head's outputs at the parents of these nodes, [n, d]."""
        outputs = [self._hidden[self.parents[node]] for node in nodes]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def positions(self, nodes: list[int]) -> tuple[Tensor, Tensor]:
        """Of the nodes to expand: depths int64 [n], the position relative to the first of their rows, and
        bool [n, rows], which rows they attend to.
        """
        first = self.rows - len(nodes)
        visible = torch.zeros(len(nodes), self.rows, dtype=torch.bool)
        for row, node in enumerate(nodes):
            visible[row, list(self._path_rows[node])] = True
        return torch.tensor([len(self._path_rows[node]) - 1 - first for node in nodes]), visible

    def tree(self) -> DraftTree:
        """What has grown."""
        if self.parents == list(range(ROOT, len(self.parents) - 1)):
            return DraftTree.chain(self.tokens, self._probabilities)
        return DraftTree.from_parents(self.tokens, self.parents, self._probabilities)


def grow_paths(tokens: list[list[int]], probabilities: list[list[float]], limits: DraftLimits) -> DraftTree:
    """The likeliest paths, where the distribution at a position does not depend on the path to it: of each
    position its best tokens and their probabilities, the best first.

    Node after node, each the likeliest one left, while its path's probability is at least the limits' floor.
    """
    depth = min(len(tokens), limits.n_max)
    nodes: list[int] = []
    parents: list[int] = []
    of_nodes: list[float] = []
    expected_length = 1.0
    # -(probability of the path), order, probability of the path before, parent, position, rank at it
    candidates: list[tuple[float, int, float, int, int, int]] = []
    order = 0

    def add(before: float, parent: int, position: int, rank: int) -> None:
        nonlocal order
        if position < depth and rank < len(tokens[position]):
            path = before * probabilities[position][rank]
            heappush(candidates, (-path, order, before, parent, position, rank))
            order += 1

    add(1.0, ROOT, 0, 0)
    while candidates and len(nodes) < limits.tree_size:
        if -candidates[0][0] < limits.floor(len(nodes), expected_length):
            break
        minus_path, _, before, parent, position, rank = heappop(candidates)
        node, token = len(nodes), tokens[position][rank]
        nodes.append(token)
        parents.append(parent)
        of_nodes.append(probabilities[position][rank])
        expected_length -= minus_path
        add(before, parent, position, rank + 1)  # its next sibling
        if token not in limits.end_tokens:
            add(-minus_path, node, position + 1, 0)  # its likeliest child
    if parents == list(range(ROOT, len(parents) - 1)):
        return DraftTree.chain(nodes, of_nodes)
    return DraftTree.from_parents(nodes, parents, of_nodes)


def grow_tree(
    limits: DraftLimits, root: Place, options: Callable[[Place], Iterable[tuple[int, float, Place]]]
) -> tuple[DraftTree, list[Place]]:
    """The likeliest paths, node after node, while the path's probability is at least the limits' floor; the
    place of each node.

    options: what may follow at a place, as token, probability and the place that it leads to.
    """
    nodes: list[_Candidate] = []
    places: list[Place] = []
    depths = {ROOT: 0}
    expected_length = 1.0
    candidates: list[tuple[_Candidate, Place]] = []
    order = 0

    def expand(node: int, path: float, place: Place) -> None:
        nonlocal order
        for token, probability, next_place in options(place):
            order += 1
            heappush(candidates, ((-path * probability, order, token, node, probability), next_place))

    expand(ROOT, 1.0, root)
    while candidates and len(nodes) < limits.tree_size:
        candidate, place = candidates[0]
        if -candidate[0] < limits.floor(len(nodes), expected_length):
            break
        heappop(candidates)
        minus_path, _, token, parent, _ = candidate
        node = len(nodes)
        nodes.append(candidate)
        places.append(place)
        depths[node] = depths[parent] + 1
        expected_length -= minus_path
        if depths[node] < limits.n_max and token not in limits.end_tokens:
            expand(node, -minus_path, place)
    if not nodes:
        return NO_DRAFT, []
    _, _, tokens, parents, probabilities = zip(*nodes, strict=True)
    if parents == tuple(range(ROOT, len(nodes) - 1)):
        return DraftTree.chain(tokens, probabilities), places
    return DraftTree.from_parents(tokens, parents, probabilities), places


def grow_chain(
    limits: DraftLimits, longest: int, next_token: Callable[[list[int]], tuple[int, float] | None]
) -> DraftTree:
    """Token after token, at most `longest`, while the path's probability is at least the limits' floor.

    next_token: the token behind those drafted so far with its probability; None where there is none. A chain
    took one pass, no chain none; a drafter that counts otherwise says so.
    """
    tokens: list[int] = []
    probabilities: list[float] = []
    path_probability = expected_length = 1.0
    while len(tokens) < longest and (proposed := next_token(tokens)) is not None:
        token, probability = proposed
        path_probability *= probability
        if path_probability < limits.floor(len(tokens), expected_length):
            break
        expected_length += path_probability
        tokens.append(token)
        probabilities.append(probability)
        if token in limits.end_tokens:
            break
    return DraftTree.chain(tokens, probabilities) if tokens else NO_DRAFT
