"""`evspec train eagle`, `eagle3`, ... and `evspec features extract`: two checkpoints, and simulated scenes or
recordings.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import torch

from evspec_ros.choices import PLAIN
from evspec_ros.networks.checkpoints import load_eventgpt, load_video_llava, save_draft_head
from evspec_ros.networks.devices import compute_device
from evspec_ros.networks.tiny import TINY_CLIP
from evspec_ros.networks.tokenizer import load_fitting_tokenizer, load_target_tokenizer
from evspec_ros.prompts import DEFAULT_PROMPT, event_prompt, target_prompt
from evspec_ros.simulation.samples import Samples, concatenate, make_sample, make_samples
from evspec_ros.training.acceptance import acceptance
from evspec_ros.training.draft_heads import HeadPlan, needed_features, split, train_head
from evspec_ros.training.features import (
    Batches,
    Computed,
    FeatureShards,
    ModelPair,
    SceneBatch,
    Scenes,
    extract,
)
from evspec_ros.training.loop import Report
from evspec_ros.training.patches import normalise
from evspec_ros.training.processes import end_with_parent, naming_lost_workers, own_device, process
from evspec_ros.training.progress import training_progress

FEW = 4  # scenes are not worth another process
# The tiny models learn from the scenes of "train" before this one, and reports are about those of "held_out"
# before it: no training may choose its weights by them.
UNSEEN = 1_000_000


def load_pair(
    target: Path, event_model: Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> ModelPair:
    """From checkpoint directories; raises CheckpointError."""
    model = load_video_llava(target, dtype, device)
    events = load_eventgpt(event_model, dtype, device)
    tokenizer = load_target_tokenizer(target, model.config)
    event_tokenizer = load_fitting_tokenizer(event_model, events.config.text.vocab_size)
    before, after = event_prompt(DEFAULT_PROMPT)
    event_ids = event_tokenizer.encode(before, bos=True), event_tokenizer.encode(after)
    return ModelPair(
        model,
        events,
        torch.tensor(tokenizer.encode(target_prompt(DEFAULT_PROMPT), bos=True), device=device),
        (torch.tensor(event_ids[0], device=device), torch.tensor(event_ids[1], device=device)),
        tokenizer.decode,
    )


def simulated(split: str, first: int = 0, device: str = "cpu", condition: str = PLAIN) -> Scenes:
    """The scenes of a split and condition from scene `first` on, as the tiny models see them, made on every
    core.
    """
    size = TINY_CLIP.image_size
    pool = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), end_with_parent)

    def scenes(start: int, stop: int) -> SceneBatch:
        numbers = range(first + start, first + stop)
        if len(numbers) < 2 * FEW:
            return as_seen(make_samples(split, numbers.start, numbers.stop, size, condition), device)
        with naming_lost_workers():
            made = pool.map(
                make_sample, repeat(split), numbers, repeat(size), repeat(condition), chunksize=FEW
            )
            return as_seen(concatenate(list(made)), device)

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
    features: Path | None = None,
    *,
    store: bool = True,
) -> dict[str, float]:
    """Train a head, write it to the directory `draft_head` and return its last figures (of several processes
    the first does, the others return none); progress on stderr, and as TensorBoard's logs in the run
    directory.

    Interrupted, it goes on from `run` when called again. It learns from a directory of features where one is
    given, else from simulated scenes, whose features are kept in `run` or, without store, computed whenever
    they are needed. Raises CheckpointError and TrainingError.
    """
    place = own_device(compute_device(device))
    pair = load_pair(target, event_model, str(place))
    figures: dict[str, float] = {}
    first = process(place).is_main_process
    with training_progress(run / "tensorboard", visible=first) as show:

        def report(stage: str, done: int, total: int, figure: float) -> None:
            figures[stage] = figure
            show(stage, done, total, figure)

        data = (
            _simulated_batches(pair, run, plan, report, store=store)
            if features is None
            else split(FeatureShards.open(features, pair), needed_features(pair, plan))
        )
        head = train_head(pair, *data, run, plan, report)
        found = acceptance(pair, head, data[1])
    if not first:
        return {}
    save_draft_head(head, draft_head)
    loss = {"loss": figures[plan.kind]} if plan.kind in figures else {}
    return {**loss, **{name.replace(" ", "_").replace("-", "_"): value for name, value in found.items()}}


def _simulated_batches(
    pair: ModelPair, run: Path, plan: HeadPlan, report: Report, *, store: bool
) -> tuple[Batches, Batches]:
    """Scenes that neither the tiny models nor any report has seen: what to learn from and what to test
    with.
    """
    wanted = needed_features(pair, plan)
    device = str(pair.device)
    found: list[Batches] = []
    for split_, count in (("train", plan.scenes), ("held_out", plan.held_out)):
        scenes = simulated(split_, UNSEEN, device, plan.condition)
        source = {"scenes": split_, "first": UNSEEN, "condition": plan.condition}
        found.append(
            extract(pair, scenes, run / split_, wanted, count, source, report)
            if store
            else Computed(pair, scenes, wanted, count)
        )
    return found[0], found[1]
