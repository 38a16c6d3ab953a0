"""The shapes that scenes are made of: their outlines, and how much one hides of another."""

from __future__ import annotations

import math

import numba

SHAPES = ("ball", "box", "cone", "ring", "star", "cross")
UPRIGHT, LYING = -1, -2  # kinds of a bar, beside the indices into SHAPES


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
def covered_share(kind: int, radius: float, front: int, front_radius: float, dx: float, dy: float) -> float:
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
def cover(kind: int, dx: float, dy: float, radius: float, size: int) -> float:
    """Share of a pixel that a shape covers, centre (dx, dy) from the shape's; edges are one pixel soft."""
    reach = radius + 1.0 / size
    if abs(dx) > reach or abs(dy) > reach:
        return 0.0
    share: float = min(max(0.5 - _signed_distance(kind, dx, dy, radius) * size, 0.0), 1.0)
    return share
