"""/diagnostics follows what happens: pauses, old windows, publishers that do not fit. And odd parameters."""

from __future__ import annotations

import array
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import BEST_EFFORT, SIZE, Bench, at_least, make_bench
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from evspec_ros.errors import RosError
from evspec_ros.files import share_directory
from evspec_ros.ros import inputs, requirements
from evspec_ros.ros.node import EvspecNode
from evspec_ros.ros.requirements import stamped_type


@pytest.fixture(scope="module")
def configured(ros: None, checkpoints: Path) -> Iterator[Bench]:
    """One node for all tests, quick to warn."""
    spinner = Spinner()
    limits = {"warn_after_s": 1.0, "error_after_s": 3.0, "stale_after_s": 2.0, "warn_age_s": 60.0}
    bench = make_bench(spinner, autostart=False, max_new_tokens=3, **limits, error_age_s=600.0)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    yield bench
    spinner.close()


@pytest.fixture
def active(configured: Bench) -> Iterator[Bench]:
    """The node, active and connected, as if nothing had happened before."""
    before = configured.node._settings.current
    configured.activate()
    yield configured
    assert configured.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    for name in ("trigger", "warn_age_s", "error_after_s"):
        assert configured.set_parameter(name, getattr(before, name)) == ""


def while_sending(bench: Bench, send: Callable[[], Any], condition: Callable[[], Any], what: str) -> Any:
    """Send every 30 ms until condition is true."""
    sent_at = 0.0

    def met() -> Any:
        nonlocal sent_at
        if time.monotonic() - sent_at > 0.03:
            sent_at = time.monotonic()
            send()
        return condition()

    return bench.until(met, what)


def told(bench: Bench, name: str, level: bytes, what: str) -> DiagnosticStatus:
    """The first status of that name, level and text from now on."""
    seen = len(bench.received["/diagnostics"])

    def found() -> list[DiagnosticStatus]:
        statuses = [status for message in bench.received["/diagnostics"][seen:] for status in message.status]
        return [
            status
            for status in statuses
            if status.name == f"/evspec: {name}" and status.level == level and what in status.message
        ]

    return bench.until(found, f"{what} in diagnostics")[-1]


def test_without_cameras_nothing_is_called_describing(active: Bench) -> None:
    """A warning, then an error, with the reason; with a camera all is well."""
    told(active, "descriptions", DiagnosticStatus.WARN, "no image arrived yet")
    told(active, "descriptions", DiagnosticStatus.ERROR, "Nothing new was described for")
    active.describe_now()
    status = told(active, "descriptions", DiagnosticStatus.OK, "describing")
    assert {pair.key: pair.value for pair in status.values}["state"] == "active"


def test_events_alone_are_not_called_describing(active: Bench) -> None:
    """They arrive, and it is said that no image does."""
    active.until(
        lambda: (active.send_events(time.time_ns()), at_least(active.values("events"), "events", 500))[1],
        "events",
    )
    told(active, "descriptions", DiagnosticStatus.ERROR, "no image arrived yet")


def test_on_request_no_pause_is_too_long(active: Bench) -> None:
    """Nobody asked."""
    assert active.set_parameter("trigger", "on_request") == ""
    seen = len(active.received["/diagnostics"])
    active.until(lambda: len(active.received["/diagnostics"]) > seen + 4, "reports")
    statuses = [
        status for message in active.received["/diagnostics"][seen + 1 :] for status in message.status
    ]
    assert {status.level for status in statuses if "descriptions" in status.name} == {DiagnosticStatus.OK}


