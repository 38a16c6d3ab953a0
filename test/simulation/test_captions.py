"""The scenes' language."""

from __future__ import annotations

import numpy as np

from evspec_ros.simulation.captions import Claim, caption, claims, parse
from evspec_ros.simulation.scenes import DIRECTIONS, STILL, Scene, SceneObject, random_scene
from evspec_ros.training.tokenizer import train_tokenizer


def test_a_caption_says_exactly_what_is_true() -> None:
    """Reading a caption back gives the claims that it was written from."""
    random = np.random.default_rng(1)
    for _ in range(500):
        scene = random_scene(random)
        assert parse(caption(scene, 0.0)) == claims(scene, 0.0)


def test_captions_are_20_to_60_tokens_and_various() -> None:
    """The grammar is rich enough to be worth predicting."""
    random = np.random.default_rng(2)
    captions = [caption(random_scene(random), 0.0) for _ in range(500)]
    lengths = [len(encoding.ids) for encoding in train_tokenizer([]).encode_batch(captions)]
    assert min(lengths) >= 20
    assert max(lengths) <= 60
    assert len(set(captions)) > 495


def test_a_known_scene_in_words() -> None:
    """From left to right, each with place, looks and motion, then what they do together."""
    scene = Scene(
        "light",
        (0.0, 0.0),
        (
            SceneObject("box", "blue", "small", 0.8, 0.2, 0.0, 0.0),
            SceneObject("ball", "red", "large", 0.2, 0.5, 0.5, 0.0),
        ),
    )
    assert caption(scene, 0.0) == (
        "Two objects on a light background. On the left, a large red ball rolls quickly to the right. "
        "At the top right, a small blue box stands still. Only the red ball moves."
    )


def test_what_is_not_of_the_grammar_is_left_out() -> None:
    """A half-written or odd sentence makes no claim."""
    text = "On the left, a large red ball rolls quickly to the right. In the middle, a small blue box. A dog."
    assert parse(text) == (Claim("large", "red", "ball", DIRECTIONS.index("to the right"), "quickly"),)
    assert parse("a small white star stands still.") == (Claim("small", "white", "star", STILL, None),)
