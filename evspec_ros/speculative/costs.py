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

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
REPETITIONS = 5
_DRAFT = 8  # nodes of the draft that is timed


@torch.inference_mode()
def measure_costs(target: Target, drafter: Drafter, prompt: Prompt, rows: Sequence[int] = ROWS) -> PassCosts:
    """Time passes of 1, 2, ... rows behind this prompt, and what the drafter takes for a node.

    Between the sizes that were timed the cost is taken to be linear.
    """
    first = target.prefill(prompt.embeddings, REPETITIONS * 2 * len(rows) + max(rows), drafter.layers)
    token = int(first.logits[0].argmax())
    drafts = []
    for _ in range(REPETITIONS):
        drafter.prepare(prompt)
        drafter.start(prompt, first.features, token, max(rows))
        started = time.perf_counter()
        tree = drafter.propose(DraftLimits(_DRAFT, _DRAFT), Sampling(), torch.Generator())
        drafts.append((time.perf_counter() - started) * 1e3 / max(1, len(tree)))
    drafter.forget()

    def verification(count: int) -> Callable[[], None]:
        chain = DraftTree.chain([token] * (count - 1), [1.0] * (count - 1))

        def run() -> None:
            target.extend(token, chain).logits.argmax(-1).tolist()
            target.keep([0])

        return run

    timed = [_median_ms(verification(count)) for count in rows]
    every = np.interp(np.arange(1, max(rows) + 1), rows, np.maximum.accumulate(timed))
    return PassCosts(tuple(every.tolist()), median(drafts) if len(tree) else 0.0)


def _median_ms(run: Callable[[], None]) -> float:
    run()
    taken = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started) * 1e3)
    return median(taken)
