"""What asks for descriptions: new data, what happens in it, a period, or nobody but a service."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node

from evspec_ros.events.types import Events
from evspec_ros.events.window import WindowSize
from evspec_ros.ros.activity import SAMPLE, Glance
from evspec_ros.ros.diagnostics import DescriptionCounts
from evspec_ros.ros.guard import Guard
from evspec_ros.ros.inputs import Inputs
from evspec_ros.ros.live_settings import LiveSettings
from evspec_ros.ros.parameters import ACTIVITY, Settings
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
        self.forget()

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
        self._looked_ns = 0
        self._described: Glance | None = None

    def arrived(self) -> None:
        """Ask for a description where a window's worth of time has passed and, with trigger activity, where
        something happened in it. The newest window is what is described when the worker is free.
        """
        settings = self._settings.current
        if settings.trigger not in ("continuous", ACTIVITY):
            return
        end_ns = self._inputs.newest_end_ns()
        if end_ns is None or abs(end_ns - self._looked_ns) < settings.window_ms * 1e6:
            return  # by the amount, as time may have jumped back
        self._looked_ns = end_ns
        if settings.trigger == "continuous" or self._is_news(end_ns, settings):
            self._worker.offer()

    def _is_news(self, end_ns: int, settings: Settings) -> bool:
        """Whether something happened in the window that ends at end_ns, ROS time."""
        newest, duration_ns = self._inputs.events.newest(), settings.window.duration_ns
        events = Events.empty(1, 1)
        if newest is not None and end_ns - newest.ros_ns < duration_ns:
            events = newest.window(WindowSize(duration_ns, SAMPLE))
        glance = Glance.at(events, duration_ns)
        news = glance.news(self._described, settings.activity)
        if not news:
            self._counts.rest()
            return False
        self._counts.wake(news)
        self._described = glance
        return True
