"""The prompts that the two models were trained with; the one place that knows their templates."""

import unicodedata

from evspec_ros.errors import GenerationError

DEFAULT_PROMPT = "Describe the scene."

VIDEO_TOKEN = "<video>"  # Video-LLaVA: stands for all frames
EVENT_TOKENS = ("<ev_patch>", "<ev_start>", "<ev_end>")  # EventGPT's additions to LLaMA's vocabulary

_EVENT_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

# What stands before a question, the last special token at its end.
TARGET_PROMPT = f"USER: {VIDEO_TOKEN}"
EVENT_PROMPT = f"{_EVENT_SYSTEM} USER: <ev_start>", "<ev_end>"  # the event tokens are put in between

_WHITESPACE = "\t\n\r"  # the control characters that text may hold


def target_prompt(question: str) -> str:
    """Video-LLaVA's prompt around a question."""
    return TARGET_PROMPT + asked(question)


def event_prompt(question: str) -> tuple[str, str]:
    """EventGPT's prompt around a question: the text before and the text after the event tokens."""
    before, after = EVENT_PROMPT
    return before, after + asked(question)


def asked(question: str) -> str:
    """What follows the last special token of either prompt: a user's words, in which nothing is special.

    Raises GenerationError for characters that no text is made of.
    """
    require_text(question)
    return f"\n{question} ASSISTANT:"


def require_text(question: str) -> None:
    """Raise GenerationError for control characters and for halves of surrogate pairs."""
    for place, character in enumerate(question):
        if unicodedata.category(character) in {"Cc", "Cs"} and character not in _WHITESPACE:
            raise GenerationError(
                f"The question holds U+{ord(character):04X} at place {place}, no character that texts have; "
                "leave it out."
            )
