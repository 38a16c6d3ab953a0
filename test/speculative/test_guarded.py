"""A drafter that raises: its text is the target's, and the next one is drafted again."""

from __future__ import annotations

import math
import threading
import time
from typing import Any

import pytest
import torch
from speculative_fakes import FakeTarget, ScriptedDrafter, fake_prompt, following_script, markov
from torch import nn

from evspec_ros.cancellation import Cancellation
from evspec_ros.errors import CancelledError, GenerationError
from evspec_ros.networks.llama import DecoderLayer, LlamaConfig
from evspec_ros.speculative import Drafter, DraftLimits, Generation, NoDrafter, generate
from evspec_ros.speculative import guarded as guarded_module
from evspec_ros.speculative.guarded import GuardedDrafter, Patience

TINY = LlamaConfig(hidden_size=8, intermediate_size=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8)
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


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    """Of drafters whose steps may take a tenth of a second, and what they usually do."""
    monkeypatch.setattr(guarded_module, "STALL_S", 0.1)
    patience = Patience()
    patience.pass_s = 1e-6
    return patience


class Layers(nn.Module):
    """A network one layer of which waits until somebody ends it, every time or at its `stalls` first runs."""

    def __init__(self, stalls: int = 10**6) -> None:
        super().__init__()
        self.stalls = stalls
        self.layer = DecoderLayer(TINY)

    def forward(self, _: object = None) -> None:
        """A run."""
        rows, turn = torch.zeros(1, 1, TINY.hidden_size), torch.zeros(1, TINY.head_dim)
        self.stalls -= 1
        deadline = time.monotonic() + 20
        while self.stalls >= 0 and time.monotonic() < deadline:
            time.sleep(0.005)
            self.layer(rows, turn, turn)
        self.layer(rows, turn, turn)


@pytest.mark.parametrize("step", STEPS)
def test_a_drafter_that_stalls_is_ended_and_left_out(step: str, patience: Patience) -> None:
    """Between two layers of its network; the text is the target's, and the next one is drafted again."""
    text = _write(NoDrafter()).tokens
    drafter = following_script(list(text))
    network, well = Layers(stalls=1), getattr(drafter, step)
    setattr(drafter, step, lambda *arguments: (network(), well(*arguments))[1])
    began = time.monotonic()
    assert _write(guarded := GuardedDrafter(drafter, patience)).tokens == text
    assert time.monotonic() - began < 10
    assert guarded.failure is not None
    assert guarded.failure.problem == f"The drafter stalled: its step {step} took longer than 0.1 s."
    again = _write(well_again := GuardedDrafter(drafter, patience))
    assert again.tokens == text
    assert well_again.failure is None
    assert again.statistics.drafted > 0


def test_a_stall_that_never_looks_is_told_when_it_is_over(patience: Patience) -> None:
    """Python cannot end it; its draft is taken, and nothing more is asked."""
    text = _write(NoDrafter()).tokens
    drafter = following_script(list(text))
    well = drafter.propose
    drafter.propose = lambda *arguments: (time.sleep(0.3), well(*arguments))[1]  # type: ignore[method-assign]
    found = _write(guarded := GuardedDrafter(drafter, patience))
    assert found.tokens == text
    assert guarded.failure is not None
    assert "stalled" in guarded.failure.problem
    assert 0 < found.statistics.drafted <= 4


def test_what_a_step_usually_takes_says_how_long_it_may(patience: Patience) -> None:
    """The longest of two seconds, fifty passes and twenty times the usual; any while nothing was measured."""
    assert Patience().most_s("propose") == math.inf
    patience.note("propose", 0.5)
    assert patience.most_s("propose") == 10.0
    assert patience.most_s("accept") == 0.1
    patience.pass_s = 1.0
    assert patience.most_s("accept") == 50.0
    for _ in range(100):
        patience.note("propose", 0.01)
    assert patience.most_s("propose") == 50.0


def test_a_text_that_is_cancelled_is_no_failure_of_its_drafter(patience: Patience) -> None:
    """In the midst of a draft, the exception is the text's."""
    drafter = following_script([1])
    network = Layers()
    drafter.propose = lambda *_: network()  # type: ignore[method-assign]
    whole = Cancellation()
    timer = threading.Timer(0.05, whole.cancel, ["Enough."])
    timer.start()
    with whole.scope():
        guarded = GuardedDrafter(drafter)
        with pytest.raises(CancelledError, match="Enough"):
            _write(guarded)
    assert guarded.failure is None


def test_the_guard_costs_a_step_less_than_twenty_microseconds(patience: Patience) -> None:
    """The best of several rounds, beside the step alone."""
    drafter = following_script([1])
    guarded = GuardedDrafter(drafter, patience)
    drafter.accept = lambda *_: None  # type: ignore[method-assign]

    def best_us(step: Any) -> float:
        taken = []
        for _ in range(7):
            began = time.perf_counter()
            for _ in range(300):
                step([1], ())
            taken.append((time.perf_counter() - began) / 300 * 1e6)
        return min(taken)

    assert best_us(guarded.accept) - best_us(drafter.accept) < 20


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
