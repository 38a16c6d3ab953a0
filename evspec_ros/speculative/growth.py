"""Draft trees grown best first: EAGLE-2's confidence (arXiv 2406.16858) decides what becomes a node and what
the head reads next, and what a node costs on this machine decides where to end. Chains grow token by token.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

import torch
from torch import Tensor

from evspec_ros.speculative.drafter import DraftLimits
from evspec_ros.speculative.tree import ROOT, DraftTree


class Growth:
    """A tree while it grows: nodes, of which some were read, and the children that these may have.

    tokens, parents: of the nodes. rows: how many nodes were read, each in the next row behind the root's.
    chain: whether each of them is the likeliest child of the one before.
    """

    def __init__(self, branches: int) -> None:
        """branches: children that a node may have."""
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.rows = 0
        self.chain = True
        self._branches = branches
        self._shares: list[float] = []  # the probability of each node given its parent
        self._chances: dict[int, float] = {ROOT: 1.0}  # of its whole path
        self._gain = 1.0  # tokens that the nodes are expected to bring, with the bonus token
        self._paths: dict[int, tuple[int, ...]] = {
            ROOT: ()
        }  # rows of the nodes that were read, their own last
        self._outputs: dict[int, Tensor] = {}  # [1, d], what the children of a node that was read carry
        self._waiting: list[tuple[float, int, int, int, float]] = []  # -chance, order, parent, token, share
        self._tip = ROOT  # the node that was read last
        self._first = 0  # the order of its likeliest child
        self._order = 0

    def told(self, node: int, tokens: list[int], shares: list[float], output: Tensor) -> None:
        """The head read a node: its likeliest next tokens with their probabilities, and its output [1, d]."""
        self._outputs[node] = output
        self._tip, self._first = node, self._order
        chance = self._chances[node]
        for token, share in zip(tokens[: self._branches], shares, strict=False):
            heappush(self._waiting, (-chance * share, self._order, node, token, share))
            self._order += 1

    def take(self, width: int, limits: DraftLimits) -> list[int]:
        """Let the likeliest candidates become nodes, until `width` of them are to be read; none where the
        next one is not worth it.
        """
        read: list[int] = []
        waiting = self._waiting
        while waiting and len(read) < width and len(self.tokens) < limits.tree_size:
            if -waiting[0][0] < limits.floor(len(self.tokens), self._gain):
                break
            chance, order, parent, token, share = heappop(waiting)
            node = len(self.tokens)
            self.tokens.append(token)
            self.parents.append(parent)
            self._shares.append(share)
            self._chances[node] = -chance
            self._gain -= chance
            path = self._paths[parent]
            if len(path) + 1 < limits.n_max and token not in limits.end_tokens:
                self.chain = self.chain and parent == self._tip and order == self._first and not read
                self._paths[node] = (*path, self.rows)
                self.rows += 1
                read.append(node)
        return read

    def carried(self, read: list[int]) -> Tensor:
        """What these nodes carry [n, d]."""
        outputs = [self._outputs[self.parents[node]] for node in read]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def places(self, read: list[int]) -> tuple[Tensor, Tensor]:
        """Of the nodes that are to be read: depths int64 [n], the position relative to the first of their
        rows, and bool [n, rows], which rows they see.
        """
        first = self.rows - len(read)
        visible = torch.zeros(len(read), self.rows, dtype=torch.bool)
        for line, node in enumerate(read):
            visible[line, list(self._paths[node])] = True
        return torch.tensor([len(self._paths[node]) - 1 - first for node in read]), visible

    def tree(self) -> DraftTree:
        """What has grown."""
        if self.parents == list(range(ROOT, len(self.parents) - 1)):
            return DraftTree.chain(self.tokens, self._shares)
        return DraftTree.from_parents(self.tokens, self.parents, self._shares)


def grow_paths(tokens: list[list[int]], chances: list[list[float]], limits: DraftLimits) -> DraftTree:
    """The likeliest paths, where what is said at a position does not depend on the path to it: of each
    position its best tokens and their probabilities, the best first.

    Node after node, each the likeliest one left, while its path's probability is at least the limits' floor.
    """
    depth = min(len(tokens), limits.n_max)
    nodes: list[int] = []
    parents: list[int] = []
    shares: list[float] = []
    gain = 1.0
    waiting: list[tuple[float, int, float, int, int, int]] = []  # -chance, order, before, parent, place, rank
    order = 0

    def wait(before: float, parent: int, place: int, rank: int) -> None:
        nonlocal order
        if place < depth and rank < len(tokens[place]):
            heappush(waiting, (-before * chances[place][rank], order, before, parent, place, rank))
            order += 1

    wait(1.0, ROOT, 0, 0)
    while waiting and len(nodes) < limits.tree_size:
        if -waiting[0][0] < limits.floor(len(nodes), gain):
            break
        chance, _, before, parent, place, rank = heappop(waiting)
        node, token = len(nodes), tokens[place][rank]
        nodes.append(token)
        parents.append(parent)
        shares.append(chances[place][rank])
        gain -= chance
        wait(before, parent, place, rank + 1)  # its next sibling
        if token not in limits.end_tokens:
            wait(-chance, node, place + 1, 0)  # its likeliest child
    if parents == list(range(ROOT, len(parents) - 1)):
        return DraftTree.chain(nodes, shares)
    return DraftTree.from_parents(nodes, parents, shares)


def grow_chain(
    limits: DraftLimits, most: int, following: Callable[[list[int]], tuple[int, float] | None]
) -> DraftTree:
    """Token after token, at most `most`, while the confidence of all of them is at least the limits' floor.

    following: the token behind those drafted so far with its probability; None where there is none.
    """
    tokens: list[int] = []
    chances: list[float] = []
    confidence = gain = 1.0
    while len(tokens) < most and (said := following(tokens)) is not None:
        token, chance = said
        confidence *= chance
        if confidence < limits.floor(len(tokens), gain):
            break
        gain += confidence
        tokens.append(token)
        chances.append(chance)
        if token in limits.end_tokens:
            break
    return DraftTree.chain(tokens, chances)
