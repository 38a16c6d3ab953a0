"""The links of the chain from scenes to results, each so small that it takes seconds."""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from random_pair import noise_scenes, random_pair

from evspec_ros.evaluation import study
from evspec_ros.networks.checkpoints import save_draft_head
from evspec_ros.networks.video_llava import VideoLlavaConfig
from evspec_ros.prompts import EVENT_TOKENS
from evspec_ros.training import dataset, loop, tiny
from evspec_ros.training.draft_heads import HeadPlan, needed_features, split, train_head
from evspec_ros.training.features import FeaturePlan, FeatureShards, Scenes, extract
from evspec_ros.training.loop import Schedule
from evspec_ros.training.processes import end_with_parent

SHORT = Schedule(2, 1e-3, warmup=1)
TINY = tiny.TinyPlan(
    scenes=2, batch=2, tower_batch=2, tower=SHORT, event_tower=SHORT, shallow=SHORT, deep=SHORT, event=SHORT,
    shallow_layers=2,
)  # fmt: skip
HEAD = HeadPlan("eagle3", batch=4, schedule=Schedule(30, 1e-3, warmup=1), max_new_tokens=8)
STUDY = study.StudyPlan(
    seeds=1, scenes=6, held_out=2, steps=2, batch=2, sizes=(0.01,), amounts=(4,), conditions=("night",)
)
train_tokenizer = functools.cache(tiny.train_tokenizer)
for special in (tiny.TARGET_TOKENS, EVENT_TOKENS):  # once for all processes that are forked from here
    train_tokenizer(special)


def make_checkpoints(folder: Path) -> None:
    """Scenes, and the tiny checkpoints that learn from them; the target is three layers deep."""
    whole = tiny.tiny_video_llava

    def smaller(*ids: int) -> VideoLlavaConfig:
        return replace(whole(*ids), text=replace(whole(*ids).text, num_layers=3))

    _exchange(dataset, SHARD=1)
    _exchange(tiny, tiny_video_llava=smaller, train_tokenizer=train_tokenizer)
    tiny.train_tiny(folder / "run", folder / "models", TINY)


def extract_features(folder: Path) -> None:
    """Of every layer of a random pair of models."""
    pair = random_pair()
    plan = FeaturePlan.for_pair(pair, range(4), max_new_tokens=8, shard=2)
    extract(pair, noise_scenes, folder, plan, 20, "noise")


def train_eagle3(folder: Path) -> None:
    """From these features."""
    extract_features(folder / "features")
    pair = random_pair()
    data = split(FeatureShards.open(folder / "features", pair), needed_features(pair, HEAD))
    save_draft_head(train_head(pair, *data, folder / "run", HEAD), folder / "head")


def find_results(folder: Path) -> None:
    """Heads of every kind for that pair; what takes its time without being trained is left out."""

    def noise(*_: Any, **__: Any) -> Scenes:
        return noise_scenes

    def nothing(*_: Any) -> list[Any]:
        return []

    def pair(*_: Any) -> Any:
        return random_pair()

    short = {kind: replace(plan, max_new_tokens=8) for kind, plan in study.TINY_PLANS.items()}
    _exchange(study, load_pair=pair, simulated=noise, TINY_PLANS=short, _accuracies=nothing, _race=nothing)
    study.run_study(folder, folder, folder, STUDY)


def run(link: Callable[[Path], None], folder: Path, longest: int | None = None) -> None:
    """One link in a process of its own, its state kept at every step; the process dies in the middle of the
    first file that is longer than so many bytes.
    """
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of its own workers: as where nobody has set one
    if longest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (longest, longest))
    _exchange(loop, SAVE_SECONDS=0.0)
    link(folder)


def keep_workers(folder: Path) -> None:
    """Workers as those that make scenes, each named by a file, until this process ends."""
    with ProcessPoolExecutor(2, initializer=end_with_parent) as pool:
        for path in pool.map(_name_itself, [folder, folder]):
            path.rename(path.with_suffix(".pid"))
        pool.submit(time.sleep, 600).result()


def _name_itself(folder: Path) -> Path:
    time.sleep(0.2)  # so that both have something to do
    path = folder / str(os.getpid())
    path.touch()
    return path


def _exchange(module: Any, **values: Any) -> None:
    for name, value in values.items():
        assert hasattr(module, name)
        setattr(module, name, value)
