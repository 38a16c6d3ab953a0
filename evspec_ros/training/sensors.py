"""The cameras that see scenes of every condition: how light becomes grey levels and events.

Light is linear: 1 is what a white surface sends on a bright day. The RGB camera collects it over its
exposure, adds shot and read noise, saturates and encodes as sRGB (IEC 61966-2-1). The event camera is ESIM's
(Rebecq et al., CoRL 2018) with the faults that v2e (Hu et al., arXiv 2006.07722) gives it: a photoreceptor of
finite bandwidth, slower in less light; a refractory period after each event; background activity, more in
less light; leak events. Both cameras set themselves by the light that falls on the scene and by nothing else.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from evspec_ros.choices import PLAIN
from evspec_ros.events.types import Events
from evspec_ros.training.scenes import (
    BACKGROUNDS,
    COLOURS,
    CONTRAST_THRESHOLD,
    LAMP_LIGHT,
    LUMINANCE,
    NOISE_RATE_HZ,
    SENSOR_SIZE,
    SHAPES,
    STEP_NS,
    THRESHOLD_SPREAD,
    Lamp,
    Scene,
    SceneCamera,
    grown,
    outline_distance,
)

FLARE = 0.01  # of white, scattered over the whole image by the lens
DARK_LIGHT = 1e-6  # what an event pixel's dark current amounts to

DAY_EXPOSURE_S, LONGEST_EXPOSURE_S = 0.002, 0.03  # below one frame at 30 Hz
HIGHEST_GAIN = 8.0
FULL_WELL = 8000.0  # electrons of white, well exposed
READ_NOISE = 4.0  # electrons
MOST_SUBSAMPLES = 32  # of one exposure

# v2e's setting for little light ("noisy"): 30 Hz, 5 Hz of shot noise, 0.1 Hz of leak; 300 Hz is its default
CUTOFF_PER_LIGHT_HZ = 480_000.0  # 30 Hz for white in 1 / 16,000 of daylight
CUTOFF_HZ = (3.0, 300.0)  # v2e: a black pixel has a tenth of a white one's
DARK_NOISE_HZ = 5.0  # of one pixel in the dark, falling to NOISE_RATE_HZ in the light
HALF_NOISE_LIGHT = 1 / 16_000  # where half of what is above that is left
LEAK_HZ = 0.1  # "brighter" events of a pixel that sees nothing change
REFRACTORY_NS = 500_000
SETTLED = 1e-6  # log intensity that is no way to go any more

FLOOR_MARGIN = 0.15  # widths of floor around the unit square, which a swaying camera sees
TILE = 0.07  # widths
TILE_CONTRAST = 0.45  # of the background's brightness
LAMP_RIM = 0.03  # widths in which a lamp's light ends
NEVER = np.iinfo(np.int64).min


class Surfaces(NamedTuple):
    """What there is to see: kinds [N] and radii [N] as `outline_distance` has them, shades [N, C] (linear
    light that they reflect) and the grey floor [F, F], which goes beyond the image on every side.
    """

    kinds: NDArray[np.int64]
    radii: NDArray[np.float64]
    shades: NDArray[np.float64]
    floor: NDArray[np.float64]


class Lighting(NamedTuple):
    """The light on the scene: everywhere, and how much brighter a lamp makes each pixel of [S, S]."""

    everywhere: float
    glow: NDArray[np.float64]


class Instants(NamedTuple):
    """T instants: centres [T, N, 2], views [T, 6] (the affine map from the image to the scene, row by row)
    and whether the lamp is on, [T] of 0 and 1.
    """

    centres: NDArray[np.float64]
    views: NDArray[np.float64]
    lamp: NDArray[np.float64]


class PixelStates(NamedTuple):
    """The event camera's pixels, [S, S] each, changed in place.

    light: logarithm of the light now; alpha: share of the way there that the photoreceptor goes in a step;
    seen: where it is; reference: where it was at the last event; free_ns: when the refractory period ends, or
    NEVER.
    """

    thresholds: NDArray[np.float64]
    light: NDArray[np.float64]
    alpha: NDArray[np.float64]
    seen: NDArray[np.float64]
    reference: NDArray[np.float64]
    free_ns: NDArray[np.int64]


def to_linear(level: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB levels in 0..1 -> linear light."""
    level = np.asarray(level, np.float64)
    return np.where(level <= 0.04045, level / 12.92, ((np.maximum(level, 0.04045) + 0.055) / 1.055) ** 2.4)


