"""Scenes of each condition: what they are, that they stay what they are, and what is said of them."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evspec_ros.choices import CONDITIONS, MIXED, PLAIN
from evspec_ros.recordings import open_recording
from evspec_ros.simulation.captions import COVERED, caption, claims, parse
from evspec_ros.simulation.conditions import BLURRING, HIDDEN, NIGHT_LIGHT, condition_of, draw_scene
from evspec_ros.simulation.ideal_camera import SceneCamera
from evspec_ros.simulation.recorded_scene import record_scene
from evspec_ros.simulation.samples import SPLITS, make_sample, make_stream, sample_scene
from evspec_ros.simulation.scenes import (
    BACKGROUNDS,
    CALM_S,
    DIRECTIONS,
    LAMP_LIGHT,
    STILL,
    Bar,
    CameraMotion,
    Scene,
    SceneObject,
    hidden_share,
    random_scene,
)
from evspec_ros.simulation.sensors import PhysicalCamera, _views
from evspec_ros.training import dataset
from evspec_ros.training.tokenizer import train_tokenizer

SIZE = 64  # pixels a side of a sample's images
MAX_ANSWER = 80  # tokens that the models write at most
HARD = [condition for condition in CONDITIONS if condition != PLAIN]
SEEDS = st.integers(0, 2**31)


def _scenes(condition: str, count: int = 60) -> list[Scene]:
    random = np.random.default_rng(1)
    return [draw_scene(condition, random) for _ in range(count)]


def test_plain_scenes_are_what_they_always_were() -> None:
    """The shipped checkpoints' scores and every benchmark are of these: known texts and sums of pixels."""
    known = {
        "Two objects on a light background. At the bottom, a small black cone glides quickly to the right. "
        "At the top, a small orange ball rolls slowly to the lower left. The black cone is the fastest.": (
            18696493,
            15577660,
        ),
        "Two objects on a dark background. At the top left, a small blue box slides quickly downwards. At "
        "the bottom, a small white ball rolls quickly to the left. They move different ways.": (
            6032993,
            15556594,
        ),
    }
    for index, (text, (frames, images)) in enumerate(known.items()):
        sample = make_sample("held_out", index, SIZE)
        assert sample.captions[0] == text
        assert int(sample.frames.sum(dtype=int)) == pytest.approx(frames, rel=1e-4)
        assert int(sample.event_images.sum(dtype=int)) == pytest.approx(images, rel=1e-4)
        assert isinstance(sample_scene("held_out", index)[1], SceneCamera)
    assert draw_scene(PLAIN, np.random.default_rng(3), 1.5) == random_scene(np.random.default_rng(3), 1.5)


def test_a_scene_is_the_same_in_every_process() -> None:
    """It is its split, its number and its condition: pixels, events and text of another process are equal."""
    program = (
        "import hashlib\n"
        "from evspec_ros.choices import CONDITIONS\n"
        "from evspec_ros.simulation.samples import make_sample\n"
        "fields = [v for c in CONDITIONS for v in vars(make_sample('held_out', 4, 64, c)).values()]\n"
        "print(hashlib.sha256(b''.join(v.tobytes() for v in fields)).hexdigest())"
    )
    root = Path(dataset.__file__).parents[2]
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root
    ).stdout.strip()
    fields = [v for c in CONDITIONS for v in vars(make_sample("held_out", 4, SIZE, c)).values()]
    assert hashlib.sha256(b"".join(v.tobytes() for v in fields)).hexdigest() == there


def test_no_two_scenes_are_alike() -> None:
    """Between conditions, splits and numbers: no condition takes another one's objects."""
    drawn = [
        sample_scene(split, index, condition)[0].objects
        for split in SPLITS
        for index in range(20)
        for condition in CONDITIONS
    ]
    assert len(set(drawn)) == len(drawn)


def test_a_mixture_has_fixed_proportions() -> None:
    """Any ten scenes in a row: half of them plain, one of each other condition, which is that one's own."""
    assert Counter(condition_of(MIXED, index) for index in range(30, 40)) == {
        PLAIN: 5,
        **dict.fromkeys(HARD, 1),
    }
    for index in range(4):
        mixed = make_sample("train", index, SIZE, MIXED)
        own = make_sample("train", index, SIZE, condition_of(MIXED, index))
        np.testing.assert_array_equal(mixed.frames, own.frames)


