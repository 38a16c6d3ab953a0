"""What passes cost, and where a draft ends because of it."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from speculative_fakes import FakeTarget, ScriptedDrafter, fake_prompt, markov

from evspec_ros.speculative import DecodingStatistics, DraftLimits, TargetPass, costs
from evspec_ros.speculative.costs import Pace, PrefillCost, convex_minorant, line, measure_prefill
from evspec_ros.speculative.drafter import PassCosts
from evspec_ros.speculative.tree import NO_DRAFT

COSTS = PassCosts(tuple(1.0 + 0.1 * rows for rows in range(20)), 0.05)
BEGUN = replace(COSTS, begin_ms=0.4)


@pytest.mark.parametrize("costs", [COSTS, BEGUN])
@given(st.integers(0, 18), st.floats(1.0, 20.0), st.floats(0.0, 1.0))
def test_a_node_is_worth_it_where_it_raises_the_tokens_per_millisecond(
    costs: PassCosts, nodes: int, gain: float, chance: float
) -> None:
    """The floor is the probability from which on the yield with the node exceeds that without it, what was
    spent before the first node being spent in both cases.
    """
    spent, each = costs.begin_ms, costs.draft_ms
    without = gain / (costs.verify_ms[nodes] + spent + nodes * each)
    with_it = (gain + chance) / (costs.verify_ms[nodes + 1] + spent + (nodes + 1) * each)
    if abs(with_it - without) > 1e-9:
        assert (chance >= costs.floor(nodes, gain)) == (with_it > without)


@pytest.mark.parametrize(("begin_ms", "node_ms"), [(0.4, 0.0), (0.1, 0.05), (0.0, 0.02), (0.0, 0.0)])
def test_drafts_of_one_and_of_many_nodes_tell_what_a_draft_and_what_a_node_takes(
    begin_ms: float, node_ms: float
) -> None:
    """What a draft and what each of its nodes was made to take is found again."""
    assert line((1.0, begin_ms + node_ms), (18.5, begin_ms + 18.5 * node_ms)) == pytest.approx(
        (begin_ms, node_ms), abs=1e-9
    )


def test_disturbed_timings_give_no_negative_costs() -> None:
    """One node slower than many, nodes that seem to begin before nothing, a drafter that never drafts."""
    assert line((1.0, 0.9), (10.0, 0.5)) == (0.5, 0.0)
    assert line((1.0, 0.01), (10.0, 0.5)) == pytest.approx((0.0, 0.05))
    assert line((1.0, 0.1), (0.0, 0.2)) == (0.0, 0.0)
    assert line((1.0, 0.1), (1.0, 0.2)) == (0.2, 0.0)


def test_beyond_what_was_measured_nothing_is_worth_it() -> None:
    """No pass of 21 rows was timed."""
    assert COSTS.floor(19, 1.0) == float("inf")
    assert COSTS.floor(18, 1.0) < 1.0


def test_the_floor_is_never_below_p_min() -> None:
    """Where costs are known and where they are not."""
    assert DraftLimits(p_min=0.7).floor(3, 2.0) == 0.7
    assert DraftLimits(p_min=0.7, costs=COSTS).floor(0, 1.0) == 0.7
    assert DraftLimits(p_min=0.01, costs=COSTS).floor(0, 1.0) == pytest.approx(0.15)


@given(st.lists(st.floats(0.1, 10.0), min_size=2, max_size=9))
def test_the_minorant_is_convex_and_nowhere_above_the_timings(timed: list[float]) -> None:
    """At 1, 3, 5, ... rows; it touches them at both ends."""
    places = [1 + 2 * index for index in range(len(timed))]
    found = convex_minorant(places, timed)
    assert len(found) == places[-1]
    assert found[0] == pytest.approx(timed[0])
    assert found[-1] == pytest.approx(timed[-1])
    assert all(found[place - 1] <= value + 1e-9 for place, value in zip(places, timed, strict=True))
    slopes = [after - before for before, after in pairwise(found)]
    assert all(after >= before - 1e-9 for before, after in pairwise(slopes))


def test_a_prefill_is_compared_with_what_its_own_rows_take() -> None:
    """Two prompts of 100 and 7 rows that are computed, at 2 ms a prompt and 0.1 ms a row: 14.7 ms alone."""
    cost = PrefillCost(2.0, 0.1)
    whole = DecodingStatistics(prompt_rows=100, prefill_ms=29.4)
    second = DecodingStatistics(prompt_rows=102, reused_rows=95, prefill_ms=29.4)
    assert cost.slowdown([whole, second]) == pytest.approx(2.0)
    assert cost.slowdown(
        [DecodingStatistics(prompt_rows=100, reused_rows=99, prefill_ms=2.1)]
    ) == pytest.approx(1.0)


def test_what_a_prefill_costs_is_measured_at_both_ends() -> None:
    """All rows and the last one alone, each several times, the fastest counts."""
    read: list[int] = []

    class Target(FakeTarget):
        """Knows the prompt from the second time on."""

        known = 0

        def forget(self) -> None:
            """Nothing is known."""
            self.known = 0

        def prefill(self, prompts: Any, capacity: int, layers: tuple[int, ...]) -> list[TargetPass]:
            """A millisecond and a fifth of one for each row."""
            (only,) = super().prefill(prompts, capacity, layers)
            rows = prompts[0].shape[1] - self.known
            read.append(rows)
            time.sleep((1 + rows / 5) / 1000)
            reused, self.known = self.known, prompts[0].shape[1] - 1
            return [TargetPass(only.logits, only.features, reused)]

    cost = measure_prefill(Target(markov(9, seed=1)), fake_prompt([1, 2] * 50))  # type: ignore[arg-type]
    assert read == [100, 1] * 5
    assert cost.prompt_ms > 0.9
    assert cost.row_ms == pytest.approx(0.2, rel=0.5)


def test_the_plain_step_is_the_median_of_its_last_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of them count, one row each behind the text; where no pass was measured none is timed."""
    target, pace = FakeTarget(markov(9, seed=1)), Pace()
    target.prefill([fake_prompt([1, 2, 3]).embeddings], 10, ())
    pace.time_step(target, 4)
    assert pace.plain_step_ms is None
    monkeypatch.setattr(costs, "measure_passes", lambda *_: (9.0, 10.0))
    monkeypatch.setattr(costs, "measure_costs", lambda *_: PassCosts((9.0, 10.0), 0.1))
    pace.measure(target, ScriptedDrafter(lambda _: NO_DRAFT), fake_prompt([1, 2]), overlap=False)  # type: ignore[arg-type]
    assert pace.plain_step_ms == 9.0
    moments = iter([moment for ms in (40.0, 3.0, 4.0, 5.0, 6.0, 7.0) for moment in (1.0, 1.0 + ms / 1000)])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(moments))
    for _ in range(6):
        pace.time_step(target, 4)
    assert pace.plain_step_ms == pytest.approx(5.0)
    assert target.history == [1, 2, 3, *[4] * 6]
