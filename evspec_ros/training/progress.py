"""Progress of a training on the terminal: a bar per stage, with its loss or score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from evspec_ros.training.loop import Report


@contextmanager
def training_progress() -> Iterator[Report]:
    """What `fit` and its like report to, shown on stderr."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), TextColumn("{task.fields[figure]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks = {}

        def report(stage: str, done: int, total: int, figure: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, figure="")
            progress.update(tasks[stage], completed=done, figure=f"{figure:.3f}" if figure else "")

        yield report