def to_srgb(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear light in 0..1 -> sRGB levels."""
    return np.where(
        light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0.0031308) ** (1 / 2.4) - 0.055
    )


def exposure_s(illumination: float) -> float:
    """How long the RGB camera exposes."""
    return min(DAY_EXPOSURE_S / illumination, LONGEST_EXPOSURE_S)


def gain(illumination: float) -> float:
    """How much the RGB camera amplifies what it collected."""
    return min(DAY_EXPOSURE_S / (illumination * exposure_s(illumination)), HIGHEST_GAIN)


# --- light -------------------------------------------------------------------------------------------------


@numba.njit(cache=True, inline="always")  # twice as fast as a call with all these arrays
def _look(
    out: NDArray[np.float64],
    surfaces: Surfaces,
    centres: NDArray[np.float64],
    view: NDArray[np.float64],
    px: float,
    py: float,
    size: int,
) -> None:
    """What the surface under one point of the image reflects, into out [C]; edges are one pixel soft."""
    x = view[0] * px + view[1] * py + view[2]
    y = view[3] * px + view[4] * py + view[5]
    out[:] = _floor_level(surfaces.floor, x, y, size)
    for k in range(len(surfaces.kinds)):
        dx, dy, radius = x - centres[k, 0], y - centres[k, 1], surfaces.radii[k]
        if surfaces.kinds[k] >= 0 and max(abs(dx), abs(dy)) > radius + 1.0 / size:
            continue
        cover = min(max(0.5 - outline_distance(surfaces.kinds[k], dx, dy, radius) * size, 0.0), 1.0)
        for c in range(len(out)):
            out[c] += cover * (surfaces.shades[k, c] - out[c])


@numba.njit(cache=True, inline="always")
def _floor_level(floor: NDArray[np.float64], x: float, y: float, size: int) -> float:
    """Bilinear between the floor's points, which lie in the middle of the pixels of a camera at rest."""
    last, margin = len(floor) - 1.000001, (len(floor) - size) // 2
    column, row = min(max(x * size - 0.5 + margin, 0.0), last), min(max(y * size - 0.5 + margin, 0.0), last)
    i, j = int(row), int(column)
    right, down = column - j, row - i
    above = floor[i, j] * (1 - right) + floor[i, j + 1] * right
    below = floor[i + 1, j] * (1 - right) + floor[i + 1, j + 1] * right
    level: float = above * (1 - down) + below * down
    return level


@numba.njit(cache=True)
def _box(surfaces: Surfaces, centres: NDArray[np.float64], k: int, size: int) -> tuple[int, int, int, int]:
    """Pixels (top, bottom, left, right), the ends left out, that object k touches on its way [T, N, 2]."""
    reach = surfaces.radii[k] + 1.0 / size
    left, right = centres[:, k, 0].min() - reach, centres[:, k, 0].max() + reach
    top, bottom = centres[:, k, 1].min() - reach, centres[:, k, 1].max() + reach
    return (
        max(0, int(top * size)),
        min(size, int(bottom * size) + 2),
        max(0, int(left * size)),
        min(size, int(right * size) + 2),
    )


@numba.njit(cache=True, nogil=True)
def _expose(surfaces: Surfaces, lighting: Lighting, instants: Instants) -> NDArray[np.float64]:
    """Mean light on every pixel over the instants, [S, S, C]."""
    size, channels, times = len(lighting.glow), surfaces.shades.shape[1], len(instants.lamp)
    image = np.zeros((size, size, channels))
    steady = (instants.views == instants.views[0]).all() and (instants.lamp == instants.lamp[0]).all()
    several = np.full((size, size), not steady)  # pixels that have to be looked at more than once
    for k in range(len(surfaces.kinds)):
        path = instants.centres[:, k]
        if (path != path[0]).any():
            top, bottom, left, right = _box(surfaces, instants.centres, k, size)
            several[top:bottom, left:right] = True
    seen = np.empty(channels)
    for row in range(size):
        for column in range(size):
            used = times if several[row, column] else 1
            for i in range(used):
                t = i if used > 1 else times - 1
                _look(
                    seen, surfaces, instants.centres[t], instants.views[t],
                    (column + 0.5) / size, (row + 0.5) / size, size,
                )  # fmt: skip
                strength = lighting.everywhere * (1 + instants.lamp[t] * lighting.glow[row, column]) / used
                for c in range(channels):
                    image[row, column, c] += (seen[c] + FLARE) * strength
    return image


# --- events ------------------------------------------------------------------------------------------------


@numba.njit(cache=True)
def _cutoff_hz(light: float) -> float:
    """Bandwidth of a photoreceptor, which its photocurrent bounds in little light."""
    return min(max(CUTOFF_PER_LIGHT_HZ * light, CUTOFF_HZ[0]), CUTOFF_HZ[1])


@numba.njit(cache=True)
def _share_of_the_way(cutoff_hz: float, step_ns: int) -> float:
    """How far a first-order low-pass filter goes towards what it is shown, within one step."""
    return 1 - math.exp(-2 * math.pi * cutoff_hz * step_ns * 1e-9)


@numba.njit(cache=True)
def _update_light(
    pixels: PixelStates, surfaces: Surfaces, lighting: Lighting, instants: Instants, t: int,
    box: tuple[int, int, int, int], seen: NDArray[np.float64], step_ns: int,
) -> None:  # fmt: skip
    """Look again at the pixels of a box (top, bottom, left, right)."""
    size, fastest = len(pixels.light), _share_of_the_way(CUTOFF_HZ[1], step_ns)
    centres, view, lamp, glow = instants.centres[t], instants.views[t], instants.lamp[t], lighting.glow
    goal, alpha = pixels.light, pixels.alpha
    for row in range(box[0], box[1]):
        for column in range(box[2], box[3]):
            _look(seen, surfaces, centres, view, (column + 0.5) / size, (row + 0.5) / size, size)
            light = (seen[0] + FLARE) * lighting.everywhere * (1 + lamp * glow[row, column])
            cutoff = _cutoff_hz(light)
            goal[row, column] = math.log(light + DARK_LIGHT)
            slow = cutoff < CUTOFF_HZ[1]
            alpha[row, column] = _share_of_the_way(cutoff, step_ns) if slow else fastest


@numba.njit(cache=True)
def _update_step(
    pixels: PixelStates, surfaces: Surfaces, lighting: Lighting, instants: Instants, t: int,
    seen: NDArray[np.float64], step_ns: int,
) -> None:  # fmt: skip
    """Look again at all that has changed since the instant before t."""
    size, views, paths = len(pixels.light), instants.views, instants.centres
    if (views[t] != views[t - 1]).any() or instants.lamp[t] != instants.lamp[t - 1]:
        _update_light(pixels, surfaces, lighting, instants, t, (0, size, 0, size), seen, step_ns)
        return
    for k in range(len(surfaces.kinds)):
        if paths[t - 1, k, 0] != paths[t, k, 0] or paths[t - 1, k, 1] != paths[t, k, 1]:
            box = _box(surfaces, paths[t - 1 : t + 1], k, size)
            _update_light(pixels, surfaces, lighting, instants, t, box, seen, step_ns)


@numba.njit(cache=True, nogil=True)
def _sense(
    pixels: PixelStates, surfaces: Surfaces, lighting: Lighting, instants: Instants, start_ns: int,
    step_ns: int, refractory_ns: int,
) -> tuple[NDArray[np.int64], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.uint8]]:  # fmt: skip
    """Events of step after step; the instants are the middles of the step before them and of each."""
    size = len(pixels.light)
    capacity, count = 1 << 14, 0
    t, x = np.empty(capacity, np.int64), np.empty(capacity, np.uint16)
    y, p = np.empty(capacity, np.uint16), np.empty(capacity, np.uint8)
    seen = np.empty(1)
    for step in range(1, len(instants.lamp)):
        begin = start_ns + (step - 1) * step_ns
        _update_step(pixels, surfaces, lighting, instants, step, seen, step_ns)
        for row in range(size):
            for column in range(size):
                before, goal, free = (
                    pixels.seen[row, column],
                    pixels.light[row, column],
                    pixels.free_ns[row, column],
                )
                if before == goal and free == NEVER:
                    continue
                after = before + pixels.alpha[row, column] * (goal - before)
                if abs(goal - after) < SETTLED:
                    after = goal
                pixels.seen[row, column] = after
                reference, threshold = pixels.reference[row, column], pixels.thresholds[row, column]
                sign = 1.0 if after > before else -1.0
                earliest = 0.0  # the share of the step at which the pixel begins to compare
                while True:
                    if free != NEVER:  # it does not compare, and then begins anew from what it sees
                        if free >= begin + step_ns:
                            break
                        earliest = (free - begin) / step_ns
                        reference, free = before + earliest * (after - before), NEVER
                    if after == before or (after - reference) * sign < threshold:
                        break
                    share = (reference + sign * threshold - before) / (after - before)
                    when = begin + int(min(max(share, earliest), 1.0) * step_ns)
                    if count == capacity:
                        capacity *= 2
                        t, x, y, p = (
                            grown(t, capacity),
                            grown(x, capacity),
                            grown(y, capacity),
                            grown(p, capacity),
                        )
                    t[count], x[count], y[count], p[count] = when, column, row, sign > 0
                    count += 1
                    free = when + refractory_ns
                pixels.reference[row, column], pixels.free_ns[row, column] = reference, free
    return t[:count], x[:count], y[:count], p[:count]


