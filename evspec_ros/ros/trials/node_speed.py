"""What the node costs besides its networks, measured on real DDS: `evspec bench node`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evspec_ros.errors import RosError
from evspec_ros.evaluation.gpu_figures import Figure
from evspec_ros.evaluation.replay.summary import spread
from evspec_ros.networks.devices import processor
from evspec_ros.ros.trials.demo import SCENE_SEED, Listener
from evspec_ros.ros.trials.processes import Child, as_parameter_file, isolated_ros
from evspec_ros.simulation.recorded_scene import record_scene

SCENE_S = 4.0
SETTLED_AFTER_S = 1.0  # of playing: the first window is described by then
PARAMETERS = {"threads": 1}  # as on a robot, where the networks do not have all cores
CONTINUOUS, ACTIVITY = "continuous", "activity"
ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Told:
    """What the node told of one description, milliseconds.

    at_s: monotonic seconds of its end. overhead_ms: from its begin until all of it was published, without the
    describer's work; publish_ms: a part of that. pictures_ms: a part of the describer's work that is none of
    the networks': frames and events become what these read. callbacks_ms: each call that took event messages
    in while it was written.
    """

    at_s: float
    overhead_ms: float
    publish_ms: float
    pictures_ms: float
    callbacks_ms: list[float]


@dataclass(frozen=True)
class ScenePhase:
    """Some seconds of playing. cpu_percent: of one core, by the node's process."""

    seconds: float
    cpu_percent: float
    told: tuple[Told, ...]

    def as_dict(self) -> dict[str, float]:
        """How busy the node was."""
        return {
            "cpu_percent": round(self.cpu_percent, 1),
            "descriptions": len(self.told),
            "descriptions_per_s": round(len(self.told) / self.seconds, 2),
        }


@dataclass(frozen=True)
class NodeSpeed:
    """moving: a scene that is described as often as the networks manage; still: one in which nothing moves,
    by the parameter `trigger`.
    """

    machine: str
    moving: ScenePhase
    still: Mapping[str, ScenePhase]

    def times_ms(self) -> dict[str, dict[str, float]]:
        """Percentiles of what was measured while the scene moved; raises RosError where too little was."""
        told = self.moving.told
        measured: dict[str, Sequence[float]] = {
            "overhead_ms": [one.overhead_ms for one in told],
            "publish_ms": [one.publish_ms for one in told],
            "pictures_ms": [one.pictures_ms for one in told],
            "callback_ms": [ms for one in told for ms in one.callbacks_ms],
        }
        if not all(measured.values()):
            raise RosError("Nothing was described meanwhile; measure for more seconds (--seconds).")
        return {name: spread(values) for name, values in measured.items()}

    def goals(self) -> tuple[Figure, ...]:
        """What has a goal."""
        times = self.times_ms()
        return (
            Figure("overhead outside the networks, p95", times["overhead_ms"]["p95"], "ms", at_most=3.0),
            Figure("event callback while describing, p99", times["callback_ms"]["p99"], "ms", at_most=5.0),
            Figure(
                "descriptions of the still scene, trigger activity",
                len(self.still[ACTIVITY].told),
                "",
                at_most=0.0,
            ),
        )

    def as_dict(self) -> dict[str, Any]:
        """What `evspec bench node --json` prints."""
        return {
            "machine": self.machine,
            "seconds": round(self.moving.seconds, 2),
            **self.moving.as_dict(),
            **self.times_ms(),
            "callbacks": sum(len(one.callbacks_ms) for one in self.moving.told),
            "still": {trigger: phase.as_dict() for trigger, phase in self.still.items()},
            "goals": [figure.as_dict() for figure in self.goals()],
        }


