"""Draft trees grown where the networks compute, in shapes that the limits alone decide and without a look at
a value: the same nodes as those that `growth` takes on the host, in the same order, as far as the limits
allow, whether or not they pay.

A tree grows level by level. Of each level as many of the likeliest nodes are kept as there may be in the
tree, which holds all of its nodes, since no path is likelier than its beginning; the best of all levels are
the tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from evspec_ros.networks.devices import uploaded
from evspec_ros.sizes import LARGEST_TREE
from evspec_ros.speculative.device_tree import DeviceTree, lineage
from evspec_ros.speculative.drafter import DraftLimits
from evspec_ros.speculative.sampling import NO_TOKEN
from evspec_ros.speculative.text_drafter import AcceptanceRate
from evspec_ros.speculative.tree import ROOT

IMAGINED = 4.0  # trials of a depth, as those of all depths went
_CLOSED = -1.0  # the probability of a path that nothing may follow, and of what follows it


class UnseenDepth:
    """How deep a draft is all of whose levels cost, as nobody sees where it should end: as deep as drafts
    bring most tokens a millisecond where each level is accepted as often as it was before, as far as costs
    are known.
    """

    def __init__(self) -> None:
        self._every = AcceptanceRate(9.0, 10.0)  # at whatever depth
        self._rates = [AcceptanceRate(0.0, 0.0) for _ in range(LARGEST_TREE)]  # by depth
        self._drafted = 0

    def limits(self, limits: DraftLimits) -> DraftLimits:
        """The limits of a draft, no deeper than that."""
        self._drafted, costs = limits.n_max, limits.costs
        if costs is not None:
            reached = gain = 1.0
            best, imagined = 0.0, IMAGINED * self._every.value
            measured = range(1, min(limits.n_max, len(costs.verify_ms) - 1) + 1)
            for depth, rate in zip(measured, self._rates, strict=False):
                reached *= (rate.hits + imagined) / (rate.trials + IMAGINED)
                gain += reached
                if gain > best * costs.cost(depth):
                    best, self._drafted = gain / costs.cost(depth), depth
        return replace(limits, n_max=self._drafted)

    def accepted(self, tokens: int) -> None:
        """So many tokens followed, the bonus token counted; without a draft they say nothing."""
        for depth, rate in enumerate(self._rates[: min(tokens, self._drafted)], start=1):
            rate.count(depth < tokens)
            self._every.count(depth < tokens)
        self._drafted = 0


class NodeLimits:
    """What limits say of nodes on a device, brought there without waiting for it. What nodes cost is left to
    the size of the tree: all of them are computed, and one that would not pay costs nothing more.
    """

    def __init__(self, limits: DraftLimits, device: torch.device) -> None:
        ends = torch.tensor(sorted(limits.end_tokens), dtype=torch.int64)
        self._ends, self._p_min = uploaded(ends, device), limits.p_min

    def end(self, tokens: Tensor) -> Tensor:
        """Bool [n], which tokens nothing follows."""
        return (tokens[:, None] == self._ends).any(1)

    def hold(self, paths: Tensor) -> Tensor:
        """Bool [n], the first nodes as far as the probabilities float64 [n] of their paths, which fall, are
        high enough.
        """
        return all_before(paths >= self._p_min)


class _Level(NamedTuple):
    """The likeliest nodes of one depth, the best first. parents: int64 [F], places in the level before;
    paths float64 [F].
    """

    tokens: Tensor
    parents: Tensor
    probabilities: Tensor
    paths: Tensor


class LevelGrowth:
    """A tree while it grows: `add` what may follow each node of the frontier, then go on to the next one.

    frontier: how many of the last level's nodes, the first ones, have to be expanded; 0 where the tree is
    complete.
    """

    def __init__(self, limits: DraftLimits, branches: int, device: torch.device) -> None:
        """branches: children that a node may have."""
        self._of, self._size, self._branches = limits, limits.most_nodes, branches
        self._limits = NodeLimits(limits, device)
        self._levels: list[_Level] = []
        self._open = torch.ones(1, dtype=torch.float64, device=device)  # of the root's path
        self.frontier = min(1, self._size)

    @property
    def last(self) -> tuple[Tensor, Tensor]:
        """Tokens int64 [W] of the frontier, and places of their parents in the frontier before."""
        level = self._levels[-1]
        return level.tokens[: self.frontier], level.parents[: self.frontier]

    def add(self, tokens: Tensor, probabilities: Tensor) -> None:
        """Of each node of the frontier its likeliest next tokens [W, K], the best first, and their
        probabilities float32.
        """
        tokens, probabilities = tokens[:, : self._branches], probabilities[:, : self._branches]
        above, children = self._open[:, None], tokens.shape[1]
        paths = torch.where(above < 0, above, above * probabilities.double()).flatten()
        ordered, order = paths.sort(descending=True, stable=True)
        kept = order[: self._size - len(self._levels)]  # a node has ancestors in the tree
        tokens, probabilities = tokens.flatten()[kept], probabilities.flatten()[kept]
        parents = kept.div(children, rounding_mode="floor")
        self._levels.append(_Level(tokens, parents, probabilities, ordered[: len(kept)]))
        depth = len(self._levels)
        self.frontier = min(len(kept), self._size - depth) if depth < self._of.n_max else 0
        paths = ordered[: self.frontier]
        self._open = torch.where(self._limits.end(tokens[: self.frontier]), _CLOSED, paths)

    def tree(self, passes: int = 1) -> DeviceTree:
        """What has grown; passes: as in DraftTree."""
        if self._branches == 1:
            tokens = torch.cat([level.tokens for level in self._levels])
            probabilities = torch.cat([level.probabilities for level in self._levels])
            return grown_chain(tokens, probabilities, self._of, passes=passes)
        starts = np.cumsum([0, 1, *(len(level.tokens) for level in self._levels)])  # the root is 0
        tokens, probabilities, paths = (
            torch.cat([getattr(level, name) for level in self._levels])
            for name in ("tokens", "probabilities", "paths")
        )
        parents = torch.cat(
            [level.parents + int(start) for level, start in zip(self._levels, starts, strict=False)]
        )
        depths = torch.cat(
            [torch.full_like(level.tokens, depth) for depth, level in enumerate(self._levels, start=1)]
        )
        nodes = UnseenNodes(tokens, parents, probabilities, paths, depths)
        return nodes.best(self._limits, self._size, len(self._levels), passes)


class UnseenNodes(NamedTuple):
    """M nodes, parents int64 [M], 0 for the root and i + 1 for node i; depths int64 [M]; else as DeviceTree.
    What is less deep comes first.
    """

    tokens: Tensor
    parents: Tensor
    probabilities: Tensor
    paths: Tensor
    depths: Tensor

    def best(self, limits: NodeLimits, nodes: int, depth: int, passes: int) -> DeviceTree:
        """A tree of at most so many of them, none deeper than so much: the likeliest paths, as far as they
        pay.
        """
        paths, order = self.paths.sort(descending=True, stable=True)
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        places = torch.cat((torch.full_like(order[:1], ROOT), places))
        order, paths = order[:nodes], paths[:nodes]
        there = limits.hold(paths)
        parents = torch.where(there, places[self.parents[order]], ROOT)
        return DeviceTree(
            torch.where(there, self.tokens[order], 0),
            parents,
            torch.where(there, self.depths[order], 1),
            self.probabilities[order],
            paths,
            there,
            lineage(parents, depth),
            passes=passes,
        )


def grown_chain(
    tokens: Tensor,
    probabilities: Tensor,
    limits: DraftLimits,
    *,
    confidences: Tensor | None = None,
    impossible: Tensor | None = None,
    distributions: Tensor | None = None,
    passes: int = 1,
) -> DeviceTree:
    """N tokens int64 [N] behind each other, with their probabilities float32, as far as the limits say.

    confidences: float32 [N], whose products are held against the limits' floor, by default the
    probabilities; impossible: bool [N], the first of them ends the chain before it.
    """
    count = len(tokens)
    node_limits = NodeLimits(limits, tokens.device)
    paths = probabilities.double().cumprod(0)
    sure = paths if confidences is None else confidences.double().cumprod(0)
    ended = node_limits.end(tokens).roll(1) & (torch.arange(count, device=tokens.device) > 0)
    there = node_limits.hold(sure) & all_before(~ended)
    if impossible is not None:
        there &= all_before(~impossible)
    places = torch.arange(count, device=tokens.device)
    return DeviceTree(
        torch.where(there, tokens, 0),
        places - 1,
        places + 1,
        probabilities,
        paths,
        there,
        torch.ones(count + 1, count + 1, dtype=torch.bool, device=tokens.device).tril(),
        is_chain=True,
        distributions=distributions,
        passes=passes,
    )


def drawn_chain(
    tokens: Tensor, spread: Tensor, confidences: Tensor, limits: DraftLimits, passes: int = 1
) -> DeviceTree:
    """A `grown_chain` of N tokens that were `drawn` of the distributions spread [N, V]; it ends before the
    first one that could not be.
    """
    legal = tokens.clamp(min=0)
    return grown_chain(
        legal,
        spread.gather(1, legal[:, None])[:, 0],
        limits,
        confidences=confidences,
        impossible=tokens == NO_TOKEN,
        distributions=spread,
        passes=passes,
    )


def grown_paths(tokens: Tensor, probabilities: Tensor, limits: DraftLimits) -> DeviceTree:
    """What `grow_paths` grows, of tokens int64 [B, K] and their probabilities float32."""
    growth = LevelGrowth(limits, tokens.shape[1], tokens.device)
    for position in range(len(tokens)):
        if growth.frontier:
            growth.add(*(row[position].expand(growth.frontier, -1) for row in (tokens, probabilities)))
    return growth.tree()


def united(paths: Mapping[tuple[int, ...], float], grown: DeviceTree, limits: DraftLimits) -> DeviceTree:
    """What `merged` makes of the host's paths, each behind its beginning, with their probabilities, and of a
    tree that nobody has seen; there are nodes in both.
    """
    device, rows = grown.tokens.device, {path: row for row, path in enumerate(paths, start=1)}
    numbers = [[path[-1], rows.get(path[:-1], 0), len(path)] for path in paths]
    chances = np.array(list(paths.values()), np.float64).view(np.int64)
    whole = uploaded(torch.from_numpy(np.concatenate((np.array(numbers, np.int64).T, chances[None]))), device)
    tokens, above, depths = whole[:3]
    count, most, drafted = len(paths), max(map(len, paths)), len(grown)
    # Which of the host's rows and of the tree's end the same path: level by level, as their parents' do.
    same = torch.zeros(count + 1, drafted + 1, dtype=torch.bool, device=device)
    same[0, 0] = True
    alike, grown_above = (tokens[:, None] == grown.tokens) & grown.there, grown.parents - ROOT
    for _ in range(min(most, limits.n_max)):
        same[1:, 1:] = alike & same[above][:, grown_above]
    twins = same[1:, 1:]
    alone = grown.there & ~twins.any(0)
    known = torch.maximum(whole[3].view(torch.float64), torch.where(twins, grown.paths, _CLOSED).amax(1))
    own = torch.arange(count + 1, count + 1 + drafted, device=device)
    places = torch.cat((own.new_zeros(1), torch.where(twins.any(0), twins.long().argmax(0) + 1, own)))
    every = torch.cat((known, torch.where(alone, grown.paths, _CLOSED)))
    parents = torch.cat((above, places[grown_above]))
    before = torch.cat((every.new_ones(1), every))[parents]
    depths = torch.cat((depths, grown.depths))
    order = depths.sort(stable=True).indices
    moved = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device) + 1)
    nodes = UnseenNodes(
        torch.cat((tokens, grown.tokens))[order],
        torch.cat((moved.new_zeros(1), moved))[parents[order]],
        (every / before).clamp(max=1.0).float()[order],
        every[order],
        depths[order],
    )
    size = min(limits.most_nodes, count + drafted)
    return nodes.best(NodeLimits(limits, device), size, max(most, limits.n_max), grown.passes)


def frontier_rows(limits: DraftLimits, branches: int) -> int:
    """Nodes that a tree expands at most while it grows."""
    rows, frontier, size = 0, 1, limits.most_nodes
    for depth in range(1, min(limits.n_max, size)):
        frontier = min(frontier * branches, size - depth)
        rows += frontier
    return rows


def all_before(flags: Tensor) -> Tensor:
    """Bool [n], True up to the first flag that is not."""
    return flags.long().cumprod(0).bool()
