"""What the node goes without while the device is short of memory."""

from __future__ import annotations

import re
import time
from dataclasses import replace

from evspec_ros.description import Limits

TREE, TOKENS = 8, 40  # the smaller limits: draft nodes, and tokens of a description
CALM_S = 30.0  # by default
MOST_PATIENCE = 64  # times calm_s
STEPS = ("", "smaller limits", "smaller limits and no drafts")  # each with those before it

_SHORT = re.compile(
    r"CUDA (error: )?out of memory|can't allocate memory|[Ff]ailed to allocate|CUBLAS_STATUS_ALLOC_FAILED"
)


def out_of_memory(error: Exception) -> bool:
    """Whether the networks' device had no memory left, by what torch, onnxruntime and CUDA say."""
    return type(error).__name__ == "OutOfMemoryError" or bool(_SHORT.search(str(error)))


class Relief:
    """Steps down where the device ran out of memory, and up again after calm_s without a shortage; after
    twice as long where the next one came within that time.

    One thread steps, another one may read `told`.
    """

    def __init__(self) -> None:
        self._step = 0
        self._patience = 1
        self._since = time.monotonic()

    @property
    def told(self) -> str:
        """What is gone without, "" for nothing."""
        return STEPS[self._step]

    @property
    def drafting(self) -> bool:
        """Whether there is memory to draft."""
        return self._step < len(STEPS) - 1

    def limits(self, limits: Limits) -> Limits:
        """The limits, or smaller ones."""
        if not self._step:
            return limits
        return replace(
            limits,
            max_new_tokens=min(limits.max_new_tokens, TOKENS),
            n_max=min(limits.n_max, TREE),
            tree_size=min(limits.tree_size, TREE),
        )

    def step_down(self, calm_s: float = CALM_S) -> bool:
        """Go without more; False where nothing is left to go without."""
        if self._step == len(STEPS) - 1:
            return False
        now = time.monotonic()
        if not self._step and now - self._since < self._patience * calm_s:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._step += 1
        self._since = now
        return True

    def ease(self, calm_s: float = CALM_S) -> None:
        """A window was described: after a calm while, go without less."""
        if self._step and time.monotonic() - self._since > self._patience * calm_s:
            self._step -= 1
            self._since = time.monotonic()
