"""The replay of a stream to a head that is new: what it reports, and that a later start goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.learning import (
    EAGER,
    LearningReport,
    LearningRow,
    plot_learning,
    print_learning,
    replay,
)
from evspec_ros.evaluation.learning_plan import LearningPlan
from evspec_ros.networks.checkpoints import load_draft_head

MODELS = Path(__file__).parents[2] / "models"
TARGET, EVENT_MODEL = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"


def test_a_head_learns_on_a_stream_and_a_later_start_goes_on(tmp_path: Path) -> None:
    """One scene again and again would be too easy to need a head: here each is new. The head begins at one
    token a pass and gains; what the second start begins with is what the first one saved.
    """
    quick = replace(EAGER, held_out=2, steps=12, batch=4, trial=12, learning_rate=2e-3)
    found = replay(TARGET, EVENT_MODEL, tmp_path / "head", LearningPlan(14, 1, 1), settings=quick)
    assert found.rows[0].accepted == 1.0
    assert (found.rows[-1].accepted or 0) > 1.2
    assert found.rows[-1].steps >= 12 * 7
    weights = load_draft_head(tmp_path / "head").state_dict()
    again = replay(
        TARGET, EVENT_MODEL, tmp_path / "head", LearningPlan(1, 2, 1), settings=replace(quick, steps=0)
    )
    assert again.rows[0].drafts == found.rows[-1].drafts
    assert [row.fresh for row in again.rows] == [True, False]
    assert all(
        value.equal(weights[name]) for name, value in load_draft_head(tmp_path / "head").state_dict().items()
    )


def _report() -> LearningReport:
    rows = [
        LearningRow(
            start=1 + window // 40, window=window, scene=window // 2, fresh=window % 2 == 0, tokens=31,
            passes=30 // (1 + window // 20), head_version=window // 20, drafts=window >= 20, steps=window,
            accepted=1 + window / 20, seconds=0.1,
        )
        for window in range(60)
    ]  # fmt: skip
    return LearningReport(LearningPlan(30, 2, 2), tuple(rows))


def test_the_curve_is_tokens_per_pass_of_parts_of_a_start() -> None:
    """The first token of each window comes from the prefill."""
    report = _report()
    assert report.curve(fresh=False) == [(10, 1.0), (30, 2.0), (50, 3.0)]
    assert report.curve(fresh=True) == [(10, 1.0), (30, 2.0), (50, 3.0)]
    found = report.as_dict()
    assert found["plan"] == {"scenes": 30, "windows": 2, "starts": 2}
    assert found["windows"][20]["drafts"] is True
    assert found["accepted_length_of_the_head_alone"][40] == (40, 3.0)


def test_it_is_shown_as_a_table_and_as_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A picture that cannot be written is told in one sentence."""
    print_learning(_report())
    lines = capsys.readouterr().out.splitlines()
    assert "learns" in lines[1]
    assert "version 2" in lines[3]
    plot_learning(_report(), tmp_path / "learning.svg")
    assert (tmp_path / "learning.svg").read_text().count("<path") > 3
    with pytest.raises(EvspecError, match="cannot be written"):
        plot_learning(_report(), tmp_path / "nowhere" / "learning.svg")
