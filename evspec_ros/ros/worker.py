"""The thread that describes the newest window and publishes the text, again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from rclpy.node import Node
from rclpy.task import Future

from evspec_ros.cancellation import Cancellation, check
from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Description
from evspec_ros.errors import CancelledError, EvspecError, Failure
from evspec_ros.ros.answers import AskedNow
from evspec_ros.ros.degrading import NothingToDescribeError
from evspec_ros.ros.diagnostics import Age, DescriptionCounts, window_age_s
from evspec_ros.ros.guard import LOG_PERIOD_S, Guard
from evspec_ros.ros.inputs import Inputs
from evspec_ros.ros.live_settings import LiveSettings
from evspec_ros.ros.mailbox import Mailbox
from evspec_ros.ros.outputs import Outputs
from evspec_ros.ros.parameters import Settings
from evspec_ros.ros.relief import Relief, out_of_memory
from evspec_ros.windows import Window

DEACTIVATED = "The node was deactivated."
STEP_PERIOD_S = 10.0  # between two timings of a plain step, to which the speed-up is held


class Worker:
    """Describes in a thread of its own what is newest whenever it is asked to, one window at a time.

    relief: what is gone without for want of memory; mailbox: what asks; begun_at: monotonic seconds of the
    description that is being written, None else.
    """

    def __init__(
        self,
        node: Node,
        settings: LiveSettings,
        inputs: Inputs,
        outputs: Outputs,
        counts: DescriptionCounts,
        guard: Guard,
    ) -> None:
        self._node = node
        self._settings = settings
        self._inputs = inputs
        self._outputs = outputs
        self._counts = counts
        self._guard = guard
        self._describer: SceneDescriber | None = None
        self._under_way = Cancellation()  # of the text that is being written
        self.relief = Relief()
        self._thread: threading.Thread | None = None
        self.mailbox: Mailbox[Future | AskedNow] = Mailbox()
        self.begun_at: float | None = None
        self._step_timed_at = 0.0  # monotonic seconds

    @property
    def running(self) -> bool:
        """Whether it was started and not stopped."""
        return self._thread is not None

    @property
    def died(self) -> bool:
        """Whether its thread ended though nobody stopped it."""
        return self._thread is not None and not self._thread.is_alive()

    def start(self, describer: SceneDescriber) -> None:
        """Begin to wait for requests."""
        self._describer = describer
        self.mailbox = Mailbox()
        self._counts.begin()
        self.begun_at = None
        self._thread = threading.Thread(target=self._work, name="describe")
        self._thread.start()

    def stop(self) -> None:
        """Describe nothing more; a description that is being written is left unfinished, within a layer of
        the network that is being computed.
        """
        if self._thread is None or self._describer is None:
            return
        waiting = self.mailbox.close()
        self._under_way.cancel(DEACTIVATED)
        _answer(waiting, DEACTIVATED)
        self._thread.join()
        self._thread = None
        if (failure := self._describer.rest()) is not None:
            self._tell_of_learning(failure)
        self._describer = None

    def offer(self) -> None:
        """Ask for a description of what is newest."""
        self.mailbox.offer()

    def request(self, answer: Future) -> None:
        """Likewise, for somebody who waits for the text and True, or for what went wrong and False."""
        self._offer(answer)

    def ask(self, question: AskedNow) -> None:
        """Have a question answered about what is newest, before the next description."""
        self._offer(question)

    def _offer(self, waiter: Future | AskedNow) -> None:
        mailbox = self.mailbox
        mailbox.offer(waiter)
        if mailbox.closed:  # meanwhile
            _answer(mailbox.close(), DEACTIVATED)

    def _work(self) -> None:
        answer = self._guard("A request could not be answered", _answer)
        reply = self._guard("A question could not be answered", self._reply, _fail)
        while (waiting := self.mailbox.take()) is not None:
            futures = [one for one in waiting if isinstance(one, Future)]
            for question in waiting:
                if isinstance(question, AskedNow):
                    reply(question)
            if futures or len(futures) == len(waiting) or self._settings.current.trigger != "on_request":
                answer(futures, *self.try_to_describe())

    def _reply(self, question: AskedNow) -> None:
        """Answer a question; what went wrong is part of the answer."""
        settings = self._settings.current
        question.begin(settings.prompt)
        asked = replace(settings, prompt=question.question, questions="")
        try:
            with self._writing(question.cancellation):
                assert self._describer is not None
                self._describer.require_room(asked.prompts, asked.limits)
                window = self._inputs.window()
                (described,) = self._write(window, asked, lambda _, text: self._on_answer(question, text))
        except EvspecError as error:
            question.end(str(error))
        else:
            question.end(described=(described, window))

    @contextmanager
    def _writing(self, cancellation: Cancellation) -> Iterator[None]:
        """What is written meanwhile ends when it is cancelled, which `stop` does, too."""
        self._under_way = cancellation
        if self.mailbox.closed:
            cancellation.cancel(DEACTIVATED)
        with cancellation.scope():
            check()
            yield

    @staticmethod
    def _on_answer(question: AskedNow, text: str) -> None:
        check()
        question.grow(text)

    def try_to_describe(self) -> tuple[str, bool]:
        """The text and True, or what went wrong."""
        self.begun_at = time.monotonic()
        try:
            with self._writing(Cancellation()):
                return self._describe_newest(), True
        except NothingToDescribeError as error:
            self._node.get_logger().warning(str(error), throttle_duration_sec=LOG_PERIOD_S)
            return str(error), False
        except Exception as error:  # noqa: BLE001 - it is logged and told, and the next window is described
            failure = Failure.of(error)
            if not isinstance(error, CancelledError) and self._node.context.ok():
                self._counts.fail(failure.problem)
                self._guard.log("A window could not be described", failure)
            return failure.problem, False
        finally:
            self.begun_at = None

    def _describe_newest(self) -> str:
        settings = self._settings.current
        begun_ns = self._now_ns()
        window = self._inputs.window()
        old_s = window_age_s(window.stamp_ns, begun_ns, self._inputs.silent_s())
        stale = 0 < settings.stale_after_s < old_s
        described = self._write(window, settings, lambda number, text: self._on_text(number, text, stale))
        self.relief.ease(settings.relief_s)
        self._tell_of_failures(described)
        self._publish(described, window, begun_ns, stale)
        self._time_step(described[0])
        return described[0].text

    def _time_step(self, description: Description) -> None:
        """Once in STEP_PERIOD_S, behind what is published already, so that no description waits for it."""
        assert self._describer is not None
        if time.monotonic() - self._step_timed_at > STEP_PERIOD_S:
            self._step_timed_at = time.monotonic()
            self._describer.time_step(description)

    def _write(
        self, window: Window, settings: Settings, on_text: Callable[[int, str], None]
    ) -> tuple[Description, ...]:
        """The texts about a window; where the device runs out of memory, written with less of it."""
        assert self._describer is not None
        while True:
            check()  # before less memory is tried
            try:
                return self._describer.describe_all(
                    window.events,
                    window.frames,
                    prompts=settings.prompts,
                    stamp_ns=window.stamp_ns,
                    window_ms=settings.window_ms,
                    limits=self.relief.limits(settings.limits),
                    on_text=on_text,
                    drafting=self.relief.drafting,
                )
            except Exception as error:
                if not (out_of_memory(error) and self.relief.step_down(settings.relief_s)):
                    raise
                what = f"The device ran out of memory and goes on with {self.relief.told}"
                self._counts.note(self._guard.log(what, Failure.of(error)))
            self._describer.relieve()  # behind the exception, which held what was computed

    def _now_ns(self) -> int:
        return int(self._node.get_clock().now().nanoseconds)

    def _on_text(self, number: int, text: str, stale: bool) -> None:
        check()
        if number == 0 and not stale:
            self._outputs.publish_partial(text)

    def _tell_of_failures(self, described: Sequence[Description]) -> None:
        for answer in described:
            if answer.draft_failure is not None:
                what = f"The target wrote on without its drafter {answer.drafter}"
                self._counts.fail_to_draft(self._guard.log(what, answer.draft_failure))
        if described[0].learning_failure is not None:
            self._tell_of_learning(described[0].learning_failure)

    def _tell_of_learning(self, failure: Failure) -> None:
        self._counts.fail_to_learn(self._guard.log("The draft head could not learn or be saved", failure))

    def _publish(
        self, described: tuple[Description, ...], window: Window, begun_ns: int, stale: bool
    ) -> None:
        age = Age.between(window.stamp_ns, begun_ns, self._now_ns(), self._inputs.silent_s())
        self._counts.add(described[0], age, stale=stale)
        shared = {
            "age_ms": age.ms,
            "age_problem": age.problem,
            "replaced_windows": self.mailbox.replaced,
            "lost_messages": self._inputs.events.counts.lost,
            "dropped_events": self._inputs.events.dropped,
            "degraded": window.degraded,
            "relief": self.relief.told,
        }
        self._outputs.publish(described, window, age, shared, stale=stale)


def _answer(waiting: Sequence[Future | AskedNow], message: str, success: bool = False) -> None:
    """Tell those who wait for a description; questions among them are not answered any more."""
    for one in waiting:
        if isinstance(one, Future):
            one.set_result((success, message))
        else:
            one.end(message)


def _fail(failure: Failure, question: AskedNow) -> None:
    question.end(failure.problem)
