"""The bench of a GPU runs whole on a CPU at the tiny shape, goes on where it stopped, keeps to its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from evspec_ros import cli
from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.gpu_figures import (
    Figure,
    FigureFile,
    GpuReport,
    Measurement,
    measure_all,
    print_figures,
)

BEGUN = {"machine": "a GPU", "torch": "2", "device": "cuda", "shape": "7b"}
ROWS = (
    "decoder",
    "preprocessing",
    "block head",
    "event model",
    "overlap",
    "whole descriptions",
    "kernels: passes",
    "kernels: attention",
    "kernels: norm + residual",
    "kernels: rotary + cache write",
    "kernels: silu x up",
    "tiny: texts",
    "tiny: drafters",
    "tiny: waiting",
)


def _run(arguments: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["bench", "gpu", "--json", *arguments.split()]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.mark.slow
def test_every_row_is_measured_on_a_cpu_at_the_tiny_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All figures but those that need a GPU; texts are the plain ones; a second call measures nothing."""
    path = tmp_path / "rows.jsonl"
    tiny = f"--device cpu --shape tiny --windows 1 --repetitions 1 --minutes 10 --write {path}"
    report = _run(tiny, capsys)
    assert tuple(report["rows"]) == ROWS
    assert report["left_out"] == {}
    figures = {figure["name"]: figure for row in report["rows"].values() for figure in row}
    unmeasured = {name for name, figure in figures.items() if figure["value"] is None}
    compiled = {name for name in figures if name.endswith(("compiled", "keys in parts"))}
    assert len(compiled) == 2 * 2 + 2 + 3 * 2
    waits = {f"waits a turn, {drafter}" for drafter in ("suffix", "block", "eagle3", "eventgpt")}
    assert unmeasured == {"memory at most", *waits, *compiled}
    assert figures["other than the CPU's"]["value"] == 0
    assert figures["verify 24 nodes"]["at_most"] == 1.25
    assert figures["step's share of the bandwidth"]["at_least"] == 0.75
    assert "the same text" in figures["perfect draft"]["note"]
    times = [figure["value"] for figure in figures.values() if figure["unit"] in {"ms", "us"}]
    assert all(time is None or time > 0 for time in times)
    before = path.read_text(encoding="utf-8")
    assert _run(tiny, capsys) == report
    assert path.read_text(encoding="utf-8") == before


def _row(name: str, seconds: float = 0.0, value: float = 1.0) -> Measurement:
    return Measurement(name, seconds, lambda: [Figure("ms", value, "ms", at_most=2.0)])


def _failing() -> list[Figure]:
    raise RuntimeError("CUDA out of memory.\nTried to allocate more.")


def test_rows_that_are_known_are_not_measured_again(tmp_path: Path) -> None:
    """Even where the last line was cut short by an interruption."""
    path = tmp_path / "rows.jsonl"
    file = FigureFile(path, BEGUN)
    assert measure_all([_row("a"), _row("b")], file, 60, lambda _: None) == {}
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    again, measured = FigureFile(path, BEGUN), []
    measure_all([_row("a", value=5.0), _row("b", value=5.0), _row("c")], again, 60, measured.append)
    assert measured == ["b", "c"]
    found = FigureFile(path, BEGUN).figures
    assert {name: figures[0].value for name, figures in found.items()} == {"a": 1.0, "b": 5.0, "c": 1.0}


def test_rows_that_the_time_does_not_suffice_for_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shorter ones behind them are measured all the same; the table says what is missing and why."""
    file = FigureFile(tmp_path / "rows.jsonl", BEGUN)
    left_out = measure_all([_row("long", seconds=90), _row("short")], file, 30, lambda _: None)
    assert left_out == {"long": "no time: it may take 90 s, and 30 s are left"}
    print_figures(GpuReport(BEGUN, file.figures, left_out))
    out = capsys.readouterr().out
    assert "long was left out, no time" in out
    assert "short" in out


def test_a_row_that_fails_is_left_out_and_tried_again(tmp_path: Path) -> None:
    """In a line; the others are measured, and the next call tries it once more."""
    path = tmp_path / "rows.jsonl"
    rows = [Measurement("large", 0, _failing), _row("small")]
    file = FigureFile(path, BEGUN)
    left_out = measure_all(rows, file, 60, lambda _: None)
    assert left_out == {"large": "failed: CUDA out of memory. Tried to allocate more."}
    assert list(FigureFile(path, BEGUN).figures) == ["small"]


@pytest.mark.parametrize("content", ["", "nonsense\n", json.dumps({**BEGUN, "machine": "another"}) + "\n"])
def test_a_file_of_something_else_is_refused(content: str, tmp_path: Path) -> None:
    """Rows of two machines are never mixed."""
    path = tmp_path / "rows.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EvspecError, match="holds rows of another machine"):
        FigureFile(path, BEGUN)


@pytest.mark.parametrize(
    ("value", "at_most", "at_least", "met"),
    [(1.0, 2.0, None, True), (3.0, 2.0, None, False), (0.8, None, 0.75, True), (0.7, None, 0.75, False),
     (1.0, None, None, None), (None, 2.0, None, None)],
)  # fmt: skip
def test_a_goal_is_met_or_not(
    value: float | None, at_most: float | None, at_least: float | None, met: bool | None
) -> None:
    """Or nobody knows: without a goal, and without a value."""
    assert Figure("x", value, "", at_most, at_least).met is met


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            "", "torch sees no GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
        ),
        ("--device cpu", "The full-size shapes need a GPU; add --shape tiny"),
    ],
)
def test_without_a_gpu_one_sentence_says_what_to_do(
    arguments: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, and no file is begun."""
    path = tmp_path / "rows.jsonl"
    assert cli.main(["bench", "gpu", "--write", str(path), *arguments.split()]) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not path.exists()


@pytest.mark.gpu
def test_every_row_is_measured_on_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the tiny shape; every figure has a value, and texts are the CPU's."""
    arguments = f"--shape tiny --windows 2 --repetitions 2 --minutes 10 --write {tmp_path / 'rows.jsonl'}"
    report = _run(arguments, capsys)
    assert tuple(report["rows"]) == ROWS
    figures = {figure["name"]: figure for row in report["rows"].values() for figure in row}
    assert all(figure["value"] is not None for figure in figures.values())
    assert figures["other than the CPU's"]["value"] == 0
