"""The loop: prefill, then draft, verify and commit until the text is complete. Tokens and tensors only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from evspec_ros.cancellation import check
from evspec_ros.errors import GenerationError
from evspec_ros.speculative.drafter import DEFAULT_LIMITS, Drafter, DraftLimits, Prompt
from evspec_ros.speculative.sampling import GREEDY, Sampling
from evspec_ros.speculative.statistics import DecodingStatistics, PassOutcome
from evspec_ros.speculative.target import Target
from evspec_ros.speculative.text import Text, TextSettings
from evspec_ros.speculative.timing import Clock, Span, TimedDrafter, TimedTarget
from evspec_ros.speculative.verification import EXACT, Acceptance, verify


@dataclass(frozen=True)
class Generation:
    """tokens: what was emitted, the end token included where it was reached; text: without special tokens;
    lossless: the acceptance was exact; passes: those that wrote all tokens but the first;
    branched: whether a draft was no chain.
    """

    tokens: tuple[int, ...]
    text: str
    statistics: DecodingStatistics
    lossless: bool = True
    passes: tuple[PassOutcome, ...] = ()
    branched: bool = False


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
    after temperature, top_k and top_p, and one seed gives one text. on_tokens is called with each piece
    when it is accepted. Raises GenerationError on impossible settings or a prompt too long for the model, and
    CancelledError, as `cancellation.check`.
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
    clock = Clock(target.device)
    timed = TimedTarget(target, clock)
    layers = tuple(sorted({layer for drafter in drafters for layer in drafter.layers}))
    settings = TextSettings(max_new_tokens, sampling, seed, limits, acceptance, target.end_tokens, layers)
    texts = [
        Text(number, TimedDrafter(drafter, clock), prompt, settings)
        for number, (drafter, prompt) in enumerate(zip(drafters, prompts, strict=True))
    ]

    with torch.inference_mode():
        # Prefill: each prompt's last row yields its text's first token, the root of its first tree.
        for text in texts:
            text.drafter.prepare(text.prompt)
        passes = timed.prefill([text.prompt.embeddings for text in texts], settings.capacity, layers)
        for text, output in zip(texts, passes, strict=True):
            on_tokens(text.number, text.begin(output))
        began = clock.now()
        for text, output in zip(texts, passes, strict=True):
            text.start(output)

        while writing := [text for text in texts if not text.complete]:
            check()
            trees = [text.draft() for text in writing]

            # Verify all nodes in one pass; the rows that the target agrees with stay in the cache.
            passes = timed.extend([text.block(tree) for text, tree in zip(writing, trees, strict=True)])
            drafts = zip(writing, trees, passes, strict=True)
            verdicts = verify([text.judging(tree, output) for text, tree, output in drafts])
            timed.keep([verdict.rows for verdict in verdicts])

            # Accept: emit up to an end token, then let the drafters go on from the target's own features.
            for text, verdict in zip(writing, verdicts, strict=True):
                on_tokens(text.number, text.emit(verdict))
                text.count_pass(timed.verifying, Span(began, clock.now()))
            for text, verdict, output in zip(writing, verdicts, passes, strict=True):
                text.accept(verdict, output)
        for text in texts:
            text.drafter.untimed.finish(text.tokens)

    prefill_ms = timed.prefilling.ms + sum(text.drafter.prepare_ms for text in texts)
    return tuple(
        Generation(
            tuple(text.tokens),
            target.detokenize(text.tokens),
            text.statistics(prefill_ms),
            acceptance.lossless,
            text.passes,
            text.branched,
        )
        for text in texts
    )
