"""What the last descriptions took and what drafting brought to them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from evspec_ros.description import Description
from evspec_ros.speculative.statistics import DecodingStatistics

KEPT = 300  # descriptions: some minutes
PERCENTILES = 50, 95, 99


class RecentDescriptions:
    """The figures of the last KEPT descriptions; not safe between threads."""

    def __init__(self) -> None:
        self._latencies: deque[dict[str, float]] = deque(maxlen=KEPT)
        self._statistics: deque[DecodingStatistics] = deque(maxlen=KEPT)

    def add(self, description: Description) -> None:
        """Keep what one description took."""
        self._latencies.append(description.latency_ms)
        self._statistics.append(description.statistics)

    def stages(self) -> dict[str, Any]:
        """Percentiles of every stage's milliseconds, as `prefill_ms_p95`."""
        values: dict[str, Any] = {"recent_descriptions": len(self._latencies)}
        if self._latencies:
            taken = [list(latency.values()) for latency in self._latencies]
            found = np.percentile(taken, PERCENTILES, axis=0).round(3)  # [3, stages]
            for stage, row in zip(self._latencies[0], found.T.tolist(), strict=True):
                values |= {f"{stage}_ms_p{part}": ms for part, ms in zip(PERCENTILES, row, strict=True)}
        return values

    def decoding(self, step_ms: float | None) -> dict[str, Any]:
        """Acceptance rate, accepted length (the bonus token counted) and the speed-up: what as many plain
        steps, each of step_ms, would take over what decoding took; unknown where no step was measured.
        """
        whole = self._sum()
        speed_up: float | str = "unknown"
        if step_ms is not None and whole.decode_ms:
            speed_up = round((whole.tokens - whole.generations) * step_ms / whole.decode_ms, 3)
        return {
            "acceptance_rate": round(whole.acceptance_rate, 3),
            "accepted_length": round(whole.mean_accepted_length, 3),
            "plain_step_ms": "unknown" if step_ms is None else round(step_ms, 3),
            "speed_up": speed_up,
        }

    def _sum(self) -> DecodingStatistics:
        """Of what the figures need, in a tenth of the time that adding all of it takes."""

        def total(of: Callable[[DecodingStatistics], Any]) -> Any:
            return sum(map(of, self._statistics))

        return DecodingStatistics(
            generations=len(self._statistics),
            tokens=total(lambda one: one.tokens),
            target_passes=total(lambda one: one.target_passes),
            drafted=total(lambda one: one.drafted),
            accepted=total(lambda one: one.accepted),
            decode_ms=total(lambda one: one.decode_ms),
        )
