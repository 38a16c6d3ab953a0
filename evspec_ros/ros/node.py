"""The lifecycle node: it moves messages in and descriptions out, and leaves the rest to SceneDescriber."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.task import Future
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Empty, Trigger

from evspec_ros.choices import DESCRIBE
from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Description
from evspec_ros.errors import EvspecError, Failure
from evspec_ros.ros.configuring import load
from evspec_ros.ros.degrading import NothingToDescribeError, last_arrivals
from evspec_ros.ros.diagnostics import (
    ACTIVE,
    INACTIVE,
    UNCONFIGURED,
    Age,
    DescriptionCounts,
    Health,
    StreamMonitor,
    window_age_s,
)
from evspec_ros.ros.guard import LOG_PERIOD_S, Guard
from evspec_ros.ros.ingest import EVENT_STREAMS, ImageStream, newest_end_ns
from evspec_ros.ros.mailbox import DeactivatedError, Mailbox
from evspec_ros.ros.memory import COLLECTION_PERIOD_S, settle, unsettle
from evspec_ros.ros.messages import nanoseconds
from evspec_ros.ros.outputs import Outputs
from evspec_ros.ros.parameters import LiveSettings, Settings
from evspec_ros.ros.publishers import PublisherWatch
from evspec_ros.ros.qos import EVENT_QOS, IMAGE_QOS
from evspec_ros.ros.requirements import message_type
from evspec_ros.windows import Window

LONG_S = 1.0  # a description that takes longer is told as the reason for a pause
MOST_AT_ONCE = 100  # event packets between two looks at everything else


class EvspecNode(LifecycleNode):
    """Subscribes `events` and `image`; publishes ~/description, ~/result and what goes with them.

    The executor's thread decodes and stores what arrives, in order; a worker thread describes the newest
    window. No exception ends either: it is logged, told in /diagnostics and answered to whoever waits.
    """

    def __init__(self, **node_options: Any) -> None:
        """Raises RosError for a parameter that cannot be what it was started with."""
        super().__init__("evspec", **node_options)
        self._counts = DescriptionCounts()
        self._guard = guard = Guard(self.get_logger(), self.context, self._counts)
        self._describer: SceneDescriber | None = None
        self._settings = LiveSettings(
            self, lambda: self._describer is not None, self._require_room, self._restart_period, guard
        )
        self._worker: threading.Thread | None = None
        self._mailbox: Mailbox[Future] = Mailbox()
        self._period: Any = None
        self._inputs: list[Any] = []  # subscriptions
        self._outputs = Outputs(self)
        self._problem = ""  # why the last transition failed
        self._new_streams()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        steady = Clock(
            clock_type=ClockType.STEADY_TIME
        )  # in simulated time too, even while that stands still
        diagnose = guard("/diagnostics could not be published", self._publish_diagnostics)
        self.create_timer(1.0, diagnose, clock=steady)
        self.create_timer(COLLECTION_PERIOD_S, gc.collect, clock=steady)
        describe = guard("A request could not be answered", self._describe_on_request, _unanswered)
        self.create_service(Trigger, "~/describe", describe)
        reset = guard("Statistics could not be reset", self._reset_statistics, lambda *given: given[-1])
        self.create_service(Empty, "~/reset_statistics", reset)
        self._jump = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=guard("The streams could not begin anew", lambda _: self._forget_streams()),
        )
        if self._settings.current.autostart:
            start = guard("The node could not start by itself", self._start)
            self._autostart = self.create_timer(0.0, start, clock=steady)

    # Lifecycle

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
        """Stop whatever runs; the node cannot be configured again."""
        inherited = partial(super().on_shutdown, state)
        return self._transition("shut down", [self._stop, self._release, inherited])

    def destroy_node(self) -> None:
        """Stop the worker, then destroy the node."""
        self._stop()
        super().destroy_node()

    def _transition(
        self, what: str, steps: Sequence[Callable[[], Any]], undo: Sequence[Callable[[], Any]] = ()
    ) -> TransitionCallbackReturn:
        """Take the steps; where one fails, undo what was begun and stay in the state before."""
        self._problem = ""
        try:
            for step in steps:
                step()
        except Exception as error:  # noqa: BLE001 - rclpy would finalise the node and say nothing
            failure = Failure.of(error)
            self._problem = failure.problem
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
        self._mailbox = Mailbox()
        self._new_streams()
        self._offered_ns = 0
        self._counts.begin()
        self._begun_at: float | None = None  # monotonic seconds of the description that is being written
        self._worker = threading.Thread(target=self._work, args=(self._mailbox,), name="describe")
        self._worker.start()
        events = self._guard("An event message could not be stored", self._on_events)
        image = self._guard("An image could not be stored", self._on_image)
        self._event_subscription = self.create_subscription(
            self._events_type, "events", events, EVENT_QOS, raw=True
        )
        self._inputs.append(self._event_subscription)
        compressed = self._settings.current.image_transport == "compressed"
        self._inputs.append(
            self.create_subscription(
                CompressedImage if compressed else Image, self._image_topic(), image, IMAGE_QOS
            )
        )
        self._watches = [PublisherWatch(self, subscription) for subscription in self._inputs]
        self._restart_period()

    def _new_streams(self) -> None:
        settings = self._settings.current
        self._events = EVENT_STREAMS[settings.events_type](
            settings.event_buffer_s,
            settings.event_buffer_mb * 1_000_000,
            follow_sensor_clock=settings.event_time == "sensor",
        )
        self._images = ImageStream(settings.frames_seconds, settings.max_frames)
        self._event_monitor = StreamMonitor("events", self.resolve_topic_name("events"))
        self._image_monitor = StreamMonitor("frames", self._image_topic())

    def _image_topic(self) -> str:
        """Where images come from; like image_transport's, the compressed topic follows a remapped `image`."""
        topic: str = self.resolve_topic_name("image")
        return f"{topic}/compressed" if self._settings.current.image_transport == "compressed" else topic

    def _stop(self) -> None:
        if self._worker is None:
            return
        while self._inputs:
            self.destroy_subscription(self._inputs.pop())
        if self._period is not None:
            self.destroy_timer(self._period)
            self._period = None
        _answer(self._mailbox.close(), "The node was deactivated.")
        self._worker.join()
        self._worker = None
        if self._describer is not None and (failure := self._describer.rest()) is not None:
            self._tell_of_learning(failure)

    def _release(self) -> None:
        self._outputs.close()
        self._describer = None
        unsettle()

    def _require_room(self, settings: Settings) -> None:
        """Raise GenerationError where the loaded target has no room for what is asked."""
        assert self._describer is not None
        self._describer.require_room(settings.prompts, settings.limits)

    # Messages in

    def _on_events(self, message: bytes) -> None:
        """Store this message and those waiting behind it: a turn of the executor costs more than decoding."""
        handle = self._event_subscription.handle
        self._store_events(message)
        for _ in range(MOST_AT_ONCE):
            taken = handle.take_message(self._events_type, True)
            if taken is None:
                break
            self._store_events(taken[0])
        self._offer()

    def _store_events(self, message: bytes) -> None:
        try:
            self._events.add(message)
        except EvspecError as error:
            self._warn(error)

    def _on_image(self, image: Image | CompressedImage, info: Mapping[str, Any]) -> None:
        number = info.get("publication_sequence_number")  # Humble does not tell
        try:
            self._images.add(image, nanoseconds(image.header.stamp), number, image.header.frame_id)
        except EvspecError as error:
            self._warn(error)
        self._offer()

    def _warn(self, error: EvspecError) -> None:
        self.get_logger().warning(str(error), throttle_duration_sec=LOG_PERIOD_S)

    def _offer(self) -> None:
        """Ask for a description where a window's worth of time has passed."""
        settings = self._settings.current
        events_alone = settings.without_frames == DESCRIBE
        end_ns = newest_end_ns(self._events, self._images, events_alone=events_alone)
        if settings.trigger != "continuous" or end_ns is None:
            return
        if abs(end_ns - self._offered_ns) >= settings.window_ms * 1e6:  # time may have jumped back
            self._offered_ns = end_ns
            self._mailbox.offer()

    def _restart_period(self) -> None:
        """Have a timer in ROS time ask for descriptions while trigger is period."""
        if self._period is not None:
            self.destroy_timer(self._period)
            self._period = None
        settings = self._settings.current
        self._counts.expect()
        if self._worker is not None and settings.trigger == "period":
            offer = self._guard("A description could not be asked for", self._mailbox.offer)
            self._period = self.create_timer(settings.period_s, offer)

    def _forget_streams(self) -> None:
        """Time jumped: what is in the buffers belongs to another time."""
        for stream in (self._events, self._images):
            stream.restart("Time was set: the stream began anew.")
        self._offered_ns = 0
        if self._describer is not None:
            self._describer.forget_stream()

    # Descriptions out, in the worker's thread

    def _work(self, mailbox: Mailbox[Future]) -> None:
        answer = self._guard("A request could not be answered", _answer)
        while (waiting := mailbox.take()) is not None:
            answer(waiting, *self._try_to_describe(mailbox))

    def _try_to_describe(self, mailbox: Mailbox[Future]) -> tuple[str, bool]:
        """The text and True, or what went wrong."""
        self._begun_at = time.monotonic()
        try:
            return self._describe_newest(mailbox), True
        except NothingToDescribeError as error:
            self._warn(error)
            return str(error), False
        except Exception as error:  # noqa: BLE001 - it is logged and told, and the next window is described
            failure = Failure.of(error)
            if not isinstance(error, DeactivatedError) and self.context.ok():
                self._counts.fail(failure.problem)
                self._guard.log("A window could not be described", failure)
            return failure.problem, False
        finally:
            self._begun_at = None

    def _describe_newest(self, mailbox: Mailbox[Future]) -> str:
        settings = self._settings.current
        begun_ns = self.get_clock().now().nanoseconds
        streams = self._events, self._images
        topics = self.resolve_topic_name("events"), self._image_topic()
        window = settings.degrading.window(*streams, topics, settings.window, settings.frames_seconds)
        old_s = window_age_s(window.stamp_ns, begun_ns, self._silent_s())
        stale = 0 < settings.stale_after_s < old_s
        assert self._describer is not None
        described = self._describer.describe_all(
            window.events,
            window.frames,
            prompts=settings.prompts,
            stamp_ns=window.stamp_ns,
            window_ms=settings.window_ms,
            limits=settings.limits,
            on_text=lambda number, text: self._on_text(number, text, mailbox, stale),
        )
        for answer in described:
            if answer.draft_failure is not None:
                what = f"The target wrote on without its drafter {answer.drafter}"
                self._counts.fail_to_draft(self._guard.log(what, answer.draft_failure))
        if described[0].learning_failure is not None:
            self._tell_of_learning(described[0].learning_failure)
        self._publish(described, window, begun_ns, stale)
        return described[0].text

    def _on_text(self, number: int, text: str, mailbox: Mailbox[Future], stale: bool) -> None:
        if mailbox.closed:
            raise DeactivatedError("The node was deactivated.")
        if number == 0 and not stale:
            self._outputs.publish_partial(text)

    def _tell_of_learning(self, failure: Failure) -> None:
        self._counts.fail_to_learn(self._guard.log("The draft head could not learn or be saved", failure))

    def _silent_s(self) -> float:
        """Seconds since either camera sent anything good."""
        return time.monotonic() - max(self._events.received_at, self._images.received_at)

    def _publish(
        self, described: tuple[Description, ...], window: Window, begun_ns: int, stale: bool
    ) -> None:
        now_ns = self.get_clock().now().nanoseconds
        age = Age.between(window.stamp_ns, begun_ns, now_ns, self._silent_s())
        self._counts.add(described[0], age, stale=stale)
        shared = {
            "age_ms": age.ms,
            "age_problem": age.problem,
            "replaced_windows": self._mailbox.replaced,
            "lost_messages": self._events.counts.lost,
            "dropped_events": self._events.dropped,
            "degraded": window.degraded,
        }
        self._outputs.publish(described, window, age, shared, stale=stale)

    # Services and diagnostics

    async def _describe_on_request(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        """Answer with the text of the newest window, once it is written."""
        if self._worker is None:
            response.message = "The node is not active; activate it first."
            return response
        answer = Future(executor=self.executor)
        answer.add_done_callback(lambda _: None)  # a callback is what wakes the executor
        mailbox = self._mailbox
        mailbox.offer(answer)
        if mailbox.closed:  # meanwhile
            _answer(mailbox.close(), "The node was deactivated.")
        response.success, response.message = await answer
        return response

    def _reset_statistics(self, _: Empty.Request, response: Empty.Response) -> Empty.Response:
        self._events.reset_counts()
        self._images.reset_counts()
        self._mailbox.reset_count()
        self._counts.reset()
        return response

    def _publish_diagnostics(self) -> None:
        healths = [self._own_health()]
        if self._worker is not None:
            watched = zip((self._event_monitor, self._image_monitor), self._watches, strict=True)
            for (monitor, watch), stream in zip(watched, (self._events, self._images), strict=True):
                more = {"dropped_events": self._events.dropped} if stream is self._events else {}
                misfit = watch.look()
                healths.append(monitor.report(stream.counts, stream.received_at, more, misfit, watch.names))
        message = DiagnosticArray(
            status=[health.as_message(self.get_fully_qualified_name()) for health in healths]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _own_health(self) -> Health:
        state = ACTIVE if self._worker else INACTIVE if self._describer else UNCONFIGURED
        values = {"state": state} | self._counts.values() | {
            "replaced_windows": self._mailbox.replaced,
            "drafter": self._describer.drafter if self._describer else self._settings.current.drafter,
            "drafter_reason": self._describer.chosen if self._describer else "",
            "left_out": self._describer.left_out if self._describer else "",
            "drafter_runs_on": self._describer.drafting if self._describer else "",
            "last_error": self._problem or self._counts.last_problem,
        }  # fmt: skip
        return Health("descriptions", *self._judge(state), values)

    def _judge(self, state: str) -> tuple[bytes, str]:
        error, warning = self._counts.tell()
        if self._problem or error:
            return DiagnosticStatus.ERROR, self._problem or error
        if self._worker is None:
            return DiagnosticStatus.OK, state
        if not self._worker.is_alive():
            return DiagnosticStatus.ERROR, "The describing thread died, see the log; restart the node."
        if self._counts.problem:
            return DiagnosticStatus.ERROR, self._counts.problem
        settings = self._settings.current
        level, told = self._counts.judge_pause(settings.thresholds, settings.longest_pause_s)
        if level != DiagnosticStatus.OK:
            told = f"{told}: {self._why_idle()}."
        if warning and level != DiagnosticStatus.ERROR:
            return DiagnosticStatus.WARN, warning
        older, old = self._counts.judge_age(settings.thresholds)
        both = f"{told} {old}" if level != DiagnosticStatus.OK else old
        return (level, told) if older == DiagnosticStatus.OK else (max(level, older), both)

    def _why_idle(self) -> str:
        """Why nothing new is described, as far as it is known."""
        if self._begun_at is not None and time.monotonic() - self._begun_at > LONG_S:
            return f"one description has been under way for {time.monotonic() - self._begun_at:.1f} s"
        return last_arrivals(self._images, self._events)


def _answer(waiting: list[Future], message: str, success: bool = False) -> None:
    for future in waiting:
        future.set_result((success, message))


def _unanswered(failure: Failure, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
    response.message = f"The request could not be answered: {failure.problem}."
    return response
