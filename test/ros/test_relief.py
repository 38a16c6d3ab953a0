"""What is gone without while the device is short of memory."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from evspec_ros.description import Limits
from evspec_ros.ros import relief as module
from evspec_ros.ros.relief import STEPS, Relief, out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_a_shortage_is_known_by_what_is_said(error: Exception) -> None:
    """Whoever says it."""
    assert out_of_memory(error)
    assert not out_of_memory(RuntimeError("the sizes do not match"))


def test_steps_are_taken_down_and_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller limits, then no drafts, then nothing is left; each is taken back after a calm, and the calm
    doubles where the shortage comes again at once.
    """
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    relief, limits = Relief(), Limits()
    assert relief.limits(limits) == limits
    now[0] += 100
    assert relief.step_down()
    assert relief.drafting
    assert relief.limits(limits).tree_size < limits.tree_size
    assert relief.step_down()
    assert not relief.drafting
    assert not relief.step_down()
    assert relief.told == STEPS[-1]
    for step in (1, 0):
        relief.ease()
        assert relief.told == STEPS[step + 1]
        now[0] += module.CALM_S + 1
        relief.ease()
        assert relief.told == STEPS[step]
    relief.step_down()
    now[0] += module.CALM_S + 1
    relief.ease()
    assert relief.told == STEPS[1]
