"""What makes scenes hard to see, and scenes of each such condition drawn by lot.

Each condition differs from a plain scene in one thing, so that what a model loses can be put down to it:

* camera: the camera pans, tilts, rolls or goes to and fro over a tiled floor, so that everything moves in the
  image;
* occlusion: objects pass before one another, or behind a bar;
* night: so little light that the RGB image is underexposed, noisy and smeared;
* glare: a lamp goes on shortly before the description, in whose light the RGB image is white;
* blur: objects so fast that the RGB image smears them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from evspec_ros.choices import MIXED, PLAIN
from evspec_ros.simulation.scenes import (
    BACKGROUNDS,
    CALM_S,
    STILL,
    Bar,
    CameraMotion,
    Lamp,
    Scene,
    SceneObject,
    distinct,
    hidden_share,
    random_scene,
)

MIXTURE = (PLAIN, "camera", PLAIN, "occlusion", PLAIN, "night", PLAIN, "glare", PLAIN, "blur")  # of MIXED

DRIFT = (0.14, 0.38)  # widths a second; in CALM_S the camera does not turn back
TURN = (math.radians(25), math.radians(55))  # a second
GROWTH = (0.35, 0.8)  # of the logarithm of the scale, a second
NIGHT_LIGHT = (1 / 12000, 1 / 3000)  # of a day of 10,000 lux: street lamps, 0.8 to 3 lux
ROOM_LIGHT = 1 / 15  # in which the RGB camera exposes for long
BLURRING = {"quickly": (1.5, 3.0)}  # widths a second
LAMP_RADIUS = (0.2, 0.3)
LAMP_ON_S = (0.2, 0.6)  # before the description
BAR_WIDTH = (0.08, 0.14)
HIDDEN = (0.15, 0.55)  # share of an object that is passed before; it can still be told what it is


def condition_of(condition: str, index: int) -> str:
    """The condition of scene `index`, which is another one from scene to scene in MIXED."""
    return MIXTURE[index % len(MIXTURE)] if condition == MIXED else condition


def draw_scene(condition: str, random: np.random.Generator, at_s: float = 0.0) -> Scene:
    """A scene of one of CONDITIONS that can be described without ambiguity at time at_s."""
    return replace(_DRAWN[condition](random, at_s), condition=condition)


def _camera(random: np.random.Generator, at_s: float) -> Scene:
    scene = random_scene(random, at_s)
    kind = str(random.choice(["drift", "turn", "growth"], p=[0.5, 0.25, 0.25]))
    sign = random.choice([-1.0, 1.0])
    if kind == "drift":
        angle = (int(random.integers(8)) + random.uniform(-0.3, 0.3)) * math.pi / 4
        speed = random.uniform(*DRIFT)
        rate = (speed * math.cos(angle), speed * math.sin(angle), 0.0, 0.0)
    elif kind == "turn":
        rate = (0.0, 0.0, sign * random.uniform(*TURN), 0.0)
    else:
        rate = (0.0, 0.0, 0.0, sign * random.uniform(*GROWTH))
    return replace(scene, camera=CameraMotion(rate, at_s), tiles=int(random.integers(2**31)))


def _occlusion(random: np.random.Generator, at_s: float) -> Scene:
    draw = _behind_a_bar if random.random() < 0.5 else _before_one_another
    while True:
        scene = draw(random_scene(random, at_s), random, at_s)
        if scene is not None:
            return scene


def _behind_a_bar(scene: Scene, random: np.random.Generator, at_s: float) -> Scene | None:
    """The scene with a bar that hides a part of what moves, and not too much of anything."""
    moving = [thing for thing in scene.objects if thing.direction(at_s) != STILL]
    if not moving:
        return None
    hidden = moving[int(random.integers(len(moving)))]
    upright = bool(random.integers(2))
    x, y = hidden.position(np.array([at_s]))[0]
    bar = Bar(
        shade=str(random.choice([shade for shade in BACKGROUNDS if shade != scene.background])),
        upright=upright,
        middle=float(x if upright else y) + random.uniform(-1, 1) * hidden.radius,
        width=random.uniform(*BAR_WIDTH),
    )
    if any(hidden_share(thing, bar, at_s) > HIDDEN[1] for thing in scene.objects):
        return None
    return replace(scene, bar=bar) if hidden_share(hidden, bar, at_s) > HIDDEN[0] else None


def _before_one_another(scene: Scene, random: np.random.Generator, at_s: float) -> Scene | None:
    """The scene with its last object moved before another one; one of the two moves."""
    *others, front = scene.objects
    if not others:
        return None
    rear = others[int(random.integers(len(others)))]
    # nearer than MIN_ORDER_GAP in x there is no order from left to right
    away = random.choice([-1, 1]) * random.uniform(0.1, 0.17), random.uniform(-0.1, 0.1)
    front = _moved(front, rear.position(np.array([at_s]))[0] + away, at_s)
    share = hidden_share(rear, front, at_s)
    if not HIDDEN[0] < share < HIDDEN[1] or not _runs_straight(front, at_s):
        return None
    if front.direction(at_s) == rear.direction(at_s) == STILL:
        return None
    rest = [thing for thing in others if thing is not rear]
    if not all(distinct((*rest, thing), at_s) for thing in (front, rear)):
        return None
    return replace(scene, objects=(*others, front))


def _moved(thing: SceneObject, centre: NDArray[np.float64], at_s: float) -> SceneObject:
    """The same object, at another place at_s."""
    return replace(thing, x=float(centre[0] - thing.vx * at_s), y=float(centre[1] - thing.vy * at_s))


def _runs_straight(thing: SceneObject, at_s: float) -> bool:
    """Whether an object is within the walls at_s and has been for CALM_S."""
    seconds = np.array([at_s - CALM_S, at_s])
    unfolded = np.array([thing.x, thing.y]) + np.outer(seconds, [thing.vx, thing.vy])
    return bool(np.allclose(unfolded, thing.position(seconds)))


def _night(random: np.random.Generator, at_s: float) -> Scene:
    low, high = NIGHT_LIGHT
    light = math.exp(random.uniform(math.log(low), math.log(high)))
    return replace(random_scene(random, at_s), illumination=light)


def _glare(random: np.random.Generator, at_s: float) -> Scene:
    scene = _with_motion(random, at_s)
    moving = [thing for thing in scene.objects if thing.direction(at_s) != STILL]
    x, y = moving[int(random.integers(len(moving)))].position(np.array([at_s]))[0]
    lamp = Lamp(
        x=float(x) + random.uniform(-0.05, 0.05),
        y=float(y) + random.uniform(-0.05, 0.05),
        radius=random.uniform(*LAMP_RADIUS),
        on_s=at_s - random.uniform(*LAMP_ON_S),
    )
    return replace(scene, lamp=lamp)


def _blur(random: np.random.Generator, at_s: float) -> Scene:
    return replace(_with_motion(random, at_s, BLURRING), illumination=ROOM_LIGHT)


def _with_motion(random: np.random.Generator, at_s: float, *speeds: dict[str, tuple[float, float]]) -> Scene:
    while True:
        scene = random_scene(random, at_s, *speeds)
        if any(thing.direction(at_s) != STILL for thing in scene.objects):
            return scene


_DRAWN: dict[str, Callable[[np.random.Generator, float], Scene]] = {
    PLAIN: random_scene,
    "camera": _camera,
    "occlusion": _occlusion,
    "night": _night,
    "glare": _glare,
    "blur": _blur,
}
