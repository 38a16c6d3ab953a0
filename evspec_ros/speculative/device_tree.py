"""Draft trees on the target's device, which the host need not have seen: what grew there, and what the host
brought there. They have as many nodes as there may be at most; which of them are there is a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evspec_ros.networks.devices import fetched, uploaded
from evspec_ros.speculative.tree import ROOT, DraftTree, chain_parents


@dataclass(frozen=True, eq=False)
class DeviceTree:
    """N nodes, of which the first few are there and the others, children of the root, are never accepted.

    tokens, parents, depths int64 [N], probabilities float32 [N], distributions and passes: as in DraftTree,
    the tokens of all N ids that can be embedded. paths: float64 [N], the probability of each node's whole
    path; there: bool [N]; ancestors: bool [N + 1, N + 1] over rows, as in DraftTree; is_chain: whether every
    node follows the one before it, those that are not there as well; most_siblings: children that a node has
    at most; known: the same tree where the host drafted it.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    probabilities: Tensor
    paths: Tensor
    there: Tensor
    ancestors: Tensor
    is_chain: bool = False
    most_siblings: int = 1
    distributions: Tensor | None = None
    passes: int = 1
    known: DraftTree | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def of(cls, tree: DraftTree, device: torch.device) -> DeviceTree:
        """What the host drafted, without waiting for the device."""
        chances = np.array((tree.probabilities, tree.path_probabilities()), np.float64)
        numbers = np.concatenate(((tree.tokens, tree.parents, tree.depths), chances.view(np.int64)))
        whole = uploaded(torch.from_numpy(numbers), device)
        probabilities, paths = whole[3:].view(torch.float64)
        drawn = tree.distributions is not None and len(tree) > 0
        return cls(
            whole[0],
            whole[1],
            whole[2],
            probabilities.float(),
            paths,
            torch.ones(len(tree), dtype=torch.bool, device=device),
            uploaded(torch.from_numpy(tree.ancestors()), device),
            tree.is_chain,
            int(np.unique(tree.parents, return_counts=True)[1].max()) if drawn else 1,
            tree.distributions,
            tree.passes,
            tree,
        )

    def row_depths(self) -> Tensor:
        """int64 [N + 1] over rows, as of DraftTree."""
        return torch.cat((self.depths.new_zeros(1), self.depths))

    @property
    def unseen(self) -> tuple[Tensor, ...]:
        """What the host does not know."""
        if self.known is not None:
            return ()
        return self.tokens, self.parents, self.depths, self.probabilities, self.there

    def told(self, found: Sequence[NDArray[Any]]) -> DraftTree:
        """The tree on the host, out of what `unseen` holds: the nodes that are there."""
        if self.known is not None:
            return self.known
        tokens, parents, depths, probabilities, there = found
        count = int(there.sum())
        follow, chain = parents[:count], chain_parents(count)
        return DraftTree(
            tokens[:count],
            chain if np.array_equal(follow, chain) else follow,
            depths[:count],
            probabilities[:count],
            None if self.distributions is None else self.distributions[:count],
            self.passes,
        )

    def seen(self) -> DraftTree:
        """The tree on the host, after a wait."""
        return self.told(fetched(*self.unseen))


Draft: TypeAlias = DraftTree | DeviceTree


def lineage(parents: Tensor, depth: int) -> Tensor:
    """Bool [N + 1, N + 1] over rows, which rows are ancestors of a row or itself, from the parents int64 [N]
    of nodes at most so deep.
    """
    rows = torch.arange(len(parents) + 1, device=parents.device)
    above = torch.cat((rows[:1], parents - ROOT))  # the row of each row's parent, the root its own
    seen = (rows == above[:, None]) | (rows == rows[:, None])
    reached = 1
    while reached < depth:
        steps = seen.float()
        seen, reached = steps @ steps > 0.5, 2 * reached
    return seen
