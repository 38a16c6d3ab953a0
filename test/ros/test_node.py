"""The node on real DDS: messages in, descriptions out, bad input, time, parameters, diagnostics."""

from __future__ import annotations

import array
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import BEST_EFFORT, MS, SIZE, Bench, at_least, make_bench
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from serialised import serialised_array
from std_msgs.msg import String
from std_srvs.srv import Empty, Trigger

from evspec_ros.ros.node import EvspecNode
from evspec_ros.ros.requirements import message_type


@pytest.fixture(scope="module")
def configured(ros: None, checkpoints: Path) -> Iterator[Bench]:
    """One node that most tests share, its networks loaded once."""
    spinner = Spinner()
    bench = make_bench(spinner, autostart=False, max_new_tokens=12)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    yield bench
    spinner.close()


@pytest.fixture
def active(configured: Bench) -> Iterator[Bench]:
    """The shared node, active and connected, as if nothing had happened before."""
    live = {
        name: configured.node.get_parameter(name).value for name in ("prompt", "trigger", "max_new_tokens")
    }
    configured.activate()
    yield configured
    assert configured.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
    for name, value in live.items():
        assert configured.set_parameter(name, value) == ""


def test_events_and_frames_become_a_description_with_its_figures(active: Bench) -> None:
    """The text, the result and the latencies are published, stamped with the end of the event window."""
    result = active.describe_now()
    texts = [message.data for message in active.received["/evspec/description"]]
    assert result["text"] in texts
    assert result["lossless"] is True
    assert result["tokens"] > 0
    assert 0 < result["age_ms"] < 60_000
    assert result["lost_messages"] == result["dropped_events"] == 0
    assert {"render", "prefill", "draft", "verify", "decode", "total"} <= result["latency_ms"].keys()
    latency = active.until(lambda: active.received["/evspec/latency"], "latency")[-1]
    stamp_s = latency.header.stamp.sec + latency.header.stamp.nanosec / 1e9
    assert abs(stamp_s - result["stamp"]) < 60
    assert "total_ms" in {pair.key for pair in latency.status[0].values}


