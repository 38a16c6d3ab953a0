"""The cameras that see scenes of every condition: how light becomes grey levels and events.

Light is linear: 1 is what a white surface sends on a bright day. The RGB camera collects it over its
exposure, adds shot and read noise, saturates and encodes as sRGB (IEC 61966-2-1). The event camera is ESIM's
(Rebecq et al., CoRL 2018) with the faults that v2e (Hu et al., arXiv 2006.07722) gives it: a photoreceptor of
finite bandwidth, slower in less light; a refractory period after each event; background activity, more in
less light; leak events. Both cameras set themselves by the light that falls on the scene and by nothing else.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from evspec_ros.choices import PLAIN
from evspec_ros.events.types import Events
from evspec_ros.simulation.ideal_camera import (
    CONTRAST_THRESHOLD,
    LUMINANCE,
    NOISE_RATE_HZ,
    SENSOR_SIZE,
    STEP_NS,
    THRESHOLD_SPREAD,
    SceneCamera,
)
from evspec_ros.simulation.scenes import BACKGROUNDS, COLOURS, LAMP_LIGHT, Lamp, Scene
from evspec_ros.simulation.sensor_kernels import (
    DARK_LIGHT,
    FLARE,
    NEVER,
    Instants,
    Lighting,
    PixelStates,
    Surfaces,
    cutoff_hz,
    expose,
    sense,
)
from evspec_ros.simulation.shapes import SHAPES

DAY_EXPOSURE_S, LONGEST_EXPOSURE_S = 0.002, 0.03  # below one frame at 30 Hz
HIGHEST_GAIN = 8.0
FULL_WELL = 8000.0  # electrons of white, well exposed
READ_NOISE = 4.0  # electrons
MOST_SUBSAMPLES = 32  # of one exposure

# v2e's setting for little light ("noisy")
DARK_NOISE_HZ = 5.0  # of one pixel in the dark, falling to NOISE_RATE_HZ in the light
HALF_NOISE_LIGHT = 1 / 16_000  # where half of what is above that is left
LEAK_HZ = 0.1  # "brighter" events of a pixel that sees nothing change
REFRACTORY_NS = 500_000

FLOOR_MARGIN = 0.15  # widths of floor around the unit square, which a swaying camera sees
TILE = 0.07  # widths
TILE_CONTRAST = 0.45  # of the background's brightness
LAMP_RIM = 0.03  # widths in which a lamp's light ends


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
        warm_up_s = 3 / (2 * math.pi * cutoff_hz(FLARE * scene.illumination))
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
        signal = sense(
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
        light: NDArray[np.float64] = expose(self._rgb, self._lighting, self._instants(times))
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
        light = expose(self._grey, self._lighting, self._instants(np.array([self._time_ns * 1e-9])))[..., 0]
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
