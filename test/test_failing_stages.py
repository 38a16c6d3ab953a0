"""An exception at any stage of a description: the next window's texts are those of the target alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import evspec_ros.networks.pixels
import evspec_ros.speculative.text
from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Description, Limits
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
from evspec_ros.simulation.samples import sample_scene
from evspec_ros.training.online import OnlineDistiller, OnlineSettings

MODELS = Path(__file__).parents[1] / "models"
TARGET, EVENT_MODEL, HEAD = (MODELS / f"tiny_{name}" for name in ("video_llava", "eventgpt", "eagle3"))
QUESTIONS = ("Describe the scene.", "What moves?")
LIMITS = Limits(max_new_tokens=16)
SETTINGS: dict[str, dict[str, Any]] = {
    "in turn": {},
    "beside": {"overlap": "on"},
    "learning": {
        "learner": partial(OnlineDistiller.between_windows, settings=OnlineSettings(held_out=1, steps=1))
    },
}

Window = tuple[Events, list[Frame]]


@dataclass(frozen=True)
class Stage:
    """Where a call is made: the owner of the function and its name there. fatal: no text without it."""

    owner: Callable[[SceneDescriber], Any]
    name: str
    fatal: bool


class Preprocessing:
    """A preprocessor whose call can be replaced."""

    def __init__(self, well: Any) -> None:
        self.run = well
        self.size = well.size

    def __call__(self, images: Any) -> Any:
        """As ever."""
        return self.run(images)


STAGES = {
    "preprocess": Stage(lambda d: d._reader.target.preprocessor, "run", True),
    "encode frames": Stage(lambda d: d._reader.target.model, "encode_frames", True),
    "gather frames": Stage(lambda d: d._reader._frame_features, "gather", True),
    "tokenise": Stage(lambda d: d._reader.target.tokenizer, "encode_plain", True),
    "embed": Stage(lambda d: d._reader.target.model, "embed_prompt", True),
    "prefill": Stage(lambda d: d._target, "prefill", True),
    "read the first prompt": Stage(lambda d: d._target, "_prefill_first", True),
    "read the second prompt": Stage(lambda d: d._target, "_prefill_other", True),
    "verify": Stage(lambda d: d._target, "extend", True),
    "verify in the engine": Stage(lambda d: d._target.engine, "run", True),
    "judge": Stage(lambda _: evspec_ros.speculative.text, "verify", True),
    "keep": Stage(lambda d: d._target, "keep", True),
    "detokenise": Stage(lambda d: d._target, "detokenize", True),
    "render": Stage(lambda _: evspec_ros.networks.pixels, "render_event_images", False),
    "event preprocess": Stage(lambda d: d._reader.events.preprocessor, "run", False),
    "encode events": Stage(lambda d: d._reader.events.encoder, "encode", False),
    "read the head's prompt": Stage(lambda d: _combined(d)._head._head, "fuse", False),
    "the head's engine": Stage(lambda d: _combined(d)._head._engine, "run", False),
    **{step: Stage(lambda d: d._drafters.get(1)[0], step, False) for step in ("prepare", "start", "propose")},
    **{step: Stage(lambda d: d._drafters.get(1)[0], step, False) for step in ("accept", "finish")},
}
BESIDE = {
    "the event model's prompt": Stage(lambda d: _combined(d)._event_writer._writer, "read_prompt", False),
    "make room": Stage(lambda d: _combined(d)._event_writer._writer, "make_room", False),
}
ERRORS: list[Exception] = [
    KeyError("entering"),
    MemoryError(),
    RuntimeError("no kernel\nfor it"),
    OSError(28),
]


def _combined(describer: SceneDescriber) -> Any:
    drafter = describer._drafters.get(1)[0]
    return getattr(drafter, "_drafter", drafter)  # learning stands before it


def _window(index: int) -> Window:
    _, camera, times = sample_scene("held_out", index)
    frames = [Frame(round((1 + time) * 1e9), camera.image(time)) for time in times]
    return camera.events(0.0), frames


@pytest.fixture(scope="module")
def windows() -> list[Window]:
    """Three scenes."""
    return [_window(index) for index in range(3)]


@pytest.fixture(scope="module")
def texts(windows: list[Window]) -> list[list[tuple[int, ...]]]:
    """What the target alone says about each of them."""
    plain = load_describer(TARGET, None, None, drafter="none")
    return [[answer.tokens for answer in _describe(plain, window)] for window in windows]


@pytest.fixture(scope="module", params=list(SETTINGS))
def describer(request: pytest.FixtureRequest) -> Iterator[SceneDescriber]:
    """Events read before the target, beside it, and a head that learns."""
    made = load_describer(TARGET, EVENT_MODEL, HEAD, **SETTINGS[request.param])
    reader = made._reader
    assert reader.events is not None
    frames: Any = Preprocessing(reader.target.preprocessor)
    events: Any = Preprocessing(reader.events.preprocessor)
    reader.target = replace(reader.target, preprocessor=frames)
    reader.events = replace(reader.events, preprocessor=events)
    made.warm_up()
    yield made
    if hasattr(made._learner, "_thread"):  # a thread in the middle of a step would meet the interpreter's end
        made._learner.close()
        made._learner._thread.join()


def _describe(
    describer: SceneDescriber, window: Window, on_text: Callable[[int, str], None] = lambda *_: None
) -> tuple[Description, ...]:
    return describer.describe_all(*window, prompts=QUESTIONS, stamp_ns=0, limits=LIMITS, on_text=on_text)


@contextmanager
def _failing_once(
    describer: SceneDescriber, stage: Stage, call: int, error: Exception
) -> Iterator[list[int]]:
    """One of a stage's calls raises; the calls made are counted."""
    owner, calls = stage.owner(describer), [0]
    well = getattr(owner, stage.name)

    def once(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise error
        return well(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, stage.name, once)
        yield calls


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("name", [*STAGES, *BESIDE])
def test_the_next_window_is_described_after_an_exception_at_any_stage(
    describer: SceneDescriber, windows: list[Window], texts: list[list[tuple[int, ...]]], name: str, call: int
) -> None:
    """Token for token. Where the target itself failed there is no text; where a drafter did, the target's
    text is there, and why it was written alone.
    """
    if name in BESIDE and not describer._drafters._sides[0].overlap:
        pytest.skip("the event model writes beside the target alone")
    describer.forget_stream()
    assert [answer.tokens for answer in _describe(describer, windows[0])] == texts[0]
    stage, error = (STAGES | BESIDE)[name], ERRORS[(len(name) + call) % len(ERRORS)]
    with _failing_once(describer, stage, call, error) as calls:
        if stage.fatal:
            raised: list[Exception] = []
            try:
                _describe(describer, windows[1])
            except type(error) as caught:
                raised.append(caught)
            assert raised == ([error] if calls[0] >= call else [])
        else:
            found = _describe(describer, windows[1])
            assert [answer.tokens for answer in found] == texts[1]
            assert all(answer.lossless for answer in found)
            problems = [answer.draft_problem for answer in found]
            assert any(type(error).__name__ in problem for problem in problems) == (calls[0] >= call)
            assert found[0].as_dict()["draft_problem"] == found[0].draft_problem
    answers = _describe(describer, windows[2])
    assert [answer.tokens for answer in answers] == texts[2]
    assert [answer.draft_problem for answer in answers] == ["", ""]
    assert answers[0].statistics.drafted > 0


def test_a_listener_that_raises_stops_its_text_alone(
    describer: SceneDescriber, windows: list[Window], texts: list[list[tuple[int, ...]]]
) -> None:
    """What on_text raises comes out as it is, at its first call and at a later one."""
    for length in (1, 20):

        def listen(number: int, text: str) -> None:
            if number == 1 and len(text) >= length:  # noqa: B023
                raise LookupError("nobody listens")

        with pytest.raises(LookupError, match="nobody listens"):
            _describe(describer, windows[1], listen)
        assert [answer.tokens for answer in _describe(describer, windows[2])] == texts[2]


def test_a_drafter_that_always_fails_costs_its_own_question_the_drafts(
    describer: SceneDescriber, windows: list[Window], texts: list[list[tuple[int, ...]]]
) -> None:
    """The other question's drafter goes on; window after window is described."""
    _describe(describer, windows[0])
    broken = describer._drafters.get(2)[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(broken, "propose", None)
        for index in (1, 2):
            answers = _describe(describer, windows[index])
            assert [answer.tokens for answer in answers] == texts[index]
            assert answers[0].draft_problem == ""
            assert "TypeError" in answers[1].draft_problem
            assert answers[0].statistics.drafted > answers[1].statistics.drafted == 0


def test_a_warm_up_that_failed_is_made_up_for(
    windows: list[Window], texts: list[list[tuple[int, ...]]]
) -> None:
    """The first description warms up, and so does the second where the first could not."""
    cold = load_describer(TARGET, EVENT_MODEL, HEAD)
    with _failing_once(cold, STAGES["verify"], 1, KeyError("x")), pytest.raises(KeyError):
        _describe(cold, windows[0])
    assert cold._pace.costs is None
    assert [answer.tokens for answer in _describe(cold, windows[0])] == texts[0]
    assert cold._pace.costs is not None
