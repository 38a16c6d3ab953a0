"""How fast a draft head learns from nothing while it drafts: `evspec bench learning`.

Scenes of the simulated world follow each other as a stream, some windows of each; a describer describes them
with a new draft head, which learns between two windows, and is started anew on the way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evspec_ros.choices import NEW_HEAD
from evspec_ros.describer import SceneDescriber
from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.learning_plan import LearningPlan
from evspec_ros.events.types import Events
from evspec_ros.frames.types import Frame
from evspec_ros.loading import load_describer
from evspec_ros.networks.eventgpt import EventGpt
from evspec_ros.networks.video_llava import VideoLlava
from evspec_ros.simulation.samples import STREAM_STEP_S, WINDOW_S, sample_scene
from evspec_ros.speculative.learner import Beginner, Learner
from evspec_ros.training.online import FROM_NOTHING, OnlineDistiller, OnlineSettings

SHOWN = 20  # windows that a point of the curve sums up
EAGER = replace(FROM_NOTHING, share=1.0)  # the replay waits for it, and nobody else needs the time
PATIENCE_S = 600.0  # until a head that learns nothing is given up


@dataclass(frozen=True)
class LearningRow:
    """One window. start: of the describer, counted from 1; window, scene: from 0; fresh: the first window of
    its scene; tokens, passes: of the target; head_version: as in Description; drafts: whether the head does;
    steps: of learning since the start; accepted: tokens per pass that the head alone would have had on the
    newest windows, when it was last compared, None before; seconds: of learning behind the window.
    """

    start: int
    window: int
    scene: int
    fresh: bool
    tokens: int
    passes: int
    head_version: int
    drafts: bool
    steps: int
    accepted: float | None
    seconds: float


@dataclass(frozen=True)
class LearningReport:
    """What was replayed, and its windows in their order."""

    plan: LearningPlan
    rows: tuple[LearningRow, ...]

    def curve(self, *, fresh: bool) -> list[tuple[int, float]]:
        """Accepted length, tokens per pass of the target, of each SHOWN windows of a start, by the window in
        their middle; fresh: of the scenes' first windows alone.
        """
        points = []
        rows = [row for row in self.rows if row.fresh or not fresh]
        for _, group in groupby(rows, lambda row: (row.start, row.window // SHOWN)):
            part = list(group)
            points.append((part[len(part) // 2].window, _accepted_length(part)))
        return points

    def head_curve(self) -> list[tuple[int, float]]:
        """What the head alone would have had, by the window behind which it was compared."""
        return [(row.window, row.accepted) for row in self.rows if row.accepted is not None]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "plan": asdict(self.plan),
            "accepted_length": self.curve(fresh=False),
            "accepted_length_of_new_scenes": self.curve(fresh=True),
            "accepted_length_of_the_head_alone": self.head_curve(),
            "windows": [asdict(row) for row in self.rows],
        }


def _accepted_length(rows: list[LearningRow]) -> float:
    """As DecodingStatistics has it: the first token comes from the prefill."""
    return sum(row.tokens - 1 for row in rows) / max(1, sum(row.passes for row in rows))


def replay(
    target: Path,
    event_model: Path,
    directory: Path,
    plan: LearningPlan,
    report: Callable[[int], None] = lambda _: None,
    settings: OnlineSettings = EAGER,
    tell: Callable[[str], None] = lambda _: None,
) -> LearningReport:
    """Describe the plan's stream with a new head that is kept in a directory. Between two windows the head
    has all the time that it wants, up to what the settings allow. tell: is called with what drafts, and with
    what cannot be used, at every start.
    """
    rows: list[LearningRow] = []
    per_start = -(-plan.scenes // plan.starts)
    for start in range(plan.starts):
        taught = _Taught(settings)
        describer = load_describer(
            target, event_model, Path(NEW_HEAD), draft_head_dir=directory, learner=taught
        )
        tell(" ".join((describer.chosen, describer.left_out)).strip())
        describer.warm_up()
        for scene in range(start * per_start, min((start + 1) * per_start, plan.scenes)):
            for number, (events, frames) in enumerate(stream_windows(scene, plan.windows)):
                rows.append(_described(describer, taught.distiller, events, frames))
                rows[-1] = replace(
                    rows[-1], start=start + 1, window=len(rows) - 1, scene=scene, fresh=number == 0
                )
                report(len(rows))
        taught.distiller.close()
    return LearningReport(plan, tuple(rows))


def stream_windows(scene: int, count: int) -> Iterator[tuple[Events, list[Frame]]]:
    """Events and frames of a held-out scene, window after window."""
    _, camera, times = sample_scene("held_out", scene)
    for number in range(count):
        now = number * STREAM_STEP_S
        camera.events(now - WINDOW_S)  # what came between two windows is not seen
        # a day between two scenes: no frame of one is taken for another's
        stamps = [round((86_400 * (scene + 1) + now + time) * 1e9) for time in times]
        frames = [Frame(stamp, camera.image(time + now)) for stamp, time in zip(stamps, times, strict=True)]
        yield camera.events(now), frames


class _Taught:
    """Makes the distiller of a describer, and remembers it."""

    def __init__(self, settings: OnlineSettings) -> None:
        self.distiller: OnlineDistiller
        self._settings = settings

    def __call__(self, target: VideoLlava, event_model: EventGpt, beginner: Beginner) -> Learner:
        self.distiller = OnlineDistiller.between_windows(target, event_model, beginner, self._settings)
        return self.distiller


def _described(
    describer: SceneDescriber, distiller: OnlineDistiller, events: Events, frames: list[Frame]
) -> LearningRow:
    found = describer.describe(events, frames, stamp_ns=frames[-1].stamp_ns)
    drafted = distiller.drafts
    if found.learning_failure is not None:
        raise EvspecError(f"The head could not learn: {found.learning_failure.problem}.")
    began = time.monotonic()
    while not distiller.idle:
        if time.monotonic() - began > PATIENCE_S:
            raise EvspecError("The head did not end learning from a window; give it more of the machine.")
        time.sleep(0.005)
    return LearningRow(
        start=0, window=0, scene=0, fresh=True,
        tokens=len(found.tokens), passes=found.statistics.target_passes, head_version=found.head_version,
        drafts=drafted, steps=distiller.steps, accepted=distiller.accepted, seconds=time.monotonic() - began,
    )  # fmt: skip


def replay_visibly(target: Path, event_model: Path, directory: Path, plan: LearningPlan) -> LearningReport:
    """`replay` with progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("windows", total=plan.scenes * plan.windows)

        def report(done: int) -> None:
            progress.update(task, completed=done)

        return replay(target, event_model, directory, plan, report, tell=progress.console.print)


