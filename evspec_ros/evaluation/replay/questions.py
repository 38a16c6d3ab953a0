"""Questions and answers beside a recording: RECORDING.qa.jsonl, an object a line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from evspec_ros.errors import RecordingError

SUFFIX = ".qa.jsonl"


@dataclass(frozen=True)
class RecordedQuestion:
    """What is asked about a recording at_s seconds behind its first window (None: about its last window), and
    what would be right.
    """

    question: str
    answer: str
    at_s: float | None = None


def questions_beside(recording: Path) -> tuple[RecordedQuestion, ...]:
    """Those of the file beside a recording, by time; () where there is none.

    Raises RecordingError for a line that is no question with an answer.
    """
    path = recording.with_name(recording.name + SUFFIX)
    if not path.is_file():
        return ()
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_read(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise RecordingError(
                f'Line {number} of {path} is no question: write {{"question": "...", "answer": "...", '
                f'"at_s": 1.5}}, of which at_s may be left out ({error}).'
            ) from error
    return tuple(sorted(found, key=lambda one: float("inf") if one.at_s is None else one.at_s))


def _read(line: dict[str, object]) -> RecordedQuestion:
    question, answer, at_s = line["question"], line["answer"], line.get("at_s")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise TypeError("question and answer are texts")
    if at_s is not None and not isinstance(at_s, int | float):
        raise TypeError("at_s is a number of seconds")
    return RecordedQuestion(question, answer, None if at_s is None else float(at_s))
