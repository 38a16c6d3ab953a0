"""Simulated samples on disk: what both models see of a scene, and the caption that is true of it.

A data set is a directory of shards, each written whole or not at all, so that making it can be interrupted
and gone on with. Scene k of a split is drawn from the seed (split, k), one of another condition than plain
from (split, k, condition): the same on every machine. The condition MIXED takes scenes of all conditions in
turn.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from evspec_ros.choices import CONDITIONS, PLAIN
from evspec_ros.errors import TrainingError
from evspec_ros.events.rendering import render_event_images
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.networks.tiny import TINY_CLIP
from evspec_ros.sizes import FRAMES
from evspec_ros.training.captions import caption
from evspec_ros.training.conditions import condition_of, draw_scene
from evspec_ros.training.files import written_whole
from evspec_ros.training.loop import Report
from evspec_ros.training.processes import end_with_parent, naming_lost_workers
from evspec_ros.training.scenes import COLOURS, DIRECTIONS, SHAPES, SIZES, STILL, Scene
from evspec_ros.training.sensors import Camera, open_camera

SPLITS = {"train": 0, "held_out": 1}
SHARD = 512  # scenes
FRAMES_S = 1.0  # the frames cover the last second
CAMERA_HZ = 30.0
WINDOW_S = 0.05
STREAM_STEP_S = 0.1
MAX_OBJECTS = 3
NO_OBJECT = -1


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples, one array per field.

    frames: uint8 [N, 8, S, S, 3], resized as CLIP does; event_images: uint8 [N, 5, S, S, 3]; captions: [N]
    text. looks: int8 [N, 3, 4], (shape, colour, direction or, as the last one, none, size) of each object,
    NO_OBJECT in all four where there is none; places: float32 [N, 3, 8, 2], the centres in each frame.
    """

    frames: NDArray[np.uint8]
    event_images: NDArray[np.uint8]
    captions: NDArray[np.str_]
    looks: NDArray[np.int8]
    places: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.frames)


def sample_scene(split: str, index: int, condition: str = PLAIN) -> tuple[Scene, Camera, NDArray[np.float64]]:
    """Scene `index` of a split, a camera that has seen it up to 50 ms before time 0, and the eight frame
    times. condition: one of CONDITIONS, or MIXED.
    """
    condition = condition_of(condition, index)
    seed = [SPLITS[split], index]
    if condition != PLAIN:
        seed.append(CONDITIONS.index(condition))
    random = np.random.default_rng(seed)
    scene = draw_scene(condition, random)
    camera = open_camera(scene, int(random.integers(2**31)), start_s=-WINDOW_S)
    # the camera runs at its own pace: take the frames that it has nearest to eight evenly spaced instants
    phase = random.uniform(0, 1 / CAMERA_HZ)
    ideal = np.linspace(-FRAMES_S, 0, FRAMES)
    times = np.minimum(np.round((ideal + phase) * CAMERA_HZ), 0) / CAMERA_HZ - phase
    return scene, camera, times


def make_sample(split: str, index: int, condition: str = PLAIN) -> Samples:
    """Scene `index` of a split as both models see it, N = 1."""
    return _look(*sample_scene(split, index, condition), 0.0)


def make_stream(split: str, index: int, windows: int, condition: str = PLAIN) -> Samples:
    """Scene `index` of a split window after window, STREAM_STEP_S apart, N = windows."""
    scene, camera, times = sample_scene(split, index, condition)
    parts = []
    for window in range(windows):
        now = window * STREAM_STEP_S
        camera.events(now - WINDOW_S)  # what came between two windows is not seen
        parts.append(_look(scene, camera, times + now, now))
    return concatenate(parts)


def changes_slowly(split: str, index: int, condition: str = PLAIN) -> bool:
    """Whether nothing in a scene moves quickly."""
    scene, _, _ = sample_scene(split, index, condition)
    return all(thing.speed == "slowly" or thing.direction(0.0) == STILL for thing in scene.objects)


def _look(scene: Scene, camera: Camera, times: NDArray[np.float64], now: float) -> Samples:
    """A scene at one moment, the frames at these times and the events since the last look."""
    preprocessor = ClipPreprocessor(TINY_CLIP.image_size)
    frames = [preprocessor.resize(camera.image(time)) for time in times]
    images = [preprocessor.resize(image) for image in render_event_images(camera.events(now))]
    looks = np.full((MAX_OBJECTS, 4), NO_OBJECT, np.int8)
    places = np.zeros((MAX_OBJECTS, FRAMES, 2), np.float32)
    colours, sizes = list(COLOURS), list(SIZES)
    for k, thing in enumerate(scene.objects):
        direction = thing.direction(now)
        looks[k] = (
            SHAPES.index(thing.shape),
            colours.index(thing.colour),
            len(DIRECTIONS) if direction == STILL else direction,
            sizes.index(thing.size),
        )
        places[k] = scene.places(thing, times)
    return Samples(
        np.stack(frames)[None],
        np.stack(images)[None],
        np.array([caption(scene, now)]),
        looks[None],
        places[None],
    )


def make_samples(split: str, start: int, stop: int, condition: str = PLAIN) -> Samples:
    """Scenes start to stop - 1 of a split."""
    parts = [make_sample(split, index, condition) for index in range(start, stop)]
    return concatenate(parts)


def concatenate(parts: list[Samples]) -> Samples:
    """Several sets as one."""
    fields = ("frames", "event_images", "captions", "looks", "places")
    return Samples(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))


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
    samples = make_samples(split, start, start + SHARD, condition)
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