def test_a_frozen_window_is_no_news(active: Bench) -> None:
    """With trigger period and cameras that stopped: ~/result is marked, ~/description is silent, /diagnostics
    counts and tells it.
    """
    assert active.set_parameter("period_s", 0.2) == ""
    assert active.describe_now()["stale"] is False
    assert active.set_parameter("trigger", "period") == ""
    active.until(
        lambda: active.received["/evspec/result"] and active.last_result()["stale"], "a stale result"
    )
    texts = len(active.received["/evspec/description"])
    latencies = len(active.received["/evspec/latency"])
    results = len(active.received["/evspec/result"])
    active.until(lambda: len(active.received["/evspec/result"]) > results + 5, "further results")
    assert len(active.received["/evspec/description"]) == texts
    assert len(active.received["/evspec/latency"]) == latencies
    values = active.until(
        lambda: at_least(active.values("descriptions"), "stale_descriptions", 5), "the count"
    )
    assert int(values["stale_descriptions"]) <= int(values["descriptions"])
    told(active, "descriptions", DiagnosticStatus.WARN, "the newest image arrived")
    told(active, "descriptions", DiagnosticStatus.ERROR, "Nothing new was described for")
    active.until(lambda: not active.describe_now()["stale"], "news")
    told(active, "descriptions", DiagnosticStatus.OK, "describing")


def test_a_window_with_an_old_stamp_is_no_news(active: Bench) -> None:
    """Though it arrives just now; its age is told by the thresholds."""
    assert active.set_parameter("error_after_s", 600.0) == ""  # or the pause becomes the error
    old_ns = time.time_ns() - 67 * 10**9
    active.until(lambda: (active.send_image(old_ns), active.received["/evspec/result"])[1], "a result")
    result = active.last_result()
    assert result["stale"] is True
    assert result["age_ms"] == pytest.approx(67_000, abs=10_000)
    assert not active.received["/evspec/description"]
    told(active, "descriptions", DiagnosticStatus.WARN, "old when it was described")


