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


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 draws with a ratio of 1.2, 88 to 99 per cent of the intervals hold it."""
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        a, b = random.normal(10, 2, 60), random.normal(12, 2, 60)
        low, high = ratio_interval(a, b)
        held += low <= 1.2 <= high
    assert 176 <= held <= 198


def test_runs_without_a_common_window_are_refused(tmp_path: Path) -> None:
    """And a folder that is no run."""
    a = folder_of(tmp_path / "a", {1: 1.0}, "none")
    b = folder_of(tmp_path / "b", {2: 1.0}, "none")
    with pytest.raises(EvspecError, match="no window in common"):
        compare_runs(a, b)
    with pytest.raises(EvspecError, match="holds no run"):
        compare_runs(a, tmp_path / "c")
