"""Recordings described without ROS, one after the other; what was done already is left alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from evspec_ros.describer import SceneDescriber
from evspec_ros.description import Description
from evspec_ros.errors import EvspecError, RecordingError
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.questions import RecordedQuestion, questions_beside
from evspec_ros.evaluation.replay.store import Finished, RecordingId, Row, RunFolder
from evspec_ros.evaluation.replay.sweep import replayed
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import WHATEVER, Recording, Wanted
from evspec_ros.windows import Window

DRAFTED, OWN = "draft", "target"  # whose a piece of a text is

NO_FRAMES_PROBLEM = (
    "The recording {} holds no images, so nothing is described; record the RGB camera too, or add "
    "--without-frames describe, which draws the events in their place."
)
NO_EVENTS_REMARK = "It holds no events: frames alone were described, and nothing was drafted from events."
NOTHING_PROBLEM = "The recording {} holds neither events nor images; record it again."


def evaluate_recordings(
    paths: Sequence[Path],
    plan: ReplayPlan,
    folder: RunFolder,
    wanted: Wanted = WHATEVER,
    report: Callable[[str, int], None] = lambda *_: None,
) -> None:
    """Describe all windows of the recordings that the folder does not hold yet; a recording that cannot be
    read is noted with the reason, and the next one is evaluated. report: a recording's path and how many of
    its windows are done.
    """
    describer: SceneDescriber | None = None
    done = folder.finished()
    for path in paths:
        identity = RecordingId.of(path)
        if identity.key in done:
            continue
        describer = describer or plan.load()
        finished = evaluate_recording(
            identity,
            plan,
            describer,
            wanted,
            folder.rows(identity.key),
            lambda rows, key=identity.key: folder.append(key, rows),  # type: ignore[misc]
            report,
        )
        folder.finish(finished)
        done[identity.key] = finished


def evaluate_recording(
    identity: RecordingId,
    plan: ReplayPlan,
    describer: SceneDescriber,
    wanted: Wanted,
    before: Sequence[Row],
    keep: Callable[[Sequence[Row]], None],
    report: Callable[[str, int], None] = lambda *_: None,
) -> Finished:
    """Describe the windows of one recording but those that lines from before are about, and keep a line for
    each question about each.
    """
    path = Path(identity.path)
    done = {row["stamp_ns"] for row in before}
    windows, first_ns, last_ns, problem = 0, None, 0, ""
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    recording: Recording | None = None
    describer.forget_stream()
    try:
        questions = questions_beside(path)
        recording = open_recording(path, wanted)
        for window, asked in _asked(replayed(recording, plan), questions):
            first_ns = window.stamp_ns if first_ns is None else first_ns
            if window.stamp_ns not in done:
                keep(described_rows(describer, plan, identity, window, first_ns, asked))
                done.add(window.stamp_ns)
            windows, last_ns = windows + 1, window.stamp_ns
            report(identity.path, windows)
    except EvspecError as error:
        problem = str(error) if not windows else f"{error} What lies before that place was evaluated."
    remarks: tuple[str, ...] = ()
    if recording is not None:
        problem, remarks = judge(recording, windows, problem)
    return Finished(
        path=identity.path,
        hash=identity.hash,
        size=identity.size,
        windows=windows,
        duration_s=0.0 if first_ns is None else (last_ns - first_ns) / 1e9,
        problem=problem,
        remarks=remarks,
        cpu_s=time.process_time() - began_cpu_s,
        wall_s=time.perf_counter() - began_s,
        peak_mb=peak_mb(),
    )


def described_rows(
    describer: SceneDescriber,
    plan: ReplayPlan,
    identity: RecordingId,
    window: Window,
    first_ns: int,
    asked: Sequence[RecordedQuestion] = (),
) -> list[Row]:
    """A line for what is said of a window to the plan's prompt and to each question."""
    prompts = [plan.prompt, *(one.question for one in asked if one.question != plan.prompt)]
    descriptions = describer.describe_all(
        window.events,
        window.frames,
        prompts=prompts,
        stamp_ns=window.stamp_ns,
        window_ms=plan.window_ms,
        limits=plan.limits,
    )
    answers = {one.question: one.answer for one in asked}
    about = {
        "recording": identity.path,
        "stamp_ns": window.stamp_ns,
        "at_s": (window.stamp_ns - first_ns) / 1e9,
        "events": len(window.events),
        "degraded": window.degraded,
    }
    return [
        about | _row(describer, description) | _answer(answers, description.prompt)
        for description in descriptions
    ]


