"""The report of a run: one HTML file with nothing to load, and its tables as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.replay.console import COLUMNS, cells
from evspec_ros.evaluation.replay.plan import ReplayPlan
from evspec_ros.evaluation.replay.run import DRAFTED
from evspec_ros.evaluation.replay.store import REPORT_HTML, REPORT_MARKDOWN, Row, RunFolder
from evspec_ros.evaluation.replay.summary import acceptance_by_position
from evspec_ros.evaluation.replay.sweep import windows_ending
from evspec_ros.evaluation.report import Timing, environment, latency_plot, svg_of
from evspec_ros.events.rendering import render_event_images
from evspec_ros.recordings import open_recording
from evspec_ros.recordings.recording import WHATEVER, Wanted

HTML, MARKDOWN = (Path(__file__).parents[1] / name for name in ("replay.html", "replay.md.jinja"))
SHOWN = 4  # windows of a recording that are shown with pictures
PLOTTED = 400  # windows of a recording that a plot shows


@dataclass(frozen=True, eq=False)
class ShownWindow:
    """A window with its frame, RGB uint8 [H, W, 3], its event images [5, H, W, 3] (None without events) and
    what was said of it, in pieces that tell who wrote them.
    """

    row: Row
    frame: NDArray[np.uint8]
    event_images: NDArray[np.uint8] | None

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """Text and whether it was drafted."""
        return [(text, whose == DRAFTED) for text, whose in self.row["spans"]]


def write_replay_report(folder: RunFolder, summary: Mapping[str, Any], wanted: Wanted = WHATEVER) -> None:
    """Write the run's report.html and report.md beside its summary; EvspecError where they cannot be."""
    sections = []
    for one, key in zip(summary["recordings"], folder.finished(), strict=True):
        rows = [row for row in folder.rows(key) if row["question"] == folder.plan["prompt"]]
        section = {
            "about": one,
            "cells": cells(one),
            "plots": plots(rows),
            "shown": _shown(folder, rows, wanted),
        }
        sections.append(section)
    run = {
        "title": "evspec: recordings replayed",
        "columns": COLUMNS,
        "summary": summary,
        "sections": sections,
        "total": cells(summary["total"]),
        "figures": run_figures(summary),
    }
    try:
        for template, name in ((HTML, REPORT_HTML), (MARKDOWN, REPORT_MARKDOWN)):
            made = environment(autoescape=template is HTML).from_string(template.read_text(encoding="utf-8"))
            (folder.path / name).write_text(made.render(run), encoding="utf-8")
    except OSError as error:
        raise EvspecError(f"The report cannot be written to {folder.path} ({error.strerror}).") from error


def run_figures(summary: Mapping[str, Any]) -> dict[str, str]:
    """Name and value of what holds for the whole run."""
    plan, total = summary["plan"], summary["total"]
    found = {
        "machine": summary["machine"],
        "drafter": plan["drafter"],
        "precision": plan["dtype"],
        "question": plan["prompt"],
        "windows": f"{total['windows']:,}",
    }
    if "lossless" not in total:
        return found
    found["text as the target alone would write it"] = "yes" if total["lossless"] else "no"
    found["decoding"] = f"{total['decode_tokens_per_second']:.0f} tokens/s after the first word"
    found["accepted length"] = f"{total['accepted_length']:.2f} tokens a pass, the bonus token counted"
    if "scores" in total:
        scores = total["scores"].items()
        found["answers beside the recordings"] = ", ".join(f"{name} {value:g}" for name, value in scores)
    return found


def plots(rows: Sequence[Row]) -> dict[str, str]:
    """SVG drawings by their captions; none without rows."""
    if not rows:
        return {}
    rows = rows[:: -(-len(rows) // PLOTTED)]
    timings = [Timing(row["at_s"], row.get("age_ms"), row["latency_ms"]) for row in rows]
    found = {
        "Latency of each window, by stage": latency_plot(timings),
        "Tokens a pass of the target emits, over time": _line(
            rows, "accepted_length", "accepted length, bonus token counted"
        ),
        "Accepted share of the drafts by position": _bars(acceptance_by_position(rows)),
    }
    if any(row.get("age_ms") is not None for row in rows):
        found["Age of each text when it was there, from the sending of its newest message"] = _line(
            rows, "age_ms", "milliseconds"
        )
    return found


def _line(rows: Sequence[Row], name: str, label: str) -> str:
    figure = Figure(figsize=(9.5, 2.4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["at_s"] for row in rows], [row[name] for row in rows], ".-", linewidth=0.8)
    axes.set_xlabel("end of the window, seconds behind the first one")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    return svg_of(figure)


def _bars(shares: Sequence[float]) -> str:
    figure = Figure(figsize=(9.5, 2.4), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(1, len(shares) + 1), shares)
    axes.set_xlabel("position in the draft")
    axes.set_ylabel("emitted")
    axes.set_ylim(0, 1)
    return svg_of(figure)


def _shown(folder: RunFolder, rows: Sequence[Row], wanted: Wanted) -> list[ShownWindow]:
    """Up to SHOWN windows, evenly spread, the last among them."""
    count = min(SHOWN, len(rows))
    shown = (rows[index * len(rows) // count - 1] for index in range(1, count + 1))
    chosen = {row["stamp_ns"]: row for row in shown}
    if not chosen:
        return []
    recording = open_recording(Path(rows[0]["recording"]), wanted)
    windows = windows_ending(recording, ReplayPlan(**folder.plan), chosen)
    return [
        ShownWindow(
            chosen[window.stamp_ns],
            window.frames[-1].image,
            render_event_images(window.events) if len(window.events) else None,
        )
        for window in windows
    ]
