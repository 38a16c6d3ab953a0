"""The loop: prefill, then draft, verify and commit until the text is complete. Tokens and tensors only."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from evspec_ros.errors import GenerationError
from evspec_ros.speculative.drafter import DEFAULT_LIMITS, Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import Target
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree
from evspec_ros.speculative.verification import EXACT, Acceptance, verify


@dataclass(frozen=True)
class Generation:
    """tokens: what was emitted, the end token included where it was reached; text: without special tokens;
    lossless: the acceptance was exact."""

    tokens: tuple[int, ...]
    text: str
    statistics: DecodingStatistics
    lossless: bool = True


def generate(
    target: Target,
    drafter: Drafter,
    prompt: Prompt,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    limits: DraftLimits = DEFAULT_LIMITS,
    acceptance: Acceptance = EXACT,
    on_tokens: Callable[[list[int]], None] | None = None,
) -> Generation:
    """Let the target continue a prompt, sooner where the drafter guesses right.

    With temperature 0 the tokens are those of greedy decoding (in float32 and up to exact ties; the target
    computes a row of a block and a row alone by different sums); else they follow the target's distribution
    after temperature, top_k and top_p, and one seed gives one text. on_tokens is called with each piece as it
    is known. Raises GenerationError on impossible settings or a prompt too long for the model.
    """
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens is {max_new_tokens}; give a whole number of at least 1.")
    sampling = Sampling(temperature, top_p, top_k)
    generator = torch.Generator().manual_seed(seed)
    tally = _Tally()
    watch = _Stopwatch(target.device)
    capacity = max_new_tokens + limits.tree_size

    with torch.inference_mode():
        # 1. Read the prompt; its last row yields the first token, the root of the first tree.
        drafter.prepare(prompt)  # its events are part of reading, not of writing
        output = target.prefill(prompt.embeddings, capacity, drafter.layers)
        tokens = verify(NO_DRAFT, output.logits, sampling, generator).tokens
        tally.prefill_ms = watch.lap()
        tally.prompt_rows, tally.reused_rows = prompt.embeddings.shape[1], output.reused
        if on_tokens is not None:
            on_tokens(list(tokens))
        watch.lap()

        if not _complete(tokens, max_new_tokens, target.end_tokens):
            drafter.start(prompt, output.features, tokens[-1], capacity)
            tally.draft_ms += watch.lap()
        while not _complete(tokens, max_new_tokens, target.end_tokens):
            # 2. Draft, but never more than can still be emitted beside the bonus token.
            remaining = max_new_tokens - len(tokens)
            depth = min(limits.n_max, remaining - 1)
            if depth > 0 and limits.tree_size > 0:
                tree = drafter.propose(replace(limits, n_max=depth), sampling, generator)
            else:
                tree = NO_DRAFT
            tally.draft_ms += watch.lap()

            # 3. Verify all nodes in one pass and keep what the target agrees with.
            output = target.extend(tokens[-1], tree)
            verdict = verify(tree, output.logits, sampling, generator, acceptance)
            target.keep(verdict.rows)
            tally.verify_ms += watch.lap()

            # 4. Emit, up to an end token inside the block.
            emitted = _up_to_end(verdict.tokens, target.end_tokens)
            tokens += emitted
            tally.count(tree, emitted, len(verdict.rows) - 1)
            if on_tokens is not None:
                on_tokens(emitted)
            tally.other_ms += watch.lap()

            # 5. Let the drafter see the target's own features where it had only predicted them.
            if not _complete(tokens, max_new_tokens, target.end_tokens):
                drafter.accept(verdict.tokens, _at_rows(output.features, verdict.rows))
                tally.draft_ms += watch.lap()
        drafter.finish(tokens)

    return Generation(
        tuple(tokens), target.detokenize(tokens), tally.statistics(len(tokens)), acceptance.lossless
    )


def _complete(tokens: list[int], max_new_tokens: int, end_tokens: Collection[int]) -> bool:
    return len(tokens) >= max_new_tokens or tokens[-1] in end_tokens


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
    return tuple(feature[rows] for feature in features)


class _Stopwatch:
    """Wall-clock laps; on an accelerator a lap ends when its queued work has ended."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._last = 0.0
        self.lap()

    def lap(self) -> float:
        """Milliseconds since the last call."""
        if self._cuda is not None:
            torch.cuda.synchronize(self._cuda)
        last, self._last = self._last, time.perf_counter()
        return (self._last - last) * 1e3


@dataclass
class _Tally:
    """The running sums of one generation."""

    prompt_rows: int = 0
    reused_rows: int = 0
    target_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    other_ms: float = 0.0

    def count(self, tree: DraftTree, emitted: list[int], agreed: int) -> None:
        """Add one pass: its tree, what it emitted, how many nodes the target agreed with."""
        accepted = min(agreed, len(emitted))  # an end token inside the block discards what follows it
        missing = tree.depth - len(self.drafted_by_position)
        self.drafted_by_position += [0] * missing
        self.accepted_by_position += [0] * missing
        for position in range(tree.depth):
            self.drafted_by_position[position] += 1
            self.accepted_by_position[position] += position < accepted
        self.target_passes += 1
        self.drafted += len(tree)
        self.accepted += accepted

    def statistics(self, tokens: int) -> DecodingStatistics:
        """The sums as they are published."""
        return DecodingStatistics(
            generations=1,
            tokens=tokens,
            prompt_rows=self.prompt_rows,
            reused_rows=self.reused_rows,
            target_passes=self.target_passes,
            drafted=self.drafted,
            accepted=self.accepted,
            drafted_by_position=tuple(self.drafted_by_position),
            accepted_by_position=tuple(self.accepted_by_position),
            prefill_ms=self.prefill_ms,
            draft_ms=self.draft_ms,
            verify_ms=self.verify_ms,
            decode_ms=self.draft_ms + self.verify_ms + self.other_ms,
        )
