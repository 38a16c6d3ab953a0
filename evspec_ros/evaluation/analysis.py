"""How alike the event model's features and the target's are: `evspec features analyse`.

Compared are rows of the same place of the same answer: the event model's as if it had written what the target
wrote. Everything is summed up in one pass over the shards, in float64, so that memory does not grow with
them.

- Linear CKA (Kornblith et al. 2019, arXiv 1905.00414): 1 where one space is a rotation and scaling of the
other, about 0 where they have nothing to do with each other. - A linear probe: how much of the target's
variance a ridge regression from the event model's features predicts, fitted on the scenes of even number and
tested on the others. - Cosine and relative L2 distance, before and after an adapter, by token position.

As a control all of it is done with the answers shuffled across scenes as well, the event model's row being
that of another scene at the same place: what stays is owed to the language that all answers share, not to
what is seen.

Shapes: N rows, F and D the widths of the event model's and the target's features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evspec_ros.errors import TrainingError
from evspec_ros.networks.adapters import Adapter, FeatureHead
from evspec_ros.networks.checkpoints import Head
from evspec_ros.training.features import Answers, FeatureShards
from evspec_ros.training.prediction import event_features

RIDGE = 1e-3  # of the features' mean variance
BINS = 61
BIN_RANGE = 6.0  # root mean squares
PLAIN, SHUFFLED = "own scene", "another scene"
TINY = 1e-300  # what a divisor is at least


@dataclass(frozen=True)
class Alignment:
    """A layer of the event model beside one of the target: cka, and the share of the target's variance that a
    linear probe predicts on scenes that it was not fitted on (below 0: worse than its mean).
    """

    layer: int
    event_layer: int
    partner: str
    cka: float
    probe: float


@dataclass(frozen=True)
class Distribution:
    """One layer's values: mean, rms, kurtosis (3 for a normal distribution), the mean norm of a row, how many
    directions share the variance (the participation ratio of its covariance), and the density over BINS bins
    within BIN_RANGE times the rms.
    """

    space: str
    layer: int
    mean: float
    rms: float
    kurtosis: float
    row_norm: float
    dimensions: float
    density: tuple[float, ...]


@dataclass(frozen=True)
class Nearness:
    """Two spaces by token position, the first being the prompt's last row: cosine, and distance over the
    length of the target's row.
    """

    name: str
    partner: str
    cosine: tuple[float, ...]
    distance: tuple[float, ...]


@dataclass(frozen=True)
class Analysis:
    """All of it; padded: whether the narrower space was filled up with zeros before the adapter."""

    scenes: int
    rows: int
    padded: bool
    alignments: tuple[Alignment, ...]
    distributions: tuple[Distribution, ...]
    nearness: tuple[Nearness, ...]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


@dataclass
class Moments:
    """Sums over N pairs of rows x [N, F] and y [N, D], from which CKA and a ridge regression follow."""

    count: int
    x: Tensor
    y: Tensor
    xx: Tensor
    yy: Tensor
    xy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Moments:
        """Of these rows."""
        x, y = x.double(), y.double()
        return cls(len(x), x.sum(0), y.sum(0), x.T @ x, y.T @ y, x.T @ y)

    def __add__(self, other: Moments) -> Moments:
        """Of both together."""
        return Moments(*(one + vars(other)[name] for name, one in vars(self).items()))

    def centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Covariances xx [F, F], yy [D, D] and xy [F, D], times N."""
        n = max(1, self.count)
        return (
            self.xx - torch.outer(self.x, self.x) / n,
            self.yy - torch.outer(self.y, self.y) / n,
            self.xy - torch.outer(self.x, self.y) / n,
        )

    def cka(self) -> float:
        """Linear CKA."""
        xx, yy, xy = self.centred()
        return float(xy.square().sum() / (xx.norm() * yy.norm()).clamp(min=TINY))

    def probe(self, test: Moments) -> float:
        """The share of y's variance in `test` that a ridge regression on these rows predicts."""
        xx, _, xy = self.centred()
        ridge = RIDGE * xx.diagonal().mean().clamp(min=TINY) * torch.eye(len(xx)).to(xx)
        weight = torch.linalg.solve(xx + ridge, xy)
        bias = (self.y - self.x @ weight) / max(1, self.count)
        left = (  # the sum of |y - x weight - bias|^2
            test.yy.trace()
            - 2 * (weight * test.xy).sum()
            + (weight * (test.xx @ weight)).sum()
            + (bias * (test.count * bias - 2 * (test.y - test.x @ weight))).sum()
        )
        return float(1 - left / test.centred()[1].trace().clamp(min=TINY))