def test_a_request_before_the_first_image_is_no_error(active: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered, logged as a warning, and no failure is counted."""
    logged: list[str] = []
    monkeypatch.setattr(active.node._guard, "log", lambda what, failure: logged.append(what))
    assert active.set_parameter("trigger", "on_request") == ""
    assert "No image has arrived" in active.call(Trigger, "/evspec/describe").message
    status = told(active, "descriptions", DiagnosticStatus.OK, "")
    assert {pair.key: pair.value for pair in status.values}["failures"] == "0"
    assert not logged


def test_two_image_publishers_do_not_mix(active: Bench, spinner: Spinner) -> None:
    """The other one is refused, named, and takes over when the first one is gone."""
    other = Node("other_camera")
    active.spinner.executor.add_node(other)
    publisher = other.create_publisher(Image, "image", BEST_EFFORT)
    active.until(publisher.get_subscription_count, "the other camera")

    def send_other() -> None:
        message = Image(width=2 * SIZE, height=SIZE, encoding="rgb8", step=6 * SIZE)
        message.header.frame_id = "other"
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(time.time_ns(), 10**9)
        message.data = array.array("B", bytes(6 * SIZE * SIZE))
        publisher.publish(message)

    def send_both() -> None:
        active.send_image(time.time_ns())
        send_other()

    def refused() -> Any:
        return at_least(active.values("frames"), "refused_messages", 10)

    values = while_sending(active, send_both, refused, "refusals")
    assert "of 'other' follow those of" in values["last_problem"]
    assert "/cameras" in values["publishers"]
    assert "/other_camera" in values["publishers"]
    assert {frame.image.shape[1] for frame in active.node._inputs.images.buffer.sample(2**62, 1.0)} == {SIZE}

    def shared() -> bool:
        status = active.health("frames")
        return status is not None and status.level != DiagnosticStatus.OK and "share /image" in status.message

    while_sending(active, send_both, shared, "both publishers in diagnostics")

    def restarted() -> Any:
        return at_least(active.values("frames"), "restarts", 1)

    values = while_sending(active, send_other, restarted, "the other one alone")
    assert "the stream began anew" in values["last_restart"]
    assert {frame.image.shape[1] for frame in active.node._inputs.images.buffer.sample(2**62, 1.0)} == {
        2 * SIZE
    }
    active.spinner.executor.remove_node(other)
    other.destroy_node()


def test_publishers_that_look_alike_do_not_mix(active: Bench) -> None:
    """Same node, frame, size and encoding; the middleware's numbers tell them apart."""

    def many() -> bool:
        return active.node._inputs.images.counts.items >= 20

    while_sending(active, lambda: active.send_image(time.time_ns()), many, "images")
    first, second = active.images, active.cameras.create_publisher(Image, "image", BEST_EFFORT)
    active.until(second.get_subscription_count, "the second publisher")
    before = active.node._inputs.images.counts

    def send_both() -> None:
        for active.images in (first, second):
            active.send_image(time.time_ns())

    def more() -> bool:
        return active.node._inputs.images.counts.messages >= before.messages + 40

    while_sending(active, send_both, more, "images of both")
    active.images = first
    after = active.node._inputs.images.counts
    assert after.refused - before.refused == pytest.approx(20, abs=3)
    active.cameras.destroy_publisher(second)


@pytest.mark.parametrize("wrong", ["type", "qos"])
def test_a_publisher_that_cannot_be_heard_is_named(
    active: Bench, wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By /diagnostics as an error and by the log."""
    warned: list[str] = []
    monkeypatch.setattr(type(active.node.get_logger()), "warning", lambda _, text, **__: warned.append(text))
    context = Context()  # in one participant, a topic has one type
    context.init(args=[])
    other = Node(f"{wrong}_camera", context=context)
    if wrong == "type":
        other.create_publisher(CompressedImage, "image", BEST_EFFORT)
        expected = "/type_camera publishes sensor_msgs/msg/CompressedImage on /image"
    else:
        assert active.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
        strict = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT, deadline=Duration(seconds=1))
        monkeypatch.setattr(inputs, "IMAGE_QOS", strict)
        assert active.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        other.create_publisher(Image, "image", BEST_EFFORT)
        expected = "/qos_camera offers a QoS on /image that is not compatible"
    status = told(active, "frames", DiagnosticStatus.ERROR, expected)
    assert status.message.endswith(".")
    assert any(expected in text for text in warned)
    other.destroy_node()
    context.shutdown()


# Parameters


def test_the_node_s_own_parameter_file_can_be_loaded(active: Bench) -> None:
    """As `ros2 param load` does: what does not change is fine, and what changes is changed."""
    client = AsyncParameterClient(active.cameras, "evspec")
    active.until(client.services_are_ready, "the parameter services")
    future = client.load_parameter_file(str(share_directory() / "config" / "evspec.yaml"), True)
    results = active.until(lambda: future.done() and future.result(), "the results").results
    (refused,) = [result.reason for result in results if not result.successful]
    assert refused.startswith("Parameter autostart is read when the node is configured")
    assert len(results) > 30
    assert active.node._settings.current.stale_after_s == 5.0
    for name, value in {"warn_after_s": 1.0, "error_after_s": 3.0, "stale_after_s": 2.0, "max_new_tokens": 3,
                        "warn_age_s": 60.0, "error_age_s": 600.0}.items():  # fmt: skip
        assert active.set_parameter(name, value) == ""


def test_a_whole_number_becomes_a_fraction(active: Bench, spinner: Spinner) -> None:
    """Set live and as a start value, `temperature: 1` is 1.0 to everybody who asks."""
    assert active.set_parameter("temperature", 1) == ""
    assert active.node._settings.current.temperature == 1.0
    assert type(active.node.get_parameter("temperature").value) is float
    assert active.set_parameter("temperature", 0) == ""
    (result,) = active.node.set_parameters([Parameter("temperature", value=9)])
    assert not result.successful
    overrides = [Parameter("temperature", value=1), Parameter("autostart", value=False)]
    started = EvspecNode(parameter_overrides=overrides, cli_args=["--ros-args", "-r", "__node:=fractions"])
    assert started.get_parameter("temperature").type_ == Parameter.Type.DOUBLE
    started.destroy_node()


@pytest.mark.parametrize("prompt", ["", "  ", "\n"])
def test_an_empty_prompt_is_refused(active: Bench, prompt: str) -> None:
    """Live and at the start, in a sentence."""
    assert "prompt is empty" in active.set_parameter("prompt", prompt)
    assert active.node._settings.current.prompt
    with pytest.raises(RosError, match="prompt is empty"):
        EvspecNode(parameter_overrides=[Parameter("prompt", value=prompt)])


# A camera that is missing


def test_frames_alone_are_described_and_marked(active: Bench) -> None:
    """Or waited with, where without_events says so; with events, nothing is marked."""

    def send() -> None:
        active.send_image(time.time_ns())

    def result() -> Any:
        return active.received["/evspec/result"]

    while_sending(active, send, result, "a description without events")
    assert active.last_result()["degraded"] == "no events"
    assert active.set_parameter("without_events", "wait") == ""
    answer = active.call(Trigger, "/evspec/describe")
    assert not answer.success
    assert "No events arrive on /events" in answer.message
    assert active.set_parameter("without_events", "describe") == ""
    active.until(lambda: active.describe_now()["degraded"] == "", "a whole window")


def test_events_alone_are_described_where_the_parameter_says_so(active: Bench) -> None:
    """Pictures of the events stand in for the frames; when frames come again, they are what is looked at."""
    assert active.set_parameter("without_frames", "describe") == ""
    active.listen(Image, "/evspec/overlay")
    active.until(lambda: active.node.count_subscribers("/evspec/overlay"), "the overlay's subscriber")

    def send() -> None:
        active.send_events(time.time_ns())

    def shown() -> Any:
        return active.received["/evspec/overlay"]

    while_sending(active, send, shown, "a description without frames")
    assert active.last_result()["degraded"] == "no frames"
    picture = np.frombuffer(active.received["/evspec/overlay"][-1].data, np.uint8)
    assert (picture == 255).mean() > 0.5  # events are drawn on white
    active.until(lambda: active.describe_now()["degraded"] == "", "a whole window")
    assert active.set_parameter("without_frames", "wait") == ""


def test_frames_that_stop_are_waited_for(active: Bench) -> None:
    """Events going on: nothing is described, and /diagnostics says why."""
    active.describe_now()

    def send() -> None:
        active.send_events(time.time_ns())

    def refused() -> bool:
        answer = active.node._worker.try_to_describe()
        return "No image arrives on /image" in answer[0]

    while_sending(active, send, refused, "the refusal")
    told(active, "descriptions", DiagnosticStatus.WARN, "the newest image arrived")


def test_the_stamped_description_can_be_synchronised(active: Bench) -> None:
    """Same text, the window's end as stamp, the camera's frame."""
    kind = stamped_type()
    if kind is None:
        pytest.skip("needs evspec_msgs: python -m evspec_ros.interfaces.build evspec_msgs")
    active.listen(kind, "/evspec/description/stamped")
    active.until(lambda: active.node.count_subscribers("/evspec/description/stamped"), "the subscriber")

    def stamped() -> Any:
        active.describe_now()
        return active.received["/evspec/description/stamped"]

    message = active.until(stamped, "a stamped description")[-1]
    stamp_s = message.header.stamp.sec + message.header.stamp.nanosec / 1e9
    results = [json.loads(result.data) for result in active.received["/evspec/result"]]
    (result,) = [result for result in results if result["stamp"] == pytest.approx(stamp_s, abs=1e-6)]
    assert (message.text, message.prompt, message.lossless) == (result["text"], result["prompt"], True)


def test_without_the_message_package_it_is_said_what_to_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the node does without that topic."""
    monkeypatch.setattr(requirements, "STAMPED", "no_such_msgs/msg/Description")
    assert requirements.stamped_type() is None
    assert "evspec_ros.interfaces.build evspec_msgs" in requirements.OWN_REMEDY
