"""Prompts of any text: refused with a reason or described, and the next window is described as ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Limits
from evspec_ros.errors import GenerationError
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
from evspec_ros.simulation.samples import sample_scene

MODELS = Path(__file__).parents[1] / "models"
LIMITS = Limits(max_new_tokens=4, tree_size=4)
WORDS = [
    "<event>", "<video>", "<image>", "<ev_patch>", "<ev_start>", "<ev_end>", "<s>", "</s>", "<unk>", "<pad>",
    "USER:", "ASSISTANT:", "<0x0A>", "▁", "|", "\n", "who", " ",
]  # fmt: skip
TEXT = st.one_of(
    st.text(),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    st.lists(st.sampled_from(WORDS), max_size=12).map("".join),
    st.text(st.characters(categories=["Cc", "Cs", "Cf", "Co", "Cn", "Zs", "Zl"]), max_size=5),
    st.builds(lambda piece, length: (piece * length)[:length], st.text(min_size=1), st.just(10_000)),
)


@pytest.fixture(scope="module")
def window() -> tuple[Events, list[Frame]]:
    """A scene's events and frames."""
    _, camera, times = sample_scene("held_out", 3)
    return camera.events(0.0), [Frame(round((1 + time) * 1e9), camera.image(time)) for time in times]


@pytest.fixture(scope="module")
def describers() -> list[SceneDescriber]:
    """One that hands a question to both models, drafter and copied words included; the target alone."""
    target, events = MODELS / "tiny_video_llava", MODELS / "tiny_eventgpt"
    return [
        load_describer(target, events, None, drafter="eventgpt"),
        load_describer(target, None, None, drafter="prompt_lookup"),
        load_describer(target, None, None, drafter="none"),
    ]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(prompt=TEXT, question=TEXT)
def test_any_text_is_described_or_refused_with_a_reason(
    describers: list[SceneDescriber], window: tuple[Events, list[Frame]], prompt: str, question: str
) -> None:
    """By every drafter alike, `require_room` says beforehand which it will be, and no drafter fails."""
    both = ((prompt,), (prompt, question))
    outcomes = [_outcome(describer, window, prompts) for describer in describers for prompts in both]
    alone, together = outcomes[0], outcomes[1]
    assert outcomes == [alone, together] * 3
    if isinstance(alone, list) and isinstance(together, list):
        assert together[0] == alone[0]


def _outcome(
    describer: SceneDescriber, window: tuple[Events, list[Frame]], prompts: tuple[str, ...]
) -> str | list[tuple[int, ...]]:
    """The refusal, or the tokens."""
    try:
        describer.require_room(prompts, LIMITS)
    except GenerationError as refusal:
        sentence = str(refusal)
        assert sentence.endswith(".")
        assert sentence.isprintable()
        with pytest.raises(GenerationError) as again:
            describer.describe_all(*window, prompts=prompts, stamp_ns=0, limits=LIMITS)
        assert str(again.value) == sentence or len(prompts) > 1  # which of them is met first
        return sentence
    found = describer.describe_all(*window, prompts=prompts, stamp_ns=0, limits=LIMITS)
    assert [answer.draft_problem for answer in found] == [""] * len(prompts)
    return [answer.tokens for answer in found]


@pytest.mark.parametrize("prompt", ["What caused the <event>?", "<video>", "<ev_start><ev_end>", "</s><s>"])
def test_words_of_the_templates_are_read_as_text(
    describers: list[SceneDescriber], window: tuple[Events, list[Frame]], prompt: str
) -> None:
    """One place for the frames and one for the events, whatever is asked; the rows are the words'."""
    for describer in describers:
        plain, found = (
            describer.describe(*window, prompt=asked, stamp_ns=0).statistics.prompt_rows
            for asked in ("", prompt)
        )
        assert plain + 3 < found < plain + 30


def test_no_prompt_is_no_answer(describers: list[SceneDescriber], window: tuple[Events, list[Frame]]) -> None:
    """Nothing is read for it."""
    assert describers[0].describe_all(*window, prompts=(), stamp_ns=0) == ()