def measure_speed(seconds: float) -> NodeSpeed:
    """Each of the three phases for so long, with the package's own models on the CPU; raises RosError."""
    with isolated_ros("speed") as folder:
        record_scene(folder / "moving", SCENE_SEED, SCENE_S)
        record_scene(folder / "still", SCENE_SEED, SCENE_S, still=True)
        parameters = folder / "parameters.yaml"
        parameters.write_text(as_parameter_file(PARAMETERS), encoding="utf-8")
        arguments = ["--ros-args", "--params-file", str(parameters)]
        with Child("node", "evspec_ros.ros.trials.measured_node", arguments, folder) as node:
            bench = _NodeBench(node, folder)
            moving = bench.play("moving", seconds)
            still: dict[str, ScenePhase] = {}
            for trigger in (CONTINUOUS, ACTIVITY):
                bench.set_trigger(trigger)
                still[trigger] = bench.play("still", seconds)
    return NodeSpeed(processor(), moving, still)


class _NodeBench(Listener):
    """A node that describes, and who plays to it."""

    def __init__(self, node: Child, folder: Path) -> None:
        super().__init__()
        self._measured, self._folder = node, folder
        self._setter = self._node.create_client(SetParameters, "/evspec/set_parameters")
        self.spin_until_describing(node)

    def set_trigger(self, trigger: str) -> None:
        """What the node describes from now on."""
        parameter = Parameter("trigger", value=trigger).to_parameter_msg()
        if not self._setter.wait_for_service(ANSWER_TIMEOUT_S):
            raise RosError("The node's parameters cannot be set: their service is not there.")
        answer = self._setter.call_async(SetParameters.Request(parameters=[parameter]))
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while not answer.done():
            if time.monotonic() > deadline:
                raise RosError(f"The node did not answer within {ANSWER_TIMEOUT_S:g} s; see its log.")
            self.spin_once()

    def play(self, scene: str, seconds: float) -> ScenePhase:
        """Play a scene for a while and look at the seconds after the first one."""
        arguments = [str(self._folder / scene), "--seconds", str(SETTLED_AFTER_S + seconds)]
        with Child("player", "evspec_ros.ros.trials.player", arguments, self._folder) as player:
            while not player.output:  # its schedule comes when the node hears it
                self._step()
            self._spin(SETTLED_AFTER_S)
            began, spent_s = time.monotonic(), self._measured.cpu_s()
            self._spin(seconds)
            ended, spent_s = time.monotonic(), self._measured.cpu_s() - spent_s
        told = tuple(one for one in self._told() if began <= one.at_s <= ended)
        return ScenePhase(ended - began, 100 * spent_s / (ended - began), told)

    def _told(self) -> list[Told]:
        """All descriptions so far; a line that is being written is left out."""
        lines = self._measured.output.splitlines(keepends=True)
        return [Told(**json.loads(line)) for line in lines if line.endswith("\n")]

    def _spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._step()

    def _step(self) -> None:
        self.spin_once()
        if self._measured.finished():
            raise RosError("The node ended while it was measured; it was stopped from outside.")


def print_speed(speed: NodeSpeed) -> None:
    """For people."""
    console = Console(highlight=False)
    busy = speed.moving.as_dict()
    console.print(
        f"{speed.machine}; {busy['descriptions_per_s']} descriptions a second with "
        f"{busy['cpu_percent']} % of a core"
    )
    table = Table("ms", "p50", "p95", "p99", box=SIMPLE)
    for name, times in speed.times_ms().items():
        table.add_row(name.removesuffix("_ms"), *(f"{times[q]:.3f}" for q in ("p50", "p95", "p99")))
    console.print(table)
    for trigger, phase in speed.still.items():
        shown = phase.as_dict()
        console.print(
            f"A still scene, trigger {trigger}: {shown['cpu_percent']} % of a core, "
            f"{shown['descriptions']} descriptions"
        )
    goals = Table("goal", "measured", "unit", "asked", "met", box=SIMPLE)
    for figure in speed.goals():
        met = "yes" if figure.met else "no"
        goals.add_row(figure.name, f"{figure.value:.4g}", figure.unit, figure.goal, met)
    console.print(goals)
