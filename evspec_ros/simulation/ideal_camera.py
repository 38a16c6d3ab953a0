"""The ideal cameras, which see plain scenes: an RGB camera, and an event camera that follows ESIM.

ESIM (Rebecq et al., CoRL 2018): log intensity is sampled far more often than any pixel crosses a threshold,
and crossings are placed in time by linear interpolation. `sensors` has the cameras of the other conditions.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from evspec_ros.events.types import Events
from evspec_ros.simulation.scenes import BACKGROUNDS, COLOURS, Scene
from evspec_ros.simulation.shapes import SHAPES, cover

SENSOR_SIZE = 128  # pixels a side of the simulated cameras, as a DVS128
CONTRAST_THRESHOLD = 0.2  # log intensity per event
THRESHOLD_SPREAD = 0.02  # standard deviation between pixels
NOISE_RATE_HZ = 0.3  # background activity of one pixel
LOG_OFFSET = 0.02  # keeps the logarithm of a black pixel finite
STEP_NS = 1_000_000  # 0.65 widths a second move 0.08 pixels of 128 in it
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of R, G, B (ITU-R BT.601)
IMAGE_NOISE = 2.0  # standard deviation of the RGB camera's noise, in grey levels


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
                share = cover(kinds[k], dx, dy, radii[k], size)
                for c in range(3):
                    image[row, column, c] += share * (colours[k, c] - image[row, column, c])
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
        level += cover(kinds[k], x - centres[k, 0], y - centres[k, 1], radii[k], size) * (lights[k] - level)
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
