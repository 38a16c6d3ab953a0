"""Counting what drafting brought."""

from __future__ import annotations

import json

import pytest

from evspec_ros.speculative import DecodingStatistics

FIRST = DecodingStatistics(
    generations=1, tokens=9, target_passes=3, drafted=9, accepted=5,
    drafted_by_position=(3, 3, 3), accepted_by_position=(3, 1, 1),
    prefill_ms=10, draft_ms=1, verify_ms=6, decode_ms=8,
)  # fmt: skip
SECOND = DecodingStatistics(
    generations=1, tokens=3, target_passes=2, drafted=1, accepted=0,
    drafted_by_position=(1,), accepted_by_position=(0,),
    prefill_ms=10, draft_ms=1, verify_ms=4, decode_ms=5,
)  # fmt: skip


def test_the_accepted_length_counts_the_bonus_token() -> None:
    """5 accepted and 3 bonus tokens in 3 passes; the prefill's own token is not a pass's."""
    assert FIRST.mean_accepted_length == pytest.approx(8 / 3)
    assert DecodingStatistics(generations=1, tokens=11, target_passes=10).mean_accepted_length == 1.0


def test_generations_add_up() -> None:
    """Counts and times are summed, ratios follow from the sums."""
    both = sum((FIRST, SECOND), DecodingStatistics())
    assert both.tokens == 12
    assert both.drafted_by_position == (4, 3, 3)
    assert both.accepted_by_position == (3, 1, 1)
    assert both.mean_accepted_length == pytest.approx(10 / 5)
    assert both.acceptance_rate == pytest.approx(5 / 10)
    assert both.acceptance_by_position == pytest.approx((3 / 4, 1 / 3, 1 / 3))
    assert both.decode_ms == 13


def test_nothing_has_no_ratios() -> None:
    """No pass, no draft: zeros, not a division by zero."""
    nothing = DecodingStatistics()
    assert nothing.mean_accepted_length == nothing.acceptance_rate == 0.0
    assert nothing.acceptance_by_position == ()


def test_as_dict_is_json() -> None:
    """All counts, times and ratios by name."""
    found = json.loads(json.dumps(FIRST.as_dict()))
    assert found["mean_accepted_length"] == pytest.approx(8 / 3)
    assert found["accepted_by_position"] == [3, 1, 1]
