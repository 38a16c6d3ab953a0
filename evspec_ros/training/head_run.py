"""`evspec train eagle`, `eagle3`, ...: a draft head for two checkpoints, from simulated scenes."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava, save_draft_head
from evspec_ros.networks.tokenizer import load_fitting_tokenizer, load_target_tokenizer
from evspec_ros.prompts import DEFAULT_PROMPT, event_prompt, target_prompt
from evspec_ros.training.dataset import Samples, concatenate, make_sample, make_samples
from evspec_ros.training.draft_heads import HeadPlan, ModelPair, SceneBatch, Scenes, train_head
from evspec_ros.training.progress import training_progress
from evspec_ros.training.tiny import normalise

FEW = 4  # scenes are not worth another process
UNSEEN = 1_000_000  # the tiny models learn from the scenes of "train" before this one


def load_pair(target: Path, event_model: Path, device: str = "cpu") -> ModelPair:
    """From checkpoint directories; raises CheckpointError."""
    model = load_video_llava(target, device=device)
    events = load_eventgpt(event_model, device=device)
    tokenizer = load_target_tokenizer(target, model.config)
    event_tokenizer = load_fitting_tokenizer(event_model, events.config.text.vocab_size)
    before, after = event_prompt(DEFAULT_PROMPT)
    event_ids = event_tokenizer.encode(before, bos=True), event_tokenizer.encode(after)
    return ModelPair(
        model,
        events,
        torch.tensor(tokenizer.encode(target_prompt(DEFAULT_PROMPT), bos=True), device=device),
        (torch.tensor(event_ids[0], device=device), torch.tensor(event_ids[1], device=device)),
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
        return as_seen(samples, device)

    return scenes


def as_seen(samples: Samples, device: str = "cpu") -> SceneBatch:
    """Samples as the models read them."""
    frames, events = (normalise(images).to(device) for images in (samples.frames, samples.event_images))
    return SceneBatch(frames, events)


def train_head_visibly(
    target: Path,
    event_model: Path,
    draft_head: Path,
    run: Path,
    plan: HeadPlan,
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

        head = train_head(
            pair, simulated("train", UNSEEN, device), simulated("held_out", device=device), run, plan, report,
        )  # fmt: skip
    save_draft_head(head, draft_head)
    return {"loss": figures[plan.kind], "held_out_agreement": figures["held-out agreement"]}
