"""Texts that are ended anywhere leave nothing behind: the next is that of a describer that never saw them."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evspec_ros import cancellation
from evspec_ros.cancellation import Cancellation
from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Limits
from evspec_ros.errors import CancelledError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
from evspec_ros.sizes import FRAMES

MODELS = Path(__file__).parents[1] / "models"
TARGET, EVENT_MODEL, HEAD = (MODELS / f"tiny_{name}" for name in ("video_llava", "eventgpt", "block"))
LIMITS = Limits(max_new_tokens=16)


class CountDown(Cancellation):
    """Cancelled at a look of its own choice: the one after so many others."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        super().__init__()

    @property
    def reason(self) -> str:
        """Every reading is a look."""
        self.looks -= 1
        return "Enough." if self.looks < 0 else ""

    @reason.setter
    def reason(self, _: str) -> None:
        pass


class Part(Cancellation):
    """Of a whole whose looks are counted here, too."""

    def __init__(self, whole: Cancellation | None) -> None:
        self._whole, self._own = whole, ""
        super().__init__()

    @property
    def reason(self) -> str:
        """Its own, or the whole's."""
        return self._own or (self._whole.reason if self._whole else "")

    @reason.setter
    def reason(self, reason: str) -> None:
        self._own = reason


def _window(number: int) -> tuple[Events, list[Frame]]:
    """Noise; another one for each number."""
    random = np.random.default_rng(number)
    t = np.sort(random.integers(0, 50_000_000, 500))
    x, y = (random.integers(0, 64, 500).astype(np.uint16) for _ in range(2))
    images = random.integers(0, 255, (FRAMES, 64, 64, 3), np.uint8)
    return (
        Events(t, x, y, random.integers(0, 2, 500).astype(np.uint8), 64, 64),
        [Frame(index, image) for index, image in enumerate(images)],
    )


def _describe(describer: SceneDescriber, number: int) -> Any:
    return describer.describe(*_window(number), stamp_ns=0, limits=LIMITS)


def _describe_for_good(describer: SceneDescriber) -> None:
    for number in itertools.count(3):
        _describe(describer, number)


def _end(describer: SceneDescriber, number: int, looks: int) -> None:
    """Describe a window as far as that look; as half of it, where the event model's thread, which is ahead by
    as much as the machine lets it, looked less often.
    """
    with CountDown(looks).scope():
        try:
            _describe(describer, number)
        except CancelledError:
            return
    assert looks > 0
    _end(describer, number, looks // 2)


def _engines(backend: str) -> dict[str, Any]:
    return {"backend": backend, "drafter_backend": backend}


@pytest.fixture(scope="module", params=[("torch", "on"), ("onnxruntime", "off")])
def pair(request: pytest.FixtureRequest) -> tuple[SceneDescriber, SceneDescriber]:
    """Two describers of the same kind, warm: one whose texts are ended, one that is left in peace."""
    backend, overlap = request.param
    made = [load_describer(TARGET, EVENT_MODEL, HEAD, overlap=overlap, **_engines(backend)) for _ in range(2)]
    for describer in made:
        describer.warm_up()
        describer._pace.costs = None  # measured ones differ, and with them how often is looked
    return made[0], made[1]


def test_a_text_that_is_ended_at_any_look_changes_none_that_follow(
    pair: tuple[SceneDescriber, SceneDescriber], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the frames' tower, the prefill, a draft, a verification: the next texts are token for token those
    of a describer that was never disturbed, drafted as well.
    """
    disturbed, left_alone = pair
    monkeypatch.setattr(Cancellation, "nested", classmethod(lambda _: Part(cancellation._CURRENT.get())))
    expected = {number: _describe(left_alone, number) for number in range(2)}
    for number, share in enumerate((0.0, 0.2, 0.4, 0.7), start=2):
        counting = CountDown(10**9)
        for describer in pair:
            describer.forget_stream()
        with counting.scope():
            _describe(left_alone, number)
        looks = 10**9 - counting.looks
        assert looks > 4
        _end(disturbed, number, int(share * looks))
        for known, text in expected.items():
            found = _describe(disturbed, known)
            assert found.tokens == text.tokens
            assert found.draft_failure is None


def test_a_run_of_onnx_runtime_is_ended_from_another_thread(
    pair: tuple[SceneDescriber, SceneDescriber],
) -> None:
    """Wherever it is by then; what follows is computed as before."""
    disturbed, left_alone = pair
    expected = _describe(left_alone, 0).tokens
    for delay_s in (0.0, 0.005, 0.02):
        work = Cancellation()
        timer = threading.Timer(delay_s, work.cancel, ["Enough."])
        timer.start()
        with work.scope(), pytest.raises(CancelledError):
            _describe_for_good(disturbed)
        timer.join()
        assert _describe(disturbed, 0).tokens == expected


def test_a_long_run_of_onnx_runtime_ends_behind_an_operator() -> None:
    """One of which all operators take seconds ends within a fraction of that."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    import torch

    from evspec_ros.engines.onnx_runtime import OnnxEngine

    names = [f"x{index}" for index in range(401)]
    nodes = [
        onnx.helper.make_node("MatMul", [names[index], "x0"], [names[index + 1]]) for index in range(400)
    ]
    size = 512
    (first, last) = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [size, size])
        for name in (names[0], names[-1])
    )
    graph = onnx.helper.make_graph(nodes, "long", [first], [last])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    given, found = torch.eye(size) * 0.5, torch.empty(size, size)
    bound = OnnxEngine(model, 1).bind({names[0]: given}, {names[-1]: found})
    began = time.perf_counter()
    bound.run()
    whole_s = time.perf_counter() - began
    work = Cancellation()
    timer = threading.Timer(whole_s / 10, work.cancel, ["Enough."])
    timer.start()
    began = time.perf_counter()
    with work.scope(), pytest.raises(CancelledError):
        bound.run()
    assert time.perf_counter() - began < whole_s / 2
    bound.run()
    assert torch.isfinite(found).all()
