"""The draft tree: what a drafter proposes and the target verifies in one pass. A chain has one leaf.

A verification pass has N + 1 rows: row 0 is the root (the last token emitted, which the target has not read
yet), row i + 1 is node i. Every index below says whether it counts nodes or rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from evspec_ros.errors import GenerationError

ROOT = -1  # the parent of a node that directly follows the root token


@dataclass(frozen=True, eq=False)
class DraftTree:
    """N drafted tokens, parents before children, siblings in the order in which they are to be tried.

    Siblings should differ: of two that are alike only the first is followed.

    tokens: int64 [N]; parents: int64 [N], node indices, -1 = the root; depths: int64 [N], 1 below the root;
    probabilities: float32 [N], the drafter's probability of each token given its ancestors.
    distributions: float32 [N, V] on the target's device, the distribution that node i was drawn from (after
    temperature, top-k, top-p and after removing siblings drawn before it), or None where the nodes were
    chosen without chance. passes: runs of a network that drafting it took, the reading of a prompt left out;
    1 of a drafter that has none. Raises GenerationError where the arrays do not describe a tree.
    """

    tokens: NDArray[np.int64]
    parents: NDArray[np.int64]
    depths: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    distributions: torch.Tensor | None = None
    passes: int = 1

    def __post_init__(self) -> None:
        size = len(self.tokens)
        if not (len(self.parents) == len(self.depths) == len(self.probabilities) == size):
            raise GenerationError("A draft tree needs as many parents, depths and probabilities as tokens.")
        if self.distributions is not None and len(self.distributions) != size:
            raise GenerationError(
                f"A draft tree of {size} nodes has {len(self.distributions)} distributions; give one each."
            )
        if self.parents is chain_parents(size):
            return
        if (self.parents < ROOT).any() or (self.parents >= np.arange(size)).any():
            raise GenerationError("In a draft tree every parent must be -1 or an earlier node.")
        if (self.depths != np.append(self.depths, 0)[self.parents] + 1).any():  # [-1] is the root's depth, 0
            raise GenerationError("In a draft tree every depth must be one more than the parent's.")

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Tokens on the longest path."""
        return int(self.depths.max()) if len(self) else 0

    @property
    def is_chain(self) -> bool:
        """Whether every node follows the one before it, so that a causal mask serves."""
        return np.array_equal(self.parents, chain_parents(len(self)))

    @staticmethod
    def chain(
        tokens: Sequence[int] | NDArray[np.int64],
        probabilities: Sequence[float],
        distributions: torch.Tensor | None = None,
    ) -> DraftTree:
        """Each token follows the one before it; the first follows the root."""
        size = len(tokens)
        return DraftTree(
            np.array(tokens, np.int64),
            chain_parents(size),
            chain_parents(size + 2)[2:],
            np.array(probabilities, np.float32),
            distributions,
        )

    @staticmethod
    def from_parents(
        tokens: Sequence[int],
        parents: Sequence[int],
        probabilities: Sequence[float],
        distributions: torch.Tensor | None = None,
    ) -> DraftTree:
        """A tree whose depths follow from its parents."""
        depths: list[int] = []
        for node, parent in enumerate(parents):
            if not ROOT <= parent < node:
                raise GenerationError("In a draft tree every parent must be -1 or an earlier node.")
            depths.append(1 if parent == ROOT else depths[parent] + 1)
        return DraftTree(
            np.array(tokens, np.int64),
            np.array(parents, np.int64),
            np.array(depths, np.int64),
            np.array(probabilities, np.float32),
            distributions,
        )

    def paths(self) -> list[tuple[int, ...]]:
        """Each node's tokens from the root down to itself."""
        found: list[tuple[int, ...]] = []
        for token, parent in zip(self.tokens.tolist(), self.parents.tolist(), strict=True):
            found.append((*(found[parent] if parent != ROOT else ()), token))
        return found

    def path_probabilities(self) -> list[float]:
        """The drafter's probability of each node's whole path."""
        found: list[float] = []
        for chance, parent in zip(self.probabilities.tolist(), self.parents.tolist(), strict=True):
            found.append(chance * (found[parent] if parent != ROOT else 1.0))
        return found

    def row_depths(self) -> NDArray[np.int64]:
        """int64 [N + 1] over rows: how far each lies below the root, so that position = prefix length +
        depth.
        """
        return np.append(0, self.depths)

    def ancestors(self) -> NDArray[np.bool_]:
        """Bool [N + 1, N + 1] over rows: True where the column's row is an ancestor of the line's row or
        itself.
        """
        mask = np.eye(len(self) + 1, dtype=np.bool_)
        for node, parent in enumerate(self.parents.tolist()):
            mask[node + 1] |= mask[parent + 1]
        return mask


@lru_cache(maxsize=256)
def chain_parents(size: int) -> NDArray[np.int64]:
    """int64 [size]: -1, 0, 1, ...; one shared, read-only array per size."""
    parents = np.arange(-1, size - 1, dtype=np.int64)
    parents.flags.writeable = False
    return parents


NO_DRAFT = replace(DraftTree.chain((), ()), passes=0)