# --- the cameras -------------------------------------------------------------------------------------------


class PhysicalCamera:
    """An RGB camera and an event camera that look at one scene of any condition through the same lens.

    As of `SceneCamera`, events come out piece by piece.
    """

    def __init__(self, scene: Scene, seed: int, size: int = SENSOR_SIZE, start_s: float = 0.0) -> None:
        self._scene = scene
        self._size = size
        self._random = np.random.default_rng(seed)
        self._rgb = _surfaces(scene, size)
        self._grey = self._rgb._replace(shades=self._rgb.shades @ LUMINANCE[:, None])
        self._lighting = Lighting(scene.illumination, _glow(scene.lamp, size))
        # what a slow pixel saw before it is on its way still
        warm_up_s = 3 / (2 * math.pi * _cutoff_hz(FLARE * scene.illumination))
        self._time_ns = round((start_s - warm_up_s) * 1e9 / STEP_NS) * STEP_NS
        self._pixels = self._settled_pixels()
        self.events(start_s)

    def image(self, seconds: float) -> NDArray[np.uint8]:
        """What the RGB camera sees in an exposure that ends at this time, uint8 [S, S, 3]."""
        illumination = self._scene.illumination
        electrons = self._exposed(seconds) * (FULL_WELL * exposure_s(illumination) / DAY_EXPOSURE_S)
        noise = self._random.standard_normal(electrons.shape, np.float32)
        # a Poisson count's variance is its mean; where its shape is no normal one, read noise is the larger
        electrons += np.sqrt(electrons + READ_NOISE**2) * noise
        seen = np.clip(electrons * (gain(illumination) / FULL_WELL), 0, 1)
        return np.round(255 * to_srgb(seen)).astype(np.uint8)

    def events(self, stop_s: float) -> Events:
        """What the event camera sent since the last call (or the start) until stop_s; t counts from scene
        time 0.
        """
        steps = max(1, round((stop_s * 1e9 - self._time_ns) / STEP_NS))
        # a photoreceptor follows the light in the middle of a step: that at its end would hurry it
        instants = self._instants((self._time_ns + (np.arange(steps + 1) - 0.5) * STEP_NS) * 1e-9)
        noise = self._noise(steps * STEP_NS)
        signal = _sense(
            self._pixels, self._grey, self._lighting, instants, self._time_ns, STEP_NS, REFRACTORY_NS
        )
        self._time_ns += steps * STEP_NS
        fields = [np.concatenate(parts) for parts in zip(signal, *noise, strict=True)]
        order = np.argsort(fields[0], kind="stable")
        t, x, y, p = (field[order] for field in fields)
        return Events(t, x, y, p, self._size, self._size)

    def _exposed(self, seconds: float) -> NDArray[np.float64]:
        """Mean light [S, S, 3] over one exposure."""
        length = exposure_s(self._scene.illumination)
        samples = min(max(1, math.ceil(2 * _speed(self._scene) * length * self._size)), MOST_SUBSAMPLES)
        times = seconds - length * (np.arange(samples) + 0.5) / samples
        light: NDArray[np.float64] = _expose(self._rgb, self._lighting, self._instants(times))
        return light

    def _instants(self, seconds: NDArray[np.float64]) -> Instants:
        bar = self._scene.bar
        paths = [thing.position(seconds) for thing in self._scene.objects]
        paths += [np.full((len(seconds), 2), bar.middle)] if bar else []
        lamp = self._scene.lamp
        on = np.zeros(len(seconds)) if lamp is None else (seconds >= lamp.on_s).astype(np.float64)
        return Instants(np.stack(paths, axis=1), _views(self._scene, seconds), on)

    def _settled_pixels(self) -> PixelStates:
        """Pixels that have been seeing the scene as it is now."""
        shape = (self._size, self._size)
        thresholds = np.maximum(
            self._random.normal(CONTRAST_THRESHOLD, THRESHOLD_SPREAD, shape), CONTRAST_THRESHOLD / 2
        )
        light = _expose(self._grey, self._lighting, self._instants(np.array([self._time_ns * 1e-9])))[..., 0]
        seen = np.log(light + DARK_LIGHT)
        # a camera that has been running for long holds references spread over one threshold
        reference = seen + thresholds * self._random.uniform(-1, 1, shape)
        return PixelStates(thresholds, seen.copy(), np.ones(shape), seen, reference, np.full(shape, NEVER))

    def _noise(self, span_ns: int) -> list[tuple[NDArray[np.generic], ...]]:
        """Shot noise of either polarity, more where it is darker, and leak events."""
        dark = HALF_NOISE_LIGHT / (HALF_NOISE_LIGHT + np.exp(self._pixels.light))
        shot = NOISE_RATE_HZ + (DARK_NOISE_HZ - NOISE_RATE_HZ) * dark
        return [
            self._noise_events(shot * span_ns * 1e-9, span_ns, leak=False),
            self._noise_events(np.full_like(shot, LEAK_HZ * span_ns * 1e-9), span_ns, leak=True),
        ]

    def _noise_events(
        self, expected: NDArray[np.float64], span_ns: int, *, leak: bool
    ) -> tuple[NDArray[np.generic], ...]:
        """As many events as are expected of each pixel [S, S] on an average, within the next span."""
        y, x = np.divmod(
            np.repeat(np.arange(expected.size), self._random.poisson(expected).ravel()), self._size
        )
        t = self._random.integers(self._time_ns, self._time_ns + span_ns, len(x))
        p = self._random.integers(int(leak), 2, len(x), np.uint8)
        return t, x.astype(np.uint16), y.astype(np.uint16), p