@dataclass
class _Values:
    """Sums over one layer's values."""

    count: int = 0
    rows: int = 0
    powers: Tensor = field(default_factory=lambda: torch.zeros(4, dtype=torch.float64))
    norm: float = 0.0
    histogram: Tensor = field(default_factory=lambda: torch.zeros(BINS, dtype=torch.float64))

    def add(self, rows: Tensor) -> None:
        values = rows.double()
        self.count += values.numel()
        self.rows += len(rows)
        self.powers += torch.stack([(values**power).sum() for power in (1, 2, 3, 4)]).cpu()
        self.norm += float(values.norm(dim=-1).sum())
        scaled = (values / values.square().mean().sqrt().clamp(min=TINY)).cpu()
        self.histogram += torch.histc(scaled, BINS, -BIN_RANGE, BIN_RANGE)

    def distribution(self, space: str, layer: int, covariance: Tensor) -> Distribution:
        mean, second, third, fourth = (self.powers / max(1, self.count)).tolist()
        variance = second - mean**2
        central = fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4
        shares = torch.linalg.eigvalsh(covariance).clamp(min=0)
        return Distribution(
            space,
            layer,
            mean,
            second**0.5,
            central / max(variance**2, TINY),
            self.norm / max(1, self.rows),
            float(shares.sum() ** 2 / shares.square().sum().clamp(min=TINY)),
            tuple((self.histogram / max(1, self.count) * BINS / (2 * BIN_RANGE)).tolist()),
        )


class _ByPosition:
    """Mean cosine and relative distance at each place of an answer."""

    def __init__(self, places: int) -> None:
        self._sums = torch.zeros(3, places, dtype=torch.float64)  # cosine, distance, count

    def add(self, found: Tensor, true: Tensor, used: Tensor) -> None:
        """Rows [B, T, D] of both, and which of them count [B, T]."""
        cosine = F.cosine_similarity(found, true, dim=-1)
        distance = (found - true).norm(dim=-1) / true.norm(dim=-1).clamp(min=1e-12)
        sums = torch.stack((cosine, distance, torch.ones_like(cosine))).where(used, 0).sum(1)  # [3, T]
        self._sums[:, : sums.shape[1]] += sums.cpu()

    def nearness(self, name: str, partner: str) -> Nearness:
        there = self._sums[:, self._sums[2] > 0]
        cosine, distance = (there[:2] / there[2]).tolist()
        return Nearness(name, partner, tuple(cosine), tuple(distance))


