"""What is kept of a description to learn from: the target's tokens and features, as drafters hear them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from evspec_ros.networks.block_head import BlockHead
from evspec_ros.networks.draft_head import DraftHead
from evspec_ros.speculative.device_tree import Draft
from evspec_ros.speculative.drafter import Drafter, DraftLimits, Prompt
from evspec_ros.speculative.event_side import pooled
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.training.features import Answers

LearningHead = BlockHead | DraftHead  # those that read the target's features
LEAST_ROWS = 2  # tokens of a text that is worth learning from


@dataclass(frozen=True, eq=False)
class Written(Answers):
    """What the target wrote about one window. passes: int64 [n, 2], of each of its passes the token that it
    came behind, and how many it emitted.
    """

    passes: Tensor


@dataclass(frozen=True, eq=False)
class Pupil:
    """A head that learns, and what it reads: features of these layers of the target, and event tokens,
    `pooling` neighbours as one.
    """

    head: LearningHead
    layers: tuple[int, ...]
    pooling: int = 1


class ObservedDrafter:
    """A drafter, and one text's tokens and features as the target tells them to it. It may be told of fewer
    layers than the pupil reads, as is one that does not ask the pupil yet.
    """

    def __init__(self, drafter: Drafter, pupil: Pupil, keep: Callable[[Callable[[], Written]], None]) -> None:
        """keep: takes what makes a window of a text; with it the window's events are read, unless the drafter
        has done so, which takes as long as the event model needs.
        """
        self.name = drafter.name
        self.layers = pupil.layers
        self._drafter = drafter
        self._pupil = pupil
        self._keep = keep
        self._prompt: Prompt | None = None
        self._features: list[Tensor] = []  # [n, layers * D] each, float16, where the target computes
        self._passes: list[tuple[int, int]] = []  # as `Written`

    def prepare(self, prompt: Prompt) -> None:
        """See Drafter."""
        self._prompt, self._features, self._passes = None, [], []
        self._drafter.prepare(prompt)

    def start(self, prompt: Prompt, features: tuple[Tensor, ...], token: int, capacity: int) -> None:
        """See Drafter."""
        self._prompt = prompt
        rows = self._pupil.head.context(len(features[0]) - 1) + 1
        self._note(tuple(feature[-rows:] for feature in features))
        self._drafter.start(prompt, self._asked_for(features), token, capacity)

    def propose(self, limits: DraftLimits, sampling: Sampling, generator: torch.Generator) -> Draft:
        """See Drafter."""
        return self._drafter.propose(limits, sampling, generator)

    def accept(self, tokens: Sequence[int], features: tuple[Tensor, ...]) -> None:
        """See Drafter."""
        written = sum(emitted for _, emitted in self._passes)
        self._passes.append((written, len(tokens)))
        self._note(features)
        self._drafter.accept(tokens, self._asked_for(features))

    def finish(self, tokens: Sequence[int]) -> None:
        """See Drafter; the text is kept, unless it is one of a single token or nobody reads events."""
        self._drafter.finish(tokens)
        prompt = self._prompt
        if prompt is None or prompt.events is None:
            return
        if len(tokens) <= LEAST_ROWS:
            return
        read_rows = stored(prompt.embeddings[:, -len(self._features[0]) :])
        answer, features = torch.tensor([tokens]), stored(torch.cat(self._features))[None]
        passes, pooling, events = torch.tensor(self._passes), self._pupil.pooling, prompt.events

        def made() -> Written:
            with torch.inference_mode():
                seen = stored(pooled(events(), pooling)[None])
            length, nothing = torch.tensor([answer.shape[1]]), torch.empty(*answer.shape, 0)
            return Written(read_rows, answer, length, features, seen, nothing, passes)

        self._keep(made)

    def forget(self) -> None:
        """See Drafter."""
        self._drafter.forget()

    def _asked_for(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(features[self.layers.index(layer)] for layer in self._drafter.layers)

    def _note(self, features: tuple[Tensor, ...]) -> None:
        self._features.append(torch.cat(features, -1).half())


def stored(values: Tensor) -> Tensor:
    """A copy on the CPU, in half precision."""
    return values.to("cpu", torch.half, copy=True)


def size(window: Written) -> int:
    """Bytes."""
    return sum(value.nbytes for value in vars(window).values())


def alike(one: Written, other: Written) -> bool:
    """Whether two windows can be in one batch: their prompts and events have as many rows."""
    return one.prompt.shape == other.prompt.shape and one.events.shape == other.events.shape


def together(windows: Sequence[Written], device: torch.device) -> Answers:
    """Windows as the losses read them; copies, as what inference has made cannot be differentiated."""
    longest = max(window.tokens.shape[1] for window in windows)

    def batch(name: str) -> Tensor:
        values = [getattr(window, name) for window in windows]
        if name in ("tokens", "features", "event_features"):
            short = [longest - window.tokens.shape[1] for window in windows]
            # rows behind the end count for nothing; of [1, T] the last dimension is longer, of [1, R, D] R
            values = [
                F.pad(value, (0, 0) * (value.dim() - 2) + (0, rows))
                for value, rows in zip(values, short, strict=True)
            ]
        joined = torch.cat(values).to(device, copy=True)
        return joined.float() if joined.is_floating_point() else joined

    return Answers(**{field.name: batch(field.name) for field in fields(Answers)})
