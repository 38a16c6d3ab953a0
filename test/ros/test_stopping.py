"""Leaving the active state in the midst of a pass, and a drafter that stalls, on the real node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from diagnostic_msgs.msg import DiagnosticStatus
from node_bench import Bench, make_bench
from rclpy.lifecycle import TransitionCallbackReturn
from std_srvs.srv import Trigger

from evspec_ros.cancellation import check
from evspec_ros.speculative import guarded

LAYER_S = 0.15  # of one layer that was made slow: a pass takes seconds
WITHIN_S = 1.0


@pytest.fixture(scope="module")
def active(ros: None, checkpoints: Path) -> Iterator[Bench]:
    """A node of torch's modules, its networks loaded once for all tests; the last one ends it."""
    spinner = Spinner()
    made = make_bench(
        spinner, autostart=False, max_new_tokens=12, stale_after_s=0.0, overlap="on",
        backend="torch", drafter_backend="torch",
    )  # fmt: skip
    assert made.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    assert made.node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    made.wait_until_connected()
    yield made
    spinner.close()


@pytest.fixture
def bench(active: Bench) -> Bench:
    """It describes what comes."""
    assert active.set_parameter("trigger", "continuous") == ""
    return active


class SlowLayers:
    """Layers that take a while each, and who computes in them."""

    def __init__(self, layers: Any) -> None:
        self._handles = [layer.register_forward_pre_hook(self._wait) for layer in layers]
        self.entered = threading.Event()

    def _wait(self, *_: object) -> None:
        self.entered.set()
        time.sleep(LAYER_S)

    def remove(self) -> None:
        """They are fast again."""
        for handle in self._handles:
            handle.remove()


PLACES: dict[str, Callable[[Any], Any]] = {
    "prefill": lambda describer: [layer.mlp for layer in describer._target.decoder.layers],
    "frames": lambda describer: _layers(describer._reader.target.model.video_tower),
}


def _layers(tower: Any) -> Any:
    """Of one of the towers."""
    return getattr(tower.clip, "vision_model", tower.clip).encoder.layers


def _leave(bench: Bench, place: str, transition: Callable[[], Any]) -> None:
    """Make a transition in the midst of a pass that takes long."""
    describer: Any = bench.node._describer
    slow = SlowLayers(PLACES[place](describer))
    describer.relieve()

    def computing() -> bool:
        bench.send_image(time.time_ns())
        return slow.entered.is_set()

    bench.until(computing, "a pass in its midst")
    began = time.monotonic()
    assert transition() == TransitionCallbackReturn.SUCCESS
    took_s = time.monotonic() - began
    slow.remove()
    print(f"{transition.__name__} during {place}: {took_s:.3f} s, a layer takes {LAYER_S} s")
    assert took_s < LAYER_S + WITHIN_S


@pytest.mark.parametrize("place", list(PLACES))
def test_the_active_state_is_left_within_a_layer(bench: Bench, place: str) -> None:
    """In the midst of a pass; the next description is what it would have been."""
    expected = bench.describe_now()["text"]
    _leave(bench, place, bench.node.trigger_deactivate)
    bench.activate()
    assert bench.describe_now()["text"] == expected


DRAFTING: dict[str, Callable[[Any], Any]] = {
    "head": lambda describer: [layer.mlp for layer in describer._drafters.get(1)[0]._head._head.layers],
    "events": lambda describer: _layers(describer._reader.events.model.visual_tower),
}


@pytest.mark.parametrize("place", list(DRAFTING))
def test_a_drafter_that_stalls_is_left_out_of_its_text_and_asked_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A layer of its network waits, or one of the event model's in its own thread: the text comes,
    /diagnostics tells why it was written without drafts.
    """
    good = bench.describe_now()
    bench.set_parameter("trigger", "on_request")
    describer: Any = bench.node._describer
    for name, value in {"STALL_S": 0.3, "STALL_PASSES": 0, "STALL_TIMES": 0}.items():
        monkeypatch.setattr(guarded, name, value)
    left = [1]

    def stall(*_: object) -> None:
        while left:  # one layer, which looks as often as others do together
            check()
            time.sleep(0.01)

    handles = [layer.register_forward_pre_hook(stall) for layer in DRAFTING[place](describer)]
    describer.forget_stream()
    bench.received["/evspec/result"].clear()
    bench.received["/diagnostics"].clear()
    answer = bench.call(Trigger, "/evspec/describe")
    assert (answer.success, answer.message) == (True, good["text"])

    def told() -> list[Any]:
        statuses = [one for message in bench.received["/diagnostics"] for one in message.status]
        return [one for one in statuses if one.level == DiagnosticStatus.WARN and "stalled" in one.message]

    assert "without its drafter" in bench.until(told, "the stall in diagnostics")[0].message
    left.clear()
    for handle in handles:
        handle.remove()
    describer.forget_stream()
    bench.received["/evspec/result"].clear()
    assert bench.call(Trigger, "/evspec/describe").message == good["text"]
    bench.until(lambda: bench.received["/evspec/result"], "the result")
    assert bench.last_result()["draft_problem"] == ""


def test_shutting_down_in_the_midst_of_a_pass_takes_no_longer(bench: Bench) -> None:
    """Though the networks are let go."""
    _leave(bench, "prefill", bench.node.trigger_shutdown)
