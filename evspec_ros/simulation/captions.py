"""The language of the simulated scenes: a caption from a scene, and the claims back from a caption.

Every choice of words follows from the scene, so a model that sees the scene can predict the caption. `parse`
reads what a model wrote, right or wrong, into claims that can be scored against the scene.

Places and the order from left to right are the image's. Motions are the objects' own: what stands still does
so though a swaying camera sees it move. What the RGB camera does not see and the event camera does is said
all the same, so are colours, which both can know from frames before a lamp went on or from the mean of noisy
ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from evspec_ros.choices import PLAIN
from evspec_ros.simulation.scenes import (
    COLOURS,
    DIRECTIONS,
    SIZES,
    STILL,
    Bar,
    CameraMotion,
    Scene,
    SceneObject,
    hidden_share,
    nearest_direction,
)
from evspec_ros.simulation.shapes import SHAPES

_COUNTS = ("No objects", "One object", "Two objects", "Three objects")
_PLACES = (
    ("At the top left", "At the top", "At the top right"),
    ("On the left", "In the middle", "On the right"),
    ("At the bottom left", "At the bottom", "At the bottom right"),
)
_VERBS = {
    "ball": "rolls",
    "box": "slides",
    "cone": "glides",
    "ring": "rolls",
    "star": "drifts",
    "cross": "glides",
}

COVERED = 0.1  # the share of an object from which on a caption says what is over it
NIGHT = 1e-2  # less light than this is a dark scene


@dataclass(frozen=True)
class Claim:
    """What a caption says about one object; direction is an index into DIRECTIONS or STILL, speed None if
    still.
    """

    size: str
    colour: str
    shape: str
    direction: int
    speed: str | None


def claims(scene: Scene, at_s: float) -> tuple[Claim, ...]:
    """The truth at one instant, from left to right."""
    return tuple(_claim(o, at_s) for o in _left_to_right(scene, at_s))


def caption(scene: Scene, at_s: float) -> str:
    """The description of a scene at one instant."""
    objects = _left_to_right(scene, at_s)
    sentences = [f"{_COUNTS[len(objects)]} on a {scene.background} background."]
    sentences += _circumstances(scene, at_s)
    sentences += [_sentence(scene, o, at_s) for o in objects]
    if scene.condition != PLAIN:
        sentences += _layers(scene, at_s)
    sentences += [_relation(scene, objects, at_s)]
    return " ".join(sentences)


def _circumstances(scene: Scene, at_s: float) -> list[str]:
    """What the light and the camera do."""
    told = []
    if scene.illumination < NIGHT:
        told.append("The scene is dark.")
    if scene.lamp and at_s >= scene.lamp.on_s:
        told.append(f"{_place(scene.lamp.x, scene.lamp.y)} is a light.")
    if scene.camera:
        told.append(f"The camera {_camera_motion(scene.camera, at_s)}.")
    return told


def _camera_motion(camera: CameraMotion, at_s: float) -> str:
    """The opposite of how what it sees moves."""
    right, down, turn, growth = camera.motion(at_s)
    if turn:
        return "rolls to the left" if turn > 0 else "rolls to the right"
    if growth:
        return "moves forwards" if growth > 0 else "moves back"
    return f"moves {DIRECTIONS[nearest_direction(-right, -down)]}"


def _layers(scene: Scene, at_s: float) -> list[str]:
    """What lies over what."""
    told = []
    for number, rear in enumerate(scene.objects):
        fronts: list[SceneObject | Bar] = [*scene.objects[number + 1 :]]
        fronts += [scene.bar] if scene.bar else []
        for front in fronts:
            if hidden_share(rear, front, at_s) >= COVERED:
                name = f"A {front.shade} bar" if isinstance(front, Bar) else f"The {_name(front)}"
                told.append(f"{name} is over the {_name(rear)}.")
    return told


def _left_to_right(scene: Scene, at_s: float) -> list[SceneObject]:
    now = np.array([at_s])
    return sorted(scene.objects, key=lambda o: float(scene.places(o, now)[0, 0]))


def _claim(thing: SceneObject, at_s: float) -> Claim:
    direction = thing.direction(at_s)
    return Claim(
        thing.size, thing.colour, thing.shape, direction, None if direction == STILL else thing.speed
    )


def _place(x: float, y: float) -> str:
    return _PLACES[int(y * 3)][int(x * 3)]


def _sentence(scene: Scene, thing: SceneObject, at_s: float) -> str:
    told = _claim(thing, at_s)
    motion = "stands still"
    if told.direction != STILL:
        motion = f"{_VERBS[thing.shape]} {told.speed} {DIRECTIONS[told.direction]}"
    place = _place(*scene.places(thing, np.array([at_s]))[0])
    return f"{place}, a {thing.size} {thing.colour} {thing.shape} {motion}."


def _relation(scene: Scene, objects: list[SceneObject], at_s: float) -> str:
    """What can be said about the objects together."""
    moving = [o for o in objects if o.direction(at_s) != STILL]
    if not moving:
        return "Only the camera moves." if scene.camera else "Nothing moves."
    if len(moving) == 1 and len(objects) > 1:
        return f"Only the {_name(moving[0])} moves."
    if len(objects) == 1:
        return "Nothing else is there."
    fast = [o for o in moving if o.speed == "quickly"]
    if len(fast) == 1:
        return f"The {_name(fast[0])} is the fastest."
    ways = {o.direction(at_s) for o in moving}
    if len(ways) == 1:
        return "They move the same way."
    return "They move different ways."


def _name(thing: SceneObject) -> str:
    return f"{thing.colour} {thing.shape}"


_CLAIM = re.compile(
    rf"a (?P<size>{'|'.join(SIZES)}) (?P<colour>{'|'.join(COLOURS)}) (?P<shape>{'|'.join(SHAPES)}) "
    rf"(?:stands still|\w+ (?P<speed>slowly|quickly) (?P<direction>{'|'.join(DIRECTIONS)}))\."
)


def parse(text: str) -> tuple[Claim, ...]:
    """The claims that a caption makes about single objects, in its order; what does not follow the grammar is
    left out.
    """
    return tuple(
        Claim(
            m["size"],
            m["colour"],
            m["shape"],
            DIRECTIONS.index(m["direction"]) if m["direction"] else STILL,
            m["speed"],
        )
        for m in _CLAIM.finditer(text)
    )
