"""What `evspec bench decode` measured, as tables and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.decoding import DecodingReport, DecodingRow

WIDTH = 118  # characters that the tables need


def print_report(report: DecodingReport) -> None:
    """One table for each of its parts, and the cost curve."""
    console = Console(highlight=False, width=max(WIDTH, Console().width))
    for title, rows in _parts(report):
        if rows:
            console.print(_table(f"{title}: {rows[0].scenes} windows", rows))
    curve = ", ".join(f"{rows} rows {cost:.2f}" for rows, cost in report.cost_curve.items())
    console.print(f"A pass of the target over one row takes {report.step_ms:.2f} ms; over it: {curve}.")
    console.print(f"In {report.dtype} on {report.machine}; {report.engine}.", soft_wrap=True)


def _parts(report: DecodingReport) -> list[tuple[str, Sequence[DecodingRow]]]:
    return [
        ("held-out scenes", report.rows),
        ("streams", report.stream),
        ("combined without its ingredients, held-out scenes", report.ablation),
        ("combined without its ingredients, streams", report.stream_ablation),
    ]


def _table(title: str, rows: Sequence[DecodingRow]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=0)
    ratios, times = (
        ("speed-\nup", "de-\ncode", "length", "rate"),
        ("prefill\nms", "draft\nms", "node\n%", "run\nms"),
    )
    for column in (
        "drafter",
        "over-\nlap",
        "T",
        *ratios,
        *times,
        "verify\nms",
        "events\nms",
        "hidden\nms",
        "un-\nchanged",
        "same",
    ):
        table.add_column(column, justify="left" if column == "drafter" else "right", no_wrap=True)
    for row in rows:
        values = (
            row.temperature, row.speedup, row.speedup_decode, row.mean_accepted_length, row.acceptance_rate,
            row.prefill_ms, row.draft_ms, 100 * row.node_share, row.draft_ms_per_pass, row.verify_ms,
            row.event_ms, row.event_hidden_ms, row.unchanged,
        )  # fmt: skip
        table.add_row(
            row.drafter,
            "yes" if row.overlap else "",
            *(f"{value:.2f}" for value in values),
            {True: "yes", False: "NO", None: ""}[row.identical],
        )
    return table


def plot_report(report: DecodingReport, path: Path) -> None:
    """Speed-ups, acceptance by position and the cost curve as a picture; EvspecError where it cannot be
    written.
    """
    figure = Figure(figsize=(14, 9), layout="constrained")
    bars, streams, positions, curve = figure.subplots(2, 2).flat
    for axes, title, rows in ((bars, "held-out scenes", report.rows), (streams, "streams", report.stream)):
        greedy = [row for row in rows if not row.temperature]
        names = [row.drafter + (", overlap" if row.overlap else "") for row in greedy]
        axes.barh(names, [row.speedup_decode for row in greedy])
        axes.invert_yaxis()
        axes.axvline(1.0, color="grey", linewidth=1)
        axes.set(title=f"{title}, greedy", xlabel="speed-up of decoding over plain decoding")
    for row in report.rows:
        if not row.temperature and not row.overlap and row.acceptance_by_position:
            positions.plot(
                range(1, len(row.acceptance_by_position) + 1), row.acceptance_by_position, label=row.drafter
            )
    positions.set(
        title="how far drafts are followed", xlabel="tokens behind the last one", ylabel="share accepted"
    )
    positions.legend()
    curve.plot(list(report.cost_curve), list(report.cost_curve.values()), marker="o")
    curve.set(title="what a verification costs", xlabel="rows", ylabel="passes over one row")
    curve.set_ylim(bottom=0)
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise EvspecError(f"The plot cannot be written to {path}: {error}.") from error
