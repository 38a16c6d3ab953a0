"""The terms of a draft head's loss, by what they must be zero for and what they must not see."""

from __future__ import annotations

import math

import pytest
import torch

from evspec_ros.errors import TrainingError
from evspec_ros.training.objectives import TERMS, contrastive, cosine, mse, parse_objective, weighted

TRUE = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
HEAD = torch.randn(30, 16, generator=torch.Generator().manual_seed(1))


def _logits(rows: torch.Tensor) -> torch.Tensor:
    return rows @ HEAD.T


@pytest.mark.parametrize("name", TERMS)
def test_no_prediction_is_better_than_the_truth(name: str) -> None:
    """The term is smallest there, and falls on the way to it."""
    wrong = TRUE.roll(1, 0)
    values = [float(TERMS[name](torch.lerp(wrong, TRUE, share), TRUE, _logits)) for share in (0, 0.5, 0.9, 1)]
    assert values == sorted(values, reverse=True)
    if name in {"mse", "smooth_l1", "cosine"}:
        assert values[-1] == pytest.approx(0, abs=1e-6)


def test_predicting_nothing_has_an_error_of_one() -> None:
    """The mean squared error is relative to the features' own size."""
    assert float(mse(torch.zeros_like(TRUE), TRUE, _logits)) == pytest.approx(1)
    assert float(mse(0.5 * TRUE, TRUE, _logits)) == float(mse(50 * TRUE, 100 * TRUE, _logits)) == 0.25


def test_the_cosine_does_not_see_length() -> None:
    """Nor does the contrastive term."""
    noisy = TRUE + torch.randn_like(TRUE)
    for term in (cosine, contrastive):
        torch.testing.assert_close(term(noisy, TRUE, _logits), term(7 * noisy, 0.1 * TRUE, _logits))


def test_the_contrastive_term_is_log_n_where_nothing_tells_pairs_apart() -> None:
    """All predictions alike: each partner is as likely as any other."""
    same = torch.ones_like(TRUE)
    assert float(contrastive(same, same, _logits)) == pytest.approx(math.log(len(TRUE)), abs=1e-4)


def test_an_objective_is_the_weighted_sum_of_its_terms() -> None:
    """A term without a weight weighs 1."""
    noisy = TRUE + torch.randn_like(TRUE)
    assert parse_objective("mse=2, cosine") == {"mse": 2.0, "cosine": 1.0}
    expected = 2 * mse(noisy, TRUE, _logits) + cosine(noisy, TRUE, _logits)
    torch.testing.assert_close(weighted("mse=2,cosine", noisy, TRUE, _logits), expected)


@pytest.mark.parametrize("text", ["", "l7", "mse=-1", "mse=nan", "mse=0", "cosine=1,,mse", "mse=much"])
def test_what_is_no_objective_is_refused(text: str) -> None:
    """The sentence lists the terms."""
    with pytest.raises(TrainingError, match="contrastive"):
        parse_objective(text)
