"""The distribution that tokens are drawn from."""

from __future__ import annotations

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from evspec_ros.errors import GenerationError
from evspec_ros.speculative import DraftTree
from evspec_ros.speculative.sampling import Sampling, Warped, draw
from evspec_ros.speculative.verification import Judging, verify


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (7, 0.8), (100, 0.95), (1, 0.5)])
def test_the_warps_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    """Temperature, then top-k, then top-p, row by row."""
    logits = 3 * torch.randn(16, 40, generator=torch.Generator().manual_seed(3))
    ids = torch.zeros(16, 1, dtype=torch.long)
    expected = TemperatureLogitsWarper(temperature)(ids, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(ids, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(ids, expected)
    found = Sampling(temperature, top_p, top_k).probabilities(logits)
    torch.testing.assert_close(found, expected.softmax(-1), atol=1e-6, rtol=1e-5)


def test_half_precision_logits_give_a_float32_distribution() -> None:
    """Each row sums to one in float32, whatever the model computes in."""
    found = Sampling(0.7, 0.9, 20).probabilities(torch.randn(4, 1000).to(torch.bfloat16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(-1), torch.ones(4))


def test_a_draw_repeats_with_its_seed() -> None:
    """The generator alone decides."""
    p = torch.softmax(torch.randn(50), -1)
    first, second = (
        [draw(p, generator) for _ in range(20)]
        for generator in (torch.Generator().manual_seed(5), torch.Generator().manual_seed(5))
    )
    assert first == second


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"top_k": -1}],
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    """The message names the setting."""
    with pytest.raises(GenerationError, match=next(iter(settings))):
        Sampling(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (40, 1.0), (0, 0.9), (50, 0.9)])
def test_a_row_warped_alone_is_that_of_all_rows_together(top_k: int, top_p: float) -> None:
    """To the last bit, so that a seed's text does not depend on which rows are asked for."""
    logits = torch.randn(25, 32_064, generator=torch.Generator().manual_seed(5)) * 4
    sampling = Sampling(0.8, top_p, top_k)
    together, alone = sampling.probabilities(logits), Warped(logits, sampling)
    assert all(torch.equal(alone[row], together[row]) for row in range(25))


def test_rows_that_nobody_asks_for_are_not_warped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tree of 24 nodes whose first level is refused, the root's row alone."""
    warped: list[torch.Size] = []
    exact = Sampling.probabilities

    def counted(self: Sampling, logits: torch.Tensor) -> torch.Tensor:
        warped.append(logits.shape)
        return exact(self, logits)

    monkeypatch.setattr(Sampling, "probabilities", counted)
    logits = torch.zeros(25, 100)
    logits[:, 99] = 50.0
    tree = DraftTree.from_parents(list(range(24)), [-1] * 24, [0.1] * 24)
    judging = Judging(tree, logits, Sampling(1.0), torch.Generator().manual_seed(0))
    assert verify([judging])[0].tokens == [99]
    assert warped == [(100,)]
