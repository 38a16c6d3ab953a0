"""What `evspec eval` shows on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.run import evaluate_recordings
from evspec_ros.evaluation.replay.store import RunFolder
from evspec_ros.recordings.recording import Wanted

COLUMNS = ("windows", "tokens/s", "latency p50", "p95", "p99", "first word p50", "accepted")


def replay_visibly(paths: Sequence[Path], plan: ReplayPlan, folder: RunFolder, wanted: Wanted) -> None:
    """`evaluate_recordings` with progress on stderr."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading the networks", total=None)

        def show(path: str, windows: int) -> None:
            progress.update(task, description=f"{Path(path).name}: {windows} windows")

        evaluate_recordings(paths, plan, folder, wanted, show)


def print_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """A table with a row for each recording, and a line for each that was not evaluated to its end."""
    console = Console(highlight=False)
    table = Table("recording", title=f"milliseconds; {summary['machine']}", title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    total = {"recording": "all", **summary["total"]}
    for one in (*summary["recordings"], *([total] if len(summary["recordings"]) > 1 else ())):
        table.add_row(Path(one["recording"]).name, *cells(one))
    console.print(table)
    for one in summary["recordings"]:
        for told in filter(None, (one["problem"], *one["remarks"])):
            console.print(f"{one['recording']}: {told}", soft_wrap=True, markup=False)
    for note in summary["notes"]:
        console.print(note, soft_wrap=True)
    console.print(f"Written: {folder}", soft_wrap=True, markup=False)


def cells(one: Mapping[str, Any]) -> list[str]:
    """A recording's figures in the order of COLUMNS."""
    if "latency_ms" not in one:
        return [str(one["windows"]), *[""] * (len(COLUMNS) - 1)]
    total, first = one["latency_ms"]["total"], one["latency_ms"]["first_word"]
    return [
        str(one["windows"]),
        f"{one['tokens_per_second']:.0f}",
        *(f"{total[name]:.1f}" for name in ("p50", "p95", "p99")),
        f"{first['p50']:.1f}",
        f"{one['accepted_length']:.2f}",
    ]