def print_learning(report: LearningReport) -> None:
    """A table of the curve."""
    table = Table(
        "start", "windows", "accepted length", "of new scenes", "of the head alone", "head", box=None
    )
    of_parts = [list(part) for _, part in groupby(report.rows, lambda row: (row.start, row.window // SHOWN))]
    for part, (_, length) in zip(of_parts, report.curve(fresh=False), strict=True):
        new = _accepted_length([row for row in part if row.fresh])
        table.add_row(
            str(part[0].start), f"{part[0].window} to {part[-1].window}", f"{length:.2f}", f"{new:.2f}",
            "" if part[-1].accepted is None else f"{part[-1].accepted:.2f}",
            f"version {part[-1].head_version}" if part[-1].drafts else "learns",
        )  # fmt: skip
    Console(highlight=False).print(table)


def plot_learning(report: LearningReport, path: Path) -> None:
    """The curve as a picture; EvspecError where it cannot be written."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for fresh, label in ((False, "as described, all windows"), (True, "as described, new scenes")):
        axes.plot(*zip(*report.curve(fresh=fresh), strict=True), marker=".", label=label)
    axes.plot(*zip(*report.head_curve(), strict=True), label="of the head alone, on the newest windows")
    for before, after in pairwise(report.rows):
        if after.start > before.start:
            axes.axvline(after.window, color="grey", linestyle="--", label="started anew")
        elif after.drafts and not before.drafts:
            axes.axvline(after.window, color="green", linestyle=":", label="the head drafts")
    axes.set(xlabel="windows described", ylabel="tokens per pass of the target", ylim=(0, None))
    axes.set_title("A draft head that begins from nothing and learns from the descriptions")
    axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise EvspecError(f"The plot cannot be written to {path}: {error}.") from error
