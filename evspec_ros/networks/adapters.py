"""Heads that turn the event model's features into the target's, as in the design paper; no attention.

The adapter alone maps a feature of the event model, which it has after it read a token, to the one that the
target has there. With the fusion the target's features are predicted one after another, from one feature of
the event model, the last one of its prompt, and the feature before.

Shapes: D the target's hidden size, F the event model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evspec_ros.errors import CheckpointError
from evspec_ros.networks.config_entries import entries
from evspec_ros.networks.llama import LlamaConfig, initialise

FUSIONS = ("factorised", "full")


@dataclass(frozen=True)
class AdapterConfig:
    """The sizes of an adapter; it stands in for the event model's own output head."""

    hidden_size: int
    event_size: int
    bottleneck: int = 256
    kind: str = "eventgpt_adapter"

    @classmethod
    def for_target(cls, target: LlamaConfig, event_size: int, _: int) -> AdapterConfig:
        """The design paper's: d -> 256 -> D."""
        return cls(target.hidden_size, event_size)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> AdapterConfig:
        """From a head's `config.json`; raises CheckpointError for a missing entry."""
        return cls(**entries(cls, config))

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return asdict(self)


@dataclass(frozen=True)
class FeatureConfig:
    """The sizes of an adapter with a fusion: `full` is the paper's 2 D -> D, `factorised` passes through the
    bottleneck (at D = 4096, 3 instead of 34 million weights).
    """

    hidden_size: int
    event_size: int
    bottleneck: int = 256
    fusion: str = "factorised"
    kind: str = "feature"

    @classmethod
    def for_target(cls, target: LlamaConfig, event_size: int, _: int) -> FeatureConfig:
        """The design paper's sizes with the smaller fusion."""
        return cls(target.hidden_size, event_size)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> FeatureConfig:
        """From a head's `config.json`; raises CheckpointError for a missing entry or an unknown fusion."""
        found = cls(**entries(cls, config))
        if found.fusion not in FUSIONS:
            raise CheckpointError(
                f"The draft head's config names the fusion {found.fusion!r}; choose {' or '.join(FUSIONS)}."
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` holds."""
        return asdict(self)


class Adapter(nn.Module):
    """The design paper's bottleneck, F -> 256 -> D."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = _bottleneck(config.event_size, config.bottleneck, config.hidden_size)
        self.apply(initialise)

    def forward(self, features: Tensor) -> Tensor:
        """The event model's features [..., F] -> the target's before its final norm [..., D]."""
        adapted: Tensor = self.adapter(features)
        return adapted


class FeatureHead(nn.Module):
    """The bottleneck fused with the feature before: from one moment's events to feature after feature."""

    def __init__(self, config: FeatureConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.adapter = _bottleneck(config.event_size, config.bottleneck, size)
        self.fusion = (
            nn.Linear(2 * size, size)
            if config.fusion == "full"
            else nn.Sequential(nn.Linear(2 * size, config.bottleneck), nn.Linear(config.bottleneck, size))
        )
        self.apply(initialise)

    def forward(self, adapted: Tensor, previous: Tensor) -> Tensor:
        """What `adapter` made of the event model's feature and the feature before, [..., D] each -> the next
        one [..., D].
        """
        fused: Tensor = self.fusion(torch.cat((adapted, previous), -1))
        return fused


def _bottleneck(read: int, width: int, written: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(read, width), nn.ReLU(), nn.Linear(width, written))
