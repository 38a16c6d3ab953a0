"""What a pass costs on this machine, and which draft nodes are worth it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from evspec_ros.speculative.drafter import Drafter, DraftLimits, PassCosts, Prompt
from evspec_ros.speculative.generate import generate
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import Block, Target
from evspec_ros.speculative.tree import DraftTree

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 60, 64)
REPETITIONS = 5
_NODES, _TOKENS = 32, 64  # of drafts and texts that are timed


def measure_costs(
    target: Target, drafter: Drafter, prompt: Prompt, passes_ms: tuple[float, ...]
) -> PassCosts:
    """What the target's passes and the drafter's nodes take on this machine while a text is written.

    passes_ms: of `measure_passes`, one after another; between drafts they find other things in the caches, so
    they are scaled by what a whole text took. It is drafted as if nodes were free, and once more one node a
    pass: what the many cost more than the one, they cost node by node. A drafter that has nothing to propose
    costs nothing.
    """

    def written(nodes: int) -> DecodingStatistics:
        limits = DraftLimits(nodes, nodes, costs=PassCosts(passes_ms, 0.0))
        found = []
        for _ in range(3):
            drafter.forget()  # or the second time the text is known
            found.append(generate(target, drafter, prompt, max_new_tokens=_TOKENS, limits=limits).statistics)
        return min(found, key=lambda statistics: statistics.decode_ms)

    many, one = written(_NODES), written(1)
    drafter.forget()
    drafted, verify_ms, draft_ms = (
        value / max(1, many.target_passes) for value in (many.drafted, many.verify_ms, many.draft_ms)
    )
    begin_ms, node_ms = line((1.0, one.draft_ms / max(1, one.target_passes)), (drafted, draft_ms))
    scale = max(1.0, verify_ms / passes_ms[round(drafted)])
    return PassCosts(tuple(scale * cost for cost in passes_ms), node_ms, begin_ms)


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


def line(one: tuple[float, float], many: tuple[float, float]) -> tuple[float, float]:
    """What is spent before the first node and then on each, of (nodes, milliseconds) of two drafts; neither
    is less than nothing, however the two were disturbed.
    """
    (first, begun), (nodes, spent) = one, many
    if nodes == 0:
        return 0.0, 0.0
    if nodes <= first:
        return spent, 0.0
    each = min(max(0.0, (spent - begun) / (nodes - first)), spent / nodes)
    return spent - nodes * each, each


def _slope(left: tuple[int, float], right: tuple[int, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


def _least_ms(run: Callable[[], None]) -> float:
    run()
    taken = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started) * 1e3)
    return min(taken)
