"""Simulated scenes: coloured shapes that move, stand still and bounce, seen by an RGB camera and an event
camera.

A scene lives on the unit square (x to the right, y downwards), so any square sensor can look at it. The RGB
camera samples it; the event camera follows ESIM (Rebecq et al., CoRL 2018): log intensity is sampled far
more often than any pixel crosses a threshold, and crossings are placed in time by linear interpolation.

These two cameras are ideal ones and see plain scenes alone; `sensors` has those that see the other
conditions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from evspec_ros.choices import PLAIN
from evspec_ros.events.types import Events

SHAPES = ("ball", "box", "cone", "ring", "star", "cross")
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
UPRIGHT, LYING = -1, -2  # kinds of a bar, beside the indices into SHAPES
LAMP_LIGHT = 100.0  # sunlight over shade
SWAY = (0.08, 0.08, math.radians(12), 0.17)  # of CameraMotion.rate; no object's centre leaves the image
SENSOR_SIZE = 128  # pixels a side of the simulated cameras, as a DVS128
CONTRAST_THRESHOLD = 0.2  # log intensity per event
THRESHOLD_SPREAD = 0.02  # standard deviation between pixels
NOISE_RATE_HZ = 0.3  # background activity of one pixel
LOG_OFFSET = 0.02  # keeps the logarithm of a black pixel finite
STEP_NS = 1_000_000  # 0.65 widths a second move 0.08 pixels of 128 in it
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of R, G, B (ITU-R BT.601)
IMAGE_NOISE = 2.0  # standard deviation of the RGB camera's noise, in grey levels


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
        return float(_hidden_share(kind, rear.radius, front.kind, front.width / 2, *away))
    away = np.array([x, y]) - front.position(now)[0]
    return float(_hidden_share(kind, rear.radius, SHAPES.index(front.shape), front.radius, *away))


def _reflect(centre: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Fold straight paths [T, 2] into [radius, 1 - radius], as a ball between two walls."""
    span = 1 - 2 * radius
    folded = np.mod(centre - radius, 2 * span)
    return radius + np.where(folded > span, 2 * span - folded, folded)


# --- drawing -----------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def _signed_distance(shape: int, x: float, y: float, r: float) -> float:
    """Distance from a point to the outline of a shape of radius r about the origin, negative inside
    (Quilez, 2D SDFs).
    """
    if shape == 0:  # ball
        return math.sqrt(x * x + y * y) - r
    if shape == 1:  # box
        return max(abs(x), abs(y)) - 0.85 * r
    if shape == 2:  # cone: a triangle that stands on its base
        return max(y - 0.8 * r, 0.8944 * abs(x) - 0.4472 * (y + r))
    if shape == 3:  # ring
        return abs(math.sqrt(x * x + y * y) - 0.75 * r) - 0.25 * r
    if shape == 4:  # five-pointed star
        sector = 2 * math.pi / 5
        angle = math.atan2(x, -y)
        angle = abs(angle - sector * math.floor(angle / sector + 0.5))
        distance = math.sqrt(x * x + y * y)
        px, py = distance * math.cos(angle), distance * math.sin(angle)
        # the edge runs from the tip (r, 0) to the notch between two tips
        nx, ny = 0.42 * r * math.cos(sector / 2), 0.42 * r * math.sin(sector / 2)
        ex, ey = nx - r, ny
        return ((px - r) * ey - py * ex) / math.sqrt(ex * ex + ey * ey)
    # cross: two bars
    return min(max(abs(x) - r, abs(y) - 0.3 * r), max(abs(x) - 0.3 * r, abs(y) - r))


@numba.njit(cache=True)
def outline_distance(kind: int, x: float, y: float, r: float) -> float:
    """`_signed_distance` of a shape, or that of a bar which is 2 r wide."""
    if kind == UPRIGHT:
        return abs(x) - r
    if kind == LYING:
        return abs(y) - r
    distance: float = _signed_distance(kind, x, y, r)
    return distance


@numba.njit(cache=True)
def _hidden_share(kind: int, radius: float, front: int, front_radius: float, dx: float, dy: float) -> float:
    """Share of a shape's area that lies under another one, whose centre the shape's own is (dx, dy) from."""
    area, hidden, points = 0, 0, 48
    for row in range(points):
        for column in range(points):
            x, y = radius * (2 * (column + 0.5) / points - 1), radius * (2 * (row + 0.5) / points - 1)
            if _signed_distance(kind, x, y, radius) < 0:
                area += 1
                hidden += outline_distance(front, x + dx, y + dy, front_radius) < 0
    return hidden / area


