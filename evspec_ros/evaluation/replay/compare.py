"""`evspec eval --compare A B`: two runs side by side, window by window, with confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from evspec_ros.errors import EvspecError
from evspec_ros.evaluation.replay.store import Row, RunFolder

CONFIDENCE = 0.95
RESAMPLES = 2000
FIGURES: dict[str, Callable[[Row], float | None]] = {
    "whole window, ms": lambda row: row["latency_ms"]["total"],
    "first word, ms": lambda row: row["first_word_ms"],
    "prefill, ms": lambda row: row["latency_ms"]["prefill"],
    "decode, ms": lambda row: row["latency_ms"]["decode"],
    "age, ms": lambda row: row.get("age_ms"),
    "tokens a pass": lambda row: row["accepted_length"],
}


@dataclass(frozen=True)
class ComparedFigure:
    """One figure over the windows that both runs have: each run's mean, and B's over A's with the interval in
    which that lies with a probability of CONFIDENCE.
    """

    name: str
    windows: int
    a: float
    b: float
    ratio: float
    low: float
    high: float

    @property
    def differs(self) -> bool:
        """Whether the interval leaves equality out."""
        return not self.low <= 1.0 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Two runs; same_texts: windows that both have with the same text, of `windows` that both have; only_a,
    only_b: windows that the other run lacks.
    """

    a: str
    b: str
    windows: int
    same_texts: int
    only_a: int
    only_b: int
    differing_options: Mapping[str, tuple[Any, Any]]
    figures: tuple[ComparedFigure, ...]

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def compare_runs(a: Path, b: Path) -> Comparison:
    """Pair the windows of two runs' folders by recording, end and question. Raises EvspecError for a folder
    that holds no run, and for runs that have no window in common.
    """
    folders = RunFolder.opened(a), RunFolder.opened(b)
    first, second = map(_by_window, folders)
    both = [name for name in first if name in second]
    if not both:
        raise EvspecError(f"The runs in {a} and {b} have no window in common: evaluate the same recordings.")
    pairs = [(first[name], second[name]) for name in both]
    options = {
        name: (folders[0].plan[name], folders[1].plan.get(name))
        for name in folders[0].plan
        if folders[0].plan[name] != folders[1].plan.get(name)
    }
    return Comparison(
        str(a),
        str(b),
        len(both),
        sum(one["text"] == other["text"] for one, other in pairs),
        len(first) - len(both),
        len(second) - len(both),
        options,
        tuple(found for name, of in FIGURES.items() if (found := _figure(name, of, pairs)) is not None),
    )


def print_comparison(found: Comparison) -> None:
    """A table, and what differs beside the figures."""
    console = Console(highlight=False)
    table = Table(title=f"A: {found.a}, B: {found.b}", title_justify="left")
    for name in ("mean of", "A", "B", "B / A", f"{CONFIDENCE:.0%} interval", ""):
        table.add_column(name, justify="left" if name in ("mean of", "") else "right")
    for one in found.figures:
        interval = f"{one.low:.3f} to {one.high:.3f}"
        told = "differs" if one.differs else "no difference shown"
        table.add_row(one.name, f"{one.a:.2f}", f"{one.b:.2f}", f"{one.ratio:.3f}", interval, told)
    console.print(table)
    for name, (mine, other) in found.differing_options.items():
        console.print(f"{name}: A {mine}, B {other}", soft_wrap=True, markup=False)
    console.print(
        f"{found.same_texts} of {found.windows} texts are the same; windows of A alone: {found.only_a}, of B "
        f"alone: {found.only_b}."
    )


def ratio_interval(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Where mean(b) / mean(a) lies: windows drawn anew in pairs, RESAMPLES times, the middle CONFIDENCE."""
    drawn = np.random.default_rng(0).integers(0, len(a), (RESAMPLES, len(a)))
    ratios = b[drawn].mean(axis=1) / np.maximum(a[drawn].mean(axis=1), 1e-12)
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _by_window(folder: RunFolder) -> dict[tuple[str, int, str], Row]:
    return {
        (one.hash, row["stamp_ns"], row["question"]): row
        for key, one in folder.finished().items()
        for row in folder.rows(key)
    }


def _figure(
    name: str, of: Callable[[Row], float | None], pairs: Sequence[tuple[Row, Row]]
) -> ComparedFigure | None:
    """None where a run does not have it."""
    values = [(of(one), of(other)) for one, other in pairs]
    known = np.array([pair for pair in values if None not in pair], float).reshape(-1, 2)
    if not len(known) or not known[:, 0].any():
        return None
    a, b = known.T
    low, high = ratio_interval(a, b)
    return ComparedFigure(
        name, len(known), float(a.mean()), float(b.mean()), float(b.mean() / a.mean()), low, high
    )
