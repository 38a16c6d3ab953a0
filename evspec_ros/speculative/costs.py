"""What a pass costs on this machine, and which draft nodes are worth it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch

from evspec_ros.sizes import MEASURED_ROWS, TIMED_ROWS, TIMINGS
from evspec_ros.speculative.drafter import Drafter, DraftLimits, NoDrafter, PassCosts, Prompt
from evspec_ros.speculative.generate import generate
from evspec_ros.speculative.guarded import GuardedDrafter
from evspec_ros.speculative.shared_cache import Block
from evspec_ros.speculative.statistics import DecodingStatistics
from evspec_ros.speculative.target import DecoderTarget, Target
from evspec_ros.speculative.tree import NO_DRAFT, DraftTree

_NODES, _TOKENS = 32, 64  # of drafts and texts that are timed
_STEPS_KEPT = 5  # timings of a plain step, whose median shows nothing that happened once


class Pace:
    """What passes, drafts and prefills were found to take on this machine; nothing before they are measured.

    costs: by which a draft's size is chosen.
    """

    def __init__(self) -> None:
        self.costs: PassCosts | None = None
        self._passes_ms: tuple[float, ...] = ()
        self._steps_ms: deque[float] = deque(maxlen=_STEPS_KEPT)
        self._prefill: PrefillCost | None = None  # None where no event model runs beside the prefill

    @property
    def plain_step_ms(self) -> float | None:
        """What a pass over one row takes: the median of what `time_step` found last, before that what
        `measure` did; None where nothing drafts, as passes are not measured then.
        """
        return median(self._steps_ms or self._passes_ms[:1]) if self._passes_ms else None

    def measure(self, target: DecoderTarget, drafter: Drafter, prompt: Prompt, *, overlap: bool) -> None:
        """Measure what can differ: passes once, drafts each time, as the drafter's head may be another.

        overlap: the event model runs beside the prefill.
        """
        if not isinstance(drafter, NoDrafter):
            self._passes_ms = self._passes_ms or measure_passes(target, prompt)
            self.costs = measure_costs(target, GuardedDrafter(drafter), prompt, self._passes_ms)
        if overlap:
            self._prefill = measure_prefill(target, prompt)

    @torch.inference_mode()
    def time_step(self, target: Target, token: int) -> None:
        """Time one pass over one row, as plain decoding makes it, behind the text that was written last
        (of several the first) and its last token; nothing where nothing drafts.
        """
        if self._passes_ms:
            started = time.perf_counter()
            target.extend([Block(0, token, NO_DRAFT)])[0].logits.argmax(-1).tolist()
            self._steps_ms.append((time.perf_counter() - started) * 1e3)
            target.keep([[0]])

    def slowdown(self, together: Sequence[DecodingStatistics]) -> float:
        """How many times longer than alone the prompts of one `generate_together` took; 1 where nothing ran
        beside them.
        """
        return self._prefill.slowdown(together) if self._prefill else 1.0


def measure_costs(
    target: Target, drafter: Drafter, prompt: Prompt, passes_ms: tuple[float, ...]
) -> PassCosts:
    """What the target's passes and the drafter's nodes take on this machine while a text is written.

    passes_ms: of `measure_passes`, one after another; between drafts they find other things in the caches, so
    they are scaled by what a whole text took. It is drafted as if nodes were free, and once more one node a
    pass: what the many cost more than the one, they cost node by node. A drafter that has nothing to propose
    costs nothing. Events are read beforehand, as a draft's size changes nothing about them.
    """
    with torch.inference_mode():
        events = None if prompt.events is None else prompt.events()
    prompt = replace(prompt, events=None if events is None else lambda: events)

    def written(nodes: int) -> DecodingStatistics:
        limits = DraftLimits(nodes, nodes, costs=PassCosts(passes_ms, 0.0))
        found = []
        for _ in range(3):
            drafter.forget()  # or the second time the whole text would be drafted
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


@dataclass(frozen=True)
class PrefillCost:
    """What reading prompts takes while nothing else runs: milliseconds a prompt and milliseconds a row
    of it that is computed.
    """

    prompt_ms: float
    row_ms: float

    def slowdown(self, together: Sequence[DecodingStatistics]) -> float:
        """How many times longer than that the prompts of one `generate_together` took, which share the
        prefill's time.
        """
        rows = sum(one.prompt_rows - one.reused_rows for one in together)
        return together[0].prefill_ms / (len(together) * self.prompt_ms + rows * self.row_ms)


def measure_prefill(target: DecoderTarget, prompt: Prompt) -> PrefillCost:
    """The line through what all rows of a prompt and its last one alone take, each at its fastest."""

    def read() -> float:
        return generate(target, NoDrafter(), prompt, max_new_tokens=1).statistics.prefill_ms

    whole_ms, last_ms = [], []
    for _ in range(TIMINGS):
        target.forget()
        whole_ms.append(read())
        last_ms.append(read())  # the others are in the cache
    row_ms = max(0.0, min(whole_ms) - min(last_ms)) / (prompt.embeddings.shape[1] - 1)
    return PrefillCost(min(last_ms) - row_ms, row_ms)


@torch.inference_mode()
def measure_passes(target: Target, prompt: Prompt) -> tuple[float, ...]:
    """Milliseconds of a pass over 1, 2, ..., max(TIMED_ROWS) rows; the convex minorant of those timed."""
    (first,) = target.prefill([prompt.embeddings], MEASURED_ROWS, ())
    token = int(first.logits[0].argmax())

    def verification(count: int) -> Callable[[], None]:
        chain = DraftTree.chain([token] * (count - 1), [1.0] * (count - 1))

        def run() -> None:
            target.extend([Block(0, token, chain)])[0].logits.argmax(-1).tolist()
            target.keep([[0]])

        return run

    timed = [least_ms(verification(count)) for count in TIMED_ROWS]
    return tuple(convex_minorant(TIMED_ROWS, timed))


def convex_minorant(positions: Sequence[int], values: Sequence[float]) -> list[float]:
    """The largest convex function of 1, 2, ..., the last place that is nowhere above the values: what others
    on the machine added to a timing here and there must not look like the end of what pays.
    """
    hull: list[tuple[int, float]] = []
    for x, y in zip(positions, values, strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    corners = np.array(hull)
    every: list[float] = np.interp(np.arange(1, positions[-1] + 1), corners[:, 0], corners[:, 1]).tolist()
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


def least_ms(run: Callable[[], object], times: int = TIMINGS) -> float:
    """Milliseconds of the fastest of so many calls, behind one that does not count."""
    run()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        taken.append((time.perf_counter() - started) * 1e3)
    return min(taken)
