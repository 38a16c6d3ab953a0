"""A drafter that raises: its text is the target's, and the next one is drafted again."""

from __future__ import annotations

from typing import Any

import pytest
from speculative_fakes import FakeTarget, ScriptedDrafter, fake_prompt, following_script, markov

from evspec_ros.errors import GenerationError
from evspec_ros.speculative import Drafter, DraftLimits, Generation, NoDrafter, generate
from evspec_ros.speculative import guarded as guarded_module
from evspec_ros.speculative.drafter import PassCosts
from evspec_ros.speculative.guarded import GuardedDrafter

FOLLOWING, PROMPT, LENGTH = markov(10, seed=3), fake_prompt([1, 2, 3]), 20
STEPS = ["prepare", "start", "propose", "accept", "finish"]
ERRORS: list[Exception] = [KeyError("no such layer"), MemoryError(), RuntimeError("out of memory\nat all")]


def _write(drafter: Drafter) -> Generation:
    return generate(
        FakeTarget(FOLLOWING), drafter, PROMPT, max_new_tokens=LENGTH, limits=DraftLimits(4, 4)
    )  # fmt: skip


def _fail_at(drafter: ScriptedDrafter, step: str, call: int, error: Exception) -> None:
    """Let one step raise from its `call`-th call on."""
    calls = 0
    well = getattr(drafter, step)

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise error
        return well(*arguments)

    setattr(drafter, step, failing)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("step", "call"), [(step, 1) for step in STEPS] + [("propose", 3), ("accept", 2)])
def test_a_text_goes_on_without_a_drafter_that_raises(step: str, call: int, error: Exception) -> None:
    """Token for token the target's own; the drafter is asked nothing more, and why is kept."""
    text = _write(NoDrafter()).tokens
    drafter = following_script(list(text))
    _fail_at(drafter, step, call, error)
    guarded = GuardedDrafter(drafter)
    found = _write(guarded)
    assert found.tokens == text
    assert found.lossless
    assert guarded.failure is not None
    assert guarded.failure.problem.startswith(type(error).__name__)
    assert "\n" not in guarded.failure.problem
    assert "in failing" in guarded.failure.traceback
    if step != "finish":
        assert not drafter.finished
        assert found.statistics.target_passes > LENGTH // 5


def test_a_drafter_that_stalls_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where costs are known, and so compiling is over; the text is the target's."""
    text = _write(NoDrafter()).tokens
    drafter = following_script(list(text))
    monkeypatch.setattr(guarded_module, "STALL_S", 0.0)
    monkeypatch.setattr(guarded_module, "STALL_PASSES", 0)
    guarded = GuardedDrafter(drafter)
    limits = DraftLimits(4, 4, costs=PassCosts((1.0,) * 8, 0.0))
    found = generate(FakeTarget(FOLLOWING), guarded, PROMPT, max_new_tokens=LENGTH, limits=limits)
    assert found.tokens == text
    assert guarded.failure is not None
    assert "stalled: one draft took" in guarded.failure.problem
    assert _write(well := GuardedDrafter(drafter)).tokens == text
    assert well.failure is None


def test_the_next_text_is_drafted_again() -> None:
    """By the same drafter, as if nothing had happened."""
    text = _write(NoDrafter()).tokens
    drafter = following_script(list(text))
    before = _write(drafter)
    well, drafter.propose = drafter.propose, None  # type: ignore[assignment, method-assign]
    broken = GuardedDrafter(drafter)
    assert _write(broken).statistics.drafted == 0
    drafter.propose = well  # type: ignore[method-assign]
    mended = GuardedDrafter(drafter)
    again = _write(mended)
    assert broken.failure is not None
    assert "TypeError" in broken.failure.problem
    assert mended.failure is None
    assert (again.tokens, again.statistics.drafted) == (before.tokens, before.statistics.drafted)


def test_a_drafter_that_does_well_is_not_changed_by_its_guard() -> None:
    """Name, layers, drafts and what it is told in the end."""
    drafter = following_script(list(_write(NoDrafter()).tokens))
    alone = _write(drafter)
    guarded = GuardedDrafter(drafter)
    found = _write(guarded)
    assert (guarded.name, guarded.layers, guarded.failure) == (drafter.name, drafter.layers, None)
    assert found.tokens == alone.tokens
    assert found.statistics.drafted_by_position == alone.statistics.drafted_by_position
    assert drafter.finished == list(found.tokens)


def test_what_was_raised_on_purpose_is_told_without_a_traceback() -> None:
    """Its sentence is enough."""
    drafter = following_script([1])
    _fail_at(drafter, "start", 1, GenerationError("There is no room."))
    guarded = GuardedDrafter(drafter)
    _write(guarded)
    assert guarded.failure is not None
    assert (guarded.failure.problem, guarded.failure.traceback) == ("There is no room.", "")


def test_unguarded_a_drafter_s_exception_is_raised() -> None:
    """What measures drafters must not measure the target instead."""
    drafter = following_script([1])
    _fail_at(drafter, "propose", 1, KeyError("layer"))
    with pytest.raises(KeyError):
        _write(drafter)
