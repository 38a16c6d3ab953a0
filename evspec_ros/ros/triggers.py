"""What asks for descriptions: new data, a period, or nobody but a service."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

from evspec_ros.ros.diagnostics import DescriptionCounts
from evspec_ros.ros.guard import Guard
from evspec_ros.ros.inputs import Inputs
from evspec_ros.ros.parameters import LiveSettings
from evspec_ros.ros.worker import Worker


class Triggers:
    """Asks the worker for a description as the parameter `trigger` says, while the worker runs."""

    def __init__(
        self,
        node: Node,
        settings: LiveSettings,
        inputs: Inputs,
        worker: Worker,
        counts: DescriptionCounts,
        guard: Guard,
    ) -> None:
        self._node = node
        self._settings = settings
        self._inputs = inputs
        self._worker = worker
        self._counts = counts
        self._guard = guard
        self._timer: Any = None
        self._offered_ns = 0

    def begin(self) -> None:
        """Nothing was asked for yet; with trigger period, a timer in ROS time asks for descriptions."""
        self.forget()
        self.restart()

    def restart(self) -> None:
        """Take up the settings."""
        self.stop()
        settings = self._settings.current
        self._counts.expect()
        if self._worker.running and settings.trigger == "period":
            offer = self._guard("A description could not be asked for", self._worker.offer)
            self._timer = self._node.create_timer(settings.period_s, offer)

    def stop(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._timer = None

    def forget(self) -> None:
        """Time jumped: the next window is another one, whenever it ends."""
        self._offered_ns = 0

    def arrived(self) -> None:
        """Ask for a description where a window's worth of time has passed."""
        settings = self._settings.current
        end_ns = self._inputs.newest_end_ns()
        if settings.trigger != "continuous" or end_ns is None:
            return
        if abs(end_ns - self._offered_ns) >= settings.window_ms * 1e6:  # time may have jumped back
            self._offered_ns = end_ns
            self._worker.offer()
