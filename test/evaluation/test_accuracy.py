"""Scoring captions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evspec_ros import cli
from evspec_ros.evaluation.accuracy import score
from evspec_ros.evaluation.text_scores import score_texts
from evspec_ros.simulation.captions import Claim, parse

TRUTH = (
    "On the left, a large red ball rolls quickly to the right. In the middle, a small blue box stands still."
)


def test_a_true_caption_scores_full_marks() -> None:
    """Every share is 1."""
    row = score("m", [TRUTH], [parse(TRUTH)], [TRUTH])
    assert (row.scenes, row.objects) == (1, 2)
    assert {row.shape, row.colour, row.direction, row.size, row.speed, row.counted, row.exact} == {1.0}


def test_each_error_counts_where_it_belongs() -> None:
    """A wrong colour costs colour alone; an object left out costs everything that it has."""
    wrong = TRUTH.replace("red", "green")
    row = score("m", [wrong], [parse(TRUTH)], [TRUTH])
    assert (row.colour, row.shape, row.direction, row.counted, row.exact) == (0.5, 1.0, 1.0, 1.0, 0.0)
    half = TRUTH.partition(" In ")[0]
    row = score("m", [half], [parse(TRUTH)], [TRUTH])
    assert (row.colour, row.shape, row.direction, row.counted) == (0.5, 0.5, 0.5, 0.0)


def test_inventing_an_object_earns_nothing() -> None:
    """Only true objects are counted, and the number of objects is wrong."""
    row = score("m", [TRUTH], [(Claim("large", "red", "ball", 0, "quickly"),)], [""])
    assert (row.objects, row.colour, row.counted) == (1, 1.0, 0.0)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [("bfloat16", "auto"), ("int8", "auto"), ("int4", "auto"), ("float32", "int8")]
)
def test_the_loss_of_a_precision_is_a_command(
    dtype: str, kv_dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evspec eval --dtype --kv-dtype` scores both models in it."""
    if dtype.startswith("int"):
        pytest.importorskip("torchao", reason="int8 and int4 need torchao")
    models = Path(__file__).parents[2] / "models"
    named = ["--target", f"{models}/tiny_video_llava", "--event-model", f"{models}/tiny_eventgpt"]
    precision = ["--dtype", dtype, "--kv-dtype", kv_dtype]
    assert cli.main(["eval", "--simulated", "2", *precision, "--json", *named]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == ["Video-LLaVA", "EventGPT"]
    assert all(row["scenes"] == 2 and row["objects"] >= 2 for row in rows)


@pytest.mark.parametrize("command", [["eval", "--simulated"], ["bench", "decode", "--scenes"]])
def test_a_tokenizer_of_another_model_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target beside EventGPT's tokenizer gets one sentence and status 1 instead of wrong words."""
    models = Path(__file__).parents[2] / "models"
    target = tmp_path / "target"
    shutil.copytree(models / "tiny_video_llava", target)
    shutil.copy(models / "tiny_eventgpt" / "tokenizer.json", target)
    named = ["--target", f"{target}", "--event-model", f"{models}/tiny_eventgpt"]
    assert cli.main([*command, "1", *named]) == 1
    assert "use the tokenizer that belongs to the checkpoint" in capsys.readouterr().err


def test_lossless_drafters_change_no_score_and_lossy_ones_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`--with-drafters`: every row but those of lossy rules has the target's own texts."""
    pytest.importorskip("sacrebleu", reason="scores need sacrebleu")
    assert cli.main(["eval", "--simulated", "1", "--with-drafters", "--json"]) == 0
    rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if "acceptance" in row]
    lossless = [row for row in rows if row["lossless"]]
    assert len(lossless) >= 10
    assert {row["acceptance"] for row in rows} == {"exact", "typical", "cascade"}
    assert {row["same_text"] for row in lossless} == {1.0}
    assert len({(row["bleu"], row["chrf"], row["rougeL"], row["exact"]) for row in lossless}) == 1
    assert lossless[0]["tokens_per_pass"] == 1.0


@pytest.mark.parametrize(
    ("text", "bleu", "exact"), [(TRUTH, 100.0, 1.0), ("nothing like it at all", 0.0, 0.0)]
)
def test_text_scores_are_the_libraries(text: str, bleu: float, exact: float) -> None:
    """A text that is the answer has full marks in all measures, one without a common word none."""
    scores = score_texts([text], [TRUTH])
    assert scores["bleu"] == pytest.approx(bleu, abs=1.0)
    assert scores["exact"] == scores["rougeL"] == exact
    assert scores["chrf"] == 100.0 if exact else scores["chrf"] < 20.0