Camera = SceneCamera | PhysicalCamera


def open_camera(scene: Scene, seed: int, start_s: float = 0.0) -> Camera:
    """The camera for a scene: an ideal one for a plain scene, else one that has a real one's limits."""
    return (SceneCamera if scene.condition == PLAIN else PhysicalCamera)(scene, seed, start_s=start_s)


def _surfaces(scene: Scene, size: int) -> Surfaces:
    """Everything in a scene, from the rearmost to what is in front of all."""
    kinds = [SHAPES.index(thing.shape) for thing in scene.objects]
    radii = [thing.radius for thing in scene.objects]
    colours = [COLOURS[thing.colour] for thing in scene.objects]
    if scene.bar:
        kinds.append(scene.bar.kind)
        radii.append(scene.bar.width / 2)
        colours.append((BACKGROUNDS[scene.bar.shade],) * 3)
    return Surfaces(
        np.array(kinds, np.int64), np.array(radii), to_linear(np.array(colours)), _floor(scene, size)
    )


def _floor(scene: Scene, size: int) -> NDArray[np.float64]:
    """The background's linear light at the pixels of a camera at rest and beyond."""
    margin = round(FLOOR_MARGIN * size)
    at = (np.arange(-margin, size + margin) + 0.5) / size
    right, down = scene.gradient
    level = BACKGROUNDS[scene.background] + right * (at - 0.5) + down * (at[:, None] - 0.5)
    light = to_linear(level)
    if scene.tiles is not None:
        tile = np.floor((at - at[0]) / TILE).astype(int)
        shades = np.random.default_rng(scene.tiles).uniform(-1, 1, (tile[-1] + 1,) * 2)
        light *= 1 + TILE_CONTRAST * shades[tile[:, None], tile]
    return light


