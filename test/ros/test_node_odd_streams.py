"""The node on real DDS under messages and clocks that are not as they should be: no impossible number."""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import MS, SIZE, Bench, at_least, make_bench
from rclpy.lifecycle import TransitionCallbackReturn
from rosgraph_msgs.msg import Clock

from evspec_ros.events.encoders import encode_libcaer
from evspec_ros.events.types import Events


@pytest.fixture(scope="module")
def configured(ros: None, checkpoints: Path) -> Iterator[Bench]:
    """One node for all tests, its networks loaded once."""
    spinner = Spinner()
    bench = make_bench(spinner, autostart=False, max_new_tokens=3)
    assert bench.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    yield bench
    spinner.close()


@pytest.fixture
def active(configured: Bench) -> Iterator[Bench]:
    """The node, active and connected, as if nothing had happened before."""
    configured.activate()
    yield configured
    assert configured.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS


def test_big_endian_packets_are_read(active: Bench) -> None:
    """Their events are those of the same packet the other way round, at the same time."""
    now_ns = time.time_ns()
    t = now_ns - 5 * MS + np.arange(50) * 25_000
    x = np.arange(50, dtype=np.uint16)
    data = encode_libcaer(Events(t, x, x, np.ones(50, np.uint8), SIZE, SIZE), int(t[0]))
    swapped = np.frombuffer(data, "<u4").byteswap().tobytes()
    active.send_events(now_ns, time_base=int(t[0]), events=array.array("B", swapped), is_bigendian=True)
    values = active.until(lambda: at_least(active.values("events"), "events", 50), "events")
    assert (values["events"], values["refused_messages"]) == ("50", "0")
    newest = active.node._inputs.events.newest()
    assert newest.buffer.window(newest.sensor_ns, 10 * MS).x.tolist() == x.tolist()


def test_packets_of_no_pixels_are_refused_and_the_others_taken(active: Bench) -> None:
    """A first one, too; none is counted as lost."""
    now_ns = time.time_ns()
    for k in range(6):
        active.send_events(now_ns + k * 5 * MS, **({"width": 0, "height": 0} if k in (0, 3) else {}))
    values = active.until(lambda: at_least(active.values("events"), "messages", 6), "messages")
    assert (values["events"], values["refused_messages"], values["lost_messages"]) == ("800", "2", "0")
    assert "0 x 0 pixels" in values["last_problem"]


@pytest.mark.parametrize("leap", [2**64 - 1, 2**40])
def test_a_number_that_leaps_beyond_reason_is_no_loss(active: Bench, leap: int) -> None:
    """The packet is refused, which is told; what was really lost is counted as before."""
    active.describe_now()
    active.send_events(time.time_ns(), seq=leap)
    values = active.until(lambda: at_least(active.values("events"), "refused_messages", 1), "the refusal")
    assert f"Packet {leap} follows packet" in values["last_problem"]
    assert active.describe_now()["lost_messages"] <= 1


def test_lost_frames_are_told_by_their_stamps(active: Bench) -> None:
    """Unknown until the camera showed its rate; then what is missing."""
    start_ns = time.time_ns() - 3 * 10**9
    sent = [k for k in range(40) if k not in (20, 30, 31)]
    for count, k in enumerate(sent, 1):
        active.send_image(start_ns + k * 33 * MS)
        active.until(lambda count=count: active.node._inputs.images.counts.items == count, "the frame")
        if count == 5:
            few = active.until(lambda: at_least(active.values("frames"), "frames", 5), "five frames")
            assert few["lost_messages"] == "unknown"
    many = active.until(lambda: at_least(active.values("frames"), "frames", len(sent)), "the other frames")
    assert many["lost_messages"] == "3"


@pytest.mark.parametrize(("ahead_s", "told"), [(3600, "s after now"), (-(10**7), "s before now")])
def test_an_image_whose_stamp_is_wrong_has_no_age(active: Bench, ahead_s: int, told: str) -> None:
    """Result and diagnostics say why; a good one has an age again."""
    before = len(active.received["/evspec/result"])
    active.until(lambda: (active.send_image(time.time_ns() + ahead_s * 10**9),
                          active.received["/evspec/result"][before:])[1], "a description")  # fmt: skip
    result = active.last_result()
    assert result["age_ms"] is None
    assert told in result["age_problem"]
    values = active.until(lambda: _told(active, told), "the problem in diagnostics")
    assert values["last_age_ms"] == "unknown"
    assert active.health("descriptions").level == DiagnosticStatus.WARN

    def described_well() -> bool:
        result = active.describe_now()
        return result["age_ms"] is not None and result["age_ms"] > 0 and result["age_problem"] == ""

    active.until(described_well, "a description with an age")


def _told(bench: Bench, problem: str) -> dict[str, str] | None:
    values = bench.values("descriptions")
    return values if problem in values.get("age_problem", "") else None


def test_a_clock_that_steps_back_while_a_text_is_written_leaves_no_age(
    spinner: Spinner, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The description is published, and says what happened."""
    bench = make_bench(spinner, use_sim_time=True, max_new_tokens=3)
    clock = bench.cameras.create_publisher(Clock, "/clock", 10)
    bench.wait_until_connected()

    def tick(seconds: int) -> bool:
        message = Clock()
        message.clock.sec = seconds
        clock.publish(message)
        return bool(bench.node.get_clock().now().nanoseconds == seconds * 10**9)

    bench.until(lambda: tick(1000), "the clock")
    assert bench.describe_now(1000 * 10**9)["age_ms"] is not None
    describer = bench.node._describer
    describe, begun, set_back = describer.describe_all, threading.Event(), threading.Event()

    def slow(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert set_back.wait(60)
        return describe(*arguments, **named)

    monkeypatch.setattr(describer, "describe_all", slow)
    before = len(bench.received["/evspec/result"])
    bench.send_image(1001 * 10**9)
    bench.until(begun.is_set, "a description under way")
    bench.until(lambda: tick(10), "the clock going back")
    set_back.set()
    bench.until(lambda: bench.received["/evspec/result"][before:], "the description")
    result = bench.last_result()
    assert result["age_ms"] is None
    assert result["age_problem"] == "The clock stepped back by 990.0 s while the description was written."
    bench.until(lambda: _told(bench, "stepped back by 990.0 s"), "the problem in diagnostics")
