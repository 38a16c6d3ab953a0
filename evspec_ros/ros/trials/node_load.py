"""The node under events at sensor rate from another process, over DDS, until it falls behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

from evspec_ros.errors import RosError
from evspec_ros.evaluation.ingest_speed import NodeLoad
from evspec_ros.ros.trials.demo import Listener
from evspec_ros.ros.trials.processes import Child, as_parameter_file, isolated_ros

RATES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)  # million events a second
# Of what is offered; the node reports once a second, which makes its rate uncertain by this much.
KEPT_UP = 0.95
PARAMETERS = {"threads": 1}  # as on a robot, where the networks do not have all cores


def measure_node(seconds: float, rates: tuple[float, ...] = RATES) -> NodeLoad:
    """Each rate for so many seconds, from low to high, until the node falls behind; raises RosError."""
    with isolated_ros("load") as folder:
        return _measure(folder, seconds, rates)


def _measure(folder: Path, seconds: float, rates: tuple[float, ...]) -> NodeLoad:
    parameter_file = folder / "parameters.yaml"
    parameter_file.write_text(as_parameter_file(PARAMETERS), encoding="utf-8")
    arguments = ["--ros-args", "--params-file", str(parameter_file)]
    listener = Listener()
    steps: list[dict[str, float]] = []
    with Child("node", "evspec_ros.ros.main", arguments, folder) as node:
        listener.spin_until_describing(node)
        for rate in rates:
            steps.append(_step(listener, node, rate, seconds, folder))
            if not _kept_up(steps[-1]):
                break
    best = ([step for step in steps if _kept_up(step)] or steps)[-1]
    return NodeLoad(best["mev_per_s"], best["cpu_percent"], int(best["dropped_packets"]), tuple(steps))


def _kept_up(step: dict[str, float]) -> bool:
    """Whether nothing was lost and nothing heaped up: the subscription's queue hides seconds of overload."""
    return not step["dropped_packets"] and step["mev_per_s"] >= KEPT_UP * step["offered_mev_per_s"]


def _step(listener: Listener, node: Child, rate: float, seconds: float, folder: Path) -> dict[str, float]:
    """One rate: what was sent, and what the node had taken in by then."""
    messages, _ = _received(listener)
    described, reports = len(listener.results), listener.reports
    cpu: list[tuple[float, float]] = []  # seconds by the monotonic clock, of the processor
    events: list[tuple[float, float]] = []  # the same clock, events in all
    with Child("source", "evspec_ros.ros.event_source", [str(rate), str(seconds)], folder) as source:
        while not source.finished():
            listener.spin_once()
            cpu.append((time.monotonic(), node.cpu_s()))
            if listener.reports > reports:
                reports = listener.reports
                events.append((time.monotonic(), _received(listener)[1]))
        sent = json.loads(source.output)
    while listener.reports < reports + 2:  # the first may have been on its way
        node.finished()
        listener.spin_once()
    return {
        "offered_mev_per_s": rate,
        "mev_per_s": round(_slope(events, sent["begin"], sent["end"]) / 1e6, 2),
        "cpu_percent": round(100 * _slope(cpu, sent["begin"], sent["end"]), 1),
        "packets": sent["packets"],
        "dropped_packets": sent["packets"] - (_received(listener)[0] - messages),
        "descriptions": len(listener.results) - described,
    }


def _slope(samples: list[tuple[float, float]], begin: float, end: float) -> float:
    """Growth per second between the first and the last sample within these times."""
    inside = [sample for sample in samples if begin <= sample[0] <= end]
    if len(inside) < 2:
        raise RosError("The node reported too rarely to be measured; measure for more seconds (--seconds).")
    (first, before), (last, after) = inside[0], inside[-1]
    return (after - before) / (last - first)


def _received(listener: Listener) -> tuple[int, int]:
    """Messages and events so far, by the node's own account."""
    status = listener.health.get("events")
    values = {pair.key: pair.value for pair in status.values} if status else {}
    return int(values.get("messages", 0)), int(values.get("events", 0))