@torch.inference_mode()
def analyse(
    shards: FeatureShards, adapter: Head | None = None, report: Callable[[int], None] = lambda _: None
) -> Analysis:
    """Compare the two models' features. adapter: a head of the kinds eventgpt_adapter and feature, whose
    adapter is applied to the event model's last layer. report is called with the number of shards that are
    done. Raises TrainingError for another head and as `FeatureShards`.
    """
    adapt = _adapter(shards, adapter)
    pair, plan = shards.pair, shards.plan
    places = plan.max_new_tokens
    pairs = list(product(plan.layers, plan.event_layers, (PLAIN, SHUFFLED)))
    moments: dict[tuple[int, int, str], list[Moments]] = {}  # of scenes of even and of odd number
    values = {(space, n): _Values() for space, layers in _spaces(shards).items() for n in layers}
    near = {
        (name, partner): _ByPosition(places)
        for name in ("before", *(["after"] if adapt else []))
        for partner in (PLAIN, SHUFFLED)
    }
    for index in range(len(shards)):
        answers = shards[index]
        used = torch.arange(answers.tokens.shape[1], device=pair.device) < answers.lengths[:, None]
        even = torch.arange(len(used), device=pair.device) % 2 == 0
        rows = answers.features[:, plan.context :]  # from the prompt's last row on
        ours = dict(zip(plan.layers, rows.chunk(len(plan.layers), -1), strict=True))
        events = dict(
            zip(plan.event_layers, answers.event_features.chunk(len(plan.event_layers), -1), strict=True)
        )
        for layer, features in ours.items():
            values["target", layer].add(features[used])
        for layer, features in events.items():
            values["event model", layer].add(features[used])
        for layer, event_layer, partner in pairs:
            x, both = _partner(events[event_layer], used, partner)
            halves = [both & half[:, None] for half in (even, ~even)]
            found = [Moments.of(x[half], ours[layer][half]) for half in halves]
            known = moments.get((layer, event_layer, partner))
            moments[layer, event_layer, partner] = (
                found if known is None else [old + new for old, new in zip(known, found, strict=True)]
            )
        for (name, partner), sums in near.items():
            x = _before(pair, answers) if name == "before" else adapt(event_features(pair, answers))  # type: ignore[misc]
            x, both = _partner(x, used, partner)
            width = max(x.shape[-1], ours[plan.layers[-1]].shape[-1])
            sums.add(_padded(x, width), _padded(ours[plan.layers[-1]], width), both)
        report(index + 1)
    return Analysis(
        shards.scenes,
        values["target", plan.layers[-1]].rows,
        pair.target.config.text.hidden_size != pair.event_model.config.text.hidden_size,
        tuple(Alignment(*key, (fit + test).cka(), fit.probe(test)) for key, (fit, test) in moments.items()),
        tuple(
            sums.distribution(space, layer, _covariance(moments, space, layer))
            for (space, layer), sums in values.items()
        ),
        tuple(sums.nearness(*key) for key, sums in near.items()),
    )


def _spaces(shards: FeatureShards) -> dict[str, tuple[int, ...]]:
    return {"target": shards.plan.layers, "event model": shards.plan.event_layers}


def _adapter(shards: FeatureShards, head: Head | None) -> Callable[[Tensor], Tensor] | None:
    if head is None:
        return None
    if not isinstance(head, (Adapter, FeatureHead)):
        raise TrainingError(
            f"A head of kind {head.config.kind} has no adapter between the two spaces; give one of kind "
            "eventgpt_adapter or feature."
        )
    sizes = head.config.event_size, head.config.hidden_size
    wanted = tuple(m.config.text.hidden_size for m in (shards.pair.event_model, shards.pair.target))
    if sizes != wanted:
        raise TrainingError(
            f"The adapter turns {sizes[0]} values into {sizes[1]}, and these models have {wanted[0]} and "
            f"{wanted[1]}; give the one that was trained for them."
        )
    module: Callable[[Tensor], Tensor] = head.adapter
    return module


def _before(pair: Any, answers: Answers) -> Tensor:
    """The event model's last features as they are [B, T, F]."""
    return answers.event_features[..., -pair.event_model.config.text.hidden_size :]


def _partner(x: Tensor, used: Tensor, partner: str) -> tuple[Tensor, Tensor]:
    """Rows [B, T, F] of the own scene, or of one two scenes on, which is of the same half; and which
    count.
    """
    if partner == PLAIN:
        return x, used
    return x.roll(2, 0), used & used.roll(2, 0)


def _padded(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (0, width - x.shape[-1]))


def _covariance(moments: dict[tuple[int, int, str], list[Moments]], space: str, layer: int) -> Tensor:
    """Of one layer, from the first pair that it is in."""
    for (ours, theirs, partner), (even, odd) in moments.items():
        if partner == PLAIN and layer == (ours if space == "target" else theirs):
            xx, yy, _ = (even + odd).centred()
            return yy if space == "target" else xx
    raise AssertionError("every layer is in a pair")
