"""Draft trees grown best first, as in EAGLE-2 (arXiv 2406.16858): the path's probability decides which
candidate becomes a node and which node is expanded next; what a node costs here decides where to end.
Of equals the one nearer to the root comes first, then that of the older parent, then the better sibling.
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
# The same with depth, parent and rank among its siblings in the place of the order.
_Child = tuple[float, int, int, int, int, float]

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
        self._candidates: list[_Child] = []  # a heap
        self._newest = ROOT  # the node that was expanded last

    def expand(self, node: int, tokens: list[int], probabilities: list[float], hidden: Tensor) -> None:
        """Add a node's candidates, its likeliest next tokens, and the head's output at it, hidden [1, d]."""
        self._hidden[node] = hidden
        self._newest = node
        path, depth = self._path_probabilities[node], len(self._path_rows[node])
        children = zip(tokens[: self._branches], probabilities, strict=False)
        for rank, (token, probability) in enumerate(children):
            heappush(self._candidates, (-path * probability, depth, node, rank, token, probability))

    def select(self, limits: DraftLimits) -> int | None:
        """Let the likeliest candidates become nodes up to one that is to be expanded next: that node. None
        where no further node is worth its cost.
        """
        candidates = self._candidates
        while candidates and len(self.tokens) < limits.tree_size:
            if -candidates[0][0] < limits.floor(len(self.tokens), self._expected_length):
                break
            minus_path_probability, _, parent, rank, token, probability = heappop(candidates)
            node = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self._probabilities.append(probability)
            self._path_probabilities[node] = -minus_path_probability
            self._expected_length -= minus_path_probability
            path = self._path_rows[parent]
            if len(path) + 1 < limits.n_max and token not in limits.end_tokens:
                self.chain = self.chain and parent == self._newest and rank == 0
                self._path_rows[node] = (*path, self.rows)
                self.rows += 1
                return node
        return None

    def hidden(self, node: int) -> Tensor:
        """The head's output at a node's parent, [1, d]."""
        return self._hidden[self.parents[node]]

    def position(self, node: int) -> tuple[Tensor, Tensor]:
        """Of the newest node to expand: its depth int64 [1], the position relative to its row, and bool
        [1, rows], which rows it attends to.
        """
        path = self._path_rows[node]
        visible = torch.zeros(1, self.rows, dtype=torch.bool)
        visible[0, list(path)] = True
        return torch.tensor([len(path) - self.rows]), visible

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
    # -(probability of the path), position, parent, rank at it, probability of the path before
    candidates: list[tuple[float, int, int, int, float]] = []

    def add(before: float, parent: int, position: int, rank: int) -> None:
        if position < depth and rank < len(tokens[position]):
            path = before * probabilities[position][rank]
            heappush(candidates, (-path, position, parent, rank, before))

    add(1.0, ROOT, 0, 0)
    while candidates and len(nodes) < limits.tree_size:
        if -candidates[0][0] < limits.floor(len(nodes), expected_length):
            break
        minus_path, position, parent, rank, before = heappop(candidates)
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
