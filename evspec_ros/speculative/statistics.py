"""What a generation cost and what drafting brought."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import zip_longest
from typing import Any, NamedTuple

from evspec_ros.speculative.tree import DraftTree


@dataclass(frozen=True)
class DecodingStatistics:
    """Counts and times of one generation, or of several added up.

    tokens: emitted, the one that the prefill yields included; prompt_rows: embedded tokens of the prompt, of
    which reused_rows were still in the key/value cache; target_passes: verifications and one-token
    steps after the prefill; draft_passes: of drafting, as DraftTree counts them; drafted, accepted: draft
    tokens proposed and emitted; drafted_by_position: passes whose draft reached depth 1, 2, ...;
    accepted_by_position: passes that emitted a draft token at that depth. Times in milliseconds of wall
    clock: prefill_ms of the prefill and what was prepared for it; draft_ms and verify_ms as `timing` takes
    them; decode_ms from the first token to the last one, which is
    more than these two together.
    """

    generations: int = 0
    tokens: int = 0
    prompt_rows: int = 0
    reused_rows: int = 0
    target_passes: int = 0
    draft_passes: int = 0
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


class PassOutcome(NamedTuple):
    """What became of one pass of the target: nodes that were drafted, draft tokens and all tokens emitted."""

    drafted: int
    accepted: int
    emitted: int


@dataclass
class PassCounts:
    """The running counts of one text, and its passes one by one."""

    target_passes: int = 0
    draft_passes: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)
    passes: list[PassOutcome] = field(default_factory=list)
    branched: bool = False

    def add(self, tree: DraftTree, emitted: int, agreed: int) -> None:
        """One pass more: its tree, how many tokens it emitted, how many nodes the target agreed with."""
        accepted = min(agreed, emitted)  # an end token inside the block discards what follows it
        missing = tree.depth - len(self.drafted_by_position)
        self.drafted_by_position += [0] * missing
        self.accepted_by_position += [0] * missing
        for position in range(tree.depth):
            self.drafted_by_position[position] += 1
            self.accepted_by_position[position] += position < accepted
        self.branched = self.branched or not tree.is_chain
        self.passes.append(PassOutcome(len(tree), accepted, emitted))
        self.target_passes += 1
        self.draft_passes += tree.passes
        self.drafted += len(tree)
        self.accepted += accepted

    def statistics(self, **rest: Any) -> DecodingStatistics:
        """The counts as they are published, with all other fields of one generation."""
        return DecodingStatistics(
            generations=1,
            target_passes=self.target_passes,
            draft_passes=self.draft_passes,
            drafted=self.drafted,
            accepted=self.accepted,
            drafted_by_position=tuple(self.drafted_by_position),
            accepted_by_position=tuple(self.accepted_by_position),
            **rest,
        )


def _add(left: Any, right: Any) -> Any:
    """left + right, tuples position by position."""
    if isinstance(left, tuple):
        return tuple(a + b for a, b in zip_longest(left, right, fillvalue=0))
    return left + right
