"""The two prompts, and which questions they take."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evspec_ros.errors import GenerationError
from evspec_ros.prompts import EVENT_PROMPT, asked, event_prompt, require_text, target_prompt


def test_the_templates_are_those_of_the_published_models() -> None:
    """Letter by letter."""
    assert target_prompt("Who?") == "USER: <video>\nWho? ASSISTANT:"
    before, after = event_prompt("Who?")
    assert before.startswith("A chat between a curious human and an artificial intelligence assistant. ")
    assert before.endswith("questions. USER: <ev_start>")
    assert after == "<ev_end>\nWho? ASSISTANT:"


@pytest.mark.parametrize("question", ["What caused the <event>?", "<event><event>", "<ev_end>", "", "{}%s"])
def test_a_question_stands_in_the_template_as_it_was_asked(question: str) -> None:
    """Also where it holds words of the template."""
    assert asked(question) == f"\n{question} ASSISTANT:"
    assert event_prompt(question) == (EVENT_PROMPT[0], f"<ev_end>\n{question} ASSISTANT:")


@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x85", "\ud800"])
def test_what_no_text_is_made_of_is_refused(character: str) -> None:
    """Control characters and lone surrogates, named by number and place in a sentence that can be printed."""
    with pytest.raises(GenerationError, match=rf"U\+{ord(character):04X} at place 3") as refusal:
        require_text(f"Who{character}?")
    assert str(refusal.value).isprintable()


@given(text=st.text(st.characters(exclude_categories=["Cc", "Cs"]) | st.sampled_from("\t\r\n")))
def test_every_other_text_is_taken(text: str) -> None:
    """Of any script, with line breaks and tabs, of characters that are not assigned yet."""
    require_text(text)
