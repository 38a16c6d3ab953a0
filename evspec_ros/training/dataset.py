"""Simulated samples on disk: a directory of shards, each written whole or not at all, so that making it can
be interrupted and gone on with.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from evspec_ros.choices import PLAIN
from evspec_ros.errors import TrainingError
from evspec_ros.networks.tiny import TINY_CLIP
from evspec_ros.simulation.samples import Samples, concatenate, make_samples
from evspec_ros.training.files import written_whole
from evspec_ros.training.loop import Report
from evspec_ros.training.processes import end_with_parent, naming_lost_workers

SHARD = 512  # scenes


def prepare(
    directory: Path, split: str, scenes: int, report: Report = lambda *_: None, condition: str = PLAIN
) -> None:
    """Make the shards of a split and condition that are not there yet, on every core. Raises TrainingError
    where one cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    starts = range(0, scenes, SHARD)
    missing = [start for start in starts if not _shard(directory, split, start, condition).exists()]
    with naming_lost_workers(), ProcessPoolExecutor(os.cpu_count(), initializer=end_with_parent) as pool:
        made = pool.map(_write_shard, repeat(directory), repeat(split), missing, repeat(condition))
        for left, _ in zip(reversed(range(len(missing))), made, strict=True):
            report("scenes", scenes - left * SHARD, scenes, 0.0)


def load(directory: Path, split: str, scenes: int, condition: str = PLAIN) -> Samples:
    """The first `scenes` scenes of a split and condition, all in memory (0.16 MB each). Raises TrainingError
    for a shard that is damaged.
    """
    return concatenate(
        [_load_shard(_shard(directory, split, start, condition)) for start in range(0, scenes, SHARD)]
    )


def _shard(directory: Path, split: str, start: int, condition: str) -> Path:
    name = split if condition == PLAIN else f"{split}-{condition}"
    return directory / f"{name}-{start:06d}.npz"


def _write_shard(directory: Path, split: str, start: int, condition: str) -> None:
    samples = make_samples(split, start, start + SHARD, TINY_CLIP.image_size, condition)
    with (
        written_whole(_shard(directory, split, start, condition)) as unfinished,
        unfinished.open("wb") as file,
    ):
        np.savez(file, **vars(samples))


def _load_shard(path: Path) -> Samples:
    try:
        with np.load(path) as shard:
            return Samples(**{name: shard[name] for name in shard.files})
    except (OSError, EOFError, ValueError, TypeError, BadZipFile) as error:
        raise TrainingError(
            f"{path} is damaged ({error}); delete it and give the same command again."
        ) from error
