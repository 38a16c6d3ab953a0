"""summary.json: what a run's windows say together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from evspec_ros.evaluation.replay.store import SUMMARY, Finished, Row, RunFolder
from evspec_ros.evaluation.text_scores import score_texts
from evspec_ros.files import version
from evspec_ros.networks.devices import compute_device, machine

PERCENTILES = (50, 95, 99)
UNTAUGHT = (
    "The tiny checkpoints in models/ were trained on simulated scenes of coloured shapes alone: of any other "
    "recording they cannot say what is to be seen. Rates, losses and latencies hold all the same."
)


def summarise(folder: RunFolder) -> dict[str, Any]:
    """The figures of all recordings that are done, each alone and all together; ready for JSON."""
    recordings = []
    everything: list[Row] = []
    for key, one in folder.finished().items():
        rows = folder.rows(key)
        everything += rows
        recordings.append(
            {
                "recording": one.path,
                "hash": one.hash,
                "size": one.size,
                "windows": len({row["stamp_ns"] for row in rows}),
                "duration_s": one.duration_s,
                "problem": one.problem,
                "remarks": list(one.remarks),
                "degraded": sorted({row["degraded"] for row in rows} - {""}),
                "cpu_percent": round(100 * one.cpu_s / one.wall_s, 1) if one.wall_s else 0.0,
                "peak_mb": round(one.peak_mb, 1),
                **figures(rows),
                **one.live,
            }
        )
    return {
        "evspec": version(),
        "machine": machine(compute_device(folder.plan["device"])),
        "plan": dict(folder.plan),
        "recordings": recordings,
        "problems": [f"{one['recording']}: {one['problem']}" for one in recordings if one["problem"]],
        "notes": [UNTAUGHT] if ships_target(folder.plan) else [],
        "total": {"windows": sum(one["windows"] for one in recordings), **figures(everything)},
    }


def write_summary(folder: RunFolder) -> dict[str, Any]:
    """`summarise`, written into the folder too."""
    summary = summarise(folder)
    (folder.path / SUMMARY).write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return summary


def ships_target(plan: Mapping[str, Any]) -> bool:
    """Whether the target is one of those that the package ships, which know simulated scenes alone."""
    return Path(plan["target"]).name.startswith("tiny_")


def figures(rows: Sequence[Row]) -> dict[str, Any]:
    """Latency of each stage, speed and acceptance over some windows; text scores where answers are known."""
    if not rows:
        return {}
    stages = {name: [row["latency_ms"][name] for row in rows] for name in rows[0]["latency_ms"]}
    stages["first_word"] = [row["first_word_ms"] for row in rows]
    ages = [row["age_ms"] for row in rows if row.get("age_ms") is not None]
    if ages:
        stages["age"] = ages
    passes = sum(row["statistics"]["target_passes"] for row in rows)
    later = sum(row["statistics"]["tokens"] - row["statistics"]["generations"] for row in rows)
    answered = [row for row in rows if "answer" in row]
    return {
        "texts": len(rows),
        "tokens": sum(row["tokens"] for row in rows),
        "latency_ms": {name: spread(values) for name, values in stages.items()},
        "tokens_per_second": _per_second(rows, "total"),
        "decode_tokens_per_second": round(1000 * later / max(sum(stages["decode"]), 1e-9), 1),
        "accepted_length": round(later / passes, 4) if passes else 0.0,
        "acceptance_by_position": acceptance_by_position(rows),
        "lossless": all(row["lossless"] for row in rows),
        "draft_problems": sorted({row["draft_problem"] for row in rows} - {""}),
        **({"scores": score_texts(*_said_and_right(answered))} if answered else {}),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, percentiles, and jitter: the mean difference of a value from the one before it."""
    found = np.asarray(values, float)
    jitter = float(np.abs(np.diff(found)).mean()) if len(found) > 1 else 0.0
    tails = {f"p{q}": round(float(np.percentile(found, q)), 3) for q in PERCENTILES}
    return {"mean": round(float(found.mean()), 3), **tails, "jitter": round(jitter, 3)}


def acceptance_by_position(rows: Iterable[Row]) -> list[float]:
    """Of the drafts that reached a depth, the share whose token there was emitted."""
    statistics = [row["statistics"] for row in rows]
    drafted, accepted = (
        [sum(column) for column in zip_longest(*(one[name] for one in statistics), fillvalue=0)]
        for name in ("drafted_by_position", "accepted_by_position")
    )
    return [round(right / all_, 4) for right, all_ in zip(accepted, drafted, strict=True) if all_]


def problem_lines(finished: Iterable[Finished]) -> list[str]:
    """A line for each recording that was not evaluated to its end."""
    return [f"{one.path}: {one.problem}" for one in finished if one.problem]


def _per_second(rows: Sequence[Row], stage: str) -> float:
    spent_ms: float = sum(row["latency_ms"][stage] for row in rows)
    tokens: int = sum(row["tokens"] for row in rows)
    return round(1000 * tokens / max(spent_ms, 1e-9), 1)


def _said_and_right(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    return [row["text"] for row in rows], [row["answer"] for row in rows]