@numba.njit(cache=True)
def _cover(kind: int, dx: float, dy: float, radius: float, size: int) -> float:
    """Share of a pixel that a shape covers, centre (dx, dy) from the shape's; edges are one pixel soft."""
    reach = radius + 1.0 / size
    if abs(dx) > reach or abs(dy) > reach:
        return 0.0
    cover: float = min(max(0.5 - _signed_distance(kind, dx, dy, radius) * size, 0.0), 1.0)
    return cover


@numba.njit(cache=True)
def _backdrop_level(backdrop: NDArray[np.float64], x: float, y: float) -> float:
    level: float = backdrop[0] + backdrop[1] * (x - 0.5) + backdrop[2] * (y - 0.5)
    return level


@numba.njit(cache=True)
def _box(low: float, high: float, radius: float, size: int) -> tuple[int, int]:
    """Pixels first <= i < last along one axis that a shape touches whose centre is between low and high."""
    reach = radius + 1.0 / size
    return max(0, int((low - reach) * size)), min(size, int((high + reach) * size) + 2)


@numba.njit(cache=True, nogil=True)
def _draw(
    kinds: NDArray[np.int64], radii: NDArray[np.float64], colours: NDArray[np.float64], centres:
    NDArray[np.float64],
    backdrop: NDArray[np.float64], size: int,
) -> NDArray[np.float64]:  # fmt: skip
    """RGB image [size, size, 3] in 0..1; later objects lie in front."""
    image = np.empty((size, size, 3))
    for row in range(size):
        for column in range(size):
            image[row, column] = _backdrop_level(backdrop, (column + 0.5) / size, (row + 0.5) / size)
    for k in range(len(kinds)):
        left, right = _box(centres[k, 0], centres[k, 0], radii[k], size)
        top, bottom = _box(centres[k, 1], centres[k, 1], radii[k], size)
        for row in range(top, bottom):
            for column in range(left, right):
                dx, dy = (column + 0.5) / size - centres[k, 0], (row + 0.5) / size - centres[k, 1]
                cover = _cover(kinds[k], dx, dy, radii[k], size)
                for c in range(3):
                    image[row, column, c] += cover * (colours[k, c] - image[row, column, c])
    return image


@numba.njit(cache=True)
def _luminance(
    kinds: NDArray[np.int64], radii: NDArray[np.float64], lights: NDArray[np.float64], centres:
    NDArray[np.float64],
    backdrop: NDArray[np.float64], x: float, y: float, size: int,
) -> float:  # fmt: skip
    """Luminance of one pixel of what `_draw` draws."""
    level = _backdrop_level(backdrop, x, y)
    for k in range(len(kinds)):
        level += _cover(kinds[k], x - centres[k, 0], y - centres[k, 1], radii[k], size) * (lights[k] - level)
    return float(level)


@numba.njit(cache=True, nogil=True)
def _emit_events(
    kinds: NDArray[np.int64], radii: NDArray[np.float64], lights: NDArray[np.float64], paths:
    NDArray[np.float64],
    backdrop: NDArray[np.float64], thresholds: NDArray[np.float64], previous: NDArray[np.float64],
    reference: NDArray[np.float64], start_ns: int, step_ns: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]:  # fmt: skip
    """Events while the objects go along paths [T + 1, N, 2]; previous and reference [S, S] are carried on."""
    size = len(previous)
    capacity, count = 1 << 14, 0
    t, x = np.empty(capacity, np.int64), np.empty(capacity, np.uint16)
    y, p = np.empty(capacity, np.uint16), np.empty(capacity, np.uint8)
    for step in range(1, len(paths)):
        begin = start_ns + (step - 1) * step_ns
        for k in range(len(kinds)):
            old, new = paths[step - 1, k], paths[step, k]
            if old[0] == new[0] and old[1] == new[1]:
                continue
            left, right = _box(min(old[0], new[0]), max(old[0], new[0]), radii[k], size)
            top, bottom = _box(min(old[1], new[1]), max(old[1], new[1]), radii[k], size)
            for row in range(top, bottom):
                for column in range(left, right):
                    level = _luminance(kinds, radii, lights, paths[step], backdrop,
                                       (column + 0.5) / size, (row + 0.5) / size, size)  # fmt: skip
                    light = math.log(level + LOG_OFFSET)
                    before = previous[row, column]
                    if light == before:
                        continue
                    threshold = thresholds[row, column]
                    sign = 1.0 if light > before else -1.0
                    while (light - reference[row, column]) * sign >= threshold:
                        reference[row, column] += sign * threshold
                        if count == capacity:
                            capacity *= 2
                            t, x = grown(t, capacity), grown(x, capacity)
                            y, p = grown(y, capacity), grown(p, capacity)
                        share = (reference[row, column] - before) / (light - before)
                        t[count] = begin + int(min(max(share, 0.0), 1.0) * step_ns)
                        x[count], y[count], p[count] = column, row, sign > 0
                        count += 1
                    previous[row, column] = light
    return t[:count], x[:count], y[:count], p[:count]


