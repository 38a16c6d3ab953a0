"""What the cameras of `sensors` compute, pixel by pixel: the light on each, and the events that follow.

Light is linear: 1 is what a white surface sends on a bright day.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from evspec_ros.simulation.ideal_camera import grown
from evspec_ros.simulation.shapes import outline_distance

FLARE = 0.01  # of white, scattered over the whole image by the lens
DARK_LIGHT = 1e-6  # what an event pixel's dark current amounts to
# v2e's setting for little light ("noisy"): 30 Hz; 300 Hz is its default
CUTOFF_PER_LIGHT_HZ = 480_000.0  # 30 Hz for white in 1 / 16,000 of daylight
CUTOFF_HZ = (3.0, 300.0)  # v2e: a black pixel has a tenth of a white one's
SETTLED = 1e-6  # log intensity that is no way to go any more
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
def expose(surfaces: Surfaces, lighting: Lighting, instants: Instants) -> NDArray[np.float64]:
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


@numba.njit(cache=True)
def cutoff_hz(light: float) -> float:
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
            cutoff = cutoff_hz(light)
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
def sense(
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
