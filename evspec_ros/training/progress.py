"""Progress of a training: on the terminal a bar per stage, with its loss or score, and logs for
TensorBoard.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from evspec_ros.errors import TrainingError
from evspec_ros.training.loop import Report

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


@contextmanager
def training_progress(logs: Path | None = None, *, visible: bool = True) -> Iterator[Report]:
    """What `fit` and its like report to, shown on stderr and logged below `logs`; nothing of either where not
    visible. Raises TrainingError where logs are wanted and tensorboard is not installed.
    """
    columns = (
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(), TextColumn("{task.fields[figure]}"),
    )  # fmt: skip
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), disable=not visible))
        tasks = {}
        writers: dict[str, SummaryWriter] = {}

        def report(stage: str, done: int, total: int, figure: float) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total, figure="")
            progress.update(tasks[stage], completed=done, figure=f"{figure:.3f}" if figure else "")
            if logs is not None and visible and figure:
                if stage not in writers:
                    writers[stage] = stack.enter_context(_writer(logs / stage.replace(" ", "-"), done))
                writers[stage].add_scalar(stage, figure, done)

        yield report


def _writer(path: Path, first: int) -> SummaryWriter:
    """What an interrupted run had logged from step `first` on is not shown again."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "The logs of a training need tensorboard, which is not installed: pip install tensorboard."
        ) from error
    return SummaryWriter(str(path), purge_step=first)
