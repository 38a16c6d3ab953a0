"""What a pass costs on this machine, and which draft nodes are worth it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from evspec_ros.speculative.drafter import Drafter, DraftLimits, PassCosts, Prompt
from evspec_ros.speculative.sampling import GREEDY
from evspec_ros.speculative.target import Block, Target
from evspec_ros.speculative.tree import DraftTree

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 60, 64)
REPETITIONS = 5
_DRAFT = 32  # nodes at most of the draft that is timed


def measure_costs(target: Target, drafter: Drafter, prompt: Prompt) -> PassCosts:
    """What the target's passes behind this prompt and the drafter's nodes take on this machine."""
    passes = measure_passes(target, prompt)
    return PassCosts(passes, measure_draft(target, drafter, prompt, passes))


@torch.inference_mode()
def measure_passes(target: Target, prompt: Prompt, rows: Sequence[int] = ROWS) -> tuple[float, ...]:
    """Milliseconds of a pass over 1, 2, ..., max(rows) rows; the convex minorant of those timed."""
    (first,) = target.prefill([prompt.embeddings], (REPETITIONS + 1) * len(rows) + max(rows), ())
    token = int(first.logits[0].argmax())

    def verification(count: int) -> Callable[[], None]:
        chain = DraftTree.chain([token] * (count - 1), [1.0] * (count - 1))

        def run() -> None:
            target.extend([Block(0, token, chain)])[0].logits.argmax(-1).tolist()
            target.keep([[0]])

        return run

    timed = [_least_ms(verification(count)) for count in rows]
    return tuple(convex_minorant(rows, timed))


def convex_minorant(places: Sequence[int], values: Sequence[float]) -> list[float]:
    """The largest convex function of 1, 2, ..., the last place that is nowhere above the values: what others
    on the machine added to a timing here and there must not look like the end of what pays.
    """
    hull: list[tuple[int, float]] = []
    for x, y in zip(places, values, strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    corners = np.array(hull)
    every: list[float] = np.interp(np.arange(1, places[-1] + 1), corners[:, 0], corners[:, 1]).tolist()
    return every


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


@torch.inference_mode()
def measure_draft(target: Target, drafter: Drafter, prompt: Prompt, passes_ms: tuple[float, ...]) -> float:
    """Milliseconds of drafting a node behind this prompt, in a draft as large as pays where nodes are free; 0
    where the drafter has nothing to propose.
    """
    limits = DraftLimits(_DRAFT, _DRAFT, costs=PassCosts(passes_ms, 0.0))
    drafts = []
    for _ in range(REPETITIONS):
        drafter.prepare(prompt)
        (first,) = target.prefill([prompt.embeddings], max(ROWS), drafter.layers)
        drafter.start(prompt, first.features, int(first.logits[0].argmax()), max(ROWS))
        started = time.perf_counter()
        tree = drafter.propose(limits, GREEDY, torch.Generator())
        drafts.append((time.perf_counter() - started) * 1e3 / max(1, len(tree)))
    drafter.forget()
    return min(drafts) if len(tree) else 0.0


def _least_ms(run: Callable[[], None]) -> float:
    run()
    taken = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started) * 1e3)
    return min(taken)
