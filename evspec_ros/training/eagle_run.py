"""`evspec train eagle` and `eagle3`: a draft head for two checkpoints, from simulated scenes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava, save_draft_head
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.tokenizer import load_target_tokenizer
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.prompts import DEFAULT_PROMPT, target_prompt
from evspec_ros.training.dataset import concatenate, make_sample, make_samples
from evspec_ros.training.draft_heads import EaglePlan, SceneBatch, Scenes, train_eagle
from evspec_ros.training.progress import training_progress
from evspec_ros.training.tiny import normalise

FEW = 4  # scenes are not worth another process
UNSEEN = 1_000_000  # the tiny models learn from the scenes of "train" before this one


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A target, an event model, and the default prompt as ids [n] with its one video token."""

    target: VideoLlava
    event_model: EventGpt
    prompt_ids: Tensor


def load_pair(target: Path, event_model: Path, device: str = "cpu") -> ModelPair:
    """From checkpoint directories; raises CheckpointError."""
    model = load_video_llava(target, device=device)
    tokenizer = load_target_tokenizer(target, model.config)
    ids = tokenizer.encode(target_prompt(DEFAULT_PROMPT), bos=True)
    return ModelPair(
        model,
        load_eventgpt(event_model, device=device),
        torch.tensor(ids, device=device),
    )


def simulated(split: str, first: int = 0, device: str = "cpu") -> Scenes:
    """The scenes of a split from scene `first` on, as the tiny models see them, made on every core."""
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))

    def scenes(start: int, stop: int) -> SceneBatch:
        numbers = range(first + start, first + stop)
        few = len(numbers) < 2 * FEW
        samples = (
            make_samples(split, numbers.start, numbers.stop)
            if few
            else concatenate(list(pool.map(make_sample, repeat(split), numbers, chunksize=FEW)))
        )
        frames, events = (normalise(images).to(device) for images in (samples.frames, samples.event_images))
        return SceneBatch(frames, events)

    return scenes


def train_eagle_visibly(
    target: Path,
    event_model: Path,
    draft_head: Path,
    run: Path,
    plan: EaglePlan,
    device: str = "cpu",
) -> dict[str, float]:
    """Train a head, write it to the directory `draft_head` and return its last figures; progress on stderr.

    Interrupted, it goes on from `run` when called again. Raises CheckpointError and TrainingError.
    """
    pair = load_pair(target, event_model, device)
    figures: dict[str, float] = {}
    with training_progress() as show:

        def report(stage: str, done: int, total: int, figure: float) -> None:
            figures[stage] = figure
            show(stage, done, total, figure)

        head = train_eagle(
            pair.target, pair.event_model, pair.prompt_ids,
            simulated("train", UNSEEN, device), simulated("held_out", device=device), run, plan, report,
        )  # fmt: skip
    save_draft_head(head, draft_head)
    return {"loss": figures[plan.kind], "held_out_agreement": figures["held-out agreement"]}
