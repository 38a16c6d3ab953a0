"""The loop: prefill, then draft, verify and commit until the text is complete. Tokens and tensors only."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from evspec_ros.errors import GenerationError
from evspec_ros.speculative.drafter import DEFAULT_LIMITS, Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import GREEDY, Sampling
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import Block, Target, TargetPass
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree
from evspec_ros.speculative.verification import EXACT, Acceptance, Verdict, verify


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
    on_tokens: Callable[[list[int]], None] = lambda _: None,
) -> Generation:
    """Let the target continue a prompt, sooner where the drafter guesses right.

    With temperature 0 the tokens are those of greedy decoding (in float32 and up to exact ties; the target
    computes a row of a block and a row alone by different sums); else they follow the target's distribution
    after temperature, top_k and top_p, and one seed gives one text. on_tokens is called with each piece as it
    is known. Raises GenerationError on impossible settings or a prompt too long for the model.
    """
    (generation,) = generate_together(
        target,
        [drafter],
        [prompt],
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature, top_p, top_k),
        seed=seed,
        limits=limits,
        acceptance=acceptance,
        on_tokens=lambda _, tokens: on_tokens(tokens),
    )
    return generation


def generate_together(
    target: Target,
    drafters: Sequence[Drafter],
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    limits: DraftLimits = DEFAULT_LIMITS,
    acceptance: Acceptance = EXACT,
    on_tokens: Callable[[int, list[int]], None] = lambda *_: None,
) -> tuple[Generation, ...]:
    """`generate` for several prompts, each with a drafter of its own: what they begin with is read once, and
    all drafts of a turn are verified in one pass. Each text is what `generate` alone would write.

    on_tokens is called with the prompt's number as well. A pass counts, with all of its time, for every text
    that it served.
    """
    if max_new_tokens < 1:
        raise GenerationError(f"max_new_tokens is {max_new_tokens}; give a whole number of at least 1.")
    watch = _Stopwatch(target.device)
    capacity = max_new_tokens + limits.tree_size
    texts = [
        _Text(
            drafter, prompt, _Settings(max_new_tokens, sampling, seed, limits, acceptance, target.end_tokens)
        )
        for drafter, prompt in zip(drafters, prompts, strict=True)
    ]
    layers = tuple(sorted({layer for drafter in drafters for layer in drafter.layers}))

    with torch.inference_mode():
        # 1. Read the prompts; each one's last row yields its first token, the root of its first tree.
        for text in texts:
            text.drafter.prepare(text.prompt)  # its events are part of reading, not of writing
        outputs = target.prefill([prompt.embeddings for prompt in prompts], capacity, layers)
        firsts = [text.begin(output) for text, output in zip(texts, outputs, strict=True)]
        prefill_ms = watch.lap()
        for number, (text, token) in enumerate(zip(texts, firsts, strict=True)):
            text.tally.prefill_ms = prefill_ms
            on_tokens(number, [token])
        watch.lap()
        for text, output in zip(texts, outputs, strict=True):
            if not text.complete:
                text.drafter.start(text.prompt, text.features(output, layers), text.tokens[-1], capacity)
                text.tally.draft_ms += watch.lap()

        while writing := [(number, text) for number, text in enumerate(texts) if not text.complete]:
            # 2. Draft.
            trees = []
            for _, text in writing:
                trees.append(text.draft())
                text.tally.draft_ms += watch.lap()

            # 3. Verify all nodes in one pass and keep what the target agrees with.
            blocks = [
                Block(number, text.tokens[-1], tree)
                for (number, text), tree in zip(writing, trees, strict=True)
            ]
            outputs = target.extend(blocks)
            verdicts = [
                text.judge(tree, output)
                for (_, text), tree, output in zip(writing, trees, outputs, strict=True)
            ]
            target.keep([verdict.rows for verdict in verdicts])
            verify_ms = watch.lap()

            # 4. Emit, up to an end token inside the block.
            for (number, text), tree, verdict in zip(writing, trees, verdicts, strict=True):
                on_tokens(number, text.emit(tree, verdict))
                text.tally.verify_ms += verify_ms
                text.tally.other_ms += watch.lap()

            # 5. Let the drafters see the target's own features where they had only predicted them.
            for (_, text), verdict, output in zip(writing, verdicts, outputs, strict=True):
                if not text.complete:
                    features = _at_rows(text.features(output, layers), verdict.rows)
                    text.drafter.accept(verdict.tokens, features)
                    text.tally.draft_ms += watch.lap()
        for text in texts:
            text.drafter.finish(text.tokens)

    return tuple(
        Generation(
            tuple(text.tokens),
            target.detokenize(text.tokens),
            text.tally.statistics(len(text.tokens)),
            acceptance.lossless,
        )
        for text in texts
    )


@dataclass(frozen=True)
class _Settings:
    """How every text of a call is written."""

    max_new_tokens: int
    sampling: Sampling
    seed: int
    limits: DraftLimits
    acceptance: Acceptance
    end_tokens: frozenset[int]


class _Text:
    """One text while it is written."""

    def __init__(self, drafter: Drafter, prompt: Prompt, settings: _Settings) -> None:
        self.drafter = drafter
        self.prompt = prompt
        self.tokens: list[int] = []
        self.tally = _Tally()
        self._settings = settings
        self._generator = torch.Generator().manual_seed(settings.seed)

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        settings = self._settings
        return len(self.tokens) >= settings.max_new_tokens or self.tokens[-1] in settings.end_tokens

    def begin(self, output: TargetPass) -> int:
        """The first token."""
        self.tokens = verify(NO_DRAFT, output.logits, self._settings.sampling, self._generator).tokens
        self.tally.prompt_rows, self.tally.reused_rows = self.prompt.embeddings.shape[1], output.reused
        return self.tokens[0]

    def draft(self) -> DraftTree:
        """What the drafter proposes, but never more than can still be emitted beside the bonus token."""
        settings, limits = self._settings, self._settings.limits
        depth = min(limits.n_max, settings.max_new_tokens - len(self.tokens) - 1)
        if depth <= 0 or limits.tree_size <= 0:
            return NO_DRAFT
        limits = replace(limits, n_max=depth, end_tokens=settings.end_tokens)
        return self.drafter.propose(limits, settings.sampling, self._generator)

    def judge(self, tree: DraftTree, output: TargetPass) -> Verdict:
        """What the target accepts of it."""
        settings, written = self._settings, len(self.tokens)
        return verify(tree, output.logits, settings.sampling, self._generator, settings.acceptance, written)

    def emit(self, tree: DraftTree, verdict: Verdict) -> list[int]:
        """The text's next tokens."""
        emitted = _up_to_end(verdict.tokens, self._settings.end_tokens)
        self.tokens += emitted
        self.tally.count(tree, emitted, len(verdict.rows) - 1)
        return emitted

    def features(self, output: TargetPass, layers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Of the features of `layers`, those that the drafter asked for."""
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
            torch.cuda.current_stream(self._cuda).synchronize()  # the event model has a stream of its own
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
