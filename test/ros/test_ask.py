"""Questions about now, answered as they are written, and another prompt by topic."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spinner import Spinner

pytest.importorskip("event_camera_msgs.msg", reason="needs rclpy and event_camera_msgs")

from node_bench import Bench, at_least, make_bench
from rclpy.lifecycle import TransitionCallbackReturn
from std_msgs.msg import String

from evspec_ros.ros.worker import AskedNow


@pytest.fixture(scope="module")
def asked(ros: None, checkpoints: Path) -> Iterator[Bench]:
    """A node that describes on request, with a frame to ask about."""
    spinner = Spinner()
    bench = make_bench(spinner, trigger="on_request", max_new_tokens=12, stale_after_s=0.0)
    bench.listen(String, "/evspec/answer")
    bench.listen(String, "/evspec/answer/partial")
    bench.wait_until_connected()
    bench.until(
        lambda: (bench.send_image(time.time_ns()), at_least(bench.values("frames"), "frames", 1))[1],
        "a frame",
    )
    for topic in ("ask", "prompt"):
        publisher = bench.cameras.create_publisher(String, f"/evspec/{topic}", 10)
        setattr(bench, topic, publisher.publish)
        bench.until(publisher.get_subscription_count, topic)
    yield bench
    spinner.close()


def _answer(bench: Any, *texts: str) -> dict[str, Any]:
    for messages in bench.received.values():
        messages.clear()
    for text in texts:
        bench.ask(String(data=text))
    return dict(json.loads(bench.until(lambda: bench.received["/evspec/answer"], "an answer")[-1].data))


def test_a_question_is_answered_as_it_is_written(asked: Bench) -> None:
    """With the first word's latency; nothing is described besides."""
    answer = _answer(asked, "What moves?")
    assert (answer["prompt"], answer["cancelled"], answer["problem"]) == ("What moves?", False, "")
    partials = asked.received[
        "/evspec/answer/partial"
    ]  # of another topic: the last may come behind the answer
    asked.until(lambda: partials and partials[-1].data == answer["text"], "the whole text")
    assert 0 < answer["first_word_ms"] < 60_000
    assert answer["lossless"] is True
    assert not asked.received["/evspec/description"]


def test_an_empty_question_cancels(asked: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer ends at the next token and says so."""
    publish = asked.node._outputs.publish_answer_so_far

    def slowly(text: str) -> None:
        publish(text)
        time.sleep(0.3)

    monkeypatch.setattr(asked.node._outputs, "publish_answer_so_far", slowly)
    answer = _answer(asked, "What moves?", "")
    assert answer["cancelled"] is True
    assert "cancelled" in answer["problem"]


def test_what_cannot_be_asked_is_told(asked: Bench) -> None:
    """In the answer, and the next question is answered."""
    assert "shorten the prompt" in _answer(asked, "why " * 3000)["problem"]
    assert _answer(asked, "Why?")["problem"] == ""


def test_a_prompt_by_topic_is_the_parameter(asked: Bench) -> None:
    """Checked as it is; one that is refused is told in /diagnostics."""
    asked.prompt(String(data="Who is there?"))  # type: ignore[attr-defined]
    asked.until(lambda: asked.node._settings.current.prompt == "Who is there?", "the prompt")
    asked.prompt(String(data=" "))  # type: ignore[attr-defined]
    asked.until(
        lambda: "prompt is empty" in asked.values("descriptions").get("last_error", ""), "the refusal"
    )
    assert asked.node._settings.current.prompt == "Who is there?"


def test_deactivating_takes_one_step_however_much_is_asked(
    asked: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text under way ends behind the pass under way, and questions that wait are not begun."""
    describer, worker = asked.node._describer, asked.node._worker
    assert describer is not None
    passes: list[str] = []
    begun: list[str] = []
    extend, prefill = describer._target.extend, describer._target.prefill

    def step(*arguments: Any) -> Any:
        passes.append("step")
        if len(passes) == 1:
            worker.mailbox.close()
        return extend(*arguments)

    def read(*arguments: Any) -> Any:
        begun.append("text")
        return prefill(*arguments)

    monkeypatch.setattr(describer._target, "extend", step)
    monkeypatch.setattr(describer._target, "prefill", read)
    asked.received["/evspec/answer"].clear()
    with worker.mailbox._condition:  # both are taken together
        for question in ("What moves?", "And what rests?"):
            worker.ask(AskedNow(question))
    asked.until(lambda: len(asked.received["/evspec/answer"]) == 2, "both answers")
    problems = {json.loads(answer.data)["problem"] for answer in asked.received["/evspec/answer"]}
    assert problems == {"The node was deactivated."}
    assert (len(passes), len(begun)) == (1, 1)
    assert asked.node.trigger_deactivate() == TransitionCallbackReturn.SUCCESS
