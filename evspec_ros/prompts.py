"""The prompts that the two models were trained with; the one place that knows their templates."""

DEFAULT_PROMPT = "Describe the scene."

VIDEO_TOKEN = "<video>"  # Video-LLaVA: stands for all frames
EVENT_TOKENS = ("<ev_patch>", "<ev_start>", "<ev_end>")  # EventGPT's additions to LLaMA's vocabulary
EVENT_PLACE = "<event>"  # EventGPT: no token; the text is cut here and the event tokens are put in

_EVENT_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def target_prompt(question: str) -> str:
    """Video-LLaVA's prompt around a question."""
    return f"USER: {VIDEO_TOKEN}\n{question} ASSISTANT:"


def event_prompt(question: str) -> tuple[str, str]:
    """EventGPT's prompt around a question: the text before and the text after the event tokens."""
    before, after = f"<ev_start>{EVENT_PLACE}<ev_end>\n{question}".split(EVENT_PLACE)
    return f"{_EVENT_SYSTEM} USER: {before}", f"{after} ASSISTANT:"
