"""A question about now, from its arrival until there is an answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rclpy.task import Future

from evspec_ros.cancellation import Cancellation
from evspec_ros.description import Description
from evspec_ros.windows import Window


@dataclass(frozen=True)
class Answer:
    """What came of a question: described, where the answer was written to its end, else why it was not
    (problem) and the text so far. first_word_ms: from the question's arrival; None without a word.
    """

    prompt: str
    text: str
    problem: str
    first_word_ms: float | None
    described: tuple[Description, Window] | None


@dataclass(eq=False)
class AskedNow:
    """A question ("" for the node's prompt). tell: hears the answer so far whenever it grows; answer: takes
    an Answer; cancellation: of its writing; text: so far.
    """

    question: str
    tell: Callable[[str], None]
    answer: Future
    cancellation: Cancellation = field(default_factory=Cancellation)
    asked_at: float = field(default_factory=time.monotonic)
    begun: bool = False
    text: str = ""
    first_word_ms: float | None = None

    def begin(self, prompt: str) -> None:
        """It is answered now; prompt: the node's."""
        self.begun = True
        self.question = self.question or prompt

    def grow(self, text: str) -> None:
        """So much of the answer is written."""
        if self.first_word_ms is None and text:
            self.first_word_ms = round(1000 * (time.monotonic() - self.asked_at), 1)
        self.text = text
        self.tell(text)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancellation.cancel("The question was cancelled.")
        if not self.begun:
            self.end(self.cancellation.reason)

    def end(self, problem: str = "", described: tuple[Description, Window] | None = None) -> None:
        """There is an answer, or a reason why there will be none; the first one counts."""
        if not self.answer.done():
            text = described[0].text if described else self.text
            self.answer.set_result(Answer(self.question, text, problem, self.first_word_ms, described))
