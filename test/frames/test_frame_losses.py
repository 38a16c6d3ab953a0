"""Lost frames, told by the stamps of the others."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evspec_ros.frames.losses import FrameLosses

PERIOD_NS = 33_333_333


def lost(stamps: list[int]) -> tuple[int, bool]:
    """How many frames are known to be lost in the end, and whether that is known at all."""
    losses = FrameLosses()
    return sum(losses.after(stamp) for stamp in stamps), losses.known


@settings(deadline=None)
@given(
    gone=st.sets(st.integers(20, 180), max_size=30),
    period_ns=st.integers(5_000_000, 200_000_000),
    seed=st.integers(0, 100),
)
def test_what_is_missing_in_a_steady_stream_is_counted(gone: set[int], period_ns: int, seed: int) -> None:
    """Any frames may be missing, a sixth of the stream at most; stamps are up to a tenth of a period off."""
    jitter = np.random.default_rng(seed).uniform(-0.1, 0.1, 300)
    stamps = [round((k + jitter[k]) * period_ns) for k in range(300) if k not in gone]
    widest = max(np.diff(stamps))
    if widest < 5e9 and all(len(gone & set(range(k, k + 20))) <= 3 for k in range(200)):
        assert lost(stamps) == (len(gone), True)


@pytest.mark.parametrize("factor", [2, 3, 0.5])
def test_a_camera_that_changes_its_rate_has_lost_nothing(factor: float) -> None:
    """As cameras do in the dark."""
    steps = [PERIOD_NS] * 50 + [round(PERIOD_NS * factor)] * 50
    assert lost(np.cumsum(steps).tolist()) == (0, True)


def test_without_a_rate_nothing_is_known() -> None:
    """Few frames, or frames whenever something happens."""
    assert lost([k * PERIOD_NS for k in range(5)]) == (0, False)
    irregular = np.random.default_rng(0).exponential(1e8, 200).cumsum().astype(int).tolist()
    assert lost(irregular)[1] is False


def test_a_camera_that_was_stopped_has_lost_nothing() -> None:
    """For ten seconds."""
    stamps = [k * PERIOD_NS + (k >= 30) * 10 * 10**9 for k in range(60)]
    assert lost(stamps) == (0, True)


def test_frames_that_are_overtaken_or_doubled_are_not_lost() -> None:
    """Two swapped, one sent twice."""
    stamps = [k * PERIOD_NS for k in range(60)]
    stamps[30], stamps[31] = stamps[31], stamps[30]
    stamps.insert(40, stamps[40])
    assert lost(stamps) == (0, True)


def test_a_frame_that_arrived_and_was_refused_is_not_lost() -> None:
    """It is counted as refused, once."""
    losses = FrameLosses()
    total = 0
    for k in range(60):
        if k in (30, 40, 41):
            losses.refused()
        elif k != 50:
            total += losses.after(k * PERIOD_NS)
    assert total == 1