def test_conditions_are_kept_apart_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard of one condition is not taken for another's."""
    monkeypatch.setattr(dataset, "SHARD", 2)
    dataset.prepare(tmp_path, "train", 2)
    dataset.prepare(tmp_path, "train", 2, condition="night")
    night, plain = dataset.load(tmp_path, "train", 2, "night"), dataset.load(tmp_path, "train", 2)
    assert night.frames.mean() < 40 < plain.frames.mean()
    np.testing.assert_array_equal(night.frames[1], make_sample("train", 1, SIZE, "night").frames[0])


@pytest.mark.parametrize("condition", HARD)
def test_captions_are_true_and_short(condition: str) -> None:
    """Read back it gives the scene's claims, and it has no more tokens than a model writes, no bytes."""
    texts = []
    for scene in _scenes(condition):
        texts.append(caption(scene, 0.0))
        assert parse(texts[-1]) == claims(scene, 0.0)
    encoded = train_tokenizer([]).encode_batch(texts)
    assert max(len(one.ids) for one in encoded) < MAX_ANSWER
    assert not {token for one in encoded for token in one.tokens if token.startswith("<")}  # no byte fallback


@pytest.mark.parametrize("condition", HARD)
@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, at_s=st.floats(-1, 1.2))
def test_centres_stay_in_the_image(condition: str, seed: int, at_s: float) -> None:
    """Whatever the camera does, so that captions and labels have a place for every object."""
    scene = draw_scene(condition, np.random.default_rng(seed))
    for thing in scene.objects:
        x, y = scene.places(thing, np.array([at_s]))[0]
        assert 0 <= x < 1
        assert 0 <= y < 1


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_the_camera_says_how_it_moves(seed: int) -> None:
    """The caption's word for it is the opposite of where the floor goes, or turns, or whether it grows."""
    scene = draw_scene("camera", np.random.default_rng(seed), at_s=2.0)
    assert scene.camera is not None
    corners = np.array([[0.25, 0.5], [0.75, 0.5]])
    before, now = (scene.camera.show(corners, np.full(2, at)) for at in (1.99, 2.0))
    np.testing.assert_allclose(now, corners, atol=1e-12)  # straight when it is described
    (x, y), (right, down) = (now - before).mean(0), (now - before)[1] - (now - before)[0]
    (said,) = re.findall(r"The camera (.*?)\.", caption(scene, 2.0))
    if said.startswith("rolls"):
        assert abs(down) > 5 * abs(right)
        assert (down > 0) == (said == "rolls to the left")  # clockwise
    elif said in ("moves forwards", "moves back"):
        assert abs(right) > 5 * abs(down)
        assert (right > 0) == (said == "moves forwards")
    else:
        angle = DIRECTIONS.index(said.removeprefix("moves ")) * np.pi / 4
        assert np.dot([-x, -y], [np.cos(angle), np.sin(angle)]) > 0.9 * np.hypot(x, y)
    assert np.abs(now - before).max() > 0.0005


def test_what_stands_still_does_so_under_a_moving_camera() -> None:
    """The claim is about the scene, while the label's places follow the image."""
    still = SceneObject("box", "red", "small", 0.4, 0.5, 0.0, 0.0)
    scene = Scene("grey", (0.0, 0.0), (still,), "camera", CameraMotion((0.2, 0.0, 0.0, 0.0), 0.0), tiles=1)
    assert caption(scene, 0.0) == (
        "One object on a grey background. The camera moves to the left. In the middle, a small red box "
        "stands still. Only the camera moves."
    )
    np.testing.assert_allclose(scene.places(still, np.array([-0.2, 0.0])), [[0.36, 0.5], [0.4, 0.5]])


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, seconds=st.floats(-3, 3))
def test_the_view_is_the_inverse_of_what_is_shown(seed: int, seconds: float) -> None:
    """A pixel looks at the point of the scene that is shown there."""
    scene = draw_scene("camera", np.random.default_rng(seed))
    assert scene.camera is not None
    point = np.array([[0.3, 0.8]])
    (x, y), view = scene.camera.show(point, np.array([seconds]))[0], _views(scene, np.array([seconds]))[0]
    np.testing.assert_allclose(view.reshape(2, 3) @ [x, y, 1], point[0])


def test_hidden_shares_of_known_overlaps() -> None:
    """Half of a box lies under a bar's edge through its middle, all of it under a larger box at its place."""
    rear = SceneObject("box", "red", "small", 0.5, 0.5, 0.0, 0.0)
    assert hidden_share(rear, Bar("dark", True, 0.6, 0.2), 0.0) == pytest.approx(0.5, abs=0.03)
    assert hidden_share(rear, Bar("dark", False, 0.8, 0.1), 0.0) == 0
    assert hidden_share(rear, SceneObject("box", "blue", "large", 0.5, 0.5, 0.0, 0.0), 0.0) == 1
    moving = SceneObject("box", "blue", "large", 0.25, 0.5, 0.25, 0.0)
    assert hidden_share(rear, moving, 0.0) < 0.3 < hidden_share(rear, moving, 1.0)


