"""Two runs side by side: what is paired, and what the intervals say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.replay.compare import compare_runs, print_comparison, ratio_interval
from evspec_ros.evaluation.replay.store import Finished, RunFolder


def folder_of(path: Path, totals: dict[int, float], drafter: str, text: str = "a ball") -> Path:
    """A run over one recording with windows that end at these nanoseconds and took so many milliseconds."""
    folder = RunFolder(path, {"drafter": drafter, "target": "tiny_video_llava"})
    finished = Finished("bag", "0123456789abcdef", 1, len(totals), 1.0)
    rows: list[dict[str, Any]] = [
        {
            "stamp_ns": stamp, "question": "What?", "text": text, "first_word_ms": total / 2,
            "latency_ms": {"total": total, "prefill": 1.0, "decode": total / 2}, "accepted_length": 2.0,
        }
        for stamp, total in totals.items()
    ]  # fmt: skip
    folder.append("bag-0123456789ab", rows)
    folder.finish(finished)
    return path


def test_a_run_twice_as_fast_differs_and_one_like_the_other_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paired windows alone count; the ratio is known, and its interval holds it."""
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 40)
    a = folder_of(tmp_path / "a", {k: 40 * noise[k] for k in range(40)}, "none")
    b = folder_of(tmp_path / "b", {k: 20 * noise[k - 3] for k in range(3, 43)}, "combined", "a box")
    found = compare_runs(a, b)
    assert (found.windows, found.same_texts, found.only_a, found.only_b) == (37, 0, 3, 3)
    assert found.differing_options == {"drafter": ("none", "combined")}
    figures = {one.name: one for one in found.figures}
    whole = figures["whole window, ms"]
    assert whole.low < whole.ratio < whole.high < 0.6
    assert whole.ratio == pytest.approx(0.5, rel=0.05)
    assert whole.differs
    assert not figures["tokens a pass"].differs
    assert "age, ms" not in figures
    print_comparison(found)
    assert "drafter: A none, B combined" in capsys.readouterr().out


def coverage(rho: float, *, shuffled: bool = False) -> float:
    """The share of 200 runs of 200 windows, each like the one before it by rho, whose interval holds the
    ratio of 1.2; shuffled: the windows come in no order, as if they had nothing to do with each other.
    """
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        noise = random.normal(0, np.sqrt(1 - rho**2), (200, 2))
        noise[0] /= np.sqrt(1 - rho**2)
        for k in range(1, len(noise)):
            noise[k] += rho * noise[k - 1]
        windows = np.array([10, 12]) + 2 * noise
        low, high = ratio_interval([random.permutation(windows) if shuffled else windows])
        held += low <= 1.2 <= high
    return held / 200


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 draws 88 to 99 per cent, where windows do not depend on each other."""
    assert 0.88 <= coverage(0.0) <= 0.99


def test_where_neighbours_resemble_each_other_blocks_cover_the_truth_more_often() -> None:
    """Nearer to what is said than windows drawn one by one, which are far too sure."""
    blocks, alone = coverage(0.8), coverage(0.8, shuffled=True)
    assert alone < 0.62
    assert 0.72 < blocks <= 0.98


def test_each_recording_keeps_its_share_of_the_windows() -> None:
    """Two recordings within which nothing differs leave no doubt, however much they differ themselves."""
    short, long = np.full((3, 2), (10.0, 20.0)), np.full((7, 2), (1.0, 1.0))
    assert ratio_interval([short, long]) == pytest.approx((67 / 37, 67 / 37))


def test_runs_without_a_common_window_are_refused(tmp_path: Path) -> None:
    """And a folder that is no run."""
    a = folder_of(tmp_path / "a", {1: 1.0}, "none")
    b = folder_of(tmp_path / "b", {2: 1.0}, "none")
    with pytest.raises(EvspecError, match="no window in common"):
        compare_runs(a, b)
    with pytest.raises(EvspecError, match="holds no run"):
        compare_runs(a, tmp_path / "c")
