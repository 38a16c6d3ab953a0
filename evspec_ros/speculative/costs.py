"""What a pass costs on this machine, and which draft nodes are worth it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
import torch

from evspec_ros.speculative.drafter import Drafter, DraftLimits, PassCosts, Prompt
from evspec_ros.speculative.sampling import Sampling
from evspec_ros.speculative.target import Target
from evspec_ros.speculative.tree import DraftTree

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 60, 64)
REPETITIONS = 7
_DRAFT = 8  # nodes of the draft that is timed


def measure_costs(target: Target, drafter: Drafter, prompt: Prompt) -> PassCosts:
    """What the target's passes behind this prompt and the drafter's nodes take on this machine."""
    return PassCosts(measure_passes(target, prompt), measure_draft(target, drafter, prompt))


@torch.inference_mode()
def measure_passes(target: Target, prompt: Prompt, rows: Sequence[int] = ROWS) -> tuple[float, ...]:
    """Milliseconds of a pass over 1, 2, ..., max(rows) rows; linear between the sizes that are timed."""
    first = target.prefill(prompt.embeddings, REPETITIONS * 2 * len(rows) + max(rows), ())
    token = int(first.logits[0].argmax())

    def verification(count: int) -> Callable[[], None]:
        chain = DraftTree.chain([token] * (count - 1), [1.0] * (count - 1))

        def run() -> None:
            target.extend(token, chain).logits.argmax(-1).tolist()
            target.keep([0])

        return run

    timed = [_median_ms(verification(count)) for count in rows]
    every = np.interp(np.arange(1, max(rows) + 1), rows, np.maximum.accumulate(timed))
    return tuple(every.tolist())


@torch.inference_mode()
def measure_draft(target: Target, drafter: Drafter, prompt: Prompt) -> float:
    """Milliseconds of drafting a node behind this prompt; 0 where the drafter has nothing to propose."""
    drafts = []
    for _ in range(REPETITIONS):
        drafter.prepare(prompt)
        first = target.prefill(prompt.embeddings, max(ROWS), drafter.layers)
        drafter.start(prompt, first.features, int(first.logits[0].argmax()), max(ROWS))
        started = time.perf_counter()
        tree = drafter.propose(DraftLimits(_DRAFT, _DRAFT), Sampling(), torch.Generator())
        drafts.append((time.perf_counter() - started) * 1e3 / max(1, len(tree)))
    drafter.forget()
    return median(drafts) if len(tree) else 0.0


def _median_ms(run: Callable[[], None]) -> float:
    run()
    taken = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started) * 1e3)
    return median(taken)
