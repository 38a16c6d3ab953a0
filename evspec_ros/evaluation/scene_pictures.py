"""Simulated scenes to look at: a sheet of every condition, and `scene_statistics`' figures as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evspec_ros.choices import CONDITIONS
from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.scene_statistics import INTERVAL_EDGES_MS, EventStatistics
from evspec_ros.events.rendering import render_event_images
from evspec_ros.simulation.captions import caption
from evspec_ros.simulation.samples import sample_scene
from evspec_ros.sizes import EVENT_IMAGES, FRAMES

PANELS = (
    ("rate_hz", "events of a pixel a second", True),
    ("on", "share of brighter events", False),
    ("active", "share of pixels with an event in 50 ms", True),
    ("per_active", "events of an active pixel in 50 ms", False),
    ("supported", "share of events with a neighbour in 10 ms", False),
)  # field, title, whether its axis is logarithmic


def draw_sheet(path: Path, index: int = 0) -> None:
    """A picture of held-out scene `index` of each condition: the eight RGB frames of its last second, below
    them the five event images of its last 50 ms and its caption. Raises EvspecError where it cannot be
    written.
    """
    figure = Figure(figsize=(FRAMES * 1.5, len(CONDITIONS) * 3.6), layout="constrained")
    parts = figure.subfigures(len(CONDITIONS), squeeze=False)
    for condition, part in zip(CONDITIONS, parts.flat, strict=True):
        scene, camera, times = sample_scene("held_out", index, condition)
        frames = [camera.image(time) for time in times]
        images = [*frames, *render_event_images(camera.events(0.0))]
        titles = [f"{time:.2f} s" for time in times] + [f"events {k + 1}" for k in range(EVENT_IMAGES)]
        axes = list(part.subplots(2, FRAMES).flat)
        for one in axes:
            one.set_axis_off()
        for one, image, title in zip(axes, images, titles, strict=False):
            one.imshow(image)
            one.set_title(title, fontsize=7)
        part.suptitle(f"{condition}: {caption(scene, 0.0)}", fontsize=9, wrap=True)
    _save(figure, path)


def plot_statistics(rows: Sequence[EventStatistics], path: Path) -> None:
    """Every figure as bars, and how the intervals are distributed; EvspecError where it cannot be written."""
    figure = Figure(figsize=(15, 9), layout="constrained")
    *panels, intervals = figure.subplots(2, 3).flat
    for axes, (field, title, logarithmic) in zip(panels, PANELS, strict=True):
        axes.barh(
            [row.name for row in rows],
            [getattr(row, field) for row in rows],
            color=["tab:blue" if row.simulated else "tab:orange" for row in rows],
            log=logarithmic,
        )
        axes.invert_yaxis()
        axes.set_title(title, fontsize=10)
    figure.suptitle("events in windows of 50 ms: simulated scenes (blue) and recordings (orange)")
    _plot_intervals(intervals, rows)
    _save(figure, path)


def _plot_intervals(axes: Axes, rows: Sequence[EventStatistics]) -> None:
    for row in rows:
        if row.intervals_ms:
            line = "-" if row.simulated else "--"
            axes.stairs(np.array(row.histogram), INTERVAL_EDGES_MS, label=row.name, linestyle=line)
    axes.set_title("time from one event of a pixel to its next", fontsize=10)
    axes.set(xlabel="ms", ylabel="share", xscale="log")
    axes.legend(fontsize=7)


def _save(figure: Figure, path: Path) -> None:
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise EvspecError(f"The picture cannot be written to {path}: {error}.") from error
