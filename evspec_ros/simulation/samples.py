"""What both models see of simulated scenes, and the captions that are true of them.

Scene k of a split is drawn from the seed (split, k), one of another condition than plain from (split, k,
condition): the same on every machine. The condition MIXED takes scenes of all conditions in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evspec_ros.choices import CONDITIONS, PLAIN
from evspec_ros.events.rendering import render_event_images
from evspec_ros.frames.clip import ClipPreprocessor
from evspec_ros.simulation.captions import caption
from evspec_ros.simulation.conditions import condition_of, draw_scene
from evspec_ros.simulation.scenes import COLOURS, DIRECTIONS, SIZES, STILL, Scene
from evspec_ros.simulation.sensors import Camera, open_camera
from evspec_ros.simulation.shapes import SHAPES
from evspec_ros.sizes import FRAMES

SPLITS = {"train": 0, "held_out": 1}
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


def make_sample(split: str, index: int, size: int, condition: str = PLAIN) -> Samples:
    """Scene `index` of a split as both models see it, in images of size x size pixels; N = 1."""
    return _look(*sample_scene(split, index, condition), 0.0, size)


def make_stream(split: str, index: int, windows: int, size: int, condition: str = PLAIN) -> Samples:
    """Scene `index` of a split window after window, STREAM_STEP_S apart, N = windows."""
    scene, camera, times = sample_scene(split, index, condition)
    parts = []
    for window in range(windows):
        now = window * STREAM_STEP_S
        camera.events(now - WINDOW_S)  # what came between two windows is not seen
        parts.append(_look(scene, camera, times + now, now, size))
    return concatenate(parts)


def changes_slowly(split: str, index: int, condition: str = PLAIN) -> bool:
    """Whether nothing in a scene moves quickly."""
    scene, _, _ = sample_scene(split, index, condition)
    return all(thing.speed == "slowly" or thing.direction(0.0) == STILL for thing in scene.objects)


def _look(scene: Scene, camera: Camera, times: NDArray[np.float64], now: float, size: int) -> Samples:
    """A scene at one moment, the frames at these times and the events since the last look."""
    preprocessor = ClipPreprocessor(size)
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


def make_samples(split: str, start: int, stop: int, size: int, condition: str = PLAIN) -> Samples:
    """Scenes start to stop - 1 of a split."""
    parts = [make_sample(split, index, size, condition) for index in range(start, stop)]
    return concatenate(parts)


def concatenate(parts: list[Samples]) -> Samples:
    """Several sets as one."""
    fields = ("frames", "event_images", "captions", "looks", "places")
    return Samples(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))
