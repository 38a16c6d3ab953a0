"""Training in several processes, and what it logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from evspec_ros.errors import TrainingError
from evspec_ros.training.processes import naming_lost_workers
from evspec_ros.training.progress import training_progress

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
TRAIN = [
    "-m", "evspec_ros", "train", "eagle", "--target", str(MODELS / "tiny_video_llava"),
    "--event-model", str(MODELS / "tiny_eventgpt"), "--scenes", "4", "--held-out", "2", "--batch", "1",
    "--steps", "3", "--precision", "no", "--json",
]  # fmt: skip
TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def _run(folder: Path, *arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments, "--run", str(folder / "run"), "--draft-head", str(folder / "head")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    figures: dict[str, Any] = json.loads(result.stdout)  # of all processes one object
    return figures


def test_two_processes_learn_what_one_does_of_twice_the_batches(tmp_path: Path) -> None:
    """Launched by accelerate on two CPUs, against one process that accumulates two batches: each draws its
    share of the batches, the gradients are averaged, one process writes.
    """
    two = _run(tmp_path / "two", *TWO, *TRAIN)
    one = _run(tmp_path / "one", *TRAIN, "--accumulate", "2")
    assert two["acceptance_length"] == one["acceptance_length"]
    weights = [load_file(tmp_path / name / "head" / "model.safetensors") for name in ("one", "two")]
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], atol=1e-3, rtol=1e-2)
    states = [torch.load(tmp_path / name / "run" / "eagle.pt", weights_only=True) for name in ("one", "two")]
    begun = [state["progress"]["step"] for state in states]
    assert begun == [3, 3]
    for name, value in states[0]["model"].items():
        torch.testing.assert_close(value, states[1]["model"][name], atol=1e-5, rtol=1e-3)


def test_the_logs_hold_every_figure_once(tmp_path: Path) -> None:
    """TensorBoard's own reader finds each step of a run that was interrupted and went on from an earlier
    one.
    """
    for first, last in ((1, 6), (4, 9)):  # steps 4 and 5 are done again
        with training_progress(tmp_path) as report:
            for step in range(first, last):
                report("eagle", step, 8, 1 / step)
                report("acceptance length", step, 8, float(first))
    for stage, value in (("eagle", 0.25), ("acceptance length", 4.0)):
        found = EventAccumulator(str(tmp_path / stage.replace(" ", "-"))).Reload().Scalars(stage)
        assert [event.step for event in found] == list(range(1, 9))
        assert found[3].value == value


def test_a_worker_that_was_ended_is_told_in_a_sentence() -> None:
    """As the system ends one when memory runs out."""
    with (
        pytest.raises(TrainingError, match="ended from outside"),
        naming_lost_workers(),
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        pool.submit(os._exit, 1).result()
