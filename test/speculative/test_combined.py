"""One tree of what several drafters propose."""

from __future__ import annotations

import numpy as np
import pytest
from speculative_fakes import random_tree

from evspec_ros.speculative import DraftLimits, DraftTree
from evspec_ros.speculative.combined import merged
from evspec_ros.speculative.drafter import PassCosts


def test_common_beginnings_are_kept_once() -> None:
    """Two chains that part after two tokens make one tree; the likelier branch comes first."""
    one = DraftTree.chain([5, 6, 7], [0.9, 0.9, 0.5])
    other = DraftTree.chain([5, 6, 8], [0.8, 0.9, 0.9])
    tree = merged([one, other], DraftLimits(9, 9))
    assert tree.paths() == [(5,), (5, 6), (5, 6, 8), (5, 6, 7)]
    assert tree.path_probabilities() == pytest.approx([0.9, 0.81, 0.648, 0.405])


def test_one_tree_alone_is_left_as_it_is() -> None:
    """Its drafter has seen to the limits already."""
    tree = DraftTree.chain([1, 2], [0.5, 0.5])
    assert merged([DraftTree.chain((), ()), tree], DraftLimits(1, 1)) is tree
    assert len(merged([], DraftLimits())) == 0


def test_the_likeliest_paths_are_taken_as_far_as_the_limits_go() -> None:
    """Of random trees: the paths are theirs, their chances fall, size and floor are kept."""
    random = np.random.default_rng(3)
    for size in (1, 4, 9):
        for _ in range(20):
            trees = [random_tree(12, 4, range(6), random) for _ in range(2)]
            found = merged(trees, DraftLimits(9, size, p_min=0.2))
            chances = found.path_probabilities()
            assert len(found) <= size
            assert chances == sorted(chances, reverse=True)
            assert all(chance >= 0.2 for chance in chances)
            assert set(found.paths()) <= {path for tree in trees for path in tree.paths()}


def test_measured_costs_end_the_tree() -> None:
    """A dear second row leaves the first node alone."""
    costs = PassCosts((1.0, 1.1, 9.0, 9.1), 0.0)
    trees = [DraftTree.chain([1, 2], [0.9, 0.9]), DraftTree.chain([3], [0.3])]
    assert merged(trees, DraftLimits(9, 9, costs=costs)).paths() == [(1,)]
