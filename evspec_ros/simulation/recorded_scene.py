"""A simulated scene as a recording that any player can play."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from evspec_ros.choices import PLAIN
from evspec_ros.frames.types import Frame
from evspec_ros.recordings.bag_writer import BagWriter
from evspec_ros.simulation.conditions import draw_scene
from evspec_ros.simulation.samples import CAMERA_HZ
from evspec_ros.simulation.sensors import open_camera

PACKET_S = 0.01


def record_scene(
    path: Path, seed: int, seconds: float, condition: str = PLAIN, *, still: bool = False
) -> None:
    """Write a rosbag2 of one scene drawn from `seed`: RGB at 30 Hz and events, both starting at time 0.

    It can be described without ambiguity at its end. condition: one of `conditions.CONDITIONS`; still: no
    object moves, so that the event camera of a plain scene sends noise alone. Raises RecordingError where the
    path is taken or cannot be written.
    """
    random = np.random.default_rng(seed)
    scene = draw_scene(condition, random, at_s=seconds)
    if still:
        scene = replace(scene, objects=tuple(replace(one, vx=0.0, vy=0.0) for one in scene.objects))
    camera = open_camera(scene, seed)
    next_frame = 0
    with BagWriter(path) as bag:
        for packet in range(1, round(seconds / PACKET_S) + 1):
            while next_frame / CAMERA_HZ < packet * PACKET_S:
                at_s = next_frame / CAMERA_HZ
                bag.write_frame(Frame(round(at_s * 1e9), camera.image(at_s)))
                next_frame += 1
            events = camera.events(packet * PACKET_S)
            if len(events):
                bag.write_events(events, int(events.t[0]))
