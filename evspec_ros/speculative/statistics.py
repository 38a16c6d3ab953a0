"""What a generation cost and what drafting brought."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import zip_longest
from typing import Any


@dataclass(frozen=True)
class DecodingStatistics:
    """Counts and times of one generation, or of several added up.

    tokens: emitted, the one that the prefill yields included; prompt_rows: embedded tokens of the prompt, of
    which reused_rows were still in the key/value cache; target_passes: verifications and one-token
    steps after the prefill; drafted, accepted: draft tokens proposed and emitted; drafted_by_position: passes
    whose draft reached depth 1, 2, ...; accepted_by_position: passes that emitted a draft token at that
    depth. Times in milliseconds of wall clock; decode_ms is everything after the prefill (draft_ms +
    verify_ms + the rest).
    """

    generations: int = 0
    tokens: int = 0
    prompt_rows: int = 0
    reused_rows: int = 0
    target_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by_position: tuple[int, ...] = ()
    accepted_by_position: tuple[int, ...] = ()
    prefill_ms: float = 0.0
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    decode_ms: float = 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Tokens per target pass after the prefill, the bonus token counted (so 1.0 without drafting)."""
        return (self.tokens - self.generations) / self.target_passes if self.target_passes else 0.0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def acceptance_by_position(self) -> tuple[float, ...]:
        """For each depth, the share of the drafts reaching it whose token there was emitted."""
        return tuple(
            accepted / drafted
            for accepted, drafted in zip(self.accepted_by_position, self.drafted_by_position, strict=True)
        )

    def __add__(self, other: DecodingStatistics) -> DecodingStatistics:
        """The statistics of both together."""
        return DecodingStatistics(
            **{
                field.name: _add(getattr(self, field.name), getattr(other, field.name))
                for field in fields(self)
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """All counts, times and ratios, ready for JSON."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "mean_accepted_length": self.mean_accepted_length,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_by_position": self.acceptance_by_position,
        }


def _add(left: Any, right: Any) -> Any:
    """left + right, tuples position by position."""
    if isinstance(left, tuple):
        return tuple(a + b for a, b in zip_longest(left, right, fillvalue=0))
    return left + right
