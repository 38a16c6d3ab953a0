"""The node on real DDS: messages in, descriptions out, lifecycle, bad input, time, diagnostics."""

from __future__ import annotations

import array
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from event_camera_msgs.msg import EventPacket
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Empty, Trigger

from evspec_ros.errors import RosError
from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.types import Events
from evspec_ros.ros.node import EvspecNode

MS = 1_000_000
SIZE = 64
BEST_EFFORT = QoSProfile(depth=100, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass
class Bench:
    """A node under test and, beside it, cameras and a listener that reach it through DDS alone."""

    spinner: Spinner
    node: EvspecNode
    cameras: Node
    received: dict[str, list[Any]] = field(default_factory=dict)
    seq: int = 0

    def __post_init__(self) -> None:
        self.events = self.cameras.create_publisher(EventPacket, "events", BEST_EFFORT)
        self.images = self.cameras.create_publisher(Image, "image", BEST_EFFORT)
        self.listen(String, "/evspec/description")
        self.listen(String, "/evspec/result")
        self.listen(DiagnosticArray, "/evspec/latency")
        self.listen(DiagnosticArray, "/diagnostics")

    def listen(self, kind: type, topic: str) -> None:
        """Collect what is published on a topic."""
        self.received[topic] = []
        self.cameras.create_subscription(kind, topic, self.received[topic].append, 100)

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Spin until condition is true."""
        return self.spinner.until(condition, what)

    def wait_until_connected(self) -> None:
        """Wait until cameras, node and listener know each other."""
        self.until(
            lambda: self.events.get_subscription_count() and self.images.get_subscription_count(), "cameras"
        )
        self.until(lambda: self.node.count_subscribers("/evspec/description"), "listener")

    def send_events(self, at_ns: int, **changes: Any) -> None:
        """One packet of 200 events of the last 5 ms before at_ns, with any field changed."""
        t = at_ns - 5 * MS + np.arange(200) * 25_000
        places = np.arange(200, dtype=np.uint16) % SIZE
        events = Events(t, places, places, (places % 2).astype(np.uint8), SIZE, SIZE)
        base = int(t[0])
        message = EventPacket(width=SIZE, height=SIZE, seq=self.seq, time_base=base, encoding="libcaer")
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(base, 10**9)
        message.events = array.array("B", encode_libcaer(events, base))
        for name, value in changes.items():
            setattr(message, name, value)
        self.seq += 1
        self.events.publish(message)

    def send_image(self, at_ns: int, **changes: Any) -> None:
        """One image stamped at_ns, with any field changed."""
        message = Image(width=SIZE, height=SIZE, encoding="rgb8", step=3 * SIZE)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(at_ns, 10**9)
        message.data = array.array("B", bytes(3 * SIZE * SIZE))
        for name, value in changes.items():
            setattr(message, name, value)
        self.images.publish(message)

    def describe_now(self, at_ns: int | None = None) -> dict[str, Any]:
        """Send a frame and events until the node has described them; what ~/result said of that."""
        before = len(self.received["/evspec/result"])
        sent_at = 0.0

        def described() -> list[Any]:
            nonlocal sent_at
            if time.monotonic() - sent_at > 0.02:
                sent_at = time.monotonic()
                now_ns = at_ns or time.time_ns()
                self.send_image(now_ns - 10 * MS)
                self.send_events(now_ns)
            return self.received["/evspec/result"][before:]

        return dict(json.loads(self.until(described, "a description")[-1].data))

    def health(self, name: str) -> DiagnosticStatus | None:
        """The latest status of that name on /diagnostics."""
        for message in reversed(self.received["/diagnostics"]):
            for status in message.status:
                if status.name == f"/evspec: {name}":
                    return status
        return None

    def values(self, name: str) -> dict[str, str]:
        """The latest figures of that name on /diagnostics; {} before the first."""
        status = self.health(name)
        return {pair.key: pair.value for pair in status.values} if status else {}

    def set_parameter(self, name: str, value: Any) -> str:
        """Set a parameter of the node; why it was refused, "" if it was not."""
        result = self.node.set_parameters([Parameter(name, value=value)])[0]
        assert result.successful or result.reason.endswith(".")
        return "" if result.successful else result.reason

    def call(self, kind: type, service: str) -> Any:
        """The answer of one of the node's services."""
        client = self.cameras.create_client(kind, service)
        self.until(client.service_is_ready, service)
        future = client.call_async(kind.Request())
        return self.until(lambda: future.done() and future.result(), f"the answer of {service}")


def make_bench(spinner: Spinner, **parameters: Any) -> Bench:
    """A node with these parameters, and cameras beside it."""
    overrides = [Parameter(name, value=value) for name, value in parameters.items()]
    bench = Bench(spinner, EvspecNode(parameter_overrides=overrides), Node("cameras"))
    spinner.executor.add_node(bench.node)
    spinner.executor.add_node(bench.cameras)
    return bench


@pytest.fixture
def inactive(spinner: Spinner, checkpoints: Path) -> Bench:
    """A node that was started and waits to be configured."""
    return make_bench(spinner, autostart=False, max_new_tokens=12)


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
    assert configured.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    configured.wait_until_connected()
    configured.call(Empty, "/evspec/reset_statistics")
    for messages in configured.received.values():
        messages.clear()
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


def test_bad_messages_are_named_in_diagnostics_and_the_node_goes_on(active: Bench) -> None:
    """An unknown encoding, a torn packet, a foreign size and an unknown image encoding do no harm."""
    active.describe_now()
    now_ns = time.time_ns()
    active.send_events(now_ns, encoding="evt9")
    active.send_events(now_ns, events=array.array("B", b"\x01\x02\x03"))
    active.send_events(now_ns, width=SIZE * 2)
    active.send_image(now_ns, encoding="holographic")
    events = active.until(lambda: _at_least(active.values("events"), "refused_messages", 3), "event refusals")
    frames = active.until(lambda: _at_least(active.values("frames"), "refused_messages", 1), "image refusal")
    assert "in the middle of a stream" in events["last_problem"]
    assert "holographic" in frames["last_problem"]
    active.until(
        lambda: active.health("events").level == DiagnosticStatus.ERROR or _recovered(active), "level"
    )
    assert active.describe_now()["text"]


def _at_least(values: dict[str, str], name: str, count: int) -> dict[str, str] | None:
    return values if int(values.get(name, "0")) >= count else None


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
    active.until(lambda: _at_least(active.values("events"), "restarts", 1), "the restart in diagnostics")


def test_the_service_answers_with_the_text_of_the_newest_window(active: Bench) -> None:
    """With trigger on_request nothing is described until ~/describe is called, which returns the text."""
    assert active.set_parameter("trigger", "on_request") == ""
    refusal = active.call(Trigger, "/evspec/describe")
    assert not refusal.success
    assert "No image has arrived on /image" in refusal.message
    active.until(
        lambda: (active.send_image(time.time_ns()), _at_least(active.values("frames"), "frames", 1))[1],
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
        lambda: (active.send_image(time.time_ns()), _at_least(active.values("frames"), "frames", 1))[1],
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
    active.call(Empty, "/evspec/reset_statistics")
    active.until(lambda: active.values("descriptions")["descriptions"] == "0", "the reset")
    assert active.values("events")["refused_messages"] == "0"


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
    assert active.node.get_parameter("drafter").value == "eagle"


def test_the_overlay_and_the_partial_text_come_when_someone_listens(active: Bench) -> None:
    """The overlay is the frame with a caption strip; the last partial text is the description."""
    active.listen(String, "/evspec/description/partial")
    active.cameras.create_subscription(
        Image, "/evspec/overlay", active.received.setdefault("o", []).append, 10
    )
    active.until(lambda: active.node.count_subscribers("/evspec/overlay"), "the overlay's subscriber")
    active.describe_now()
    active.until(lambda: active.describe_now() and active.received["/evspec/overlay"], "an overlay")
    overlay = active.received["/evspec/overlay"][-1]
    assert overlay.encoding == "rgb8"
    assert overlay.height > overlay.width == 480
    assert len(overlay.data) == overlay.height * overlay.step
    assert active.received["/evspec/description/partial"]


def test_the_lifecycle_can_be_walked_through_twice(inactive: Bench) -> None:
    """Configure, activate, deactivate, clean up, and again; each succeeds and nothing is left over."""
    node = inactive.node
    for _ in range(2):
        for transition in ("configure", "activate", "deactivate", "cleanup"):
            assert getattr(node, f"trigger_{transition}")() == TransitionCallbackReturn.SUCCESS
        assert inactive.set_parameter("drafter", "none") == ""
    assert node.count_publishers("/evspec/description") == 0
    assert node.trigger_shutdown() == TransitionCallbackReturn.SUCCESS


def test_a_missing_checkpoint_fails_configuring_and_the_node_stays(inactive: Bench, tmp_path: Path) -> None:
    """Configuring fails, diagnostics say why, and with the right path it succeeds."""
    good = inactive.node.get_parameter("target").value
    assert inactive.set_parameter("target", str(tmp_path / "nowhere")) == ""
    assert inactive.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    status = inactive.until(lambda: inactive.health("descriptions"), "diagnostics")
    assert status.level == DiagnosticStatus.ERROR
    assert "nowhere" in status.message
    assert inactive.set_parameter("target", good) == ""
    assert inactive.node.trigger_configure() == TransitionCallbackReturn.SUCCESS


def test_autostart_activates_the_node_by_itself(spinner: Spinner, checkpoints: Path) -> None:
    """With nobody to manage it, a started node describes."""
    bench = make_bench(spinner, max_new_tokens=3)
    bench.wait_until_connected()
    assert bench.describe_now()["tokens"] <= 3


def test_simulated_time_that_jumps_back_resets_the_streams(spinner: Spinner, checkpoints: Path) -> None:
    """With use_sim_time the node's clock is /clock's, and its jump back empties the buffers."""
    bench = make_bench(spinner, use_sim_time=True, max_new_tokens=3)
    clock = bench.cameras.create_publisher(Clock, "/clock", 10)
    bench.wait_until_connected()

    def tick(seconds: int) -> bool:
        message = Clock()
        message.clock.sec = seconds
        clock.publish(message)
        return bench.node.get_clock().now().nanoseconds == seconds * 10**9

    bench.until(lambda: tick(1000), "the clock")
    result = bench.describe_now(1000 * 10**9)
    assert result["age_ms"] == pytest.approx(0.0, abs=1.0)
    bench.until(lambda: tick(10), "the clock going back")
    bench.until(lambda: _at_least(bench.values("events"), "restarts", 1), "the restart")


def test_a_bad_start_value_is_one_sentence(ros: None) -> None:
    """A node that is started with an impossible parameter says which, and does not start."""
    with pytest.raises(RosError, match="window_ms"):
        EvspecNode(parameter_overrides=[Parameter("window_ms", value=1000.0)])
    with pytest.raises(RosError, match="trigger"):
        EvspecNode(parameter_overrides=[Parameter("trigger", value="sometimes")])