@numba.njit(cache=True)
def grown(array, capacity):  # type: ignore[no-untyped-def]
    """The array with room for `capacity` values."""
    bigger = np.empty(capacity, array.dtype)
    bigger[: len(array)] = array
    return bigger


class SceneCamera:
    """An RGB camera and an event camera that look at one scene through the same lens.

    Events come out piece by piece, each piece going on where the last one ended, so that a long recording
    needs no more memory than a short one.
    """

    def __init__(self, scene: Scene, seed: int, size: int = SENSOR_SIZE, start_s: float = 0.0) -> None:
        self._scene = scene
        self._size = size
        self._random = np.random.default_rng(seed)
        self._kinds = np.array([SHAPES.index(o.shape) for o in scene.objects], np.int64)
        self._radii = np.array([o.radius for o in scene.objects])
        self._colours = np.array([COLOURS[o.colour] for o in scene.objects]).reshape(-1, 3)
        self._lights = self._colours @ LUMINANCE
        self._backdrop = np.array([BACKGROUNDS[scene.background], *scene.gradient])
        self._thresholds = np.maximum(
            self._random.normal(CONTRAST_THRESHOLD, THRESHOLD_SPREAD, (size, size)), CONTRAST_THRESHOLD / 2
        )
        self._time_ns = round(start_s * 1e9)
        self._light = np.log(self._draw(start_s) @ LUMINANCE + LOG_OFFSET)
        # a camera that has been running for long holds references spread over one threshold
        self._reference = self._light + self._thresholds * self._random.uniform(-1, 1, (size, size))

    def _draw(self, seconds: float) -> NDArray[np.float64]:
        centres = self._paths(np.array([seconds]))[0]
        image: NDArray[np.float64] = _draw(
            self._kinds, self._radii, self._colours, centres, self._backdrop, self._size
        )
        return image

    def _paths(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Centres [T, N, 2]."""
        return np.stack([o.position(seconds) for o in self._scene.objects], axis=1)

    def image(self, seconds: float) -> NDArray[np.uint8]:
        """What the RGB camera sees, uint8 [size, size, 3]."""
        noise = self._random.standard_normal((self._size, self._size, 3), np.float32) * IMAGE_NOISE
        return np.clip(self._draw(seconds) * 255 + noise + 0.5, 0, 255).astype(np.uint8)

    def events(self, stop_s: float) -> Events:
        """What the event camera sent since the last call (or the start) until stop_s; t counts from scene
        time 0.
        """
        steps = max(1, round((stop_s * 1e9 - self._time_ns) / STEP_NS))
        seconds = np.asarray((self._time_ns + np.arange(steps + 1) * STEP_NS) * 1e-9, np.float64)
        signal = _emit_events(
            self._kinds, self._radii, self._lights, self._paths(seconds), self._backdrop, self._thresholds,
            self._light, self._reference, self._time_ns, STEP_NS,
        )  # fmt: skip
        fields = [np.concatenate(pair) for pair in zip(signal, self._noise(steps), strict=True)]
        order = np.argsort(fields[0], kind="stable")
        self._time_ns += steps * STEP_NS
        t, x, y, p = (field[order] for field in fields)
        return Events(t, x, y, p, self._size, self._size)

    def _noise(self, steps: int) -> tuple[NDArray[np.generic], ...]:
        span = steps * STEP_NS
        count = self._random.poisson(NOISE_RATE_HZ * self._size**2 * span * 1e-9)
        return (
            self._random.integers(self._time_ns, self._time_ns + span, count),
            self._random.integers(0, self._size, count, np.uint16),
            self._random.integers(0, self._size, count, np.uint16),
            self._random.integers(0, 2, count, np.uint8),
        )


# --- drawing scenes by lot ---------------------------------------------------------------------------------

MIN_ORDER_GAP = 0.10  # two objects nearer in x than this have no clear order from left to right
MIN_DISTANCE = 0.22  # between centres at the moment of description
CALM_S = 0.2  # no bounce this shortly before the moment of description
_STILL_SHARE = 0.25  # of the objects


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
