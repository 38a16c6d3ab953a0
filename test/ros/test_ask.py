"""Questions about now by the action ~/ask, answered as they are written, and another prompt by topic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from action_msgs.msg import GoalStatus
from node_bench import Bench, make_bench
from rclpy.action import ActionClient
from rclpy.lifecycle import TransitionCallbackReturn
from std_msgs.msg import String

from evspec_ros.ros import asking
from evspec_ros.ros.requirements import ask_type

STEP_S = 0.2  # of a pass that was made slow


class Goal:
    """One question of one client, and what it hears."""

    def __init__(self, bench: Bench, client: ActionClient, question: str) -> None:
        self._bench = bench
        self.texts: list[str] = []
        self._sent = client.send_goal_async(
            client._action_type.Goal(question=question),
            feedback_callback=lambda message: self.texts.append(message.feedback.text),
        )
        self._result: Any = None

    @property
    def handle(self) -> Any:
        """What the node said to it."""
        return self._bench.until(lambda: self._sent.done() and self._sent.result(), "the goal's reception")

    def cancel(self) -> None:
        """Ask for its end, and wait until the node has heard that."""
        cancelled = self.handle.cancel_goal_async()
        self._bench.until(cancelled.done, "the cancelling")

    def result(self) -> Any:
        """status and result."""
        asked = self.handle.get_result_async()
        self._bench.until(asked.done, "the result")
        return asked.result()


class Asked:
    """A node that describes on request, with a frame to ask about, and a client of its action."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.node = bench, bench.node
        self.client = self.another_client()
        self.set_prompt = bench.cameras.create_publisher(String, "/evspec/prompt", 10).publish
        bench.wait_until_connected()
        self.send_frame()

    def another_client(self) -> ActionClient:
        """One that knows the node."""
        client = ActionClient(self.bench.cameras, ask_type(), "/evspec/ask")
        self.bench.until(client.server_is_ready, "the action")
        return client

    def ask(self, question: str, client: ActionClient | None = None) -> Goal:
        """Send a question."""
        return Goal(self.bench, client or self.client, question)

    def send_frame(self) -> int:
        """A frame that the node has got; when it was taken, nanoseconds."""
        before = self.node._inputs.images.counts.items
        stamps: list[int] = []

        def arrived() -> bool:
            stamps.append(time.time_ns())
            self.bench.send_image(stamps[-1])
            return self.node._inputs.images.counts.items > before

        self.bench.until(arrived, "a frame")
        return stamps[0]


@pytest.fixture(scope="module")
def served(ros: None, checkpoints: Path) -> Iterator[Asked]:
    """One for all tests, its networks loaded once."""
    if ask_type() is None:
        pytest.skip("needs evspec_msgs: python -m evspec_ros.interfaces.build evspec_msgs")
    spinner = Spinner()
    bench = make_bench(spinner, trigger="on_request", max_new_tokens=12, stale_after_s=0.0)
    yield Asked(bench)
    spinner.close()


@pytest.fixture
def asked(served: Asked) -> Asked:
    """Active, nothing having been heard yet."""
    if not served.node._worker.running:
        served.bench.activate()
        served.send_frame()
    for messages in served.bench.received.values():
        messages.clear()
    return served


