"""From logits to the distribution that is sampled: temperature, top-k, top-p, one seeded generator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evspec_ros.errors import GenerationError


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; raises GenerationError on values that no distribution has.

    temperature: 0 = always the most likely token (greedy); top_k: keep the k most likely tokens, 0 = all;
    top_p: keep the smallest set of most likely tokens that holds at least this probability, 1 = all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise GenerationError(f"The temperature is {self.temperature}; give a number of at least 0.")
        if not 0.0 < self.top_p <= 1.0:
            raise GenerationError(f"top_p is {self.top_p}; give a number above 0 and at most 1.")
        if self.top_k < 0:
            raise GenerationError(f"top_k is {self.top_k}; give at least 0 (0 keeps all tokens).")

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution to draw from, float32 [..., V] of logits [..., V]; temperature must not be 0.

        The order of the warps is transformers': temperature, then top-k, then top-p over what is left.
        """
        scaled = logits.float() / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            weakest = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < weakest, float("-inf"))
        probabilities = scaled.softmax(dim=-1)
        if self.top_p < 1.0:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            likelier = ordered.cumsum(dim=-1) - ordered  # probability of all tokens before this one
            ordered = ordered.masked_fill(likelier >= self.top_p, 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
            probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        return probabilities


GREEDY = Sampling()
NO_TOKEN = -1  # where logits are not finite, so that nothing can be chosen


def likeliest(logits: Tensor) -> list[int]:
    """The most likely token of each row of logits [N, V] on the CPU, the first of equals; NO_TOKEN for a row
    that holds NaN (numpy takes it for the largest), an infinity, or nothing but negative ones.

    By numpy, whose argmax takes a sixth of torch's time.
    """
    values = logits.float().numpy()
    chosen = values.argmax(-1)
    largest = np.take_along_axis(values, chosen[..., None], -1)[..., 0]
    tokens: list[int] = np.where(np.isfinite(largest), chosen, NO_TOKEN).tolist()
    return tokens


def draw(probabilities: Tensor, generator: torch.Generator) -> int:
    """One token of a distribution [V], which lies on the generator's device."""
    return int(torch.multinomial(probabilities, 1, generator=generator))


def drawn(weights: Tensor, chances: Tensor) -> Tensor:
    """A token int64 [n] of each row of weights [n, V], which need not sum to one, by chances [n] below 1;
    NO_TOKEN for a row that holds NaN.
    """
    sums = weights.double().cumsum(-1)
    total = sums[:, -1:]
    below = torch.minimum(chances[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    places = torch.searchsorted(sums, below, right=True)[:, 0]
    return torch.where(total[:, 0].isnan(), NO_TOKEN, places)


def chances_of(spread: Tensor, tokens: list[int]) -> list[float]:
    """The probability of one token of each distribution [n, V], on the CPU."""
    chances: list[float] = spread[range(len(tokens)), tokens].tolist()
    return chances


class Warped:
    """The distribution [V] to draw from after each row of logits [N, V] on the CPU, float32: `warped[row]`. A
    row is warped when it is asked for: of a tree those on the accepted path alone.
    """

    def __init__(self, logits: Tensor, sampling: Sampling) -> None:
        self._logits, self._sampling = logits, sampling

    def __getitem__(self, row: int) -> Tensor:
        return self._sampling.probabilities(self._logits[row])
