"""Exceptions in every part of the node: told, answered, survived. And prompts of any kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import Bench, make_bench
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.clock import ClockChange
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Empty, Trigger

from evspec_ros.describer import SceneDescriber
from evspec_ros.ros import configuring, degrading, messages

ERRORS: list[Exception] = [
    KeyError("entering"),
    MemoryError(),
    RuntimeError("out of\nmemory"),
    OSError(28, "full"),
]


class Log:
    """In the place of the node's logger."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def error(self, text: str, **_: Any) -> None:
        """Kept."""
        self.errors.append(text)


@pytest.fixture(scope="module")
def bench(ros: None, checkpoints: Path) -> Iterator[Bench]:
    """An active node that describes on request, with a listener on every topic and a frame to describe."""
    spinner = Spinner()
    made = make_bench(spinner, autostart=False, max_new_tokens=16, trigger="on_request", stale_after_s=0.0)
    assert made.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert made.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    made.listen(String, "/evspec/description/partial")
    made.listen(Image, "/evspec/overlay")
    made.wait_until_connected()
    for topic in ("description/partial", "overlay"):
        made.until(lambda topic=topic: made.node.count_subscribers(f"/evspec/{topic}"), topic)
    _send(made)
    yield made
    spinner.close()


def _send(bench: Bench) -> None:
    """A frame and a packet of events, until they have arrived."""

    def sent() -> bool:
        now_ns = time.time_ns()
        bench.send_image(now_ns - 10**7)
        bench.send_events(now_ns)
        counts = bench.node._inputs.images.counts, bench.node._inputs.events.counts
        return all(after.items > before.items for before, after in zip(before_all, counts, strict=True))

    before_all = bench.node._inputs.images.counts, bench.node._inputs.events.counts
    bench.until(sent, "a frame and events")