def test_an_image_that_waits_is_stored_before_the_events_that_followed_it(
    active: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have come when the node looks; a window that ends with these events must not lack the image."""
    stored: list[str] = []
    for name in ("images", "events"):
        stream = getattr(active.node._inputs, name)

        def add(*given: object, name: str = name, add: Callable[..., None] = stream.add) -> None:
            stored.append(name)
            add(*given)

        monkeypatch.setattr(stream, "add", add)
    now_ns = time.time_ns()
    active.send_image(now_ns - MS)
    active.send_events(now_ns)
    time.sleep(0.3)  # nobody spins meanwhile
    active.until(lambda: len(stored) == 2, "both messages")
    assert stored == ["images", "events"]


def test_bad_messages_are_named_in_diagnostics_and_the_node_goes_on(active: Bench) -> None:
    """An unknown encoding, a torn packet, a foreign size and an unknown image encoding do no harm."""
    active.describe_now()
    now_ns = time.time_ns()
    active.send_events(now_ns, encoding="evt9")
    active.send_events(now_ns, events=array.array("B", b"\x01\x02\x03"))
    active.send_events(now_ns, width=SIZE * 2)
    active.send_image(now_ns, encoding="holographic")
    events = active.until(lambda: at_least(active.values("events"), "refused_messages", 3), "event refusals")
    frames = active.until(lambda: at_least(active.values("frames"), "refused_messages", 1), "image refusal")
    assert "in the middle of a stream" in events["last_problem"]
    assert "holographic" in frames["last_problem"]
    active.until(
        lambda: active.health("events").level == DiagnosticStatus.ERROR or _recovered(active), "level"
    )
    assert active.describe_now()["text"]


def _recovered(bench: Bench) -> bool:
    statuses = [s for m in bench.received["/diagnostics"] for s in m.status if s.name == "/evspec: events"]
    return any(status.level == DiagnosticStatus.ERROR for status in statuses)


def test_messages_that_never_arrive_are_counted(active: Bench) -> None:
    """A gap of four in the sequence is four lost messages, in diagnostics and in the result."""
    active.describe_now()
    active.seq += 4
    assert active.describe_now()["lost_messages"] == 4


def test_a_jump_back_in_time_starts_the_streams_anew(active: Bench) -> None:
    """A bag that is played again from its beginning is described with the stamps of that beginning."""
    start_ns = time.time_ns()
    active.describe_now(start_ns)
    earlier_ns = start_ns - 100 * 1000 * MS
    active.seq = 0

    def stamped_earlier() -> bool:
        return abs(active.describe_now(earlier_ns)["stamp"] - earlier_ns / 1e9) < 1

    active.until(stamped_earlier, "a description of the earlier time")
    active.until(lambda: at_least(active.values("events"), "restarts", 1), "the restart in diagnostics")


def test_the_service_answers_with_the_text_of_the_newest_window(active: Bench) -> None:
    """With trigger on_request nothing is described until ~/describe is called, which returns the text."""
    assert active.set_parameter("trigger", "on_request") == ""
    refusal = active.call(Trigger, "/evspec/describe")
    assert not refusal.success
    assert "No image has arrived on /image" in refusal.message
    active.until(
        lambda: (active.send_image(time.time_ns()), at_least(active.values("frames"), "frames", 1))[1],
        "a frame",
    )
    assert not active.received["/evspec/description"]
    answer = active.call(Trigger, "/evspec/describe")
    assert answer.success
    active.until(lambda: active.received["/evspec/description"], "the description")
    assert answer.message == active.received["/evspec/description"][-1].data


def test_a_period_triggers_descriptions(active: Bench) -> None:
    """With trigger period, descriptions come although nothing new arrives."""
    assert active.set_parameter("trigger", "on_request") == ""
    active.until(
        lambda: (active.send_image(time.time_ns()), at_least(active.values("frames"), "frames", 1))[1],
        "a frame",
    )
    assert active.set_parameter("period_s", 0.1) == ""
    assert active.set_parameter("trigger", "period") == ""
    active.until(lambda: len(active.received["/evspec/description"]) >= 3, "three descriptions")


def test_diagnostics_come_once_a_second_and_statistics_can_be_reset(active: Bench) -> None:
    """Four reports take about three seconds; ~/reset_statistics sets the counts back to zero."""
    active.describe_now()
    active.until(lambda: int(active.values("descriptions").get("descriptions", 0)) >= 1, "a count")
    times: list[float] = []

    def four_reports() -> bool:
        if len(times) < len(active.received["/diagnostics"]) - seen:
            times.append(time.monotonic())
        return len(times) == 4

    seen = len(active.received["/diagnostics"])
    active.until(four_reports, "four reports")
    assert times[-1] - times[0] == pytest.approx(3.0, abs=1.5)
    assert active.set_parameter("trigger", "on_request") == ""

    def reset() -> bool:  # again, should a description have been under way
        active.call(Empty, "/evspec/reset_statistics")
        return active.values("descriptions")["descriptions"] == active.values("events")["messages"] == "0"

    active.until(reset, "the reset")


def test_live_parameters_change_and_others_are_refused_while_running(active: Bench) -> None:
    """The prompt and the limits take effect at once; what was loaded stays until the node is cleaned up."""
    assert active.set_parameter("prompt", "What moves?") == ""
    assert active.set_parameter("max_new_tokens", 3) == ""
    active.describe_now()
    result = active.describe_now()
    assert result["prompt"] == "What moves?"
    assert result["tokens"] <= 3
    assert "clean up the node" in active.set_parameter("drafter", "none")
    assert "temperature" in active.set_parameter("temperature", "warm")
    assert active.node.get_parameter("drafter").value == "auto"


def test_further_questions_get_results_of_their_own(active: Bench) -> None:
    """Answered about the same windows; the description stays the prompt's."""
    assert active.set_parameter("questions", "Is there a person? | What moves?") == ""
    active.listen(String, "/evspec/description/partial")

    def asked() -> bool:
        active.describe_now()
        results = [json.loads(message.data) for message in active.received["/evspec/result"]]
        last = [result for result in results if result["stamp"] == results[-1]["stamp"]]
        return [result["prompt"] for result in last[1:]] == ["Is there a person?", "What moves?"]

    active.until(asked, "the answers to both questions")
    texts = {json.loads(message.data)["text"] for message in active.received["/evspec/result"]}
    assert {message.data for message in active.received["/evspec/description"]} <= texts


def test_the_overlay_and_the_partial_text_come_when_someone_listens(active: Bench) -> None:
    """The overlay is the frame with a caption strip; the last partial text is the description."""
    active.listen(String, "/evspec/description/partial")
    active.listen(Image, "/evspec/overlay")
    active.until(lambda: active.node.count_subscribers("/evspec/overlay"), "the overlay's subscriber")
    active.describe_now()
    active.until(lambda: active.describe_now() and active.received["/evspec/overlay"], "an overlay")
    overlay = active.received["/evspec/overlay"][-1]
    assert overlay.encoding == "rgb8"
    assert overlay.height > overlay.width == 480
    assert len(overlay.data) == overlay.height * overlay.step
    assert active.received["/evspec/description/partial"]


@pytest.mark.parametrize("package", ["dvs_msgs", "dv_ros2_msgs"])
def test_event_arrays_arrive_over_dds_as_their_bytes(
    package: str, spinner: Spinner, checkpoints: Path
) -> None:
    """With events_type the node subscribes another package's EventArray, and counts the events in it."""
    kind = f"{package}/msg/EventArray"
    node = EvspecNode(
        parameter_overrides=[Parameter("events_type", value=kind)],
        cli_args=["--ros-args", "-r", f"events:={package}", "-r", f"__node:=evspec_{package}"],
    )
    camera = Node(f"camera_of_{package}")
    publisher = camera.create_publisher(message_type(kind), package, BEST_EFFORT)
    for each in (node, camera):
        spinner.executor.add_node(each)
    spinner.until(publisher.get_subscription_count, "the subscription")
    publisher.publish(serialised_array([(k, k, 10**18 + k, True) for k in range(7)], SIZE, SIZE))
    spinner.until(lambda: node._inputs.events.counts.items, "events")
    assert (node._inputs.events.counts.items, node._inputs.events.counts.refused) == (7, 0)
