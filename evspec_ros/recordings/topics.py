"""Which topics of a bag are read: one of events and one of images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evspec_ros.errors import RecordingError
from evspec_ros.frames.encodings import Look
from evspec_ros.recordings.recording import Topic

NEITHER = "it holds neither events nor images"
_LESS = {
    Look.HARDLY_A_CAMERA: "its pictures are hardly a camera's (16 bits of grey, or labels), ",
    Look.GREY: "it is grey, ",
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """What a look at a topic's messages tells: why it cannot be read ("" where it can), and what it shows."""

    problem: str = ""
    look: Look = Look.COLOUR


Judge = Callable[[Topic], Judgement]


def one_read(topics: Sequence[Topic], judge: Judge) -> list[Topic]:
    """The topics, all but one with the reason why they are not read: a colour camera goes before a grey one,
    that before what may be none, the busiest first among equals.
    """
    verdicts: dict[int, Judgement] = {}
    busiest_first = sorted(range(len(topics)), key=lambda index: -topics[index].count)
    for index in busiest_first:
        verdicts[index] = judge(topics[index])
        if verdicts[index] == Judgement():
            break
    readable = [index for index, verdict in verdicts.items() if not verdict.problem]
    read = max(readable, key=lambda index: verdicts[index].look, default=None)
    return [
        topic if index == read else replace(topic, left_out=_reason(verdicts.get(index), topics, read))
        for index, topic in enumerate(topics)
    ]


def _reason(verdict: Judgement | None, topics: Sequence[Topic], read: int | None) -> str:
    if verdict is not None and verdict.problem:
        return verdict.problem
    assert read is not None  # what can be read is left out for another one alone
    why = "" if verdict is None else _LESS.get(verdict.look, "")
    return f"{why}{topics[read].name} is read instead"


def the_named(path: Path, topics: Sequence[Topic], judge: Judge, name: str, option: str) -> list[Topic]:
    """The topics, all but the named one left out. Raises RecordingError where it is not there or cannot be
    read.
    """
    named = max((topic for topic in topics if topic.name == name), key=lambda one: one.count, default=None)
    if named is None:
        there = ", ".join(topic.name for topic in topics) or "none"
        raise RecordingError(
            f"The bag {path} has no topic {name} for {option}; those that would do: {there}."
        )
    if problem := judge(named).problem:
        raise RecordingError(f"The topic {name} of {path} cannot be read: {problem}.")
    return [topic if topic is named else replace(topic, left_out=f"{name} was chosen") for topic in topics]


def tell_left_out(path: Path, topics: Sequence[Topic]) -> None:
    """One line in the log with all topics that are not read, and why."""
    reasons: dict[str, list[str]] = {}
    for topic in topics:
        if topic.left_out:
            reasons.setdefault(topic.left_out, []).append(topic.name)
    if reasons:
        told = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        logger.warning("Not read of %s: %s.", path, told)