@pytest.fixture
def slow(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Each pass of the target takes a while, and there are several of them; when they began."""
    assert asked.node._describer is not None
    target = asked.node._describer._target
    extend, begun = target.extend, []

    def slowly(*arguments: Any) -> Any:
        begun.append(time.monotonic())
        time.sleep(STEP_S)
        return extend(*arguments)

    monkeypatch.setattr(target, "extend", slowly)
    assert asked.bench.set_parameter("n_max", 1) == ""
    yield begun
    assert asked.bench.set_parameter("n_max", 40) == ""


def test_a_question_is_answered_as_it_is_written(asked: Asked) -> None:
    """Each feedback goes on where the last one ended, the last one is the text; nothing else is described."""
    goal = asked.ask("What moves?")
    given = goal.result()
    answer = given.result
    assert (given.status, answer.problem) == (GoalStatus.STATUS_SUCCEEDED, "")
    assert (answer.description.prompt, answer.description.lossless) == ("What moves?", True)
    assert 0 < answer.first_word_ms < 60_000
    text = answer.description.text
    asked.bench.until(lambda: goal.texts and goal.texts[-1] == text, "the whole text")
    assert all(later.startswith(earlier) for earlier, later in pairwise(goal.texts))
    assert not asked.bench.received["/evspec/description"]


def test_an_empty_question_is_the_node_s_prompt(asked: Asked) -> None:
    """White space, too."""
    prompt = asked.node._settings.current.prompt
    assert asked.ask(" ").result().result.description.prompt == prompt


def test_cancelling_ends_the_text_within_a_pass(asked: Asked, slow: list[float]) -> None:
    """The result says so and holds what was written; the next question is answered."""
    goal = asked.ask("What moves?")
    asked.bench.until(lambda: goal.texts and slow, "the first word")
    goal.cancel()
    passes = len(slow)
    given = goal.result()
    assert given.status == GoalStatus.STATUS_CANCELED
    assert given.result.problem == "The question was cancelled."
    assert given.result.description.text == goal.texts[-1] != ""
    assert len(slow) <= passes + 1
    assert asked.ask("What moves?").result().status == GoalStatus.STATUS_SUCCEEDED


def test_a_question_that_waits_is_cancelled_at_once(asked: Asked, slow: list[float]) -> None:
    """While another one is answered, which goes on."""
    first = asked.ask("What moves?")
    asked.bench.until(lambda: first.texts, "the first answer's beginning")
    waiting = asked.ask("And what rests?")
    assert waiting.handle.accepted
    waiting.cancel()
    given = waiting.result()
    assert (given.status, given.result.description.text) == (GoalStatus.STATUS_CANCELED, "")
    assert not waiting.texts
    assert first.result().status == GoalStatus.STATUS_SUCCEEDED


def test_two_clients_are_answered_each_its_own(asked: Asked) -> None:
    """Asked at the same time."""
    other = asked.another_client()
    goals = {
        "What moves?": asked.ask("What moves?"),
        "Is it a person?": asked.ask("Is it a person?", other),
    }
    for question, goal in goals.items():
        given = goal.result()
        assert (given.status, given.result.description.prompt) == (GoalStatus.STATUS_SUCCEEDED, question)
        asked.bench.until(
            lambda goal=goal, given=given: goal.texts[-1:] == [given.result.description.text], "its own text"
        )


def test_a_question_that_waited_is_about_the_window_that_is_newest_then(
    asked: Asked, slow: list[float]
) -> None:
    """Not about what was newest when it was asked."""
    first = asked.ask("What moves?")
    asked.bench.until(lambda: first.texts, "the first answer's beginning")
    second = asked.ask("What moves?")
    assert second.handle.accepted
    sent_ns = asked.send_frame()
    stamps = [goal.result().result.description.header.stamp for goal in (first, second)]
    old_ns, new_ns = (stamp.sec * 10**9 + stamp.nanosec for stamp in stamps)
    assert old_ns < sent_ns <= new_ns


def test_more_questions_than_may_wait_are_refused(
    asked: Asked, slow: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait are answered, in their order."""
    monkeypatch.setattr(asking, "MOST_WAITING", 2)
    goals = [asked.ask(question) for question in ("One?", "Two?", "Three?")]
    assert [goal.handle.accepted for goal in goals] == [True, True, False]
    assert [goal.result().result.description.prompt for goal in goals[:2]] == ["One?", "Two?"]
    assert asked.ask("Four?").result().status == GoalStatus.STATUS_SUCCEEDED


def test_questions_do_not_keep_descriptions_from_being_written(asked: Asked) -> None:
    """Though another one always waits."""
    asked.bench.set_parameter("trigger", "continuous")
    goals = [asked.ask("One?"), asked.ask("Two?")]
    results = asked.bench.received["/evspec/result"]
    try:
        while len(results) < 2:
            assert goals.pop(0).result().status == GoalStatus.STATUS_SUCCEEDED
            assert len(goals) < 20
            goals.append(asked.ask("Another?"))
    finally:
        asked.bench.set_parameter("trigger", "on_request")
    for goal in goals:
        assert goal.result().status == GoalStatus.STATUS_SUCCEEDED


def test_what_cannot_be_asked_is_told(asked: Asked) -> None:
    """In the result, and the next question is answered."""
    given = asked.ask("why " * 3000).result()
    assert given.status == GoalStatus.STATUS_ABORTED
    assert "shorten the prompt" in given.result.problem
    assert asked.ask("Why?").result().result.problem == ""


def test_an_exception_ends_the_goal(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the result's problem, and the next question is answered."""
    with monkeypatch.context() as patch:
        patch.setattr(asked.node._inputs, "window", {}.__getitem__)  # a KeyError, or what it takes
        given = asked.ask("Why?").result()
    assert given.status == GoalStatus.STATUS_ABORTED
    assert "TypeError" in given.result.problem
    assert asked.ask("Why?").result().result.problem == ""


def test_the_first_word_s_latency_is_one_of_the_latencies(asked: Asked) -> None:
    """Of each description, and its percentiles in /diagnostics."""
    result = asked.bench.describe_now() if asked.bench.set_parameter("trigger", "continuous") == "" else {}
    asked.bench.set_parameter("trigger", "on_request")
    latency = result["latency_ms"]
    assert latency["prefill"] < latency["first_word"] < latency["total"]
    message = asked.bench.until(lambda: asked.bench.received["/evspec/latency"], "latencies")[-1]
    assert "first_word_ms" in {pair.key for pair in message.status[0].values}
    asked.bench.until(lambda: asked.bench.values("stages").get("first_word_ms_p95"), "its percentiles")


def test_a_prompt_by_topic_is_the_parameter(asked: Asked) -> None:
    """Checked as it is; one that is refused is told in /diagnostics."""
    bench = asked.bench
    bench.until(lambda: asked.node.count_publishers("/evspec/prompt"), "the publisher")
    asked.set_prompt(String(data="Who is there?"))
    bench.until(lambda: asked.node._settings.current.prompt == "Who is there?", "the prompt")
    asked.set_prompt(String(data=" "))
    bench.until(
        lambda: "prompt is empty" in bench.values("descriptions").get("last_error", ""), "the refusal"
    )
    assert asked.node._settings.current.prompt == "Who is there?"


def test_deactivating_aborts_all_goals_within_a_pass(asked: Asked, slow: list[float]) -> None:
    """The text under way ends behind the pass under way, and questions that wait are not begun; those that
    come while the node is inactive are refused.
    """
    goals = [asked.ask("What moves?"), asked.ask("And what rests?")]
    assert all(goal.handle.accepted for goal in goals)
    asked.bench.until(lambda: slow, "a pass")
    passes, began = len(slow), time.monotonic()
    assert asked.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert time.monotonic() - began < 2 * STEP_S + 0.5
    assert len(slow) <= passes + 1
    for goal in goals:
        given = goal.result()
        assert (given.status, given.result.problem) == (
            GoalStatus.STATUS_ABORTED,
            "The node was deactivated.",
        )
    assert not goals[1].texts
    assert not asked.ask("What moves?").handle.accepted
    asked.bench.activate()
    asked.send_frame()
    assert asked.ask("What moves?").result().status == GoalStatus.STATUS_SUCCEEDED
