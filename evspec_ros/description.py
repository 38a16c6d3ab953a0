"""What is asked of a description, what it is, and the stages that its time goes into."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from evspec_ros.errors import Failure
from evspec_ros.sizes import MAX_NEW_TOKENS, TREE_SIZE
from evspec_ros.speculative.event_side import EventTimes
from evspec_ros.speculative.statistics import DecodingStatistics, PassOutcome

# Stages of the target's reading, and of the event model's, in their order.
PREPROCESS, ENCODE_FRAMES = "preprocess", "encode_frames"
RENDER, EVENT_PREPROCESS, EVENT_FEATURES = "render", "event_preprocess", "event_features"


@dataclass(frozen=True)
class Limits:
    """How long, how freely and with how much drafting a description is written.

    temperature 0 is greedy; top_k 0 keeps all tokens. n_max: most drafted tokens in a row; tree_size: most
    draft nodes in all; within these a draft ends where its next node would cost more than it brings. p_min:
    drafting stops where its confidence falls below this. acceptance: one of choices.ACCEPTANCES.
    """

    max_new_tokens: int = MAX_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    n_max: int = TREE_SIZE
    tree_size: int = TREE_SIZE
    p_min: float = 0.0
    acceptance: str = "exact"


DEFAULT_LIMITS = Limits()


# How a text is equal to what the target alone would have written: token for token; but for near ties in half
# precision, which a row alone and in a draft may round to different sides; not at all, as was asked for.
EXACT, UP_TO_ROUNDING, LOSSY = "exact", "up to rounding", "lossy"


@dataclass(frozen=True)
class Description:
    """The text about one window, and what it cost.

    stamp_ns: ROS time of the window's end. window_ms: its length as asked for. tokens: emitted ids, the end
    token included. latency_ms: see `latencies`. prefill_slowdown: how much longer the window's prefill took
    with the event model running than alone. reused_frames: frames of the window whose embeddings an earlier
    window left. drafter: its name, and what of it is left out. lossless: the text is what the target alone
    would have written. head_version: which draft head drafted, 0 being the one that was loaded, 1 the first
    that online distillation put into its place, and so on. draft_failure: why the drafter was left out of
    this text, which the target then wrote on alone; learning_failure: why the head learnt nothing from the
    last ones, or was not saved; None where all went well. passes: those of the target that wrote all tokens
    but the first. equality: what `lossless` means, one of EXACT, UP_TO_ROUNDING and LOSSY.
    """

    stamp_ns: int
    window_ms: float
    prompt: str
    text: str
    tokens: tuple[int, ...]
    latency_ms: dict[str, float]
    prefill_slowdown: float
    reused_frames: int
    statistics: DecodingStatistics
    drafter: str
    lossless: bool
    head_version: int = 0
    draft_failure: Failure | None = None
    learning_failure: Failure | None = None
    passes: tuple[PassOutcome, ...] = ()
    equality: str = EXACT

    @property
    def draft_problem(self) -> str:
        """`draft_failure` in one line, "" without one."""
        return self.draft_failure.problem if self.draft_failure else ""

    @property
    def learning_problem(self) -> str:
        """`learning_failure` in one line, "" without one."""
        return self.learning_failure.problem if self.learning_failure else ""

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; `stamp` in seconds, rounded, and in whole nanoseconds."""
        return {
            "stamp": self.stamp_ns / 1e9,
            "stamp_ns": self.stamp_ns,
            "window_ms": self.window_ms,
            "prompt": self.prompt,
            "text": self.text,
            "tokens": len(self.tokens),
            "latency_ms": {stage: round(ms, 3) for stage, ms in self.latency_ms.items()},
            "prefill_slowdown": round(self.prefill_slowdown, 3),
            "reused_frames": self.reused_frames,
            "mean_accepted_length": self.statistics.mean_accepted_length,
            "statistics": self.statistics.as_dict(),
            "drafter": self.drafter,
            "draft_problem": self.draft_problem,
            "learning_problem": self.learning_problem,
            "head_version": self.head_version,
            "lossless": self.lossless,
            "equality": self.equality,
        }


def latencies(
    laps: dict[str, float],
    event_laps: dict[str, float],
    statistics: DecodingStatistics,
    events: EventTimes,
    first_word_ms: float | None,
) -> dict[str, float]:
    """Wall-clock milliseconds of each stage, by the names that are published.

    preprocess, encode_frames, prefill, event_wait and decode follow each other; draft and verify are parts of
    decode, total is everything. event_model is what the event model did, render, event_preprocess and
    event_features among it; of that, event_wait was waited for and event_hidden was not. first_word is from
    the beginning to the first word of the text, all of it where there is none. laps: the stages of the
    describing thread, one after another, writing the last of them; event_laps: the event model's.
    """
    total_ms = sum(laps.values())
    return {
        **{name: event_laps.get(name, 0.0) for name in (RENDER, EVENT_PREPROCESS, EVENT_FEATURES)},
        "event_model": events.busy_ms,
        "event_hidden": events.hidden_ms,
        **{name: laps[name] for name in (PREPROCESS, ENCODE_FRAMES)},
        "event_wait": events.waited_ms,
        "prefill": statistics.prefill_ms,
        "draft": statistics.draft_ms - events.waited_ms,
        "verify": statistics.verify_ms,
        "decode": statistics.decode_ms - events.waited_ms,
        "first_word": total_ms if first_word_ms is None else first_word_ms,
        "total": total_ms,
    }


class GrowingTexts:
    """The texts about one window while they are written, begun now. first_word_ms: of each, from then on."""

    def __init__(
        self, count: int, detokenize: Callable[[Sequence[int]], str], on_text: Callable[[int, str], None]
    ) -> None:
        self.first_word_ms: list[float | None] = [None] * count
        self._began = time.perf_counter()
        self._tokens: list[list[int]] = [[] for _ in range(count)]
        self._detokenize = detokenize
        self._on_text = on_text

    def add(self, number: int, tokens: list[int]) -> None:
        """A text goes on, which is told."""
        self._tokens[number] += tokens
        text = self._detokenize(self._tokens[number])
        if text and self.first_word_ms[number] is None:
            self.first_word_ms[number] = 1e3 * (time.perf_counter() - self._began)
        self._on_text(number, text)
