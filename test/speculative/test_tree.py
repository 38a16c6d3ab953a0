"""The draft tree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from speculative_fakes import random_tree

from evspec_ros.errors import GenerationError
from evspec_ros.speculative import DraftTree
from evspec_ros.speculative.tree import NO_DRAFT


def test_the_mask_shows_each_row_its_ancestors_and_itself() -> None:
    r"""The drawn tree.

        root          row 0
        /   \
      n0     n1       rows 1, 2
      / \      \
    n2   n3     n4    rows 3, 4, 5
    """
    tree = DraftTree.from_parents([7, 8, 9, 9, 7], [-1, -1, 0, 0, 1], [0.5] * 5)
    assert tree.depths.tolist() == [1, 1, 2, 2, 2]
    assert tree.row_depths().tolist() == [0, 1, 1, 2, 2, 2]
    assert tree.ancestors().astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 0, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 1],
    ]


def test_the_mask_of_any_tree_is_what_walking_up_its_parents_gives() -> None:
    """A row sees exactly the rows on its way to the root."""
    random = np.random.default_rng(0)
    for size in range(25):
        tree = random_tree(size, 6, range(10), random)
        mask = tree.ancestors()
        for node in range(size):
            way, seen = node, {0}
            while way >= 0:
                seen.add(way + 1)
                way = int(tree.parents[way])
            assert set(np.flatnonzero(mask[node + 1])) == seen


def test_a_chain_is_the_tree_with_a_causal_mask() -> None:
    """Depths count up from 1, and the mask is lower triangular."""
    chain = DraftTree.chain([5, 6, 7], [0.9, 0.8, 0.7])
    assert chain.is_chain
    assert chain.depth == 3
    assert chain.depths.tolist() == [1, 2, 3]
    assert np.array_equal(chain.ancestors(), np.tri(4, dtype=bool))
    same = DraftTree.from_parents([5, 6, 7], [-1, 0, 1], [0.9, 0.8, 0.7])
    assert same.is_chain
    assert np.array_equal(same.depths, chain.depths)
    assert not DraftTree.from_parents([5, 6, 7], [-1, 0, 0], [0.9, 0.8, 0.7]).is_chain


def test_no_draft_is_a_chain_of_nothing() -> None:
    """Its pass has the root's row alone."""
    assert len(NO_DRAFT) == NO_DRAFT.depth == 0
    assert NO_DRAFT.is_chain
    assert NO_DRAFT.ancestors().tolist() == [[True]]


@pytest.mark.parametrize(
    ("parents", "depths", "probabilities"),
    [
        ([-1, 1], [1, 2], [0.5, 0.5]),  # its own parent
        ([-1, -2], [1, 2], [0.5, 0.5]),  # no such parent
        ([-1, 0], [1, 1], [0.5, 0.5]),  # as deep as its parent
        ([-1, 0], [0, 1], [0.5, 0.5]),  # as deep as the root
        ([-1], [1], [0.5]),  # one parent for two tokens
        ([-1, 0], [1, 2], [0.5]),  # one probability for two tokens
    ],
)
def test_what_is_no_tree_is_refused(
    parents: list[int], depths: list[int], probabilities: list[float]
) -> None:
    """Parents come before children, depths follow from them, and all arrays have one length."""
    with pytest.raises(GenerationError, match="draft tree"):
        DraftTree(np.array([1, 2]), np.array(parents), np.array(depths), np.array(probabilities, np.float32))


def test_a_distribution_is_needed_for_every_node_or_none() -> None:
    """Two nodes with one distribution are refused."""
    with pytest.raises(GenerationError, match="distributions"):
        DraftTree.chain([1, 2], [0.5, 0.5], torch.full((1, 10), 0.1))


def test_a_child_before_its_parent_is_refused() -> None:
    """Also where the depths are to be computed."""
    with pytest.raises(GenerationError, match="earlier node"):
        DraftTree.from_parents([1, 2], [1, -1], [0.5, 0.5])
