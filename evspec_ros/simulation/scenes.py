"""Simulated scenes: coloured shapes that move, stand still and bounce.

A scene lives on the unit square (x to the right, y downwards), so any square sensor can look at it: `sensors`
has the cameras.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evspec_ros.choices import PLAIN
from evspec_ros.simulation.shapes import LYING, SHAPES, UPRIGHT, covered_share

COLOURS = {
    "red": (0.85, 0.10, 0.10),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.20, 0.85),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.10, 0.65),
    "orange": (0.98, 0.50, 0.05),
    "white": (0.98, 0.98, 0.98),
    "black": (0.03, 0.03, 0.03),
}
SIZES = {"small": 0.085, "large": 0.14}  # radius, in widths of the image
BACKGROUNDS = {"dark": 0.22, "grey": 0.48, "light": 0.76}
DIRECTIONS = (
    "to the right", "to the lower right", "downwards", "to the lower left",
    "to the left", "to the upper left", "upwards", "to the upper right",
)  # fmt: skip
SPEEDS = {"slowly": (0.14, 0.22), "quickly": (0.45, 0.65)}  # widths of the image per second

STILL = -1  # SceneObject.direction of an object that does not move
LAMP_LIGHT = 100.0  # sunlight over shade
SWAY = (0.08, 0.08, math.radians(12), 0.17)  # of CameraMotion.rate; no object's centre leaves the image

MIN_ORDER_GAP = 0.10  # two objects nearer in x than this have no clear order from left to right
MIN_DISTANCE = 0.22  # between centres at the moment of description
CALM_S = 0.2  # no bounce this shortly before the moment of description
_STILL_SHARE = 0.25  # of the objects


def nearest_direction(vx: float, vy: float) -> int:
    """Index into DIRECTIONS of a velocity."""
    return round(math.atan2(vy, vx) / (math.pi / 4)) % 8


@dataclass(frozen=True)
class SceneObject:
    """One shape: centre (x, y) at time zero, velocity (vx, vy) in widths per second, bouncing off the
    border.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    vx: float
    vy: float

    @property
    def radius(self) -> float:
        """Half the extent, in widths of the image."""
        return SIZES[self.size]

    def position(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Centres [T, 2] at the given times [T]."""
        centre = np.array([self.x, self.y]) + np.outer(seconds, [self.vx, self.vy])
        return _reflect(centre, self.radius)

    def velocity(self, seconds: float) -> tuple[float, float]:
        """(vx, vy) at one instant, bounces counted."""
        step = 1e-4
        before, after = self.position(np.array([seconds - step, seconds]))
        vx, vy = (after - before) / step
        return float(vx), float(vy)

    def direction(self, seconds: float) -> int:
        """Index into DIRECTIONS of where it moves at one instant, or STILL."""
        vx, vy = self.velocity(seconds)
        if math.hypot(vx, vy) < min(SPEEDS["slowly"]) / 2:
            return STILL
        return nearest_direction(vx, vy)

    @property
    def speed(self) -> str:
        """Key into SPEEDS of how fast it moves while it moves."""
        slow, fast = max(SPEEDS["slowly"]), min(SPEEDS["quickly"])
        return "quickly" if math.hypot(self.vx, self.vy) > (slow + fast) / 2 else "slowly"


@dataclass(frozen=True)
class CameraMotion:
    """A camera that sways to and fro and looks straight at the scene at `straight_s`.

    rate: how what it sees moves in the image then: drift in x and y (widths per second), turn (radians per
    second, clockwise) and growth (of the logarithm of the scale, per second), one of them alone not zero. The
    opposite is the camera's own motion.
    """

    rate: tuple[float, float, float, float]
    straight_s: float

    def pose(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Drift, turn and growth so far, [T, 4], never beyond SWAY."""
        way = np.outer(seconds - self.straight_s, self.rate)
        limit = np.array(SWAY)
        pose: NDArray[np.float64] = np.abs(np.mod(way - limit, 4 * limit) - 2 * limit) - limit
        return pose

    def show(self, centres: NDArray[np.float64], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where points of the scene [T, 2] are in the image."""
        dx, dy, turn, growth = self.pose(seconds).T
        x, y = (np.exp(growth) * axis for axis in (centres - 0.5).T)
        shown = x * np.cos(turn) - y * np.sin(turn) + dx, x * np.sin(turn) + y * np.cos(turn) + dy
        return np.stack(shown, -1) + 0.5

    def motion(self, seconds: float) -> NDArray[np.float64]:
        """The rate [4] at one instant, its turns back counted."""
        step = 1e-4
        before, now = self.pose(np.array([seconds - step, seconds]))
        motion: NDArray[np.float64] = (now - before) / step
        return motion


@dataclass(frozen=True)
class Bar:
    """A post or beam before everything, from border to border; `middle` is its x or, lying, its y."""

    shade: str  # a key into BACKGROUNDS
    upright: bool
    middle: float
    width: float

    @property
    def kind(self) -> int:
        """What `outline_distance` calls it; its radius is half its width."""
        return UPRIGHT if self.upright else LYING


@dataclass(frozen=True)
class Lamp:
    """A disc of light LAMP_LIGHT times as bright as the rest, switched on at on_s."""

    x: float
    y: float
    radius: float
    on_s: float


@dataclass(frozen=True)
class Scene:
    """Objects before a background, later ones in front; `gradient` is its brightness change across the image
    in x and y.

    The rest differs from the default in other conditions than PLAIN alone. tiles: the seed of a tiled floor;
    illumination: light that falls on the scene, 1 is a bright day.
    """

    background: str
    gradient: tuple[float, float]
    objects: tuple[SceneObject, ...]
    condition: str = PLAIN
    camera: CameraMotion | None = None
    tiles: int | None = None
    bar: Bar | None = None
    lamp: Lamp | None = None
    illumination: float = 1.0

    def places(self, thing: SceneObject, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Where in the image the centre of an object is, [T, 2]."""
        centres = thing.position(seconds)
        return centres if self.camera is None else self.camera.show(centres, seconds)


def hidden_share(rear: SceneObject, front: SceneObject | Bar, at_s: float) -> float:
    """How much of an object something before it hides at one instant."""
    now = np.array([at_s])
    (x, y), kind = rear.position(now)[0], SHAPES.index(rear.shape)
    if isinstance(front, Bar):
        away = np.array([x, y]) - front.middle
        return float(covered_share(kind, rear.radius, front.kind, front.width / 2, *away))
    away = np.array([x, y]) - front.position(now)[0]
    return float(covered_share(kind, rear.radius, SHAPES.index(front.shape), front.radius, *away))


def _reflect(centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Fold straight paths [T, 2] into [radius, 1 - radius], as a ball between two walls."""
    span = 1 - 2 * radius
    folded = np.mod(centre - radius, 2 * span)
    return radius + np.where(folded > span, 2 * span - folded, folded)


def random_scene(
    random: np.random.Generator, at_s: float = 0.0, speeds: dict[str, tuple[float, float]] = SPEEDS
) -> Scene:
    """A plain scene of one to three objects that can be described without ambiguity at time at_s."""
    count = int(random.choice([1, 2, 3], p=[0.25, 0.4, 0.35]))
    while True:
        objects = tuple(_random_object(random, at_s, speeds) for _ in range(count))
        if distinct(objects, at_s):
            background = str(random.choice(list(BACKGROUNDS)))
            gradient = random.uniform(-0.12, 0.12, 2)
            return Scene(background, (float(gradient[0]), float(gradient[1])), objects)


def _random_object(
    random: np.random.Generator, at_s: float, speeds: dict[str, tuple[float, float]]
) -> SceneObject:
    """One object whose last CALM_S seconds before at_s are free of bounces."""
    size = str(random.choice(list(SIZES)))
    radius = SIZES[size]
    vx = vy = 0.0
    if random.random() > _STILL_SHARE:
        low, high = speeds[str(random.choice(list(speeds)))]
        angle = (int(random.integers(8)) + random.uniform(-0.3, 0.3)) * math.pi / 4
        speed = random.uniform(low, high)
        vx, vy = speed * math.cos(angle), speed * math.sin(angle)
    # choose where it is CALM_S before the description, so that it still runs straight from there, and go back
    low_x, high_x = _straight_run(radius, vx * CALM_S)
    low_y, high_y = _straight_run(radius, vy * CALM_S)
    since = at_s - CALM_S
    return SceneObject(
        shape=str(random.choice(SHAPES)),
        colour=str(random.choice(list(COLOURS))),
        size=size,
        x=random.uniform(low_x, high_x) - vx * since,
        y=random.uniform(low_y, high_y) - vy * since,
        vx=vx,
        vy=vy,
    )


def _straight_run(radius: float, way: float) -> tuple[float, float]:
    """Interval of start coordinates from which `way` can be gone without a bounce."""
    return radius - min(way, 0.0), 1 - radius - max(way, 0.0)


def distinct(objects: tuple[SceneObject, ...], at_s: float) -> bool:
    """True if the objects differ in looks, lie apart and have a clear order from left to right."""
    if len({(o.shape, o.colour) for o in objects}) < len(objects):
        return False
    centres = np.concatenate([o.position(np.array([at_s])) for o in objects])
    for i, first in enumerate(centres):
        for second in centres[i + 1 :]:
            if abs(first[0] - second[0]) < MIN_ORDER_GAP or np.hypot(*(first - second)) < MIN_DISTANCE:
                return False
    return True
