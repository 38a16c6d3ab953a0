"""Simulated scenes against plain references."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evspec_ros.events.types import Events
from evspec_ros.simulation import ideal_camera, scenes
from evspec_ros.simulation.ideal_camera import LOG_OFFSET, LUMINANCE, STEP_NS, SceneCamera
from evspec_ros.simulation.scenes import (
    DIRECTIONS,
    MIN_DISTANCE,
    MIN_ORDER_GAP,
    STILL,
    Scene,
    SceneObject,
    random_scene,
)

SIZE = 20


@pytest.fixture
def _no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ideal_camera, "NOISE_RATE_HZ", 0.0)


def _scene() -> Scene:
    """Two shapes that pass before each other."""
    return Scene(
        "dark",
        (0.1, -0.05),
        (
            SceneObject("star", "white", "large", 0.3, 0.5, 0.5, 0.0),
            SceneObject("ring", "red", "large", 0.5, 0.5, -0.3, 0.2),
        ),
    )


def _reference_events(scene: Scene, seed: int, steps: int) -> list[tuple[int, int, int, int]]:
    """(t, x, y, p) by watching every pixel of every whole image, as ESIM defines it."""
    camera = SceneCamera(scene, seed, SIZE)
    before, reference, thresholds = camera._light.copy(), camera._reference.copy(), camera._thresholds
    found = []
    for step in range(1, steps + 1):
        light = np.log(camera._draw(step * STEP_NS * 1e-9) @ LUMINANCE + LOG_OFFSET)
        for y in range(SIZE):
            for x in range(SIZE):
                old, new, threshold = before[y, x], light[y, x], thresholds[y, x]
                sign = 1 if new > old else -1
                while new != old and sign * (new - reference[y, x]) >= threshold:
                    reference[y, x] += sign * threshold
                    share = min(max((reference[y, x] - old) / (new - old), 0.0), 1.0)
                    found.append(((step - 1) * STEP_NS + int(share * STEP_NS), x, y, int(sign > 0)))
        before = light
    return sorted(found)


def _tuples(events: Events) -> list[tuple[int, int, int, int]]:
    return sorted(zip(*(field.tolist() for field in (events.t, events.x, events.y, events.p)), strict=True))


@pytest.mark.usefixtures("_no_noise")
def test_events_are_those_of_a_plain_per_pixel_reference() -> None:
    """Only what moves is recomputed, yet no pixel's event is lost or added."""
    found = _tuples(SceneCamera(_scene(), 3, SIZE).events(0.3))
    expected = _reference_events(_scene(), 3, 300)
    assert len(expected) > 200
    assert [event[1:] for event in found] == [event[1:] for event in expected]
    assert max(abs(a[0] - b[0]) for a, b in zip(found, expected, strict=True)) <= 1000  # ns: rounding of logs


@pytest.mark.usefixtures("_no_noise")
def test_a_recording_in_pieces_is_the_whole() -> None:
    """The camera's state is carried from one piece to the next."""
    whole = SceneCamera(_scene(), 5).events(0.06)
    camera = SceneCamera(_scene(), 5)
    pieces = [camera.events(stop) for stop in (0.01, 0.035, 0.06)]
    assert _tuples(whole) == sorted(event for piece in pieces for event in _tuples(piece))


def test_a_scene_that_stands_still_sends_noise_alone() -> None:
    """Noise comes at its stated rate from the whole sensor."""
    still = Scene("grey", (0.0, 0.0), (SceneObject("box", "blue", "small", 0.5, 0.5, 0.0, 0.0),))
    events = SceneCamera(still, 1).events(1.0)
    expected = ideal_camera.NOISE_RATE_HZ * ideal_camera.SENSOR_SIZE**2
    assert abs(len(events) - expected) < 6 * math.sqrt(expected)
    assert (np.diff(events.t) >= 0).all()
    assert events.x.max() >= ideal_camera.SENSOR_SIZE - 3
    assert events.y.max() >= ideal_camera.SENSOR_SIZE - 3


def test_objects_bounce_and_stay_inside() -> None:
    """A path is folded between the walls, and the velocity changes its sign there."""
    thing = SceneObject("ball", "red", "small", 0.8, 0.5, 0.5, 0.0)
    positions = thing.position(np.linspace(0, 20, 2001))
    assert positions.min() >= thing.radius - 1e-12
    assert positions.max() <= 1 - thing.radius + 1e-12
    assert thing.direction(0.1) == DIRECTIONS.index("to the right")
    assert thing.direction(0.5) == DIRECTIONS.index("to the left")
    assert np.abs(np.diff(positions[:, 0])).max() < 0.0051  # no jumps


def test_drawn_scenes_can_be_described_without_ambiguity() -> None:
    """Order, distance and direction are clear at the moment of description; nothing bounces just before."""
    random = np.random.default_rng(0)
    for _ in range(200):
        scene = random_scene(random, at_s=2.0)
        centres = np.concatenate([o.position(np.array([2.0])) for o in scene.objects])
        for i, first in enumerate(centres):
            for second in centres[i + 1 :]:
                assert abs(first[0] - second[0]) >= MIN_ORDER_GAP
                assert np.hypot(*(first - second)) >= MIN_DISTANCE
        for thing in scene.objects:
            assert thing.direction(2.0) == thing.direction(2.0 - scenes.CALM_S * 0.9)
            assert (thing.direction(2.0) == STILL) == (thing.vx == thing.vy == 0.0)


def test_the_image_shows_the_object_where_the_scene_says() -> None:
    """A white box on a dark ground: bright inside, dark outside."""
    scene = Scene("dark", (0.0, 0.0), (SceneObject("box", "white", "large", 0.25, 0.75, 0.0, 0.0),))
    image = SceneCamera(scene, 0, 100).image(0.0)
    assert image.dtype == np.uint8
    assert image[75, 25].min() > 240
    assert image[25, 75].max() < 70
    assert image[75 - 11 : 75 + 11, 25 - 11 : 25 + 11].min() > 230
    assert image[75, 25 + 13].max() < 80