def test_captions_say_what_lies_over_what() -> None:
    """In every occlusion scene something does, never the other way round, and not too much is hidden."""
    bars = 0
    for scene in _scenes("occlusion", 80):
        said = set(re.findall(r"(?:The|A) ([\w ]+) is over the (\w+ \w+)\.", caption(scene, 0.0)))
        assert said
        for number, rear in enumerate(scene.objects):
            name = f"{rear.colour} {rear.shape}"
            for front in scene.objects[number + 1 :]:
                over = f"{front.colour} {front.shape}"
                assert ((over, name) in said) == (hidden_share(rear, front, 0.0) >= COVERED)
                assert (name, over) not in said
                assert hidden_share(rear, front, 0.0) < HIDDEN[1]
        if scene.bar:
            bars += 1
            assert {over for over, _ in said} == {f"{scene.bar.shade} bar"}
            assert scene.bar.shade in BACKGROUNDS
    assert 20 < bars < 60


def test_the_front_object_is_the_one_that_is_seen() -> None:
    """Where both are, the image has the colour of the one that the caption calls over the other."""
    red = SceneObject("box", "red", "large", 0.45, 0.5, 0.0, 0.0)
    blue = SceneObject("box", "blue", "large", 0.55, 0.5, 0.1, 0.0)
    scene = Scene("grey", (0.0, 0.0), (red, blue), "occlusion")
    assert "The blue box is over the red box." in caption(scene, 0.0)
    r, _, b = PhysicalCamera(scene, 1).image(0.0)[64, 64]
    assert b > 3 * r


def test_nights_are_dark_and_said_to_be() -> None:
    """Of every held-out night the RGB image is underexposed, and the event camera sends more than by day."""
    for index in range(6):
        scene, camera, _ = sample_scene("held_out", index, "night")
        assert NIGHT_LIGHT[0] <= scene.illumination <= NIGHT_LIGHT[1]
        assert "The scene is dark." in caption(scene, 0.0)
        assert camera.image(0.0).mean() < 45
        assert len(camera.events(0.0)) > 1500


def test_a_lamp_hides_something_that_moves() -> None:
    """It is said to be on from before the window on, and its light falls on a moving object's centre."""
    for scene in _scenes("glare"):
        lamp = scene.lamp
        assert lamp is not None
        assert -0.6 <= lamp.on_s <= -0.2
        places = [thing.position(np.zeros(1))[0] for thing in scene.objects if thing.direction(0.0) != STILL]
        assert min(np.hypot(x - lamp.x, y - lamp.y) for x, y in places) < lamp.radius / 2
        assert " is a light." in caption(scene, 0.0)
        assert " is a light." not in caption(scene, lamp.on_s - 0.01)
    assert LAMP_LIGHT >= 100


def test_blurred_objects_run_straight_before_they_are_described() -> None:
    """Fast ones, too, do not bounce in the last moments, and are said to move quickly."""
    for scene in _scenes("blur"):
        moving = [thing for thing in scene.objects if thing.direction(0.0) != STILL]
        assert moving
        for thing in moving:
            assert BLURRING["quickly"][0] <= np.hypot(thing.vx, thing.vy) <= BLURRING["quickly"][1]
            assert thing.direction(0.0) == thing.direction(-CALM_S * 0.9)
            assert thing.speed == "quickly"


def test_streams_of_every_condition_go_on() -> None:
    """Two windows are two looks at one scene, and the first is the single sample's."""
    for condition in HARD:
        stream = make_stream("held_out", 0, 2, SIZE, condition)
        assert len(stream) == 2
        single = make_sample("held_out", 0, SIZE, condition)
        assert stream.captions[0] == single.captions[0]
        assert np.abs(stream.frames[0].astype(float) - single.frames[0]).mean() < 6  # noise
        assert (stream.event_images[0] != stream.event_images[1]).any()


def test_a_condition_can_be_recorded(tmp_path: Path) -> None:
    """The bag holds frames of a night and its events."""
    record_scene(tmp_path / "night", 1, 0.2, "night")
    recording = open_recording(tmp_path / "night")
    frames = list(recording.frames())
    assert len(frames) == 6
    assert all(frame.image.mean() < 45 for frame in frames)
    assert recording.info().events.count > 4000
