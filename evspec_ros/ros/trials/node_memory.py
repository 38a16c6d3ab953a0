"""The node's memory while a recording is played to it over and over, its settings the defaults:
`python -m evspec_ros.ros.trials.node_memory [RECORDING] --seconds 600`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evspec_ros.errors import RosError
from evspec_ros.ros.trials.demo import SCENE_SEED, Listener
from evspec_ros.ros.trials.processes import Child, isolated_ros
from evspec_ros.simulation.recorded_scene import record_scene

SETTLED_AFTER_S = 120.0  # by then caches, pools of threads and allocators have what they will have
PERIOD_S = 1.0
SCENE_S = 3.0  # the simulated recording where none is given


@dataclass(frozen=True)
class NodeMemory:
    """Resident memory of the node's process.

    seconds: how long was measured; descriptions: written meanwhile; start_mb, end_mb: medians of the first
    and the last ten samples after settling; growth_mb_per_10_min: slope of the line through the samples
    after settling with the least squared distance.
    """

    seconds: float
    descriptions: int
    start_mb: float
    end_mb: float
    growth_mb_per_10_min: float


def measure_memory(recording: Path | None, seconds: float, settle_s: float) -> NodeMemory:
    """Play the recording (None: a simulated scene) in a loop for so long; raises RosError."""
    with isolated_ros("memory") as folder:
        path = recording or folder / "scene"
        if recording is None:
            record_scene(path, SCENE_SEED, SCENE_S)
        return _measure(path, seconds, settle_s, folder)


def _measure(recording: Path, seconds: float, settle_s: float, folder: Path) -> NodeMemory:
    listener = Listener()
    with Child("node", "evspec_ros.ros.main", [], folder) as node:
        listener.spin_until_describing(node)
        arguments = [str(recording), "--seconds", str(seconds)]
        with Child("player", "evspec_ros.ros.trials.player", arguments, folder) as player:
            samples = _samples(listener, node, player)
    settled = [sample for sample in samples if sample[0] - samples[0][0] >= settle_s]
    growth = growth_per_10_min(settled)
    sizes = [size for _, size in settled]
    return NodeMemory(
        round(samples[-1][0] - samples[0][0], 1),
        len(listener.results),
        round(statistics.median(sizes[:10]), 2),
        round(statistics.median(sizes[-10:]), 2),
        round(growth, 3),
    )


def growth_per_10_min(samples: Sequence[tuple[float, float]]) -> float:
    """The slope of the line through (seconds, megabytes) with the least squared distance; MB in 10 min."""
    if len(samples) < 2:
        raise RosError("Too short to be measured; play for more seconds (--seconds).")
    times, sizes = zip(*samples, strict=True)
    slope, _ = statistics.linear_regression(times, sizes)
    return 600 * slope


def _samples(listener: Listener, node: Child, player: Child) -> list[tuple[float, float]]:
    """Seconds by the monotonic clock and the node's resident megabytes, until the player is done."""
    samples = [(time.monotonic(), node.resident_mb())]
    while not player.finished():
        listener.spin_once()
        if node.finished():
            raise RosError("The node ended before the recording did; it was stopped from outside.")
        if time.monotonic() >= samples[-1][0] + PERIOD_S:
            samples.append((time.monotonic(), node.resident_mb()))
    return samples


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure as the command line says and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m evspec_ros.ros.trials.node_memory", description=__doc__)
    parser.add_argument("recording", type=Path, nargs="?", help="a simulated scene where none is given")
    parser.add_argument("--seconds", type=float, default=600.0, help="how long to play it, over and over")
    parser.add_argument(
        "--settle", type=float, default=SETTLED_AFTER_S, help="seconds that the slope leaves out at first"
    )
    options = parser.parse_args(arguments)
    print(json.dumps(asdict(measure_memory(options.recording, options.seconds, options.settle))))


if __name__ == "__main__":
    main()