@pytest.fixture
def log(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Log:
    """What the node logs as errors, nothing having been logged before."""
    found = Log()
    monkeypatch.setattr(bench.node._guard, "_logger", found)
    bench.node._guard._logged.clear()
    bench.received["/diagnostics"].clear()
    return found


def _fail_once(patch: pytest.MonkeyPatch, owner: Any, name: str, error: Exception) -> None:
    well = getattr(owner, name)
    left = [error]

    def once(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return well(*arguments, **named)

    patch.setattr(owner, name, once)


def _told(bench: Bench, level: bytes, what: str) -> Any:
    """The status in which /diagnostics told of something."""

    def found() -> list[DiagnosticStatus]:
        statuses = [status for message in bench.received["/diagnostics"] for status in message.status]
        return [
            status
            for status in statuses
            if status.name == "/evspec: descriptions" and status.level == level and what in status.message
        ]

    return bench.until(found, f"{what} in diagnostics")[-1]


STAGES: dict[str, tuple[Callable[[Bench], Any], str]] = {
    "cut the window": (lambda _: degrading, "newest_window"),
    "encode frames": (lambda b: b.node._describer._reader.target.model, "encode_frames"),
    "tokenise": (lambda b: b.node._describer._reader.target.tokenizer, "encode_plain"),
    "prefill": (lambda b: b.node._describer._target, "prefill"),
    "verify": (lambda b: b.node._describer._target, "extend"),
    "detokenise": (lambda b: b.node._describer._target, "detokenize"),
    "publish the partial text": (lambda b: b.node._outputs.partial, "publish"),
    "publish the description": (lambda b: b.node._outputs.description, "publish"),
    "publish the result": (lambda b: b.node._outputs.result, "publish"),
    "publish the latencies": (lambda b: b.node._outputs.latency, "publish"),
    "publish the overlay": (lambda b: b.node._outputs.overlay, "publish"),
    "draw the overlay": (lambda _: messages, "draw_overlay"),
}


@pytest.mark.parametrize("name", list(STAGES))
def test_a_window_that_fails_anywhere_is_told_and_the_next_one_described(
    bench: Bench, log: Log, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Who asked for it is answered, the log has the traceback, /diagnostics the error, even though the next
    window was described before they were published.
    """
    good = bench.call(Trigger, "/evspec/describe")
    assert good.success
    error = ERRORS[list(STAGES).index(name) % len(ERRORS)]
    owner, attribute = STAGES[name]
    _send(bench)  # a frame that is not known yet
    _fail_once(monkeypatch, owner(bench), attribute, error)
    answer = bench.call(Trigger, "/evspec/describe")
    assert not answer.success
    assert type(error).__name__ in answer.message
    again = bench.call(Trigger, "/evspec/describe")
    assert (again.success, again.message) == (True, good.message)
    assert any("Traceback" in text and type(error).__name__ in text for text in log.errors)
    status = _told(bench, DiagnosticStatus.ERROR, type(error).__name__)
    values = {pair.key: pair.value for pair in status.values}
    assert type(error).__name__ in values["last_error"]
    assert int(values["failures"]) >= 1
    _told(bench, DiagnosticStatus.OK, "describing")


@pytest.mark.parametrize("name", ["prepare", "start", "propose", "accept", "finish", "events"])
def test_a_drafter_that_fails_is_left_out_of_one_window(
    bench: Bench, log: Log, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The target's text comes all the same; that it was written alone is told as a warning."""
    bench.call(Empty, "/evspec/reset_statistics")
    good = bench.call(Trigger, "/evspec/describe")
    describer = bench.node._describer
    describer.forget_stream()  # or the text is known, and two drafters are not asked
    owner, attribute = (
        (describer._reader.events.encoder, "encode")
        if name == "events"
        else (describer._drafters.get(1)[0], name)
    )
    _fail_once(monkeypatch, owner, attribute, KeyError("feature"))
    bench.received["/evspec/result"].clear()
    answer = bench.call(Trigger, "/evspec/describe")
    assert (answer.success, answer.message) == (True, good.message)
    result = bench.until(lambda: bench.received["/evspec/result"], "a result")[-1].data
    assert "KeyError: 'feature'" in result
    assert '"lossless": true' in result
    assert any("Traceback" in text and "combined" in text for text in log.errors)
    status = _told(bench, DiagnosticStatus.WARN, "KeyError: 'feature'")
    assert {pair.key: pair.value for pair in status.values}["draft_failures"] == "1"
    bench.received["/evspec/result"].clear()
    assert bench.call(Trigger, "/evspec/describe").message == good.message
    result = bench.until(lambda: bench.received["/evspec/result"], "a result")[-1].data
    assert '"draft_problem": ""' in result


CALLBACKS: dict[str, tuple[Callable[[Bench], Any], str]] = {
    "store events": (lambda b: b.node._inputs.events, "add"),
    "store an image": (lambda b: b.node._inputs.images, "add"),
    "offer a window": (lambda b: b.node._inputs, "_arrived"),
    "publish diagnostics": (lambda b: b.node._reports, "descriptions"),
}


@pytest.mark.parametrize("name", list(CALLBACKS))
def test_a_callback_that_fails_is_told_and_called_again(
    bench: Bench, log: Log, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Subscriptions and timers."""
    owner, attribute = CALLBACKS[name]
    _fail_once(monkeypatch, owner(bench), attribute, KeyError(name))
    _send(bench)
    _told(bench, DiagnosticStatus.ERROR, f"KeyError: '{name}'")
    assert any("Traceback" in text and name in text for text in log.errors)
    assert bench.call(Trigger, "/evspec/describe").success


def test_services_answer_whatever_fails(bench: Bench, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reason where the answer has a place for it."""
    _fail_once(monkeypatch, bench.node._worker.mailbox, "offer", KeyError("mailbox"))
    answer = bench.call(Trigger, "/evspec/describe")
    assert not answer.success
    assert "KeyError: 'mailbox'" in answer.message
    _told(bench, DiagnosticStatus.ERROR, "KeyError: 'mailbox'")
    _fail_once(monkeypatch, bench.node._worker.mailbox, "reset_count", KeyError("count"))
    bench.call(Empty, "/evspec/reset_statistics")
    _told(bench, DiagnosticStatus.ERROR, "KeyError: 'count'")
    assert bench.call(Trigger, "/evspec/describe").success


def test_a_request_that_meets_a_stopping_node_is_answered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mailbox closes between the look at the worker and the request."""
    offer = bench.node._worker.mailbox.offer
    mailbox = bench.node._worker.mailbox
    monkeypatch.setattr(mailbox, "offer", lambda waiter: (mailbox.close(), offer(waiter)))
    answer = bench.call(Trigger, "/evspec/describe")
    assert (answer.success, answer.message) == (False, "The node was deactivated.")
    assert bench.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    assert bench.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    bench.wait_until_connected()
    _send(bench)
    assert bench.call(Trigger, "/evspec/describe").success


def test_a_change_that_cannot_be_made_is_refused_and_undone(
    bench: Bench, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting stays what it was."""
    monkeypatch.setattr(bench.node._settings, "_on_change", lambda: {}["timer"])
    assert "KeyError: 'timer'" in bench.set_parameter("temperature", 0.5)
    assert bench.node._settings.current.temperature == 0.0
    _told(bench, DiagnosticStatus.ERROR, "KeyError: 'timer'")
    monkeypatch.undo()
    assert bench.set_parameter("temperature", 0.0) == ""


def test_a_jump_of_time_that_fails_ends_nothing(
    bench: Bench, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that does not reaches the drafters: what was said is forgotten."""
    describer, jump = bench.node._describer, bench.node._jump._post_callback
    _fail_once(monkeypatch, describer, "forget_stream", KeyError("jump"))
    back = {"clock_change": ClockChange.ROS_TIME_NO_CHANGE, "delta": -(10**9)}
    jump(back)
    _told(bench, DiagnosticStatus.ERROR, "KeyError: 'jump'")
    _send(bench)
    assert bench.call(Trigger, "/evspec/describe").success
    assert describer._drafters.get(1)[0]._suffix._tree.texts
    jump(back)
    _send(bench)
    forgotten: list[bool] = []
    forget = describer._drafters.get(1)[0].forget
    monkeypatch.setattr(describer._drafters.get(1)[0], "forget", lambda: (forget(), forgotten.append(True)))
    assert bench.call(Trigger, "/evspec/describe").success
    assert forgotten == [True]


# Transitions


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_configuring_that_fails_says_why_and_can_be_repeated(
    spinner: Spinner, checkpoints: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Whatever was raised, wherever: the node is unconfigured, nothing is left over."""
    other = make_bench(spinner, autostart=False, max_new_tokens=3)
    found = Log()
    monkeypatch.setattr(other.node._guard, "_logger", found)
    places = [
        (configuring, "load_describer"),
        (SceneDescriber, "warm_up"),
        (other.node, "create_lifecycle_publisher"),
    ]
    owner, name = places[ERRORS.index(error) % len(places)]
    with pytest.MonkeyPatch.context() as patch:
        _fail_once(patch, owner, name, error)
        assert other.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert len(found.errors) == 1
    assert found.errors[0].startswith("The node could not be configured: ")
    assert "Traceback" in found.errors[0]
    _told(other, DiagnosticStatus.ERROR, type(error).__name__)
    assert not other.node._outputs._open
    for transition in ("configure", "activate", "deactivate", "cleanup"):
        assert getattr(other.node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS


def test_a_prompt_without_room_fails_configuring(spinner: Spinner, checkpoints: Path) -> None:
    """It could be set before the model was known; with a shorter one configuring succeeds."""
    other = make_bench(spinner, autostart=False, prompt="why " * 2_500)
    assert other.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    _told(other, DiagnosticStatus.ERROR, "shorten the prompt")
    assert other.set_parameter("prompt", "Why?") == ""
    assert other.node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_activating_that_fails_can_be_repeated(
    spinner: Spinner, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker that was begun is ended, and so is the first subscription."""
    other = make_bench(spinner, autostart=False, max_new_tokens=3)
    assert other.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    with pytest.MonkeyPatch.context() as patch:
        _fail_once(patch, other.node._triggers, "begin", KeyError("topic"))
        assert other.node.trigger_activate() == TransitionCallbackReturn.FAILURE
    assert not other.node._worker.running
    assert not other.node._inputs.subscriptions
    _told(other, DiagnosticStatus.ERROR, "KeyError: 'topic'")
    assert other.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    other.wait_until_connected()
    assert other.describe_now()["text"]


# Prompts

WORDS = [
    "<event>",
    "<video>",
    "<image>",
    "<ev_start>",
    "<s>",
    "</s>",
    "<unk>",
    "USER:",
    "ASSISTANT:",
    "\n",
    "who?",
]


def _set_from_afar(bench: Bench, name: str, text: str) -> str:
    """Set a parameter through the node's service; why it was refused, "" if it was not."""
    client = bench.cameras.create_client(SetParameters, "/evspec/set_parameters")
    bench.until(client.service_is_ready, "the parameter service")
    value = Parameter(name, value=text).to_parameter_msg().value
    request = SetParameters.Request(parameters=[ParameterMessage(name=name, value=value)])
    future = client.call_async(request)
    (result,) = bench.until(lambda: future.done() and future.result(), "the parameter").results
    return "" if result.successful else result.reason


@pytest.mark.parametrize(
    "prompt", ["What caused the <event>?", "<video>", "</s>", "A <video> of <ev_start>?"]
)
def test_a_prompt_may_hold_words_of_the_templates(bench: Bench, log: Log, prompt: str) -> None:
    """It is described, and nothing is logged."""
    assert _set_from_afar(bench, "prompt", prompt) == ""
    assert bench.call(Trigger, "/evspec/describe").success
    assert not log.errors


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("prompt", "ring \a the bell", "U+0007"),
        ("prompt", "half \ud800 of a pair", "U+D800"),
        ("questions", "who?|\x1b[2J", "U+001B"),
        ("prompt", "why " * 2_500, "the most that fits"),
        ("questions", "why " * 2_500, "the most that fits"),
        ("questions", "a|" * 5_000, "at most 15"),
        ("max_new_tokens", 2048, "the most that fits"),
    ],
)
def test_what_cannot_be_asked_is_refused_when_it_is_set(
    bench: Bench, name: str, value: Any, reason: str
) -> None:
    """With a reason; what was asked before goes on."""
    assert _set_from_afar(bench, "prompt", "What moves?") == ""
    assert reason in bench.set_parameter(name, value)
    assert bench.call(Trigger, "/evspec/describe").success
    assert bench.node._settings.current.prompt == "What moves?"


def test_prompts_of_any_kind_are_described_or_refused(bench: Bench, log: Log) -> None:
    """Random text over DDS: each is refused with a reason or answered, and the node lives."""
    seeded = random.Random(18)
    refused = 0
    for turn in range(40):
        pieces = [
            seeded.choice(
                [seeded.choice(WORDS), chr(seeded.choice([*range(1, 0xD800), *range(0xE000, 0x110000)]))]
            )
            for _ in range(seeded.choice([1, 5, 30]))
        ]
        text = "".join(pieces) if turn % 10 else "".join(pieces) * 10_000
        name = seeded.choice(["prompt", "questions"])
        reason = _set_from_afar(bench, name, text[:10_000])
        refused += bool(reason)
        answer = bench.call(Trigger, "/evspec/describe")
        assert answer.success, (text[:100], answer.message)
        assert not reason or reason.endswith(".")
        assert _set_from_afar(bench, "questions", "") == ""
    assert 0 < refused < 40
    assert not log.errors
