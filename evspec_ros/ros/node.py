"""The lifecycle node: it moves messages in and descriptions out, and leaves the rest to SceneDescriber."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from evspec_ros.describer import SceneDescriber
from evspec_ros.errors import Failure
from evspec_ros.ros.asking import AskServer
from evspec_ros.ros.configuring import load
from evspec_ros.ros.diagnostics import DescriptionCounts
from evspec_ros.ros.guard import Guard
from evspec_ros.ros.inputs import Inputs
from evspec_ros.ros.live_settings import LiveSettings
from evspec_ros.ros.memory import COLLECTION_PERIOD_S, settle, unsettle
from evspec_ros.ros.outputs import Outputs
from evspec_ros.ros.parameters import Settings
from evspec_ros.ros.reports import Reports
from evspec_ros.ros.requests import Requests
from evspec_ros.ros.requirements import message_type
from evspec_ros.ros.triggers import Triggers
from evspec_ros.ros.worker import Worker


class EvspecNode(LifecycleNode):
    """Subscribes `events` and `image`; publishes ~/description, ~/result and what goes with them.

    The executor's thread decodes and stores what arrives, in order; a worker thread describes the newest
    window. No exception ends either: it is logged, told in /diagnostics and answered to whoever waits.
    """

    def __init__(self, **node_options: Any) -> None:
        """Raises RosError for a parameter that cannot be what it was started with."""
        super().__init__("evspec", **node_options)
        self._counts = counts = DescriptionCounts()
        self._guard = guard = Guard(self.get_logger(), self.context, counts)
        self._describer: SceneDescriber | None = None
        self._settings = settings = LiveSettings(
            self,
            lambda: self._describer is not None,
            self._require_room,
            self._settings_changed,
            guard,
        )
        self._outputs = Outputs(self)
        self._inputs = inputs = Inputs(self, settings, guard, self._data_arrived)
        self._worker = worker = Worker(self, settings, inputs, self._outputs, counts, guard)
        self._triggers = Triggers(self, settings, inputs, worker, counts, guard)
        self._requests = Requests(self, inputs, worker, counts, guard)
        self._ask_server = AskServer(self, worker, guard)
        self._reports = Reports(self, settings, inputs, worker, counts, lambda: self._describer)
        # In simulated time too, even while that stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        report = guard("/diagnostics could not be published", self._reports.publish)
        self.create_timer(1.0, report, clock=steady)
        self.create_timer(COLLECTION_PERIOD_S, gc.collect, clock=steady)
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=guard("The streams could not begin anew", lambda _: self._forget_streams()),
        )
        if settings.current.autostart:
            start = guard("The node could not start by itself", self._start)
            self._autostart = self.create_timer(0.0, start, clock=steady)

    def _start(self) -> None:
        """Configure and activate once the node spins; a failure leaves it where a manager can try again."""
        self.destroy_timer(self._autostart)
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the checkpoints and warm up; a failure is logged and leaves the node unconfigured."""
        inherited = partial(super().on_configure, state)
        return self._transition("configured", [self._configure, inherited], [self._release])

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to both cameras and start describing."""
        inherited = partial(super().on_activate, state)  # enables the publishers, before anyone uses them
        undo: list[Callable[[], Any]] = [self._stop, partial(super().on_deactivate, state)]
        return self._transition("activated", [inherited, self._activate], undo)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and stop describing; a description that is being written is left unfinished."""
        inherited = partial(super().on_deactivate, state)
        return self._transition("deactivated", [self._stop, inherited])

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the networks and the publishers."""
        inherited = partial(super().on_cleanup, state)
        return self._transition("cleaned up", [self._release, inherited])

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop whatever runs; the node cannot be configured again. Its memory is collected by the timer: that
        takes longer than a shutdown may.
        """
        inherited = partial(super().on_shutdown, state)
        return self._transition("shut down", [self._stop, self._let_go, gc.unfreeze, inherited])

    def destroy_node(self) -> None:
        """Stop the worker, then destroy the node, with what rclpy leaves until it is collected, which it may
        be from now on.
        """
        self._stop()
        self._ask_server.close()
        super().destroy_node()
        self._state_machine.destroy_when_not_in_use()  # and its services
        gc.unfreeze()

    def _transition(
        self, what: str, steps: Sequence[Callable[[], Any]], undo: Sequence[Callable[[], Any]] = ()
    ) -> TransitionCallbackReturn:
        """Take the steps; where one fails, undo what was begun and stay in the state before."""
        self._reports.problem = ""
        try:
            for step in steps:
                step()
        except Exception as error:  # noqa: BLE001 - rclpy would finalise the node and say nothing
            failure = Failure.of(error)
            self._reports.problem = failure.problem
            self._guard.log(f"The node could not be {what}", failure)
            for step in undo:
                step()
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        settings = self._settings.current
        started = time.monotonic()
        self._events_type = message_type(settings.events_type)
        describer = load(settings, self.get_logger())
        self._outputs.open()
        self._describer = describer
        settle()
        took_s = time.monotonic() - started
        self.get_logger().info(f"Ready after {took_s:.1f} s with drafter {describer.drafter}.")

    def _activate(self) -> None:
        assert self._describer is not None
        self._inputs.renew()
        self._describer.forget_stream()
        self._worker.start(self._describer)
        self._inputs.open(self._events_type)
        self._triggers.begin()

    def _stop(self) -> None:
        self._inputs.close()
        self._triggers.stop()
        self._worker.stop()

    def _release(self) -> None:
        self._let_go()
        unsettle()

    def _let_go(self) -> None:
        self._outputs.close()
        self._describer = None

    def _require_room(self, settings: Settings) -> None:
        """Raise GenerationError where the loaded target has no room for what is asked."""
        assert self._describer is not None
        self._describer.require_room(settings.prompts, settings.limits)

    def _settings_changed(self) -> None:
        self._triggers.restart()

    def _data_arrived(self) -> None:
        self._triggers.arrived()

    def _forget_streams(self) -> None:
        """Time jumped: what is in the buffers belongs to another time."""
        self._inputs.restart("Time was set: the stream began anew.")
        self._triggers.forget()
        if self._describer is not None:
            self._describer.forget_stream()
