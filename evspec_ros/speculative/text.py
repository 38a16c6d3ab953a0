"""One text while it is written: what it asks of its drafter and keeps of the target's passes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from evspec_ros.networks.cuda_streams import has_streams
from evspec_ros.networks.devices import uploaded
from evspec_ros.speculative.device_tree import DeviceTree, Draft
from evspec_ros.speculative.drafter import DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.shared_cache import Block
from evspec_ros.speculative.statistics import DecodingStatistics, PassCounts, PassOutcome
from evspec_ros.speculative.target import TargetPass
from evspec_ros.speculative.timing import NEVER, Span, TimedDrafter
from evspec_ros.speculative.tree import NO_DRAFT
from evspec_ros.speculative.verification import Acceptance, Judging, Verdict, verify


@dataclass(frozen=True)
class TextSettings:
    """How every text of a generation is written; layers: those whose features the target's passes give."""

    max_new_tokens: int
    sampling: Sampling
    seed: int
    limits: DraftLimits
    acceptance: Acceptance
    end_tokens: frozenset[int]
    layers: tuple[int, ...]

    @property
    def capacity(self) -> int:
        """Rows that may follow a prompt, drafted ones included."""
        return self.max_new_tokens + self.limits.tree_size


class Text:
    """One of the texts of a generation, numbered from 0."""

    def __init__(self, number: int, drafter: TimedDrafter, prompt: Prompt, settings: TextSettings) -> None:
        self.number = number
        self.drafter = drafter
        self.prompt = prompt
        self.tokens: list[int] = []
        self._settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._counts = PassCounts()
        self._reused_rows = self._last_emitted = 0
        self._verifying: list[Span] = []
        self._decoding = NEVER

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        settings = self._settings
        return len(self.tokens) >= settings.max_new_tokens or self.tokens[-1] in settings.end_tokens

    def begin(self, output: TargetPass) -> list[int]:
        """The first token, from the pass over the prompt."""
        (verdict,) = verify([self.judging(NO_DRAFT, output)])
        self.tokens = verdict.tokens
        self._reused_rows = output.reused
        return list(self.tokens)

    def start(self, output: TargetPass) -> None:
        """Let the drafter begin, where there is more to write."""
        if not self.complete:
            settings = self._settings
            self.drafter.start(self.prompt, self._features(output), self.tokens[-1], settings.capacity)

    def draft(self) -> Draft:
        """What the drafter proposes, but never more than can still be emitted with the bonus token; on a GPU
        it lies there.
        """
        settings, limits = self._settings, self._settings.limits
        depth = min(limits.n_max, settings.max_new_tokens - len(self.tokens) - 1)
        if depth <= 0 or limits.tree_size <= 0:
            return NO_DRAFT
        limits = replace(limits, n_max=depth, end_tokens=settings.end_tokens)
        tree = self.drafter.propose(limits, settings.sampling, self._generator)
        device = self.prompt.embeddings.device
        if isinstance(tree, DeviceTree) or len(tree) == 0 or not has_streams(device):
            return tree
        return DeviceTree.of(tree, device)

    def block(self, tree: Draft) -> Block:
        """What the target reads of it: the last token and the tree behind that."""
        return Block(self.number, self.tokens[-1], tree)

    def judging(self, tree: Draft, output: TargetPass) -> Judging:
        """What decides how much of a tree the target accepts."""
        settings, written = self._settings, len(self.tokens)
        return Judging(tree, output.logits, settings.sampling, self._generator, settings.acceptance, written)

    def emit(self, verdict: Verdict) -> list[int]:
        """The text's next tokens, up to an end token."""
        emitted = _up_to_end(verdict.tokens, self._settings.end_tokens)
        self.tokens += emitted
        self._last_emitted = len(emitted)
        self._counts.add(verdict.tree, len(emitted), len(verdict.rows) - 1)
        return emitted

    def accept(self, verdict: Verdict, output: TargetPass) -> None:
        """Tell the drafter the block's tokens, and the target's own features at the rows before them."""
        count = self._last_emitted
        drafter = self.drafter.untimed if self.complete else self.drafter
        drafter.accept(self.tokens[-count:], _at_rows(self._features(output), verdict.rows[:count]))

    def count_pass(self, verifying: Span, decoding: Span) -> None:
        """Note when the last pass ran, and all since the first token."""
        self._verifying.append(verifying)
        self._decoding = decoding

    @property
    def passes(self) -> tuple[PassOutcome, ...]:
        """What became of each of the target's passes, which wrote all tokens but the first."""
        return tuple(self._counts.passes)

    @property
    def branched(self) -> bool:
        """Whether a draft was no chain."""
        return self._counts.branched

    def statistics(self, prefill_ms: float) -> DecodingStatistics:
        """What it cost."""
        return self._counts.statistics(
            tokens=len(self.tokens),
            prompt_rows=self.prompt.embeddings.shape[1],
            reused_rows=self._reused_rows,
            prefill_ms=prefill_ms,
            draft_ms=self.drafter.draft_ms,
            verify_ms=sum(span.ms for span in self._verifying),
            decode_ms=self._decoding.ms,
        )

    def _features(self, output: TargetPass) -> tuple[Tensor, ...]:
        """Of the features that a pass gives, those that the drafter asked for."""
        layers = self._settings.layers
        if layers == self.drafter.layers:
            return output.features
        return tuple(output.features[layers.index(layer)] for layer in self.drafter.layers)


def _up_to_end(tokens: list[int], end_tokens: Collection[int]) -> list[int]:
    """The tokens up to and including the first end token."""
    for index, token in enumerate(tokens):
        if token in end_tokens:
            return tokens[: index + 1]
    return tokens


def _at_rows(features: tuple[Tensor, ...], rows: list[int]) -> tuple[Tensor, ...]:
    """The features at some rows of a pass; a view where the rows are the first ones, as in every chain."""
    if rows[-1] == len(rows) - 1:
        return tuple(feature[: len(rows)] for feature in features)
    places = uploaded(torch.tensor(rows), features[0].device) if features else None
    return tuple(feature[places] for feature in features)