def _glow(lamp: Lamp | None, size: int) -> NDArray[np.float64]:
    """By how much more than 1 a lamp's light multiplies that of each pixel."""
    if lamp is None:
        return np.zeros((size, size))
    at = (np.arange(size) + 0.5) / size
    distance = np.hypot(at - lamp.x, at[:, None] - lamp.y) - lamp.radius
    glow: NDArray[np.float64] = LAMP_LIGHT ** np.clip(0.5 - distance / LAMP_RIM, 0, 1) - 1
    return glow


def _views(scene: Scene, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The affine map [T, 6] from the image to the scene, the inverse of `CameraMotion.show`."""
    if scene.camera is None:
        return np.tile(np.array([1.0, 0.0, 0.0, 0.0, 1.0, 0.0]), (len(seconds), 1))
    dx, dy, turn, growth = scene.camera.pose(seconds).T
    cos, sin = np.exp(-growth) * np.cos(turn), np.exp(-growth) * np.sin(turn)
    x, y = dx + 0.5, dy + 0.5
    return np.stack((cos, sin, 0.5 - cos * x - sin * y, -sin, cos, 0.5 + sin * x - cos * y), -1)


def _speed(scene: Scene) -> float:
    """The fastest that anything goes through the image, in widths a second."""
    fastest = max(math.hypot(thing.vx, thing.vy) for thing in scene.objects)
    if scene.camera is None:
        return fastest
    right, down, turn, growth = scene.camera.rate
    return fastest + math.hypot(right, down) + (abs(turn) + abs(growth)) * math.sqrt(0.5)