def _answer(answers: dict[str, str], question: str) -> dict[str, str]:
    return {"answer": answers[question]} if question in answers else {}


def _row(describer: SceneDescriber, description: Description) -> dict[str, Any]:
    said = description.as_dict()
    latency = said["latency_ms"]
    return {
        "question": description.prompt,
        "text": description.text,
        "tokens": said["tokens"],
        "latency_ms": latency,
        "first_word_ms": latency["first_word"],
        "accepted_length": said["mean_accepted_length"],
        "statistics": said["statistics"],
        "drafter": description.drafter,
        "draft_problem": description.draft_problem,
        "lossless": description.lossless,
        "spans": _spans(describer, description),
    }


def _spans(describer: SceneDescriber, description: Description) -> list[tuple[str, str]]:
    """The text in pieces, each with whose it is: tokens that were drafted and accepted, or the target's."""
    whose = [OWN]
    for one in description.passes:
        whose += [DRAFTED] * one.accepted + [OWN] * (one.emitted - one.accepted)
    spans: list[tuple[str, str]] = []
    written = ""
    for count, origin in enumerate(whose, 1):
        text = describer.text_of(description.tokens[:count])
        if not text.startswith(written):  # a character of several tokens is not whole yet
            continue
        piece, written = text[len(written) :], text
        if spans and spans[-1][1] == origin:
            spans[-1] = spans[-1][0] + piece, origin
        elif piece:
            spans.append((piece, origin))
    return spans


def _asked(
    windows: Iterator[Window], questions: Sequence[RecordedQuestion]
) -> Iterator[tuple[Window, tuple[RecordedQuestion, ...]]]:
    """Each window with the questions whose time has come; those without a time, or of a later one, come with
    the last window.
    """
    waiting, held = list(questions), next(windows, None)
    if held is None:
        return
    first_ns = held.stamp_ns
    for window in windows:
        at_s = (held.stamp_ns - first_ns) / 1e9
        due = tuple(one for one in waiting if one.at_s is not None and one.at_s <= at_s)
        waiting = [one for one in waiting if one not in due]
        yield held, due
        held = window
    yield held, tuple(waiting)


def judge(recording: Recording, windows: int, problem: str) -> tuple[str, tuple[str, ...]]:
    """What is wrong with a recording as a whole, and what is to be remarked; read behind the windows, so that
    damage in the middle takes nothing from those before it.
    """
    try:
        info = recording.info()
    except RecordingError as error:
        return problem or str(error), recording.remarks
    remarks = [*info.remarks, *filter(None, (recording.about_log_time,))]
    for topic in info.topics:
        read = topic.read
        if read.refused:
            remarks.append(f"{topic.name}: {read.refused:,} messages were left out: {read.problem}")
        if read.lost:
            remarks.append(f"{topic.name}: {read.lost:,} messages are missing.")
    if not problem and not windows:
        nothing = not info.events.count and not info.frames
        problem = (NOTHING_PROBLEM if nothing else NO_FRAMES_PROBLEM).format(recording.path)
        left_out = [f"{one.name} ({one.type}): {one.left_out}" for one in info.topics if one.left_out]
        if left_out:
            problem = f"{problem} Not read: {'; '.join(left_out)}."
    if windows and not info.events.count:
        remarks.append(NO_EVENTS_REMARK)
    return problem, tuple(remarks)


def peak_mb() -> float:
    """The most memory that this process had in use so far, megabytes; Linux alone tells."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")  # getrusage's begins with the parent's
    (peak_kb,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(peak_kb) * 1024 / 1e6
